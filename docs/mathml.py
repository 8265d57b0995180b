"""MkDocs hook: turns the formulas of a page into MathML.

Browsers show MathML themselves, so the site loads no script from elsewhere.
"""

import html
import re

from latex2mathml.converter import convert

# What the Markdown extension arithmatex makes of `$...$` and `$$...$$`.
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>'
    r"(?P<punctuation>[,.;:)]*)",
    flags=re.DOTALL,
)

# The converter sets no space around these: "κlnN".
FUNCTION = re.compile(
    r"(?P<before></m\w+>)?<mi>(?P<name>exp|ln|log)</mi>"
    r"(?P<bracket><mo [^>]*>&#x00028;)?"
)
THIN = "0.17em"


def to_mathml(match):
    latex = html.unescape(match["latex"]).strip()
    if match["tag"] == "span":
        formula = FUNCTION.sub(with_spaces, convert(latex))
        # No line begins with the comma behind a formula.
        return f'<span class="unbroken">{formula}{match["punctuation"]}</span>'
    formula = FUNCTION.sub(with_spaces, convert(latex, display="block"))
    # A box of its own, in which a wide formula can scroll.
    return f'<div class="formula">{formula}</div>{match["punctuation"]}'


def with_spaces(match):
    before, bracket = match["before"] or "", match["bracket"] or ""
    left, right = THIN if before else "0", "0" if bracket else THIN
    operator = f'<mo lspace="{left}" rspace="{right}">{match["name"]}</mo>'
    return before + operator + bracket


def on_page_content(content, **kwargs):
    content = content.replace(" ± ", "&nbsp;±&nbsp;")  # one number, in one line
    return FORMULA.sub(to_mathml, content)
