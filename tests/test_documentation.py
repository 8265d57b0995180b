"""Runs the Python blocks of README.md, docs/*.md and the public docstrings.

The blocks of a page run in order and share their names; each docstring runs on its
own. A block of a page is left out by a comment on the line before its fence:
`<!-- not run: reason -->`, or `<!-- only on tensorflow -->` on the other backends.
"""

import inspect
import re
import textwrap
from pathlib import Path

import pytest
from backend import BACKEND

import keras_powerlaw

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SLOW = {"gallery.md": pytest.mark.slow}

BLOCK = re.compile(
    r"^(?:[ ]*<!-- (?:(?P<not_run>not run: \S.*)|only on (?P<backend>\w+)) -->\n)?"
    r"(?P<indent>[ ]*)```python\b.*\n"
    r"(?P<code>(?:.*\n)*?)"
    r"(?P=indent)```[ ]*$",
    flags=re.MULTILINE,
)


def blocks(text):
    """Yields `(line, code)` of every block to run; line counts from 1."""
    for match in BLOCK.finditer(text):
        if not match["not_run"] and match["backend"] in (None, BACKEND):
            line = text.count("\n", 0, match.start("code")) + 1
            yield line, textwrap.dedent(match["code"])


def run(text, name):
    namespace = {"__name__": "documentation"}
    for line, code in blocks(text):
        # The empty lines give a traceback the line numbers of the page.
        exec(compile("\n" * (line - 1) + code, name, "exec"), namespace)


def public_objects():
    """Yields `(name, object)` of the public names, and of their own methods."""
    for name in keras_powerlaw.__all__:
        value = getattr(keras_powerlaw, name)
        yield name, value
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                if not attribute.startswith("_"):
                    yield f"{name}.{attribute}", member


DOCSTRINGS = {
    name: docstring
    for name, value in public_objects()
    if any(blocks(docstring := inspect.getdoc(value) or ""))
}


@pytest.mark.parametrize(
    "page",
    [pytest.param(each, id=each.name, marks=SLOW.get(each.name, ())) for each in PAGES],
)
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page.read_text(encoding="utf-8"), str(page))


@pytest.mark.parametrize("name, docstring", DOCSTRINGS.items(), ids=DOCSTRINGS)
def test_docstring(name, docstring, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(docstring, f"<docstring of {name}>")


def test_every_test_that_a_page_names_exists():
    named = [
        name
        for page in PAGES
        for name in re.findall(r"`(test_\w+\.py[\w:]*)`", page.read_text("utf-8"))
    ]
    assert named
    for name in named:
        file, *parts = name.split("::")
        source = (ROOT / "tests" / file).read_text("utf-8")
        for part in parts:
            assert re.search(rf"^\s*(class|def) {part}\b", source, re.MULTILINE), name


def test_blocks_are_found():
    text = textwrap.dedent(
        """\
        ```python
        a = 1
        ```
        <!-- not run: takes an hour -->
        ```python
        b = 2
        ```
        <!-- only on another -->
        ```python
        b = 2
        ```
        === "Indented"

            ```python title="c.py"
            if a:
                c = 3
            ```
        ```bash
        d
        ```
        """
    )
    assert list(blocks(text)) == [(2, "a = 1\n"), (15, "if a:\n    c = 3\n")]
