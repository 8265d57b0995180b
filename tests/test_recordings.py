"""Spectra of samples of anything, against NumPy."""

import numpy as np
import pytest

import keras_powerlaw as kp
from keras_powerlaw import arguments

# More samples than units, as many, fewer.
SHAPES = [(90, 30), (40, 40), (30, 90)]


def samples(shape, alpha=1.0, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    scales = np.arange(1, shape[1] + 1) ** (-alpha / 2)
    return (5 + rng.normal(size=shape) * scales).astype(dtype)


def expected(data):
    found = np.linalg.eigvalsh(np.cov(data.astype("float64"), rowvar=False))
    return np.maximum(found[::-1], 0)


class TestFromSamples:
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_equals_numpy_whatever_the_batches(self, shape, dtype):
        data = samples(shape, dtype=dtype)
        eigenvalues = expected(data)
        tolerance = 10 * np.finfo(dtype).eps * eigenvalues[0]
        batches = np.array_split(data, 4)
        for given in (data, batches, (batch for batch in batches)):
            spectrum = kp.Spectrum.from_samples(given)
            np.testing.assert_allclose(
                spectrum.eigenvalues, eigenvalues, atol=tolerance
            )
            assert spectrum.rank == min(shape[0] - 1, shape[1])

    def test_counts_are_numbers(self):
        counts = np.random.default_rng(0).poisson(3.0, size=(50, 20))
        spectrum = kp.Spectrum.from_samples(counts)
        np.testing.assert_allclose(spectrum.eigenvalues, expected(counts))

    def test_reads_a_file_in_parts(self, tmp_path, monkeypatch):
        data = samples((3000, 4))
        np.save(tmp_path / "recording.npy", data)
        mapped = np.load(tmp_path / "recording.npy", mmap_mode="r")
        np.testing.assert_allclose(
            kp.Spectrum.from_samples(mapped).eigenvalues, expected(data)
        )

    def test_forms_no_square_of_the_units_of_a_wide_recording(self, monkeypatch):
        # Room for the samples and their Gram matrix, but not for a covariance.
        monkeypatch.setattr(arguments, "installed_memory", lambda: 2**20)
        data = samples((20, 2000), dtype="float32")
        spectrum = kp.Spectrum.from_samples(data)
        singular = np.linalg.svd(data - data.mean(axis=0), compute_uv=False)
        np.testing.assert_allclose(
            spectrum.eigenvalues[:19], singular[:19] ** 2 / 19, rtol=1e-4
        )
        with pytest.raises(ValueError, match="Too wide for covariances"):
            kp.Spectrum.from_samples(samples((200, 2000)))

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (np.zeros((1, 3)), "at least two samples"),
            (np.zeros(3), "an array of shape"),
            (np.full((4, 3), np.nan), "finite numbers"),
            (np.zeros((4, 3), complex), "real numbers"),
            ([np.zeros((4, 3)), np.zeros((4, 2))], "the same units, 3"),
            ([], "at least two samples"),
            (3, "an array or an iterable"),
        ],
    )
    def test_refuses_what_has_no_spectrum(self, bad, message):
        with pytest.raises(ValueError, match=f"argument `samples`.*{message}"):
            kp.Spectrum.from_samples(bad)

    @pytest.mark.parametrize("bad", [0, 1.5, "all", True])
    def test_refuses_other_numbers_of_components(self, bad):
        with pytest.raises(ValueError, match="argument `components`. Expected"):
            kp.Spectrum.from_samples(samples((9, 3)), components=bad)


class TestLeadingEigenvalues:
    @pytest.mark.parametrize("shape", [(400, 150), (150, 400)])
    @pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
    def test_agree_with_the_full_decomposition(self, shape, alpha):
        data = samples(shape, alpha)
        full = kp.Spectrum.from_samples(data)
        leading = kp.Spectrum.from_samples(data, components=40)
        np.testing.assert_allclose(
            leading.eigenvalues, full.eigenvalues[:40], rtol=1e-9
        )
        np.testing.assert_allclose(leading.variance, full.variance)

    def test_as_many_as_there_are(self):
        data = samples((20, 50))
        spectrum = kp.Spectrum.from_samples(data, components=50)
        np.testing.assert_allclose(spectrum.eigenvalues, expected(data), atol=1e-12)

    def test_of_a_low_rank(self):
        data = samples((200, 3)) @ np.random.default_rng(1).normal(size=(3, 400))
        spectrum = kp.Spectrum.from_samples(data, components=20)
        assert spectrum.rank == 3
        np.testing.assert_allclose(spectrum.eigenvalues[:3], expected(data)[:3])

    def test_figures_that_need_the_others_are_unknown(self):
        data = samples((200, 150), alpha=0.2)
        spectrum = kp.Spectrum.from_samples(data, components=10)
        full = kp.Spectrum.from_samples(data)
        assert np.isnan(spectrum.dimension_90)
        assert np.isnan(spectrum.participation_ratio)
        assert np.isnan(spectrum.effective_rank)
        np.testing.assert_allclose(spectrum.stable_rank, full.stable_rank, rtol=1e-9)
        steep = samples((200, 150), alpha=3.0)
        assert (
            kp.Spectrum.from_samples(steep, components=20).dimension_90
            == kp.Spectrum.from_samples(steep).dimension_90
        )
