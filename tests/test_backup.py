"""A backup keeps what a spectrum is: its floor, its range, and its basis's share."""

import numpy as np
import pytest

import keras_powerlaw as kp
from keras_powerlaw.spectral.backup import BasisBackup, CallbackState
from keras_powerlaw.spectral.renewal import Renewal


class TestBackup:
    @pytest.fixture
    def regularizer(self):
        regularizer = kp.SpectralActivityRegularizer(tau=1)
        regularizer.eigenbasis.assign(np.eye(3), share=0.5, strength=1.0)
        return regularizer

    def write(self, folder, regularizer, fit_range=(1, 2)):
        spectrum = kp.Spectrum([2.0, 1.0, 1e-6], fit_range, floor=1e-5)
        renewal = Renewal(spectrum, staleness=0.5, penalty=3.0, dead=0.1)
        backup = BasisBackup(folder)
        backup.write(7, CallbackState(7, 0, 1), [(regularizer, renewal)])
        return backup

    def test_keeps_the_floor(self, tmp_path, regularizer):
        _, [renewal] = self.write(tmp_path, regularizer).read(7, [regularizer])
        assert renewal.spectrum.floor == 1e-5
        assert renewal.spectrum.rank == 2
        assert (renewal.staleness, renewal.penalty) == (0.5, 3.0)

    def test_keeps_the_share_of_a_basis_newer_than_the_spectrum(
        self, tmp_path, regularizer
    ):
        restored = kp.SpectralActivityRegularizer(tau=1)
        self.write(tmp_path, regularizer).read(7, [restored])
        assert float(restored.eigenbasis.share) == 0.5

    def test_of_a_spectrum_too_short_for_a_fit(self, tmp_path, regularizer):
        backup = self.write(tmp_path, regularizer, fit_range=None)
        _, [renewal] = backup.read(7, [regularizer])
        assert np.isnan(renewal.spectrum.exponent)

    def test_of_a_version_without_floor_and_penalty(self, tmp_path, regularizer):
        backup = self.write(tmp_path, regularizer)
        [path] = tmp_path.iterdir()
        with np.load(path) as arrays:
            missing = ("floor0", "penalty0", "share0")
            np.savez(path, **{k: arrays[k] for k in arrays if k not in missing})
        restored = kp.SpectralActivityRegularizer(tau=1)
        _, [renewal] = backup.read(7, [restored])
        assert renewal.spectrum.rank == 3
        assert renewal.spectrum.fit_range == (1, 2)
        assert np.isnan(renewal.penalty)
        np.testing.assert_allclose(float(restored.eigenbasis.share), 2 / 3, rtol=1e-5)
