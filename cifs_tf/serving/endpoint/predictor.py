"""From tensors to a prediction, for REST and gRPC alike: checks, limits, batches."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from cifs_tf.serving.endpoint.images import check_images
from cifs_tf.serving.endpoint.metrics import Metrics
from cifs_tf.serving.endpoint.options import ServerOptions
from cifs_tf.serving.endpoint.signatures import check_names, check_tensors, find_signature, is_batchable, select_outputs
from cifs_tf.serving.endpoint.status import Code, StatusError, invalid_argument
from cifs_tf.serving.endpoint.versions import Version, Versions

# Memory of an empty text.
BYTES_OF_A_TEXT = 64


class Runner(Protocol):
    """Runs a batch of rows, alone or together with others: `Predictor` itself, or a `Batcher`."""

    def __call__(
        self,
        version: Version,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        outputs: tuple[str, ...],
        deadline: float,
    ) -> dict[str, np.ndarray]:
        """Return outputs by name, unless the run cannot begin by `deadline`, in `time.monotonic()`."""


class Predictor:
    """Answers a request whose tensors are known.

    Args:
        versions: the loaded models.
        metrics: where runs are timed.
        options: of the server; its limits say what a request may cost.
        batcher: brings requests together; None (default) runs each by itself.
    """

    def __init__(
        self, versions: Versions, metrics: Metrics, options: ServerOptions, batcher: Runner | None = None
    ) -> None:
        self.versions, self.metrics, self.options = versions, metrics, options
        self._run: Runner = batcher or run_alone

    def count(self, model: str, api: str, entrypoint: str) -> contextlib.AbstractContextManager[None]:
        """Count and time a request, see `Metrics.request`, unless it names a model that is not served."""
        if model not in self.versions.configs():
            return contextlib.nullcontext()
        return self.metrics.request(model, api, entrypoint)

    def predict(
        self,
        version: Version,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        output_filter: Sequence[str] = (),
        started: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Run a model.

        Args:
            version: in use as long as this takes.
            signature_name: empty for `serving_default`.
            inputs: tensors by input name.
            output_filter: outputs to return; empty (default) for all.
            started: `time.monotonic()` when the request came. Default now.

        Returns:
            tensors by output name.

        Raises:
            StatusError: in TF Serving's words, wherever it has any for the case.
        """
        deadline = (time.monotonic() if started is None else started) + self.options.timeout
        name, signature = find_signature(version.loaded.signatures, signature_name)
        check_names(signature, list(inputs))
        outputs = tuple(select_outputs(signature, output_filter))
        check_tensors(signature, inputs)
        for tensor in inputs.values():
            if tensor.dtype == object:
                if tensor.size * BYTES_OF_A_TEXT > self.options.max_request_bytes:
                    raise invalid_argument(f"{tensor.size} texts in a request are too many (--max_request_bytes)")
                check_images(tensor.reshape(-1).tolist(), self.options.max_image_pixels)
        lengths = {len(tensor) if tensor.ndim else -1 for tensor in inputs.values()}
        with self.metrics.run(version.model):
            if len(lengths) > 1 or -1 in lengths or not is_batchable(signature):
                return run_alone(version, name, inputs, outputs, deadline)
            parts, (rows,) = [], lengths
            # A batcher has a limit of its own, and its own message.
            step = self.options.max_run_rows if self._run is run_alone else max(1, rows)
            for start in range(0, max(1, rows), step):
                part = {key: tensor[start : start + step] for key, tensor in inputs.items()}
                parts.append(self._run(version, name, part, outputs, deadline))
        return parts[0] if len(parts) == 1 else {key: np.concatenate([p[key] for p in parts]) for key in outputs}


def run_alone(
    version: Version,
    signature_name: str,
    inputs: Mapping[str, np.ndarray],
    outputs: tuple[str, ...],
    deadline: float = math.inf,
) -> dict[str, np.ndarray]:
    """Run a request's rows by themselves."""
    check_deadline(deadline)
    return version.loaded.run(signature_name, inputs, outputs)


def check_deadline(deadline: float) -> None:
    """Raise DEADLINE_EXCEEDED if it is past."""
    if time.monotonic() > deadline:
        raise StatusError(Code.DEADLINE_EXCEEDED, "Deadline exceeded before the model could run; the server is busy")
