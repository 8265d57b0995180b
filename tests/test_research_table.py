"""The table of results prints the page's tables, and draws its figures."""

import re
from pathlib import Path

import numpy as np
import pytest

import keras_powerlaw as kp
from research import figures, results, table

DOCS = Path(__file__).parents[1] / "docs"
STORED = DOCS / "results"


def test_every_printed_table_of_the_page_is_that_of_the_stored_results(capsys):
    results.main(["--results", str(STORED)])
    page = (DOCS / "results.md").read_text("utf-8").splitlines()
    printed = re.split(r"\n([^|\n]+): [^|\n]+\n", capsys.readouterr().out)
    tables = list(zip(printed[1::2], printed[2::2], strict=True))
    assert len(tables) == 21
    shown = 0
    for experiment, text in tables:
        rows = [line for line in text.splitlines() if line]
        assert len(rows) > 2
        if experiment.split(",")[0] in (
            "evidence",
            "matched",
            "exponents",
            "widths",
            "controls",
        ):
            assert set(rows) <= set(page)
            shown += 1
    assert shown == 14


@pytest.mark.slow
def test_figures_of_the_page_are_drawn_byte_for_byte_the_same(tmp_path):
    for folder in ("first", "second"):
        results.main(["--results", str(STORED), "--draw", str(tmp_path / folder)])
    first, second = (
        {
            p.relative_to(tmp_path / f): p.read_bytes()
            for p in (tmp_path / f).rglob("*.png")
        }
        for f in ("first", "second")
    )
    assert first == second
    stored = {path.relative_to(STORED) for path in STORED.glob("*/*.png")}
    assert set(first) == stored
    pages = "".join(path.read_text("utf-8") for path in DOCS.glob("*.md"))
    assert all(f"results/{path.as_posix()}" in pages for path in stored)


def test_a_plain_network_alone_makes_no_comparison():
    settings = {"architecture": "cnn", "condition": "vanilla", "beta": None, "seed": 0}
    result = {"settings": settings, "layers": {"hidden1": {"floor": 0.0}}}
    result["kept_out"] = {"clean": 1.0, "pgd": 0.0}
    assert list(figures.paper([result])) == []


def test_a_saved_table_holds_what_was_saved(tmp_path):
    n = np.arange(1, 2001)
    eigenvalues = n**-1.3 * np.exp(-n / 700)
    spectrum = kp.Spectrum(eigenvalues)
    settings = {"dataset": "mnist", "architecture": "shallow", "condition": "vanilla"}
    result = {
        "experiment": "evidence",
        "settings": {**settings, "beta": None, "seed": 0},
        "layers": {"hidden1": table.layer_row(spectrum, 1.0)},
        "sensitivity": {"components": [1, 2], "total": np.ones((2, 8, 8, 1)).tolist()},
    }
    table.save([result], tmp_path)
    [loaded] = table.load(tmp_path)
    layer = loaded["layers"]["hidden1"]
    assert layer["exponent"] == spectrum.exponent
    assert layer["ratio"] == table.ratio_to_target(eigenvalues)
    np.testing.assert_allclose(layer["eigenvalues"], eigenvalues, rtol=2e-3)
    np.testing.assert_array_equal(loaded["sensitivity"]["total"], 1)

    changed = {**result, "test_accuracy": 0.5}
    results.add([changed], tmp_path)
    [loaded] = table.load(tmp_path)
    assert loaded["test_accuracy"] == 0.5


def test_reports_keep_their_accuracies():
    rng = np.random.default_rng(0)
    report = kp.RobustnessReport(
        epsilons=np.array([0.02, 0.05]),
        clean_correct=rng.random(300) < 0.9,
        correct={"fgsm": rng.random((2, 300)) < 0.5, "pgd": rng.random((2, 300)) < 0.3},
    )
    row = table.report_row(report)
    again = table.report_of(row)
    assert again.clean_accuracy == report.clean_accuracy
    for name, accuracies in report.accuracy.items():
        np.testing.assert_array_equal(again.accuracy[name], accuracies)
    assert row["worst_case"] == report.worst_case_accuracy.tolist()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_ratio_to_target(alpha):
    n = np.arange(1.0, 101)
    eigenvalues = np.where(n <= 10, 1, 0.3) * n**-alpha
    assert table.ratio_to_target(eigenvalues, alpha) == pytest.approx(0.3)
