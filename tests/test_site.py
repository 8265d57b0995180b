"""The pages of the API, the site that is built of all pages, and its formulas."""

import dataclasses
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


def test_methods_are_among_them():
    assert {"Spectrum.from_samples", "Spectrum.distance"} <= CALLABLES.keys()
    assert dataclasses.is_dataclass(CALLABLES["Flag"])


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
            ("the N units", "the $N$ units"),
            ("A network, I say: a unit", "A network, I say: a unit"),
            ("(λₙ/γₙ − 1)²", "($λ_{n}/γ_{n}$ − $1)^{2}$"),
            ("the power law n^(−α), fitted", "the power law $n^{-α}$, fitted"),
            ("the τ-th of λ_4τ.", "the $τ$-th of $λ_{4τ}$."),
            ("‖Σ‖_F and VᵀΣV", r"$\|Σ\|_{F}$ and $V^{T}ΣV$"),
            ("    x: The data x.", "    x: The data $x$."),
            ("`x_n`, in 3-D: pgd_ce", "`x_n`, in 3-D: pgd_ce"),
        ],
    )
    def test_of_text(self, typeset, text, expected):
        assert typeset(text) == expected

    @pytest.mark.parametrize(
        "formula, expected",
        [
            (
                "R = β/N ∑_{n=τ}^{N} (λₙ/γₙ − 1)²,\n    γₙ = κ n^(−α)",
                r"R = β/N \sum _{n=τ}^{N} (λ_{n}/γ_{n} - 1)^{2},"
                r"\quad γ_{n} = κ n^{-α}",
            ),
            (
                "x̃ = R⁻¹ max(0, √λₙ)",
                r"\tilde{x} = R^{-1} \operatorname{max}(0, \sqrt{λ_{n}})",
            ),
            ("‖v_pbᵀ J_b‖²", r"\|v_{pb}^{T} J_{b}\|^{2}"),
        ],
    )
    def test_of_a_line_of_its_own(self, typeset, formula, expected):
        assert typeset(f"It is\n\n    {formula}\n\nwith") == (
            f"It is\n\n$${expected}$$\n\nwith"
        )

    def test_leaves_code_as_it_is(self, typeset):
        text = "Example:\n\n```python\nN = λ_τ\n\n    x = R\n\n```\nend"
        assert typeset(text) == text

    def test_links_public_names(self, typeset):
        assert typeset("`Name`, `Name.value`, `Name.call()`, `Other`") == (
            "[`Name`][package.Name], [`Name.value`][package.Name], "
            "[`Name.call()`][package.Name.call], `Other`"
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, as `make docs` builds it: the path of its folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    result = subprocess.run(
        [*command, "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
class TestSite:
    def pages(self, site, part="."):
        found = sorted((site / part).rglob("index.html"))
        assert found
        return {path: path.read_text("utf-8") for path in found}

    @pytest.mark.parametrize("name", keras_powerlaw.__all__)
    def test_every_public_name_has_its_signature(self, site, name):
        [entry] = [
            html.partition(f'id="keras_powerlaw.{name}"')[2]
            for html in self.pages(site, "api").values()
            if f'id="keras_powerlaw.{name}"' in html
        ]
        signature = re.search(r'<div class="doc-signature.*?</pre>', entry, re.S)[0]
        shown = re.sub("<[^>]+>", "", signature)
        for argument in inspect.signature(getattr(keras_powerlaw, name)).parameters:
            assert re.search(rf"\b{argument}: ", shown), (argument, shown)

    def test_every_row_of_a_table_is_full(self, site):
        rows = 0
        for path, html in self.pages(site, "api").items():
            for row in re.findall(r'<tr class="doc-section-item">.*?</tr>', html, re.S):
                cells = re.findall(r"<td>(.*?)</td>", row, re.S)
                assert len(cells) >= 2
                texts = [re.sub(r"<[^>]+>|\s", "", cell) for cell in cells]
                assert all(texts), (path, texts)
                rows += 1
        assert rows > 100

    def test_what_is_returned_is_one_row(self, site):
        for path, html in self.pages(site, "api").items():
            for table in re.findall(r"Returns:</span>.*?</table>", html, re.S):
                assert table.count("doc-section-item") == 1, (path, table)

    def test_internals_are_left_out(self, site):
        for html in self.pages(site, "api").values():
            ids = re.findall(r'id="keras_powerlaw\.([\w.]+)"', html)
            assert not [
                name for name in ids if re.search(r"\._|\.on_|\.call$|config$", name)
            ]

    def test_formulas_are_typeset(self, site):
        for path, html in self.pages(site).items():
            text = re.sub(r"<(pre|code|script|math)\b.*?</\1>", "", html, flags=re.S)
            assert not re.search(r"arithmatex|\$\$", text), path
            if path.is_relative_to(site / "api"):
                assert not re.search(r"[ₘₙᵀ₁₂²]|\w\^\(", text), path
        assert self.pages(site, "api/penalty").popitem()[1].count("<math") > 20

    def test_it_loads_nothing_from_other_hosts(self, site):
        loading = re.compile(
            r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
            r"|<link\b(?=[^>]*rel=[\"']?(?:stylesheet|preload|icon))[^>]*(?:https?:)?//"
            r"|@import|url\(['\"]?(?:https?:)?//"
        )
        for path, html in self.pages(site).items():
            assert not loading.search(html), (path, loading.search(html)[0])

    @pytest.mark.parametrize(
        "name", [path.stem for path in (ROOT / "docs/notebooks").glob("*.ipynb")]
    )
    def test_a_notebook_shows_what_it_has_drawn(self, site, name):
        [(path, html)] = self.pages(site, f"notebooks/{name}").items()
        figures = re.findall(r'src="(figure_\w+\.png)"', html)
        assert figures
        assert all((path.parent / figure).stat().st_size > 5000 for figure in figures)
        assert (path.parent / f"{name}.ipynb").exists()
