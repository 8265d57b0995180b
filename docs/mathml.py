"""MkDocs hook: turns the formulas of a page into MathML.

Browsers show MathML themselves, so the site loads no script from elsewhere.
"""

import html
import re

from latex2mathml.converter import convert

# What the Markdown extension arithmatex makes of `$...$` and `$$...$$`.
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>',
    flags=re.DOTALL,
)


def to_mathml(match):
    display = "block" if match["tag"] == "div" else "inline"
    return convert(html.unescape(match["latex"]).strip(), display=display)


def on_page_content(content, **kwargs):
    return FORMULA.sub(to_mathml, content)
