"""The pages of the API, the site that is built of all pages, and its formulas."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_powerlaw

ROOT = Path(__file__).parent.parent
API = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs/api").glob("*.md"))
# `*more` only leads to a helpful error.
UNDOCUMENTED = {"self", "more"}


def documented_callables():
    """Yields `(name, object)` of the public names, and of their methods in the API."""
    for name in keras_powerlaw.__all__:
        value = getattr(keras_powerlaw, name)
        yield name, value
        if inspect.isclass(value):
            [options] = re.findall(rf"::: keras_powerlaw.{name}\n((?:    .*\n)*)", API)
            for member in re.findall(r"[a-z]\w+", options.partition("members:")[2]):
                if inspect.isroutine(getattr(value, member)):
                    yield f"{name}.{member}", getattr(value, member)


CALLABLES = dict(documented_callables())


@pytest.mark.parametrize("name", keras_powerlaw.__all__)
def test_a_public_name_stands_on_one_page(name):
    assert inspect.getdoc(getattr(keras_powerlaw, name))
    assert API.count(f"::: keras_powerlaw.{name}\n") == 1


@pytest.mark.parametrize("name", CALLABLES)
def test_an_argument_has_a_type_and_a_description(name):
    value = CALLABLES[name]
    text = inspect.getdoc(value)
    for argument in inspect.signature(value).parameters.values():
        if argument.name in UNDOCUMENTED:
            continue
        assert argument.annotation is not argument.empty, argument
        assert re.search(rf"^    (\*\*)?{argument.name}: \S", text, re.M), argument


@pytest.fixture(scope="module")
def typeset():
    path = ROOT / "docs" / "docstrings.py"
    spec = importlib.util.spec_from_file_location("docstrings", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda text: module.typeset(text, "package", {"Name"}).rstrip("\n")


class TestTypesetting:
    @pytest.mark.parametrize(
        "text, expected",
        [
            ("A network, I say: the N units", "A network, I say: the $N$ units"),
            ("the power law n^(−α), fitted", "the power law $n^{-α}$, fitted"),
            ("the τ-th of λ_4τ.", "the $τ$-th of $λ_{4τ}$."),
            ("‖Σ‖_F and VᵀΣV", r"$\|Σ\|_{F}$ and $V^{T}ΣV$"),
            ("    x: The data x.", "    x: The data $x$."),
            ("`x_n`, in 3-D: pgd_ce", "`x_n`, in 3-D: pgd_ce"),
            ("`Name`, `Other`", "[`Name`][package.Name], `Other`"),
            ("`Name.value`", "[`Name.value`][package.Name]"),
            ("`Name.call()`", "[`Name.call()`][package.Name.call]"),
        ],
    )
    def test_of_text(self, typeset, text, expected):
        assert typeset(text) == expected

    def test_of_lines_of_their_own(self, typeset):
        found = typeset("It is\n\n    x̃ = R⁻¹ max(0, √λₙ),\n    γₙ = κ\n\nwith")
        formula = r"\tilde{x} = R^{-1} \operatorname{max}(0, \sqrt{λ_{n}})"
        assert found == f"It is\n\n$${formula},\\quad γ_{{n}} = κ$$\n\nwith"

    def test_leaves_code_as_it_is(self, typeset):
        text = "Example:\n\n```python\nN = λ_τ\n\n    x = R\n\n```\nend"
        assert typeset(text) == text


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, as `make docs` builds it: the path of its folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]
    result = subprocess.run(
        [*command, str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return folder


def pages(folder):
    found = sorted(folder.rglob("index.html"))
    assert found
    return {path: path.read_text("utf-8") for path in found}


@pytest.mark.slow
class TestSite:
    def test_formulas_are_typeset(self, site):
        for path, html in pages(site).items():
            text = re.sub(r"<(pre|code|script|math)\b.*?</\1>", "", html, flags=re.S)
            assert not re.search(r"arithmatex|\$\$", text), path
            if path.is_relative_to(site / "api"):
                assert not re.search(r"[ₘₙᵀ₁₂²]|\w\^\(", text), path
        assert pages(site / "api/penalty").popitem()[1].count("<math") > 20

    def test_it_loads_nothing_from_other_hosts(self, site):
        loading = re.compile(
            r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
            r"|<link\b(?=[^>]*rel=[\"']?(?:stylesheet|preload|icon))[^>]*(?:https?:)?//"
            r"|@import|url\(['\"]?(?:https?:)?//"
        )
        for path, html in pages(site).items():
            assert not loading.search(html), (path, loading.search(html)[0])

    @pytest.mark.parametrize(
        "name", [path.stem for path in (ROOT / "docs/notebooks").glob("*.ipynb")]
    )
    def test_a_notebook_shows_what_it_has_drawn(self, site, name):
        [(path, html)] = pages(site / f"notebooks/{name}").items()
        figures = re.findall(r'src="(figure_\w+\.png)"', html)
        assert figures
        assert all((path.parent / figure).stat().st_size > 5000 for figure in figures)
        assert (path.parent / f"{name}.ipynb").exists()
