"""JSON as RapidJSON reads it, which is TF Serving's: grammar, messages, offsets and classes of numbers."""

import dataclasses
import re
import sys
from typing import Any

import numpy as np
import rapidjson

from cifs_tf.serving.endpoint.status import invalid_argument

MAX_DEPTH = 1000
# Values are walked by recursive functions, with up to five frames a level.
sys.setrecursionlimit(max(sys.getrecursionlimit(), 5 * MAX_DEPTH))
BOM = b"\xef\xbb\xbf"

# Bytes that are no UTF-8: as Python decodes them, and as characters of the last private plane, which can be encoded.
_TO_PRIVATE = {0xDC00 + byte: 0x10FE00 + byte for byte in range(0x80, 0x100)}
_FROM_PRIVATE = {private: surrogate for surrogate, private in _TO_PRIVATE.items()}
_TRAILING = "The document root must not be followed by other values."


class Members(list):
    """An object: its (name, value) pairs in the order of the text, doubles kept."""

    def find(self, name: str, default: Any = None) -> Any:
        """Return the value of the first member of that name."""
        return next((value for key, value in self if key == name), default)

    def names(self) -> list[str]:
        """Return the names of the members."""
        return [key for key, _ in self]


@dataclasses.dataclass(frozen=True)
class Document:
    """A parsed text.

    Args:
        root: `Members`, list, str, int, float, bool or None.
        num_objects: how many objects the text holds, the root counted.
        num_strings: how many of its values are texts; names do not count.
        has_words: whether `true`, `false` or `null` occurs in it.
    """

    root: Any
    num_objects: int
    num_strings: int
    has_words: bool


def parse(text: bytes) -> Document:
    """Parse JSON; what follows the document is ignored, a byte order mark too, NaN and Infinity are numbers.

    Args:
        text: the body of a request.

    Returns:
        the document.

    Raises:
        StatusError: INVALID_ARGUMENT with RapidJSON's message, or if arrays are nested deeper than 1000 levels.

    Example:
        >>> parse(b'{"a": [1, 2.0], "a": NaN} and more').root
        [('a', [1, 2.0]), ('a', nan)]
    """
    if not text:
        raise invalid_argument("JSON Parse error: The document is empty")
    if too_deep := _first_too_deep(text):
        raise invalid_argument(f"JSON Parse error: Nested deeper than {MAX_DEPTH} levels. at offset: {too_deep}")
    start = len(BOM) if text.startswith(BOM) else 0
    body: Any = text[start:] if start else text
    is_utf8 = True
    try:
        body.decode()
    except UnicodeDecodeError:
        # RapidJSON accepts them; its Python library takes texts only, so a stray byte becomes a private character.
        body, is_utf8 = body.decode(errors="surrogateescape").translate(_TO_PRIVATE), False
    decoder = _Decoder()
    try:
        root = decoder(body)
    except rapidjson.JSONDecodeError as error:
        offset, message = _understand(error)
        if message == _TRAILING:
            decoder = _Decoder()
            root = decoder(body[:offset] if is_utf8 else body.encode()[:offset].decode())
        else:
            offset = (offset if is_utf8 else _offset_in_bytes(body, offset)) + start
            raise invalid_argument(f"JSON Parse error: {message} at offset: {offset}") from error
    root = root if is_utf8 else _restore(root)
    has_words = any(word in text for word in (b"true", b"false", b"null"))
    return Document(root, decoder.num_objects, decoder.num_strings, has_words)


class _Decoder(rapidjson.Decoder):
    """RapidJSON's parser, in its own number classes: an integer beyond 64 bits is a double."""

    def __new__(cls) -> Any:
        return super().__new__(cls, number_mode=rapidjson.NM_NATIVE | rapidjson.NM_NAN)

    def __init__(self) -> None:
        super().__init__()
        self.num_objects = self.num_strings = 0

    def string(self, text: str) -> str:
        """Count the values that are texts."""
        self.num_strings += 1
        return text

    def start_object(self) -> Members:
        """Keep the members as pairs."""
        self.num_objects += 1
        return Members()


def _understand(error: rapidjson.JSONDecodeError) -> tuple[int, str]:
    found = re.fullmatch(r"Parse error at offset (\d+): (.*)", str(error), re.DOTALL)
    assert found is not None, error
    return int(found[1]), found[2]


def _offset_in_bytes(text: str, offset: int) -> int:
    """Return the offset in the received bytes of an offset in the encoded text with private characters."""
    before = text.encode()[:offset].decode(errors="ignore")
    return len(before.translate(_FROM_PRIVATE).encode(errors="surrogateescape"))


def _restore(value: Any) -> Any:
    """Put stray bytes back, as surrogates."""
    if isinstance(value, Members):
        return Members((_restore(name), _restore(member)) for name, member in value)
    if isinstance(value, list):
        return [_restore(item) for item in value]
    return value.translate(_FROM_PRIVATE) if isinstance(value, str) else value


def _first_too_deep(text: bytes) -> int | None:
    """Return the offset at which nesting exceeds what the parser's stack can hold, or None.

    A text with too few brackets to be that deep is not searched; brackets in strings do not count.
    """
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH or _depths(text) is None:
        return None
    without_strings = re.sub(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', lambda found: b" " * len(found[0]), text, flags=re.DOTALL)
    return _depths(without_strings)


def _depths(text: bytes, chunk: int = 1 << 20) -> int | None:
    """Return the offset at which the number of open brackets first exceeds the limit, or None."""
    depth = 0
    for start in range(0, len(text), chunk):
        characters = np.frombuffer(text, np.uint8, min(chunk, len(text) - start), start)
        opening = (characters == ord("[")) | (characters == ord("{"))
        closing = (characters == ord("]")) | (characters == ord("}"))
        depths = depth + np.cumsum(opening.astype(np.int32) - closing)
        if depths.max() > MAX_DEPTH:
            return start + int(np.argmax(depths > MAX_DEPTH))
        depth = int(depths[-1])
    return None
