"""From tensors to a prediction, for all protocols alike: checks, limits, batches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from cifs_tf.serving.endpoint.metrics import Metrics
from cifs_tf.serving.endpoint.models.signatures import (
    add_defaults,
    check_names,
    check_rows,
    check_tensors,
    count_rows,
    find_signature,
    select_outputs,
)
from cifs_tf.serving.endpoint.models.versions import Version, Versions
from cifs_tf.serving.endpoint.options import ServerOptions
from cifs_tf.serving.endpoint.prediction.images import check_image_files, holds_images
from cifs_tf.serving.endpoint.status import Code, StatusError, invalid_argument
from cifs_tf.serving.endpoint.tensor_types import BYTES_OF_A_TEXT


class Runner(Protocol):
    """Runs a batch of rows together with those of other requests, such as a `Batcher`."""

    def __call__(
        self,
        version: Version,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        outputs: tuple[str, ...],
        deadline: float,
        row_wise: bool,
    ) -> dict[str, np.ndarray]:
        """Return outputs by name, unless the run cannot end by `deadline`, in `time.monotonic()`.

        `row_wise` says that the answer for a row is known to depend on that row alone.
        """


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
        self._batcher = batcher

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
        deadline: float = math.inf,
    ) -> dict[str, np.ndarray]:
        """Run a model.

        Args:
            version: in use as long as this takes.
            signature_name: empty for `serving_default`.
            inputs: tensors by input name.
            output_filter: outputs to return; empty (default) for all.
            deadline: in `time.monotonic()`, when the run is to be given up. Default never.

        Returns:
            tensors by output name.

        Raises:
            StatusError: in TF Serving's words, wherever it has any for the case.
        """
        name, signature = find_signature(version.loaded.signatures, signature_name)
        check_names(signature, list(inputs))
        outputs = tuple(select_outputs(signature, output_filter))
        inputs = add_defaults(signature, inputs)
        check_tensors(signature, inputs)
        self._check_texts(name, inputs)
        with self.metrics.run(version.model):
            return self._run(version, name, signature, inputs, outputs, deadline)

    def _check_texts(self, signature_name: str, inputs: Mapping[str, np.ndarray]) -> None:
        for name, tensor in inputs.items():
            if tensor.dtype == object:
                if tensor.size * BYTES_OF_A_TEXT > self.options.max_request_bytes:
                    raise invalid_argument(f"{tensor.size} texts in a request are too many (--max_request_bytes)")
                if holds_images(signature_name, name):
                    check_image_files(tensor.reshape(-1).tolist(), self.options.max_image_pixels)

    def _run(
        self,
        version: Version,
        name: str,
        signature: SignatureDef,
        inputs: Mapping[str, np.ndarray],
        outputs: tuple[str, ...],
        deadline: float,
    ) -> dict[str, np.ndarray]:
        rows, step = count_rows(signature, inputs, outputs), self.options.max_run_rows
        row_wise = name in version.loaded.row_wise or version.model in self.options.row_wise_models
        if rows is not None and self._batcher:
            return self._batcher(version, name, inputs, outputs, deadline, row_wise)
        if rows is not None and rows > step and row_wise and name not in version.single:
            parts = []
            try:
                for start in range(0, rows, step):
                    part = {key: tensor[start : start + step] for key, tensor in inputs.items()}
                    parts.append(version.loaded.run(name, part, outputs, deadline))
                    check_rows(parts[-1], min(step, rows - start))
                return {key: np.concatenate([part[key] for part in parts]) for key in outputs}
            except StatusError as error:
                if error.code != Code.FAILED_PRECONDITION:
                    raise
                version.run_singly(name, error.message)
        return version.loaded.run(name, inputs, outputs, deadline)
