"""JSON as RapidJSON writes it, which is TF Serving's: layout, escapes and numbers."""

from __future__ import annotations

import decimal
import math
import re
from typing import Any

import numpy as np

from cifs_tf.serving.endpoint.json.parser import Members

# Where TF Serving cuts a value that it quotes in an error: nothing is begun after so many characters.
QUOTED_CHARACTERS = 256
INDENT = "    "
# Formatted in one go: other threads must have their turn in between.
FLOATS_AT_ONCE = 10_000
WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}

_ESCAPES = {chr(code): f"\\u{code:04X}" for code in range(0x20)} | {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}
_TO_ESCAPE = re.compile(r'["\\\x00-\x1f]')


def quote(value: Any) -> str:
    """Write a value as TF Serving quotes it in errors: arrays on one line, cut after 256 characters.

    Example:
        >>> print(quote(Members([("b64", "aGk=")])))
        {
            "b64": "aGk="
        }
    """
    if isinstance(value, float):
        return float_texts(np.asarray([value]))[0]
    writer = Writer(limit=QUOTED_CHARACTERS)
    writer.single_line = True
    writer.value(value)
    return writer.text()


def float_texts(values: np.ndarray) -> list[str]:
    """Write floats as TF Serving does: six digits if they suffice, else all; never without `.` or `e`.

    Args:
        values: float32 or float64 (n,).

    Example:
        >>> float_texts(np.array([0.2, 1, 9e6, np.nan, 0.123456789], np.float32))
        ['0.2', '1.0', '9e+06', 'NaN', '0.123456791']
    """
    digits = 9 if values.dtype == np.float32 else 17
    texts: list[str] = []
    for start in range(0, len(values), FLOATS_AT_ONCE):
        part = values[start : start + FLOATS_AT_ONCE]
        found = np.array(_formatted(part, 6), object)
        (inexact,) = np.nonzero(np.array(found, np.float64).astype(part.dtype) != part)
        found[inexact] = _formatted(part[inexact], digits)
        (whole,) = np.nonzero((part == np.trunc(part)) | np.isnan(part))
        found[whole] = [WORDS.get(text) or (text if "e" in text else f"{text}.0") for text in found[whole]]
        texts += found.tolist()
    return texts


def _formatted(values: np.ndarray, digits: int) -> list[str]:
    return (f"%.{digits}g " * len(values) % tuple(values.tolist())).split()


def string_text(value: str) -> str:
    """Write a string with RapidJSON's escapes."""
    return '"' + _TO_ESCAPE.sub(lambda found: _ESCAPES[found[0]], value) + '"'


class Writer:
    """RapidJSON's pretty writer: four spaces a level; arrays may stand on one line, objects never do.

    Args:
        limit: write nothing more once so many characters are there. Default None, no limit.

    Attributes:
        single_line: whether arrays stand on one line from now on.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.single_line = False
        self._limit = math.inf if limit is None else limit
        self._parts: list[str] = []
        self._length = 0
        self._stopped = False
        # Of every open array or object: whether it is an array, and how many values it has.
        self._open: list[list] = []

    def text(self) -> str:
        """Return what was written so far."""
        return "".join(self._parts)

    def start(self, *, array: bool) -> None:
        """Open an array or an object."""
        self._value("[" if array else "{")
        self._open.append([array, 0])

    def end(self) -> None:
        """Close what was opened last."""
        array, count = self._open.pop()
        lines = f"\n{INDENT * len(self._open)}" if count and not (array and self.single_line) else ""
        self._put(lines + ("]" if array else "}"))

    def key(self, name: str) -> None:
        """Write the name of an object's next member."""
        self._value(string_text(name))

    def raw(self, text: str) -> None:
        """Write a value whose text is known."""
        self._value(text)

    def array(self, texts: list[str]) -> None:
        """Write an array of values whose texts are known."""
        self.start(array=True)
        if texts:
            separator = ", " if self.single_line else f",\n{INDENT * len(self._open)}"
            first = "" if self.single_line else f"\n{INDENT * len(self._open)}"
            self._put(first + separator.join(texts))
            self._open[-1][1] = len(texts)
        self.end()

    def value(self, value: Any) -> None:
        """Write anything that `parse` returns."""
        if isinstance(value, Members):
            self.start(array=False)
            for name, member in value:
                self.key(name)
                self.value(member)
                if self._stopped:
                    return
            self.end()
        elif isinstance(value, list):
            self.start(array=True)
            for item in value:
                self.value(item)
                if self._stopped:
                    return
            self.end()
        elif isinstance(value, str):
            self._value(string_text(value))
        elif isinstance(value, float) and not math.isfinite(value):
            # RapidJSON refuses to write it, and leaves the text at that.
            self._value("")
            self._stopped = True
        else:
            self._value({None: "null", True: "true", False: "false"}[value] if _is_word(value) else _number(value))

    def _value(self, text: str) -> None:
        if not self._open:
            self._put(text)
            return
        array, count = self._open[-1]
        line = f"\n{INDENT * len(self._open)}"
        if array:
            prefix = (", " if count else "") if self.single_line else ("," if count else "") + line
        elif count % 2:
            prefix = ": "
        else:
            prefix = ("," if count else "") + line
        self._open[-1][1] += 1
        self._put(prefix + text)

    def _put(self, text: str) -> None:
        if self._length >= self._limit:
            self._stopped = True
        if not self._stopped:
            self._parts.append(text)
            self._length += len(text)


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _number(value: int | float) -> str:
    """Write a number as RapidJSON does: no plus in the exponent, whole doubles with `.0`."""
    if isinstance(value, int):
        return str(value)
    sign, digit_tuple, exponent = decimal.Decimal(repr(value)).as_tuple()
    digits = "".join(map(str, digit_tuple)).rstrip("0") or "0"
    point = len(digit_tuple) + int(exponent) if value else 1
    if len(digits) <= point <= 21:
        text = f"{digits.ljust(point, '0')}.0"
    elif 0 < point <= 21:
        text = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{digits}"
    else:
        text = f"{digits[0]}{'.' if digits[1:] else ''}{digits[1:]}e{point - 1}"
    return ("-" if sign else "") + text
