"""The programs that a person starts: parse a command line, call the parts, print what comes out."""

import os

# Before TensorFlow is imported, by whichever program: its own messages would bury ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Convolutions of float32 take half the time; TensorFlow itself uses it only where there is AVX512.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
