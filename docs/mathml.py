"""Turns the formulas of a page into MathML when the site is built, so that it is read without a script or a network."""

import html
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_page_content(page_html: str, **_) -> str:
    """Called by MkDocs with the HTML of each page."""
    return _FORMULA.sub(_mathml, page_html)


def _mathml(found: re.Match) -> str:
    block = found[1] == "div"
    latex = (
        html.unescape(found[2]).strip().removeprefix("\\[" if block else "\\(").removesuffix("\\]" if block else "\\)")
    )
    return convert(latex.strip(), display="block" if block else "inline")
