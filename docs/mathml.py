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
    latex = html.unescape(match["latex"]).strip()
    if match["tag"] == "span":
        return convert(latex)
    # A box of its own, in which a wide formula can scroll.
    return f'<div class="formula">{convert(latex, display="block")}</div>'


def on_page_content(content, **kwargs):
    content = content.replace(" ± ", "&nbsp;±&nbsp;")  # one number, in one line
    return FORMULA.sub(to_mathml, content)
