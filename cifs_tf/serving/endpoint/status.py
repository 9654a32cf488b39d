"""The words of the contract: gRPC's status codes, how REST says them, and the signature that nobody needs to name."""

import re

import grpc

Code = grpc.StatusCode
DEFAULT_SIGNATURE = "serving_default"

HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
BY_NUMBER = {code.value[0]: code for code in Code}
LONG_WORD = re.compile(r"(?<!\S)\S{210,}")
# Characters of a message that are kept, of its beginning and of its end, where the advice stands; and of those that are
# looked at for long words, of either.
HEAD, TAIL, SEARCHED = 700, 300, 2**19


class StatusError(Exception):
    """The status that a request is answered with instead of a prediction.

    Args:
        code: gRPC's status code; REST answers with `HTTP_STATUS[code]`.
        message: TF Serving's own words, wherever it has any for the case. Of a long one, which quotes what a client
            sent, and of long words in it, the middle is left out.

    Example:
        >>> str(StatusError(Code.NOT_FOUND, "Servable not found for request: Latest(m)"))
        'NOT_FOUND: Servable not found for request: Latest(m)'
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        if len(message) > HEAD + TAIL:
            message = message[:SEARCHED] + message[SEARCHED:][-SEARCHED:]
            message = LONG_WORD.sub(lambda found: f"{found[0][:150]}...{found[0][-50:]}", message)
        if len(message) > HEAD + TAIL:
            message = f"{message[:HEAD]} ... {message[-TAIL:]}"
        self.code, self.message = code, message
        super().__init__(f"{code.name}: {message}")

    def __reduce__(self) -> tuple:
        """Let processes raise it across their borders."""
        return StatusError, (self.code, self.message)


def invalid_argument(message: str) -> StatusError:
    """Return a `StatusError` with the most frequent code."""
    return StatusError(Code.INVALID_ARGUMENT, message)
