"""Programs that a person starts: train, evaluate, measure speed."""

import os

# Before TensorFlow is imported, by whichever program: its own messages would bury ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
