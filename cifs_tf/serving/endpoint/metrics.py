"""Metrics for Prometheus: TF Serving's under TF Serving's names, and those of the process."""

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from cifs_tf.serving.endpoint.status import Code, StatusError

# Microseconds: 10 * 1.8^n.
BUCKETS = tuple(10 * 1.8**n for n in range(33))


class Metrics:
    """Counts and times requests.

    Example:
        >>> metrics = Metrics()
        >>> with metrics.request("m", "Predict", "REST"):
        ...     pass
        >>> b":tensorflow:serving:request_count" in metrics.page()
        True
    """

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            ":tensorflow:serving:request_count",
            "The total number of requests.",
            ["model_name", "status"],
            registry=self._registry,
        )
        self._latency = self._histogram(
            ":tensorflow:serving:request_latency", "for Tensorflow Serving requests", "model_name", "API", "entrypoint"
        )
        self._runtime = self._histogram(
            ":tensorflow:serving:runtime_latency", "for Tensorflow runtime", "model_name", "API", "runtime"
        )
        self._warmup = self._histogram(
            ":tensorflow:serving:model_warmup_latency", "for warming up the model", "model_path", "status"
        )
        self._load = self._histogram(
            ":tensorflow:cc:saved_model:load_latency", "for loading a model", "model_path", "status"
        )

    @contextlib.contextmanager
    def request(self, model: str, api: str, entrypoint: str) -> Iterator[None]:
        """Count and time a request, and how it ended.

        Args:
            model: one of the served models: a client must not be able to make new labels.
            api: such as `"Predict"`.
            entrypoint: `"REST"` or `"GRPC"`.
        """
        started = time.perf_counter()
        status = Code.OK
        try:
            yield
        except StatusError as error:
            status = error.code
            raise
        except Exception:
            status = Code.INTERNAL
            raise
        finally:
            self._requests.labels(model, status.name).inc()
            self._latency.labels(model, api, entrypoint).observe(_microseconds_since(started))

    @contextlib.contextmanager
    def run(self, model: str) -> Iterator[None]:
        """Time a run of the model."""
        started = time.perf_counter()
        yield
        self._runtime.labels(model, "Predict", "TF1").observe(_microseconds_since(started))

    @contextlib.contextmanager
    def warmup(self, path: str) -> Iterator[None]:
        """Time the warm-up of a version."""
        started = time.perf_counter()
        yield
        self._warmup.labels(path, "OK").observe(_microseconds_since(started))

    def loaded(self, path: str, seconds: float) -> None:
        """Note how long a version took to load."""
        self._load.labels(path, "OK").observe(seconds * 1e6)

    def _histogram(self, name: str, of: str, *labels: str) -> Histogram:
        about = f"Distribution of wall time (in microseconds) {of}."
        return Histogram(name, about, labels, buckets=BUCKETS, registry=self._registry)

    def page(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        # The library ends a counter's name in _total, TF Serving does not.
        return generate_latest(self._registry).replace(b":request_count_total", b":request_count")


def _microseconds_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e6
