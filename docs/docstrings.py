"""Griffe extension: typesets the docstrings on the pages of the API.

Docstrings hold their formulas in Unicode, so that `help()` shows them as they are:
within the text, or indented, on lines of their own. Here they become LaTeX, like the
formulas of all other pages, and the public names become links.
"""

import re
from typing import Any

import griffe

# Blocks between fences, and spans between backticks.
CODE = re.compile(r"(^[ ]*```.*?^[ ]*```$|`[^`\n]+`)", flags=re.DOTALL | re.MULTILINE)
NAME = re.compile(r"`(\w+)(\.\w+)?(\(\))?`")
DISPLAY = re.compile(r"(?<=\n\n)((?:    .*\n)+)(?=\n)")
# A word, without the brackets before it and the punctuation behind it.
WORD = re.compile(r"(?<![^\s(\[])([^\s(\[-][^\s-]*?)([)\].,;:]*)(?=[\s-]|$)")
# What tells a formula from a word. A single letter is a variable, unless it is a word.
SYMBOL = re.compile(r"[α-ωΑ-Ωₘₙₛ₁₂₃²ᵀ√‖∂∇∑^]|\b[A-Za-z]_")
VARIABLE = re.compile(r"[B-HJ-Zb-z]")

SCRIPTS = str.maketrans("₁₂₃ₘₙₛ⁻¹²ᵀ", "123mns-12T")
LATEX = [
    # Names of functions are upright, but not the letters of an index.
    (r"(?<![_\w])[A-Za-z]{2,}", lambda m: rf"\operatorname{{{m[0]}}}"),
    (r"(\w)\u0303", r"\\tilde{\1}"),
    (r"√(\w+)", r"\\sqrt{\1}"),
    (r"[⁻¹²ᵀ]+", lambda m: f"^{{{m[0].translate(SCRIPTS)}}}"),
    (r"[₁₂₃ₘₙₛ]+", lambda m: f"_{{{m[0].translate(SCRIPTS)}}}"),
    (r"\^\(([^()]*)\)", r"^{\1}"),
    (r"_(\w+)", r"_{\1}"),
    (r",\s{2,}", r",\\quad "),
    (r"−", "-"),
    (r"‖", r"\\|"),
    (r"∑", r"\\sum "),
    (r"∂", r"\\partial "),
    (r"∇", r"\\nabla "),
    (r"·", r"\\cdot "),
    (r"…", r"\\ldots "),
    (r"≥", r"\\geq "),
    (r"←", r"\\leftarrow "),
]


class Typeset(griffe.Extension):
    """Rewrites every docstring once the package is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            package = obj.package
            public = {str(name) for name in package.exports or ()}
            obj.docstring.value = typeset(obj.docstring.value, package.path, public)


def typeset(text: str, package: str, public: set[str]) -> str:
    """A docstring with its formulas in LaTeX, and links to public names."""

    def link(match: re.Match[str]) -> str:
        name, attribute, is_called = match.groups()
        if name not in public:
            return match[0]
        # What is called is a method with an entry of its own.
        entry = f"{name}{attribute}" if attribute and is_called else name
        return f"[{match[0]}][{package}.{entry}]"

    parts = CODE.split(text + "\n")
    parts[::2] = map(typeset_prose, parts[::2])
    parts[1::2] = (NAME.sub(link, code) for code in parts[1::2])
    return "".join(parts)


def typeset_prose(text: str) -> str:
    """Text without code, with its formulas in LaTeX."""
    parts = DISPLAY.split(re.sub(r"\^\(([^()]*)\)", r"^{\1}", text))
    parts[::2] = (WORD.sub(typeset_word, prose) for prose in parts[::2])
    parts[1::2] = (f"$${to_latex(formula)}$$\n" for formula in parts[1::2])
    return "".join(parts)


def typeset_word(match: re.Match[str]) -> str:
    word, end = match.groups()
    # With a colon behind it, a letter is the name of an argument.
    is_variable = VARIABLE.fullmatch(word) and ":" not in end
    if is_variable or SYMBOL.search(word):
        return f"${to_latex(word)}${end}"
    return match[0]


def to_latex(formula: str) -> str:
    """A formula in Unicode as LaTeX, in which Greek letters stay as they are."""
    formula = formula.strip()
    for pattern, replacement in LATEX:
        formula = re.sub(pattern, replacement, formula)
    return formula
