"""Serve exported models with TF Serving's REST and gRPC APIs.

    python serving/server.py --model_base_path runs/digits/export/cifs --model_name cifs
    curl http://127.0.0.1:8501/v1/models/cifs
    python serving/server.py --model_config_file models.config --enable_batching
    python serving/server.py --model_base_path DIR --backend onnx

Flags, files and answers are TF Serving's, so that the real one can take its place by changing host and port. As there,
a SavedModel runs its operations, whatever they do: serve models that you trust. Ctrl-C or SIGTERM answers what has come
and ends.
"""

import os
from collections.abc import Sequence

from cifs_tf.command_line import parse_options
from cifs_tf.extras import own_version, require
from cifs_tf.serving.endpoint.foreign_flags import leave_out_foreign_flags
from cifs_tf.serving.endpoint.options import ServerOptions


def main(argv: Sequence[str]) -> int:
    """Run the server until SIGTERM or SIGINT."""
    if "--version" in argv:
        print(f"cifs-tf {own_version()}, with the APIs of TensorFlow ModelServer")
        return 0
    options = parse_options(ServerOptions, "serving/server.py", leave_out_foreign_flags(argv), __doc__)
    require("serve")
    # oneDNN's own allocator keeps what it ever had: the memory of a model would stay after it was replaced.
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    # TensorFlow takes seconds to import: not before the options have been checked.
    from cifs_tf.serving.endpoint.server import serve

    serve(options)
    return 0
