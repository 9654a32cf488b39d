"""The server: starts its parts, watches the folders of the models, and ends without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import uvicorn

from cifs_tf.errors import UserError
from cifs_tf.playground.vendor import vendor_runtime
from cifs_tf.serving.endpoint import config_files
from cifs_tf.serving.endpoint.grpc.services import make_grpc_server
from cifs_tf.serving.endpoint.metrics import Metrics
from cifs_tf.serving.endpoint.models.loading import load_version
from cifs_tf.serving.endpoint.models.served_models import ServedModel, served_models
from cifs_tf.serving.endpoint.models.versions import Versions
from cifs_tf.serving.endpoint.options import ServerOptions
from cifs_tf.serving.endpoint.prediction.batching import Batcher, BatchingOptions
from cifs_tf.serving.endpoint.prediction.predictor import Predictor
from cifs_tf.serving.endpoint.rest.api import RestApi
from cifs_tf.serving.endpoint.rest.connections import guarded_protocol
from cifs_tf.serving.endpoint.rest.lane import Lane
from cifs_tf.serving.endpoint.rest.playground_page import PlaygroundPage
from cifs_tf.serving.endpoint.status import StatusError

LOGGER = logging.getLogger("serving")
# How long clients that hold an open connection have, at the end, to learn with their next request that it closes.
GOODBYE_SECONDS = 0.35
GRPC_GOODBYE_SECONDS = 0.15
BACKLOG = 2048


def serve(options: ServerOptions) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        options: what to serve, where, and within which limits.

    Raises:
        UserError: for a file or an address that cannot be used; nothing was served then.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it logs every file that it restores
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it logs every malformed request
    with contextlib.suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_Server(options).run())


class _Server:
    """Everything that runs, made from the options."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._ending = threading.Event()
        self._answering: set[Any] = set()
        metrics = Metrics()
        self._versions = Versions(
            lambda path: load_version(path, options, metrics),
            max_load_retries=options.max_num_load_retries,
            retry_interval=options.load_retry_interval_micros / 1e6,
            unavailable_labels=options.allow_version_labels_for_unavailable_models,
            on_load=lambda version, seconds: metrics.loaded(str(version.path), seconds),
        )
        self._versions.configure(_configs(options))
        if options.tensorflow_session_config_file:
            config_files.read_session_config(options.tensorflow_session_config_file)  # before a model needs it
        batcher = Batcher(_batching(options)) if options.enable_batching else None
        self._predictor = Predictor(self._versions, metrics, options, batcher)
        self._threads = ThreadPoolExecutor(options.rest_api_num_threads, thread_name_prefix="rest")
        self._api = RestApi(
            self._predictor,
            self._threads,
            Lane(options.large_body_processes),
            metrics_path=_metrics_path(options),
            cors=options.rest_api_enable_cors_support,
            receive_timeout=options.receive_timeout_in_ms / 1000,
            playground=PlaygroundPage(self._versions, vendor_runtime()) if options.enable_playground else None,
        )

    async def run(self) -> None:
        """Load, listen, wait for a signal, drain."""
        options = self._options
        with contextlib.ExitStack() as stack:
            # Taken before the models load: a port that is not free is known at once.
            rest_socket = stack.enter_context(_listen(options.host, options.rest_api_port))
            grpc_server = await self._bind_grpc()
            stop = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._on_signal, stop)
            loading = asyncio.create_task(asyncio.to_thread(self._versions.poll))
            await asyncio.wait([loading, stopping := asyncio.create_task(stop.wait())], return_when="FIRST_COMPLETED")
            if stop.is_set():
                # Nobody was answered yet, and a load cannot be interrupted: nothing to wait for.
                LOGGER.info("ended while the models were loading")
                logging.shutdown()
                os._exit(0)
            loading.result()
            watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
            watcher.start()
            http_server = _HttpServer(self._http_config())
            sockets = [rest_socket] if rest_socket else []
            http_task = asyncio.create_task(http_server.serve(sockets)) if sockets else None
            if grpc_server:
                await grpc_server.start()
            self._announce()
            await stopping
            LOGGER.info("ending: answering what has come")
            self._ending.set()
            self._api.draining = True
            for server in http_server.servers if http_task else ():
                server.close()
            # Both at a time: each waits for its own clients.
            ends = [self._end_http(http_server, http_task)] if http_task else []
            ends += [self._end_grpc(grpc_server)] if grpc_server else []
            await asyncio.gather(*ends)
            LOGGER.info("ended")
            logging.shutdown()
            os._exit(0)  # unloading the models and taking TensorFlow apart takes a second

    async def _end_http(self, http_server: _HttpServer, http_task: asyncio.Task) -> None:
        until = time.monotonic() + GOODBYE_SECONDS
        while http_server.server_state.connections and time.monotonic() < until:
            await asyncio.sleep(0.02)
        http_server.should_exit = True
        await http_task

    async def _end_grpc(self, grpc_server: grpc.aio.Server) -> None:
        """Stop gRPC, after a moment in which new calls are refused with a reason: gRPC then cancels without one."""
        await asyncio.sleep(GRPC_GOODBYE_SECONDS)
        until = time.monotonic() + self._options.drain_timeout_in_ms / 1000
        while self._answering and time.monotonic() < until:
            await asyncio.sleep(0.02)
        await grpc_server.stop(GRPC_GOODBYE_SECONDS)  # calls that watch the health never end

    def _on_signal(self, stop: asyncio.Event) -> None:
        if stop.is_set():
            os._exit(130)  # the second one does not wait, for a model that loads neither
        stop.set()

    async def _bind_grpc(self) -> grpc.aio.Server | None:
        options = self._options
        host = f"[{options.host}]" if ":" in options.host else options.host
        addresses = [f"{host}:{options.port}"] if options.port else []
        addresses += [f"unix:{options.grpc_socket_path}"] if options.grpc_socket_path else []
        if not addresses:
            return None
        try:
            return await make_grpc_server(
                self._predictor,
                addresses,
                ending=self._ending,
                answering=self._answering,
                credentials=_credentials(options.ssl_config_file),
            )
        except RuntimeError as error:
            advice = "it cannot be listened on; give another --port, or end the program that has it"
            raise UserError("--port", addresses[0], advice) from error

    def _http_config(self) -> uvicorn.Config:
        options = self._options
        return uvicorn.Config(
            self._api,
            http=guarded_protocol(options.receive_timeout_in_ms / 1000, options.max_connections),
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, round(options.drain_timeout_in_ms / 1000)),
        )

    def _watch(self) -> None:
        """Look for new versions, and read the config file again, until the end."""
        options = self._options
        interval = options.file_system_poll_wait_seconds
        since_config = 0.0
        while interval and not self._ending.wait(interval):
            since_config += interval
            try:
                if options.model_config_file and 0 < options.model_config_file_poll_wait_seconds <= since_config:
                    since_config = 0.0
                    try:
                        self._versions.configure(_configs(options))
                    except (UserError, StatusError) as error:
                        LOGGER.error("the config cannot be followed: %s", error)
                self._versions.poll()
            except Exception:
                LOGGER.exception("looking for new versions failed, will try again")

    def _announce(self) -> None:
        options = self._options
        for config in self._versions.configs().values():
            try:
                states = self._versions.states(config.name)
                found = ", ".join(f"version {s.version} {type(s).State.Name(s.state)}" for s in states)
            except StatusError:
                found = f"no version yet, waiting for a folder with a number below {config.base_path}"
            LOGGER.info("model %s: %s", config.name, found)
        host = f"[{options.host}]" if ":" in options.host else options.host
        if options.rest_api_port:
            LOGGER.info("REST at http://%s:%d/v1/models/NAME:predict", host, options.rest_api_port)
        if options.enable_playground:
            LOGGER.info("the playground at http://%s:%d/playground", host, options.rest_api_port)
        if options.port:
            LOGGER.info("gRPC at %s:%d", host, options.port)
        if not _is_loopback(options.host):
            LOGGER.warning(
                "listening on %s: whoever can reach this machine can use the models, there is no password; "
                "serving/deploy/ shows a proxy in front",
                options.host,
            )


