"""Responses of TF Serving's REST API: JSON, errors, and the page for paths outside of it."""

import html
import http

from starlette.responses import Response

from cifs_tf.serving.endpoint.json.writer import Writer, string_text
from cifs_tf.serving.endpoint.status import HTTP_STATUS, Code

JSON, HTML, TEXT = "application/json", "text/html", "text/plain; version=0.0.4; charset=utf-8"


def error_body(message: str) -> str:
    """Return the JSON of an error."""
    writer = Writer()
    writer.start(array=False)
    writer.key("error")
    # A message may quote bytes that are not UTF-8; the answer must be UTF-8.
    writer.raw(string_text(message.encode(errors="surrogateescape").decode(errors="replace")))
    writer.end()
    return writer.text()


def error_response(code: Code, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return the response to a request that failed with a status."""
    retry = {"retry-after": "1"} if code == Code.UNAVAILABLE else {}
    return json_response(HTTP_STATUS[code], error_body(message), {**retry, **(headers or {})})


def json_response(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """Return a response of JSON, whose stray bytes stay as they came."""
    body = text.encode(errors="surrogateescape")
    return Response(body, status, headers={"content-type": JSON, **(headers or {})})


def html_response(status: int) -> Response:
    """Return the page that TF Serving's HTTP library answers with where there is no API."""
    phrase = html.escape(http.HTTPStatus(status).phrase)
    page = f"<HTML><HEAD>\n<TITLE>{status} {phrase}</TITLE>\n</HEAD><BODY>\n<H1>{phrase}</H1>\n</BODY></HTML>\n"
    return Response(page, status, headers={"content-type": HTML})
