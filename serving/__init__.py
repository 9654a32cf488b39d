"""From a trained run to an endpoint: export, a server that speaks TF Serving's language, a client, deployment files."""

import os

# Twice as fast as TensorFlow's own kernels on a CPU; the same choice as in training.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
