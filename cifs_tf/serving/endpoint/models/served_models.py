"""The models to serve: their folders, versions and labels."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

MAX_VERSION = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model to serve, and which of its versions.

    Args:
        name: by which requests call it.
        base_path: folder of its versions, each a folder whose name is a number.
        latest: serve so many of the highest versions, >= 1. Default 1.
        specific: serve these versions instead. Default none.
        all_versions: serve whatever is there. Default false.
        labels: versions by label. Default none.
    """

    name: str
    base_path: Path
    latest: int = 1
    specific: tuple[int, ...] = ()
    all_versions: bool = False
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def wanted(self) -> dict[int, Path]:
        """Return the versions that are there and asked for, with their folders."""
        found = {}
        with contextlib.suppress(OSError):
            for child in self.base_path.iterdir():
                # 00000123 is version 123; what else lies there, such as a copy under a temporary name, is no version.
                if child.name.isascii() and child.name.isdigit() and int(child.name) <= MAX_VERSION and child.is_dir():
                    found[int(child.name)] = child
        if self.specific:
            return {version: path for version, path in found.items() if version in self.specific}
        return found if self.all_versions else {version: found[version] for version in sorted(found)[-self.latest :]}


@dataclasses.dataclass(frozen=True)
class Target:
    """The model and version that a request names.

    Args:
        model: name of the model.
        version: number of the version, or None.
        label: label of the version, or None.
    """

    model: str
    version: int | None
    label: str | None


def served_models(message: ModelServerConfig) -> list[ServedModel]:
    """Read the models of TF Serving's config, which `check_model_config` has found sound.

    Example:
        >>> from google.protobuf.text_format import Parse
        >>> text = 'model_config_list { config { name: "m" base_path: "/models/m" } }'
        >>> [model.name for model in served_models(Parse(text, ModelServerConfig()))]
        ['m']
    """
    models = []
    for model in message.model_config_list.config:
        policy = model.model_version_policy
        kind = policy.WhichOneof("policy_choice")
        models.append(
            ServedModel(
                model.name,
                Path(model.base_path),
                latest=max(1, policy.latest.num_versions) if kind == "latest" else 1,
                specific=tuple(policy.specific.versions) if kind == "specific" else (),
                all_versions=kind == "all",
                labels=dict(model.version_labels),
            )
        )
    return models
