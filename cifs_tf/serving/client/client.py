"""A served classifier, asked over REST or gRPC."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cifs_tf.errors import UserError
from cifs_tf.serving.client.images import Picture, Shape, find_wrong_size, to_array, to_bytes
from cifs_tf.serving.client.rest_transport import Rest
from cifs_tf.serving.client.transport import ModelSpec, Signature, Tensor, Transport
from cifs_tf.sizes import Resize

REST_URL = "http://127.0.0.1:8501"


class Client:
    """A served classifier.

    Args:
        target: URL of the REST interface, such as `http://127.0.0.1:8501`, or `HOST:PORT` of the gRPC interface, which
            may have `grpc://` in front. Default `http://127.0.0.1:8501`.
        model: name under which it is served. Default `default`, as of a server that was given no name.
        version: of the model. Default None: the newest.
        label: of the model's version. Default None.
        signature: which function `predict` asks, of one input: images as bytes or as floats. Default `encoded`.
        tls_ca: PEM file of the certificates to trust. Default None: those of the system for https, no TLS for gRPC.
        resize: how images of another size are resized here, `"crop"`, `"stretch"` (or True) or `"pad"`. Default False:
            they are sent as they are, and refused, unless the model resizes them.
        batch_size: images per request, at most; 1 or more. Default 32.
        timeout: seconds to wait for an answer, above 0. Default 30.

    Raises:
        UserError: for an argument that does not fit; later, with the server's own words, if it does not answer.

    Example:
        >>> client = Client("http://127.0.0.1:8501", "cifs")
        >>> client.predict(["cat.png", "dog.png"])["probabilities"].shape  # doctest: +SKIP
        (2, 10)
        >>> client.explain(["cat.png"])["disagreement"]  # doctest: +SKIP
        array([0.03], dtype=float32)
    """

    def __init__(
        self,
        target: str = REST_URL,
        model: str = "default",
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str = "encoded",
        tls_ca: str | Path | None = None,
        resize: Resize | bool = False,
        batch_size: int = 32,
        timeout: float = 30.0,
    ) -> None:
        if batch_size < 1:
            raise UserError("batch_size", batch_size, "give a number of 1 or more")
        if not timeout > 0:
            raise UserError("timeout", timeout, "give a number of seconds above 0")
        self.signature, self.resize, self.batch_size = signature, resize, batch_size
        spec = ModelSpec(model, version, label)
        scheme, separator, address = target.partition("://")
        if separator and scheme != "grpc":
            self._transport: Transport = Rest(target, spec, timeout, tls_ca)
        else:
            with _quiet_import():
                from cifs_tf.serving.client.grpc_transport import Grpc

            self._transport = Grpc(address if separator else target, spec, timeout, tls_ca)
        self._signatures: dict[str, Signature] | None = None

    def metadata(self) -> dict[str, Signature]:
        """Return the model's signatures by name, with what they take and give; the server is asked once.

        Raises:
            UserError: if no server answers, or it has no such model.
        """
        if self._signatures is None:
            self._signatures = self._transport.signatures()
        return self._signatures

    def predict(self, images: Sequence[Picture]) -> dict[str, np.ndarray]:
        """Classify images.

        Args:
            images: files, their bytes, or arrays (height, width, channels) of uint8, or of floats in [0, 1] for a
                signature that takes floats.

        Returns:
            the signature's outputs by name, such as `probabilities` (images, classes), in the order of the images.

        Raises:
            UserError: if an image does not fit, or with the server's own words.
        """
        return self._run(self.signature, images)

    def explain(self, images: Sequence[Picture]) -> dict[str, np.ndarray]:
        """Ask which channels and probes decided about images.

        Args:
            images: as for `predict`.

        Returns:
            `probabilities` (images, classes); `heads` (images, 1 + probes, classes), of the output and of every probe;
            and of a model that selects, `disagreement` (images,) in [0, 1], and of every layer that does,
            `relevance_NAME` and `importance_NAME` (images, channels).

        Raises:
            UserError: if an image does not fit, or with the server's own words.
        """
        return self._run("explain", images)

    def image_shape(self) -> Shape | None:
        """Return height, width and channels that the model takes, or None if none of its signatures says so."""
        for signature in self.metadata().values():
            for tensor in signature.inputs.values():
                shape = tensor.shape[1:] if tensor.dtype == "DT_FLOAT" and tensor.shape else ()
                if len(shape) == 3 and None not in shape:
                    return shape  # type: ignore[return-value]
        return None

    def _run(self, name: str, images: Sequence[Picture]) -> dict[str, np.ndarray]:
        if len(images) == 0:
            raise UserError("images", "none", "give one or more")
        signature = self._find(name)
        (tensor,) = signature.inputs.values()
        # All of them first: the last image may be the one that does not fit.
        prepared = self._prepare(images, tensor)
        batches = [prepared[start : start + self.batch_size] for start in range(0, len(prepared), self.batch_size)]
        try:
            answers = [self._transport.run(name, signature, batch) for batch in batches]
        except UserError as error:
            shape = self.image_shape()
            wrong = (
                find_wrong_size(images, shape) if shape and tensor.dtype == "DT_STRING" and not self.resize else None
            )
            if wrong is None:
                raise
            # The server's words for an image of another size are those of TensorFlow.
            raise UserError(wrong.argument, wrong.received, f"{wrong.advice} ({error.advice})") from error
        return {key: np.concatenate([answer[key] for answer in answers]) for key in answers[0]}

    def _find(self, name: str) -> Signature:
        signatures = self.metadata()
        if name not in signatures:
            known = ", ".join(sorted(key for key in signatures if not key.startswith("__")))
            raise UserError("signature", name, f"the model has no such function, it has {known}")
        if len(signatures[name].inputs) != 1:
            names = ", ".join(sorted(signatures[name].inputs)) or "none"
            raise UserError("signature", name, f"give one that takes images and nothing else, its inputs are: {names}")
        return signatures[name]

    def _prepare(self, images: Sequence[Picture], tensor: Tensor) -> np.ndarray | list[bytes]:
        shape = self.image_shape()
        if tensor.dtype == "DT_STRING":
            return [to_bytes(image, shape if self.resize else None, self.resize) for image in images]
        if tensor.dtype != "DT_FLOAT" or shape is None:
            advice = f"give one that takes PNG or JPEG bytes or float images, it takes {tensor.dtype} of {tensor.shape}"
            raise UserError("signature", self.signature, advice)
        return np.stack([to_array(image, shape, self.resize) for image in images])


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Hide messages of TensorFlow's C++ parts about missing GPUs, which come before they can be switched off."""
    if "tensorflow" in sys.modules:
        yield
        return
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
