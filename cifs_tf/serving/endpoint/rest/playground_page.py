"""The playground's page on the server's REST port, with the networks that the server has loaded."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urlencode, urlsplit

from starlette.responses import RedirectResponse, Response

from cifs_tf.playground.server import PAGE, find_file, read_file
from cifs_tf.serving.endpoint.models.versions import Versions
from cifs_tf.serving.endpoint.rest.responses import html_response, json_response
from cifs_tf.serving.endpoint.status import StatusError

PLAYGROUND_PATH = re.compile(r"/playground(?:[/?].*)?", re.DOTALL)
GRADIENT_FILE = "heads_and_gradient.onnx"
ABOUT_FILE = "playground.json"
# Below /playground/; of a version nothing else is shown.
_SERVED_PATH = re.compile(rf"/served/([^/]+)/(\d{{1,18}})/({GRADIENT_FILE}|labels\.json|{ABOUT_FILE})", re.ASCII)
# Beside each other on a page, at most.
MAX_NETWORKS = 4


class PlaygroundPage:
    """Answers requests below `/playground`.

    Args:
        versions: the loaded models; those with the gradient file that `serving/export.py` writes can be attacked.
        runtime: folder of onnxruntime-web.
    """

    def __init__(self, versions: Versions, runtime: Path) -> None:
        self._versions, self._folders = versions, {"/": PAGE, "/vendor/": runtime}

    def answer(self, path: str, headers: Mapping[bytes, bytes]) -> Response:
        """Answer a request.

        Args:
            path: which `PLAYGROUND_PATH` matches, with the query.
            headers: in small letters.
        """
        url = urlsplit(path)
        below = url.path.removeprefix("/playground")
        if below == "" or (below == "/" and not url.query):
            asked = [("model", f"served/{quote(name)}/{number}") for name, number in self._networks()]
            if asked or not below:
                return RedirectResponse(f"/playground/?{urlencode(asked)}" if asked else "/playground/")
        if found := _SERVED_PATH.fullmatch(below):
            file = self._served(unquote(found[1]), int(found[2]), found[3])
            if file is None and found[3] == ABOUT_FILE:
                return json_response(200, json.dumps({"name": unquote(found[1])}))
        else:
            file = find_file(below, self._folders)
        if file is None:
            return html_response(404)
        content, about = read_file(file, headers.get(b"accept-encoding", b"").decode("latin-1"))
        return Response(content, headers=about)

    def _networks(self) -> list[tuple[str, int]]:
        """Return names and numbers of the newest versions that can be attacked."""
        found = []
        for name in self._versions.configs():
            try:
                with self._versions.use(name) as version:
                    if (version.path / GRADIENT_FILE).is_file():
                        found.append((name, version.number))
            except StatusError:
                continue
        return found[:MAX_NETWORKS]

    def _served(self, model: str, number: int, name: str) -> Path | None:
        try:
            with self._versions.use(model, number) as version:
                return version.path / name if (version.path / name).is_file() else None
        except StatusError:
            return None
