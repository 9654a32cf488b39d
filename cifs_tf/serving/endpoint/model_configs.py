"""From TF Serving's `ModelServerConfig` to what this server watches."""

from __future__ import annotations

from pathlib import Path

from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from cifs_tf.serving.endpoint.status import invalid_argument
from cifs_tf.serving.endpoint.versions import ModelConfig


def to_configs(message: ModelServerConfig) -> list[ModelConfig]:
    """Read the models of a config.

    Args:
        message: with a `model_config_list`.

    Returns:
        a config per model.

    Raises:
        StatusError: INVALID_ARGUMENT for a name that occurs twice.

    Example:
        >>> to_configs(read_model_config("models.config"))[0].labels
        {'stable': 1}
    """
    configs: dict[str, ModelConfig] = {}
    for model in message.model_config_list.config:
        if model.name in configs:
            raise invalid_argument(f"Duplicate model name {model.name} in the config")
        policy = model.model_version_policy
        kind = policy.WhichOneof("policy_choice")
        configs[model.name] = ModelConfig(
            model.name,
            Path(model.base_path),
            latest=max(1, policy.latest.num_versions) if kind == "latest" else 1,
            specific=tuple(policy.specific.versions) if kind == "specific" else (),
            all_versions=kind == "all",
            labels=dict(model.version_labels),
        )
    return list(configs.values())
