"""The flags of `tensorflow_model_server` that this server does not have: harmless ones pass with a line, others not."""

import sys
from collections.abc import Sequence

from cifs_tf.errors import UserError

SELF = "this server does so by itself"
HARMLESS = {
    "num_load_threads": "models load in a thread of their own, beside requests",
    "num_unload_threads": "models are unloaded in a thread of their own, beside requests",
    "flush_filesystem_caches": "the caches of files are left to the system",
    "remove_unused_fields_from_bundle_metagraph": SELF,
    "xla_cpu_compilation_enabled": "functions that ask for XLA are compiled",
    "xla_gpu_compilation_enabled": "functions that ask for XLA are compiled",
    "num_tflite_pools": "there are no TensorFlow Lite models here",
    "num_tflite_interpreters_per_pool": "there are no TensorFlow Lite models here",
    "enable_profiler": "there is no profiler service here; TensorBoard profiles training",
    "skip_initialize_tpu": "there is no TPU here",
}
REFUSED = {
    "enable_per_model_batching_parameters": "parameters are for all models here, give --batching_parameters_file",
    "use_alts_credentials": "ALTS is Google's, give --ssl_config_file for TLS",
    "platform_config_file": "platforms cannot be configured here, give --tensorflow_session_config_file",
    "prefer_tflite_model": "TensorFlow Lite is not run here, serve the SavedModel or, with --backend onnx, ONNX",
    "thread_pool_factory_config_file": "thread pools cannot be made here, give --tensorflow_intra_op_parallelism",
    "mixed_precision": "a model runs in the precision in which it was exported, export it in the one you want",
}
OFF = ("", "false", "0")


def leave_out_foreign_flags(argv: Sequence[str]) -> list[str]:
    """Return a command line without the flags of TF Serving that make no difference here; each gets a line.

    Args:
        argv: arguments without the program's name.

    Raises:
        UserError: for a flag that would make one; switched off it passes.

    Example:
        >>> leave_out_foreign_flags(["--port=8500", "--mixed_precision="])
        ['--port=8500']
    """
    kept, waiting = [], list(reversed(argv))
    while waiting:
        argument = waiting.pop()
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or (name not in HARMLESS and name not in REFUSED):
            kept.append(argument)
            continue
        if not equals:
            value = waiting.pop() if waiting and not waiting[-1].startswith("--") else "true"
        if name in HARMLESS:
            print(f"{flag} makes no difference: {HARMLESS[name]}", file=sys.stderr)
        elif value.strip('"').lower() not in OFF:
            raise UserError(flag, value, REFUSED[name])
    return kept
