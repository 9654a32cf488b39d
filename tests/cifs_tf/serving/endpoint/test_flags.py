"""Every flag of tensorflow_model_server is known: followed, passed with a line, or refused with the reason."""

import dataclasses

import pytest

from cifs_tf.errors import UserError
from cifs_tf.serving.endpoint.config_files import read_batching_parameters, read_model_config
from cifs_tf.serving.endpoint.foreign_flags import HARMLESS, REFUSED, leave_out_foreign_flags
from cifs_tf.serving.endpoint.options import ServerOptions

# Those of model_servers/main.cc, version 2.21.
FLAGS = """
port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms rest_api_enable_cors_support
enable_batching allow_version_labels_for_unavailable_models batching_parameters_file
enable_per_model_batching_parameters model_config_file model_config_file_poll_wait_seconds model_name model_base_path
num_load_threads num_unload_threads max_num_load_retries load_retry_interval_micros file_system_poll_wait_seconds
flush_filesystem_caches tensorflow_session_parallelism tensorflow_session_config_file tensorflow_intra_op_parallelism
tensorflow_inter_op_parallelism use_alts_credentials ssl_config_file platform_config_file
per_process_gpu_memory_fraction saved_model_tags grpc_channel_arguments grpc_max_threads enable_model_warmup
num_request_iterations_for_warmup monitoring_config_file remove_unused_fields_from_bundle_metagraph
prefer_tflite_model num_tflite_pools num_tflite_interpreters_per_pool enable_signature_method_name_check
xla_cpu_compilation_enabled xla_gpu_compilation_enabled enable_profiler thread_pool_factory_config_file
mixed_precision skip_initialize_tpu enable_grpc_healthcheck_service enable_serialization_as_tensor_content
"""


def test_every_flag_is_known():
    followed = {field.name for field in dataclasses.fields(ServerOptions)}
    assert set(FLAGS.split()) <= followed | set(HARMLESS) | set(REFUSED)
    assert not followed & (set(HARMLESS) | set(REFUSED))


@pytest.mark.parametrize("flag", HARMLESS)
def test_harmless_flags_pass_with_a_line(flag, capsys):
    assert leave_out_foreign_flags([f"--{flag}", "4", "--port=1"]) == ["--port=1"]
    assert leave_out_foreign_flags([f"--{flag}=4", "--port=1"]) == ["--port=1"]
    assert leave_out_foreign_flags(["--port=1", f"--{flag}"]) == ["--port=1"]
    assert capsys.readouterr().err.count(f"--{flag} makes no difference") == 3


@pytest.mark.parametrize("flag", REFUSED)
def test_others_are_refused_with_the_reason_unless_they_are_off(flag):
    assert leave_out_foreign_flags([f"--{flag}=false", f"--{flag}=", "--port=1"]) == ["--port=1"]
    with pytest.raises(UserError) as caught:
        leave_out_foreign_flags([f"--{flag}=x"])
    assert (caught.value.argument, caught.value.advice) == (f"--{flag}", REFUSED[flag])


@pytest.mark.parametrize(("path", "word"), [("gs://b/m", "gcloud"), ("s3://b/m", "aws s3 sync"), ("x://m", "client")])
def test_folders_of_a_cloud(path, word, tmp_path):
    with pytest.raises(UserError, match=word):
        ServerOptions(model_base_path=path)
    file = tmp_path / "models"
    file.write_text(f'model_config_list {{ config {{ name: "m" base_path: "{path}" model_platform: "tensorflow" }} }}')
    with pytest.raises(UserError, match=word):
        read_model_config(file)


def test_a_config_file_wins_over_a_base_path(tmp_path):
    options = ServerOptions(model_base_path="/models/model", model_config_file=str(tmp_path / "models"))
    assert options.model_config_file


def test_batching_parameters_of_split_requests(tmp_path):
    file = tmp_path / "batching"
    split = "max_batch_size { value: 8 } enable_large_batch_splitting { value: true } "
    file.write_text(split + "max_execution_batch_size { value: 4 } allowed_batch_sizes: 4")
    assert read_batching_parameters(file).max_execution_batch_size.value == 4
    file.write_text(split + "max_execution_batch_size { value: 9 }")
    with pytest.raises(UserError, match="at most max_batch_size"):
        read_batching_parameters(file)
    file.write_text(split + "max_execution_batch_size { value: 4 } allowed_batch_sizes: 8")
    with pytest.raises(UserError, match="must equal max_execution_batch_size"):
        read_batching_parameters(file)