class _HttpServer(uvicorn.Server):
    """uvicorn, whose signals are ours: it would end before the clients know."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


def _configs(options: ServerOptions) -> list[ServedModel]:
    if options.model_config_file is None:
        assert options.model_base_path is not None, "the options have one of the two"
        return [ServedModel(options.model_name, Path(options.model_base_path))]
    message = config_files.read_model_config(options.model_config_file)
    for model in message.model_config_list.config:
        if model.HasField("logging_config"):
            LOGGER.warning("model %s: logging_config is not followed, requests are not logged here", model.name)
    return served_models(message)


def _batching(options: ServerOptions) -> BatchingOptions:
    defaults = BatchingOptions(num_batch_threads=options.rest_api_num_threads // 4 or 1)
    if options.batching_parameters_file is None:
        return defaults
    message = config_files.read_batching_parameters(options.batching_parameters_file)
    names = ["max_batch_size", "batch_timeout_micros", "num_batch_threads", "max_enqueued_batches"]
    if message.enable_large_batch_splitting.value:
        names.append("max_execution_batch_size")
    if message.pad_variable_length_inputs:
        LOGGER.warning("pad_variable_length_inputs is not followed: requests of other shapes get runs of their own")
    given = {name: getattr(message, name).value for name in names if message.HasField(name)}
    return dataclasses.replace(defaults, **given, allowed_batch_sizes=tuple(message.allowed_batch_sizes))


def _metrics_path(options: ServerOptions) -> str | None:
    if options.monitoring_config_file is None:
        return None
    prometheus = config_files.read_monitoring_config(options.monitoring_config_file).prometheus_config
    return (prometheus.path or config_files.DEFAULT_METRICS_PATH) if prometheus.enable else None


def _credentials(path: str | None) -> grpc.ServerCredentials | None:
    if path is None:
        return None
    config = config_files.read_ssl_config(path)
    authorities = config.custom_ca.encode() or None
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=authorities,
        require_client_auth=config.client_verify,
    )


@contextlib.contextmanager
def _listen(host: str, port: int) -> Any:
    if not port:
        yield None
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        advice = f"it cannot be listened on ({error.strerror}); give another, or end the program that has it"
        raise UserError("--rest_api_port", f"{host}:{port}", advice) from error
    with listener:
        # Head and body of an answer are two writes: without this a client would wait 40 ms for the second. Connections
        # inherit it; asyncio sets it only on sockets that were made with a protocol number.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
