"""What a regularized layer keeps: its eigenbasis and the latest samples of training."""

import keras
import numpy as np
import pytest
import reference
from backend import to_numpy
from datasets import gaussian
from keras import ops
from models import compiled, hidden, network

import keras_powerlaw as kp
from keras_powerlaw.basis import ActivationWindow

UNITS = 24


def basis_of(tau=5):
    return kp.SpectralActivityRegularizer(tau=tau).eigenbasis


EIGENVECTORS = reference.orthonormal(UNITS, np.random.default_rng(0))
EIGENVALUES = 1 / np.arange(1.0, UNITS + 1)


class TestStatus:
    def test_is_absent_then_waiting_then_known_and_absent_again(self):
        basis = basis_of()
        assert (basis.status, basis.vectors, basis.window) == ("absent", None, None)
        basis.keep_samples(UNITS, replicas=1)
        assert basis.status == "waiting"
        assert not np.any(to_numpy(basis.vectors))  # along which there is no variance
        basis.renew(EIGENVECTORS, EIGENVALUES)
        assert basis.status == "known"
        basis.discard()
        assert (basis.status, basis.vectors, basis.window) == ("absent", None, None)

    def test_known_are_the_eigenvectors_from_tau_on_and_the_share_of_the_first(self):
        basis = basis_of(tau=5)
        basis.renew(ops.convert_to_tensor(EIGENVECTORS, "float32"), EIGENVALUES)
        found = to_numpy(basis.vectors)
        np.testing.assert_allclose(found, EIGENVECTORS[:, 4:], atol=1e-6)
        share = EIGENVALUES[4] / EIGENVALUES[4:].sum()
        np.testing.assert_allclose(to_numpy(basis.share), share, rtol=1e-6)

    def test_waits_for_the_first_step_where_the_units_are_unknown(self):
        basis = basis_of()
        basis.keep_samples(None, replicas=1)
        assert basis.status == "absent" and basis.window.count == 0
        basis.write(ops.ones((10, UNITS)))
        assert basis.status == "waiting" and basis.window.count == 10

    def test_strength_falls_to_a_tenth_and_doubles_with_every_basis(self):
        basis, seen = basis_of(), []
        basis.renew(EIGENVECTORS, EIGENVALUES)
        for change in [basis.weaken] * 2 + [None] * 8:
            change() if change else basis.renew(EIGENVECTORS, EIGENVALUES)
            seen.append(float(to_numpy(basis.strength)))
            assert basis.yielded_to == pytest.approx(seen[-1])
        expected = [0.1, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1, 1]
        np.testing.assert_allclose(seen, expected, rtol=1e-6)

    @pytest.mark.parametrize("is_known", [False, True])
    def test_and_all_else_can_be_restored(self, is_known):
        one, other = basis_of(), basis_of()
        for each in one, other:
            each.keep_samples(UNITS, replicas=1)
        one.write(rows(30, UNITS))
        if is_known:
            one.renew(EIGENVECTORS, EIGENVALUES)
            one.weaken()
        other.restore(one.to_arrays())
        assert other.status == one.status == ("known" if is_known else "waiting")
        assert other.yielded_to == pytest.approx(one.yielded_to)
        expected, found = one.to_arrays(), other.to_arrays()
        assert expected.keys() == found.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def open_window(units):
    window = ActivationWindow(kp.SpectralActivityRegularizer(), replicas=1)
    window.open(units)
    return window


def rows(count, units, start=0):
    """Rows that tell their number: row k has k in every column."""
    numbers = np.arange(start, start + count, dtype="float32")
    return ops.convert_to_tensor(np.repeat(numbers[:, np.newaxis], units, axis=1))


class TestWindow:
    def test_holds_the_latest_samples(self):
        window = open_window(units=700)
        assert not window.is_filled
        for start in range(0, 9000, 300):
            window.write(rows(300, 700, start))
            assert window.is_filled == (start + 300 >= 1400)
        kept = np.sort(to_numpy(window.samples())[:, 0])
        assert len(kept) >= 1400
        # What did not fit at the end is up to a batch older.
        latest = np.arange(9000 - 1400 + 300, 9000)
        assert set(latest) <= set(kept) and kept.min() >= 9000 - len(kept) - 300

    @pytest.mark.parametrize("size", [7, 64, 128, 333, 5000])
    def test_is_filled_by_any_batch_size(self, size):
        window = open_window(units=20)
        for _ in range(1 + 1000 // min(size, 250)):
            window.write(rows(size, 20))
        assert window.is_filled and window.count >= 1000

    def test_takes_an_even_choice_of_a_large_batch(self):
        window = open_window(units=20)
        window.write(rows(32 * 1024, 20))
        chosen = to_numpy(window.samples())[:, 0]
        assert len(np.unique(chosen)) == len(chosen) == 250
        # From everywhere in the batch, and from all columns of 32×32 feature maps.
        counts, _ = np.histogram(chosen, bins=50, range=(0, 32 * 1024))
        assert counts.min() >= 4 and counts.max() <= 6
        assert len(np.unique(chosen % 32)) == 32

    def test_goes_on_where_a_restored_one_would(self):
        window, other = open_window(20), open_window(20)
        for start in range(0, 1600, 100):
            window.write(rows(100, 20, start))
        other.restore(window.to_arrays())
        for each in window, other:
            each.write(rows(100, 20, 5000))
        np.testing.assert_array_equal(*(to_numpy(w.samples()) for w in (window, other)))


def test_neither_weights_nor_files_know_of_a_basis_or_a_window(tmp_path):
    regularizer = kp.SpectralActivityRegularizer(tau=2)
    model = compiled(network(hidden(UNITS, regularizer)))
    refresh = kp.EigenbasisRefresh()
    model.fit(*gaussian(230), batch_size=46, verbose=0, callbacks=[refresh])
    assert regularizer.eigenbasis.status == "known"
    assert len(model.weights) == len(network(hidden(UNITS)).weights)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    basis = loaded.get_layer("hidden").activity_regularizer.eigenbasis
    assert (basis.status, basis.window) == ("absent", None)
