"""The real server as a process of its own, on ports of its own."""

import contextlib
import dataclasses
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[3]
START_SECONDS = 600  # of a busy machine; a server that fails ends at once


@dataclasses.dataclass
class Server:
    url: str
    grpc: str
    process: subprocess.Popen
    log: Path

    def stop(self, number=signal.SIGTERM):
        """Signal the server and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    @property
    def resident_bytes(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the server has ended")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def running_server(log, *arguments):
    """Start `python serving/server.py` with these arguments, wait until it listens, end it after use."""
    rest, rpc = free_port(), free_port()
    command = [sys.executable, "serving/server.py", f"--rest_api_port={rest}", f"--port={rpc}", *map(str, arguments)]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        server = Server(f"http://127.0.0.1:{rest}", f"127.0.0.1:{rpc}", process, log)
        wait_until_it_answers(process, server.url, log)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_until_it_answers(process, url, log):
    """Wait for a server, whose port is taken before its models are loaded."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError):  # refused, or taken and not answered while the models load
            try:
                urllib.request.urlopen(f"{url}/healthz", timeout=5)
            except urllib.error.HTTPError:
                return  # 404: it answers
        time.sleep(0.1)
    raise RuntimeError(f"the server does not answer: {log.read_text()[-2000:]}")
