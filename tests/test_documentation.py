"""Runs the Python of README.md, the pages and notebooks in docs/, and the docstrings.

The blocks of a page and the cells of a notebook run in order and share their names;
each docstring runs on its own. A block of a page is left out by a comment on the line
before its fence: `<!-- not run: reason -->`, or `<!-- only on tensorflow -->` on the
other backends.

A page or notebook that needs more than the package alone names the extras, as in
`pip install ".[plots]"`. It runs without the packages of all others.
"""

import importlib.metadata
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from backend import BACKEND, only
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import keras_powerlaw

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
# What users install for what they do; and the backend that is there anyway.
EXTRAS = {"examples", "plots", "robustness", "strong"}
BACKENDS = {"tensorflow", "jax", "torch"}
# `pip install ".[plots,strong]"`, `keras-powerlaw[plots]`, or: the extra `plots`.
NAMED_EXTRAS = re.compile(r"(?:\.\[|law\[|extra `)([\w,]+)")
SLOW = {"docs/gallery.md"}

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


def required(package, extra=""):
    """The packages that one requires, or that an extra of it adds to these."""
    try:
        requirements = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always != bool(extra) and (always or marker.evaluate({"extra": extra})):
            yield canonicalize_name(requirement.name)


def packages_of(extras):
    """The packages that extras install, with those that these require in turn."""
    installed = set()
    new = {name for extra in extras for name in required("keras-powerlaw", extra)}
    while new:
        installed |= new
        new = {needed for name in new for needed in required(name)} - installed
    return installed


def hide_other_extras(text, monkeypatch):
    """Lets imports fail that need an extra which the text does not name."""
    named = set(re.findall(r"\w+", " ".join(NAMED_EXTRAS.findall(text))))
    optional = {name for extra in EXTRAS for name in required("keras-powerlaw", extra)}
    hidden = optional - packages_of(BACKENDS | EXTRAS & named)
    tops = {
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if not hidden.isdisjoint(map(canonicalize_name, packages))
    }
    for module in {*tops, *sys.modules}:
        if module.partition(".")[0] in tops:
            monkeypatch.setitem(sys.modules, module, None)


def path_in_repository(path):
    return path.relative_to(ROOT).as_posix()


def as_case(page):
    name = path_in_repository(page)
    return pytest.param(page, id=name, marks=[pytest.mark.slow] * (name in SLOW))


@pytest.mark.parametrize("page", map(as_case, PAGES))
def test_page(page, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    hide_other_extras(text, monkeypatch)
    monkeypatch.chdir(tmp_path)
    run(text, str(page))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=path_in_repository)
def test_notebook(notebook, tmp_path, monkeypatch):
    text = notebook.read_text(encoding="utf-8")
    hide_other_extras(text, monkeypatch)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "documentation"}
    for number, cell in enumerate(json.loads(text)["cells"]):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "Kept without outputs: the site has them."
            code = "".join(cell["source"])
            exec(compile(code, f"{notebook.name}, cell {number}", "exec"), namespace)


@only("tensorflow", why="the README installs it for the example")
def test_readme_prints_about_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    hide_other_extras(text, monkeypatch)
    run(text, str(README))
    printed, shown = capsys.readouterr().out, re.search(r"```text\n([^`]+)", text)[1]
    assert printed.splitlines()[0].split() == shown.splitlines()[0].split()
    found, expected = (
        np.array([line.split() for line in table.splitlines()[1:]])
        for table in (printed, shown)
    )
    np.testing.assert_array_equal(found[:, 0], expected[:, 0])
    found, expected = (
        np.char.rstrip(table[:, 1:], "%").astype(float) for table in (found, expected)
    )
    # Exponent, and two accuracies in per cent: not every processor rounds alike.
    assert np.all(abs(found - expected) < [0.2, 3, 6]), printed


@pytest.mark.parametrize("name, docstring", DOCSTRINGS.items(), ids=DOCSTRINGS)
def test_docstring(name, docstring, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(docstring, f"<docstring of {name}>")


def test_every_test_that_a_page_names_exists():
    named = [
        name
        for page in (README, *PAGES)
        for name in re.findall(r"`(test_\w+\.py[\w:]*)`", page.read_text("utf-8"))
    ]
    assert named
    for name in named:
        file, *parts = name.split("::")
        source = (ROOT / "tests" / file).read_text("utf-8")
        for part in parts:
            assert re.search(rf"^\s*(class|def) {part}\b", source, re.MULTILINE), name
