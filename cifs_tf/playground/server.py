"""A small static server for the page: it alone, on this machine, until Ctrl-C."""

import functools
import gzip
import http.server
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifs_tf.files import carried_folder

PAGE = carried_folder("playground/page", "docs/playground")
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".onnx": "application/octet-stream",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
# The runtime is 14 MB, and 3.9 MB at this level, after a second; level 9 takes four for 3.7 MB.
GZIP_LEVEL = 4
GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", re.IGNORECASE)


def find_file(path: str, folders: Mapping[str, Path]) -> Path | None:
    """Find the file of a URL's path.

    Args:
        path: quoted, without the query; `/` is index.html.
        folders: by prefix, such as `/vendor/`; the longest that fits counts.

    Returns:
        the file; None if there is none, if it is outside its folder, or of a kind that the page does not have.

    Example:
        >>> find_file("/../server.py", {"/": PAGE}) is None
        True
    """
    path = urllib.parse.unquote(path)
    prefix = max((prefix for prefix in folders if path.startswith(prefix)), key=len, default=None)
    if prefix is None or "\0" in path:
        return None
    folder = folders[prefix].resolve()
    file = (folder / (path.removeprefix(prefix) or "index.html")).resolve()
    return file if file.is_relative_to(folder) and file.suffix in TYPES and file.is_file() else None


def read_file(file: Path, accepted: str = "") -> tuple[bytes, dict[str, str]]:
    """Read a file that is to be answered with.

    Args:
        file: of a kind in `TYPES`.
        accepted: the request's Accept-Encoding. Default nothing.

    Returns:
        (its content, packed if that is accepted, headers that say so).
    """
    headers = {"Content-Type": TYPES[file.suffix], "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if not GZIP.search(accepted):
        return file.read_bytes(), headers
    return _packed(file, file.stat().st_mtime_ns), {**headers, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}


@functools.lru_cache(maxsize=64)
def _packed(file: Path, changed: int) -> bytes:
    return gzip.compress(file.read_bytes(), GZIP_LEVEL)


def make_server(folders: Mapping[str, Path], host: str, port: int) -> http.server.ThreadingHTTPServer:
    """Make a server of folders; `serve_forever` starts it.

    Args:
        folders: by prefix of the URL's path, see `find_file`.
        host: address to listen at.
        port: 0 takes a free one.

    Returns:
        the server, which listens already.

    Raises:
        OSError: if the port is taken.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, with_body: bool) -> None:
            file = find_file(urllib.parse.urlsplit(self.path).path, folders)
            content, headers = b"not found\n", {"Content-Type": TYPES[".txt"]}
            if file is not None:
                content, headers = read_file(file, self.headers.get("Accept-Encoding", ""))
            self.send_response(404 if file is None else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    return server
