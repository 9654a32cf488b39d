"""MkDocs hook: formulas become MathML when the site is built, which browsers show without a script or a font."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<kind>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(content: str, **kwargs: Any) -> str:
    """Replace every formula of a page."""

    def to_mathml(formula: re.Match[str]) -> str:
        display = "block" if formula["kind"] == "[" else "inline"
        return convert(html.unescape(formula["latex"]).strip(), display=display)

    return FORMULA.sub(to_mathml, content)
