"""cvPCA, against the definition and on recordings whose signal is known."""

from pathlib import Path

import keras
import numpy as np
import pytest
from backend import only

import keras_powerlaw as kp


def repeats(shape, noise, alpha=1.0, seed=0):
    """Two recordings of one signal, n^(−α), in white noise of `noise` times its sum."""
    rng = np.random.default_rng(seed)
    variances = np.arange(1, shape[1] + 1) ** -alpha
    signal = rng.normal(size=shape) * np.sqrt(variances)
    scale = np.sqrt(noise * variances.sum() / shape[1])
    return [signal + scale * rng.normal(size=shape) for _ in range(2)]


def by_definition(first, second, splits, seed):
    """Stringer et al. (2019): PCA of one repeat, covariance of both projections."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(splits):
        swapped = rng.integers(2, size=len(first)) == 1
        a, b = first.copy(), second.copy()
        a[swapped], b[swapped] = second[swapped], first[swapped]
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        _, _, components = np.linalg.svd(a, full_matrices=False)
        components = components[: min(len(a) - 1, a.shape[1])]
        found.append([np.sum((a @ v) * (b @ v)) / (len(a) - 1) for v in components])
    return np.mean(found, axis=0)


@pytest.mark.parametrize("shape", [(90, 30), (40, 40), (30, 90)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_equals_the_definition(shape, dtype):
    first, second = (5 + each.astype(dtype) for each in repeats(shape, 1.0))
    spectrum = kp.cross_validated_spectrum(first, second, splits=4, seed=3)
    expected = by_definition(first, second, 4, 3)
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(
        spectrum.eigenvalues, expected, atol=tolerance * expected[0]
    )


@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_finds_the_exponent_that_noise_hides(noise, alpha):
    first, second = repeats((2000, 100), noise, alpha)
    spectrum = kp.cross_validated_spectrum(first, second, fit_range=(2, 30), splits=3)
    plain = kp.Spectrum.from_samples(first, fit_range=(2, 30))
    clean = kp.Spectrum.from_samples(repeats((2000, 100), 0.0, alpha)[0])
    assert abs(spectrum.exponent - alpha) < 0.15
    assert plain.exponent < alpha - 0.15
    # The variance of the signal, that of the noise left out.
    np.testing.assert_allclose(spectrum.eigenvalues.sum(), clean.variance, rtol=0.05)


def test_of_two_equal_repeats_is_the_spectrum():
    first, _ = repeats((60, 200), 0.0)
    second = np.nextafter(first, np.inf)
    spectrum = kp.cross_validated_spectrum(first, second, fit_range=(2, 40))
    plain = kp.Spectrum.from_samples(first, fit_range=(2, 40))
    np.testing.assert_allclose(spectrum.eigenvalues, plain.eigenvalues[:59])
    np.testing.assert_allclose(spectrum.exponent, plain.exponent)
    np.testing.assert_allclose(spectrum.exponent_interval, plain.exponent_interval)
    assert spectrum.dimension_90 == plain.dimension_90
    assert spectrum.negative == 0


def test_negative_values_are_kept_and_said():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 100, 60))  # noise alone
    spectrum = kp.cross_validated_spectrum(first, second, fit_range=(5, 50), splits=1)
    below = np.sum(spectrum.eigenvalues[4:50] <= 0)
    assert spectrum.negative == below > 10
    assert len(spectrum.eigenvalues) == spectrum.rank == 60


def test_splits_depend_on_the_seed_alone():
    first, second = repeats((40, 20), 1.0)
    found = [
        kp.cross_validated_spectrum(first, second, splits=2, seed=seed).eigenvalues
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (np.zeros((5, 4)), "argument `second`. Expected responses of the same shape"),
        (np.zeros(6), "argument `second`. Expected an array of real numbers"),
        (np.full((6, 4), np.inf), "argument `second`. Expected finite numbers"),
    ],
)
def test_refuses_what_is_no_second_repeat(second, message):
    with pytest.raises(ValueError, match=message):
        kp.cross_validated_spectrum(np.zeros((6, 4)), second)


@pytest.mark.parametrize("name, bad", [("splits", 0), ("seed", -1), ("fit_range", 3)])
def test_refuses_other_options(name, bad):
    with pytest.raises(ValueError, match=f"argument `{name}`. Expected"):
        kp.cross_validated_spectrum(*repeats((9, 4), 1.0), **{name: bad})


def test_is_plotted_beside_a_spectrum():
    first, second = repeats((100, 60), 2.0)
    spectra = {
        "signal": kp.cross_validated_spectrum(first, second, splits=1),
        "recording": kp.Spectrum.from_samples(first),
    }
    assert np.any(spectra["signal"].eigenvalues < 0)
    ax = kp.plot_spectrum(spectra)
    shown = ax.lines[0].get_ydata()
    assert len(shown) == 60 and np.nanmin(shown) > 0


@pytest.mark.slow
@only("tensorflow", why="Keras reads folders of images through it")
def test_the_ten_lines_of_the_guide_run_on_a_folder(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[1] / "docs" / "recordings.md"
    code = page.read_text("utf-8").partition("```python\n")[2].partition("```")[0]
    assert 'weights="imagenet"' in code
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        # Of different colors: an untrained network sees little else.
        image = rng.uniform(0, 255, (1, 1, 3)) + rng.normal(0, 30, (64, 64, 3))
        keras.utils.save_img(f"images/{number}.png", image.clip(0, 255), scale=False)
    # An untrained network of the same layers, on smaller images.
    code = code.replace('weights="imagenet"', "weights=None, input_shape=(64, 64, 3)")
    exec(code.replace("224", "64"), {})
    assert "avg_pool" in capsys.readouterr().out
