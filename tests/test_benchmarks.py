"""The benchmarks' own mathematics, and their runners at sizes of no interest."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from backend import value_and_gradient

import keras_powerlaw as kp

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.parametrize("unrolled", [False, True])
def test_literal_penalty_is_the_package_s(benchmark, unrolled):
    rng = np.random.default_rng(0)
    activity = 1 + rng.normal(size=(60, 20)) * np.arange(1, 21) ** -0.7
    basis, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    settings = {"alpha": 1.2, "tau": 4, "beta": 3.0}
    ours = kp.SpectralActivityRegularizer(**settings)
    literal = benchmark("literal").LiteralRegularizer(**settings, unrolled=unrolled)
    results = []
    for regularizer in (ours, literal):
        regularizer.set_basis(basis)
        results.append(value_and_gradient(regularizer.penalty, activity))
    (value, gradient), (literal_value, literal_gradient) = results
    assert value > 1
    assert literal_value == pytest.approx(value, rel=1e-5)
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(
        literal_gradient / scale, gradient / scale, rtol=1e-4, atol=1e-5
    )
