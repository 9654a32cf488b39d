"""Griffe extension: the sections of this project's docstrings that Griffe has no name for.

`Example:` becomes `Examples:`, so that `>>>` is shown as code, and `Call arguments:`, which Keras layers and attacks
have, a table like `Args:`.
"""

import re
from typing import Any

import griffe

SECTIONS = {"Example": "Examples", "Call arguments": "Other Parameters: Call arguments"}


class Sections(griffe.Extension):
    """Rename sections before Griffe parses them."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename those of one class, function, attribute or module."""
        if obj.docstring:
            for ours, theirs in SECTIONS.items():
                obj.docstring.value = re.sub(rf"^{ours}:$", f"{theirs}:", obj.docstring.value, flags=re.MULTILINE)
