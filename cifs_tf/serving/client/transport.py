"""The common parts of REST and gRPC: signatures, the model that is asked, and the calls `signatures` and `run`."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cifs_tf.errors import UserError

HOW_TO_START = "start a server with: python serving/server.py --model_base_path DIR"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a signature.

    Args:
        dtype: such as `DT_FLOAT` or `DT_STRING`.
        shape: None for a dimension that may be anything; None as a whole if even the rank may.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one of a model's functions, by name."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The model that is asked.

    Args:
        name: of the model.
        version: its version. Default None: the newest, or that of the label.
        label: such as `stable`. Default None.
    """

    name: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("model", repr(self.name), "give the name under which it is served")
        if self.version is not None and self.label is not None:
            raise UserError("label", self.label, f"give a label or a version, not both (version {self.version})")
        if self.version is not None and self.version < 0:
            raise UserError("version", self.version, "give a number of 0 or more")

    def refused(self, option: str, address: str, status: str, message: str, not_found: bool) -> UserError:
        """Make the error for a status, naming the model, version or label that is not there, or else the address."""
        words = " ".join(message.split())
        if not (not_found or "servable version label" in message):
            return UserError(option, address, f"the server answered {status}: {words}")
        argument: tuple[str, Any] = ("version", f"{self.version} of {self.name}")
        if self.label is not None and "label" in message:
            argument = ("label", self.label)
        elif self.version is None:
            argument = ("model", self.name)
        return UserError(*argument, f"the server at {address} answered {status}: {words}")


class Transport(Protocol):
    """A connection, as `Client` uses it."""

    def signatures(self) -> dict[str, Signature]:
        """Ask for the model's signatures by name."""

    def run(self, name: str, signature: Signature, batch: np.ndarray | Sequence[bytes]) -> dict[str, np.ndarray]:
        """Run a signature of one input on a batch, and return its outputs by name."""


def too_slow(address: str, timeout: float) -> UserError:
    """Make the error for a server that does not answer in time."""
    advice = f"{address} did not answer in that time, give more, or fewer images with --batch_size"
    return UserError("timeout", f"{timeout:g} seconds", advice)


def shape_of(sizes: Iterable[Any]) -> tuple[int | None, ...]:
    """Return a shape in which a dimension that may be anything, below 0, is None."""
    return tuple(None if int(size) < 0 else int(size) for size in sizes)


def read_certificates(path: str | Path) -> bytes:
    """Read a PEM file of certificates; another file is refused with a `UserError`."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError("tls_ca", path, f"give a readable PEM file of certificates ({error.strerror})") from error
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise UserError("tls_ca", path, "it holds no certificate, give a PEM file of certificates")
    return content
