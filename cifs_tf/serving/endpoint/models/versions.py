"""The versions of the served models: watched folders, states, and contexts that keep a version loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from cifs_tf.serving.endpoint.models.servables import Servable, return_memory
from cifs_tf.serving.endpoint.models.served_models import ServedModel
from cifs_tf.serving.endpoint.status import Code, StatusError, invalid_argument

State = ModelVersionStatus.State
LOGGER = logging.getLogger("serving")


@dataclasses.dataclass
class Version:
    """One version of a model, from its first sight to the end of the server.

    Args:
        model: name of the model.
        number: of the version.
        path: its folder.
    """

    model: str
    number: int
    path: Path
    state: int = State.START
    error: StatusError | None = None
    servable: Servable | None = None
    uses: int = 0
    failures: int = 0
    retry_at: float = 0.0
    files: tuple = ()
    # Signatures whose requests are never split, and never share a run.
    single: set[str] = dataclasses.field(default_factory=set)
    # Made for the first request: it takes milliseconds, and never changes.
    metadata_text: str | None = None
    json_inputs: dict = dataclasses.field(default_factory=dict)

    @property
    def loaded(self) -> Servable:
        """The servable of a version in use."""
        assert self.servable is not None, "a version in use is loaded"
        return self.servable

    def run_singly(self, signature: str, reason: str) -> None:
        """Let every request for a signature be one run of its own from now on; the log says why, once."""
        if signature not in self.single:
            self.single.add(signature)
            LOGGER.warning(
                "%s version %d, signature %s, is not batched from now on: %s",
                self.model,
                self.number,
                signature,
                reason,
            )


class Versions:
    """Loads, replaces and unloads versions while requests run.

    A new version is loaded beside the old one, which is given up only once the new one can answer, and whose last
    request is waited for. A version that cannot be loaded never replaces one that works; it is tried again when its
    files change, and a few times without that.

    Args:
        load: makes a `Servable` from a version's folder, warm; raises `StatusError`.
        max_load_retries: further attempts without a change of the files, >= 0. Default 5, TF Serving's.
        retry_interval: seconds between them, > 0. Default 60, TF Serving's.
        unavailable_labels: take labels of versions that are not loaded. Default false.
        on_load: called with a version and the seconds that loading took.
    """

    def __init__(
        self,
        load: Callable[[Path], Servable],
        *,
        max_load_retries: int = 5,
        retry_interval: float = 60.0,
        unavailable_labels: bool = False,
        on_load: Callable[[Version, float], None] = lambda version, seconds: None,
    ) -> None:
        self._load, self._on_load = load, on_load
        self._max_load_retries, self._retry_interval = max_load_retries, retry_interval
        self._unavailable_labels = unavailable_labels
        self._configs: dict[str, ServedModel] = {}
        self._versions: dict[str, dict[int, Version]] = {}
        # Guards what is above and every Version; never held while a model loads, runs or closes.
        self._changed = threading.Condition()
        self._polling = threading.Lock()

    def configure(self, configs: list[ServedModel]) -> None:
        """Ask for these models, and no others; `poll` does it.

        Raises:
            StatusError: FAILED_PRECONDITION if a label names a version that a known model has not loaded.
        """
        refused = None
        with self._changed:
            old, self._configs = self._configs, {config.name: config for config in configs}
            for config in configs:
                for label, number in config.labels.items() if config.name in old else ():
                    version = self._versions.get(config.name, {}).get(number)
                    if self._unavailable_labels or (version and version.state == State.AVAILABLE):
                        continue
                    # Versions follow the new config, so that the next try can succeed; labels stay until then.
                    labels = old[config.name].labels
                    self._configs[config.name] = dataclasses.replace(config, labels=labels)
                    refused = StatusError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to {number} of model {config.name}, which is not currently "
                        f"available for inference (label {label})",
                    )
        if refused:
            raise refused

    def configs(self) -> dict[str, ServedModel]:
        """Return the models that are to be served, by name."""
        with self._changed:
            return dict(self._configs)

    def poll(self) -> None:
        """Look at the folders once, load what is new, unload what is replaced; returns when that is done."""
        with self._polling:
            for name in {*self.configs(), *self._versions}:
                self._poll_model(name)

    @contextlib.contextmanager
    def use(self, model: str, number: int | None = None, label: str | None = None) -> Iterator[Version]:
        """Keep a version loaded as long as the context lasts.

        Args:
            model: name of the model.
            number: of the version; None (default) is the highest that is loaded.
            label: of the version, instead of its number. Default none.

        Yields:
            a version with a servable.

        Raises:
            StatusError: NOT_FOUND if it is not loaded, INVALID_ARGUMENT for an unknown label.
        """
        with self._changed:
            if label:
                config = self._configs.get(model)
                if config is None or label not in config.labels:
                    raise invalid_argument(f"Unrecognized servable version label: {label}")
                number = config.labels[label]
            number = self._meant(model, number)
            loaded = {n: v for n, v in self._versions.get(model, {}).items() if v.state == State.AVAILABLE}
            if (number is None and not loaded) or (number is not None and number not in loaded):
                wanted = f"Latest({model})" if number is None else f"Specific({model}, {number})"
                raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {wanted}")
            version = loaded[max(loaded) if number is None else number]
            version.uses += 1
        try:
            yield version
        finally:
            with self._changed:
                version.uses -= 1
                if not version.uses:
                    self._changed.notify_all()

    def states(self, model: str, number: int | None = None) -> list[ModelVersionStatus]:
        """Return the states of a model's versions, or of one, the highest first.

        Raises:
            StatusError: NOT_FOUND if there are none.
        """
        with self._changed:
            versions, number = self._versions.get(model, {}), self._meant(model, number)
            if number is not None and number not in versions:
                raise StatusError(Code.NOT_FOUND, f"Could not find version {number} of model {model}")
            if not versions:
                raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {model}")
            return [_status(versions[n]) for n in sorted(versions, reverse=True) if number in (None, n)]

    def _meant(self, model: str, number: int | None) -> int | None:
        """Return the number, or None, the latest, for a 0 without such a version, as ovmsclient sends it."""
        return None if number == 0 and 0 not in self._versions.get(model, {}) else number

    def _poll_model(self, name: str) -> None:
        config = self.configs().get(name)
        wanted = config.wanted() if config else {}
        with self._changed:
            versions = self._versions.setdefault(name, {})
        for number in sorted(wanted):
            path, version = wanted[number], versions.get(number)
            moved = version is not None and version.path != path and version.state != State.AVAILABLE
            if version is None or moved or (version.state == State.END and version.error is None):
                version = Version(name, number, path)
                with self._changed:
                    versions[number] = version
            if version.state == State.START or (version.state == State.END and self._is_due(version)):
                self._try_to_load(version)
        with self._changed:
            loaded = [version for version in versions.values() if version.state == State.AVAILABLE]
            replaced = [version for version in loaded if version.number not in wanted]
            # A folder that is empty, or holds nothing that works, is no reason to give up what works.
            keep = config is not None and len(replaced) == len(loaded)
            if not versions:
                del self._versions[name]
        for version in [] if keep else replaced:
            self._unload(version)

    def _is_due(self, version: Version) -> bool:
        if version.error is None:
            return False
        if _listing(version.path) != version.files:
            return True
        return version.failures <= self._max_load_retries and time.monotonic() >= version.retry_at

    def _try_to_load(self, version: Version) -> None:
        files = _listing(version.path)
        with self._changed:
            version.state, version.files = State.LOADING, files
        LOGGER.info("%s version %d is loading", version.model, version.number)
        started = time.monotonic()
        try:
            servable = self._load(version.path)
        except StatusError as error:
            with self._changed:
                version.state, version.error = State.END, error
                version.failures += 1
                version.retry_at = time.monotonic() + self._retry_interval
            LOGGER.error("%s version %d cannot be loaded: %s", version.model, version.number, error.message)
            return
        seconds = time.monotonic() - started
        with self._changed:
            version.servable, version.state, version.error = servable, State.AVAILABLE, None
        LOGGER.info("%s version %d is available, loaded in %.1f s", version.model, version.number, seconds)
        self._on_load(version, seconds)

    def _unload(self, version: Version) -> None:
        with self._changed:
            version.state = State.UNLOADING
            self._changed.wait_for(lambda: not version.uses)
            servable, version.servable = version.servable, None
        if servable:
            servable.close()
            del servable
            return_memory()
        with self._changed:
            version.state = State.END
        LOGGER.info("%s version %d is unloaded", version.model, version.number)


def _status(version: Version) -> ModelVersionStatus:
    status = ModelVersionStatus(version=version.number, state=version.state)
    if version.error:
        status.status.error_code = version.error.code.value[0]
        status.status.error_message = version.error.message
    else:
        status.status.SetInParent()
    return status


def _listing(path: Path) -> tuple:
    """Return names, sizes and times of a version's files: another listing is another attempt."""
    found = []
    with contextlib.suppress(OSError):
        for file in sorted(path.rglob("*")):
            with contextlib.suppress(OSError):
                stat = file.stat()
                found.append((str(file), stat.st_size, stat.st_mtime_ns))
    return tuple(found)
