"""The data sets, and the batches of a training."""

import numpy as np
import pytest

from research import data


def test_batches_are_new_in_every_epoch():
    x = np.arange(50)

    def two_epochs():
        batches = data.Reshuffled(x, -x, 20, seed=3)
        for _ in range(2):
            images, labels = zip(
                *(batches[i] for i in range(len(batches))), strict=True
            )
            assert [len(batch) for batch in images] == [20, 20, 10]
            np.testing.assert_array_equal(
                np.concatenate(labels), -np.concatenate(images)
            )
            yield np.concatenate(images)
            batches.on_epoch_end()

    first, second = two_epochs()
    assert sorted(first) == sorted(second) == list(x)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(list(two_epochs()), [first, second])


def test_images_kept_out_are_no_others():
    x = np.arange(50)
    (trained, y), (kept, labels) = data.keep_out((x, -x), 20)
    assert sorted([*trained, *kept]) == list(x) and len(kept) == 20
    np.testing.assert_array_equal(y, -trained)
    np.testing.assert_array_equal(labels, -kept)
    np.testing.assert_array_equal(kept, data.keep_out((x, -x), 20)[1][0])
    np.testing.assert_array_equal(data.keep_out((x, -x), 0)[0][0], x)


def test_data_set_from_a_file(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(7, 28, 28)).astype("uint8"), np.arange(7)
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    (x_train, y_train), (x_test, _) = data.load("mnist", str(path))
    np.testing.assert_allclose(x_train[..., 0], x / 255, rtol=1e-6)
    assert x_train.shape == (7, 28, 28, 1) and x_train.dtype == np.float32
    np.testing.assert_array_equal(y_train, y)
    assert len(x_test) == 2


@pytest.mark.mnist
def test_data_set_through_tensorflow_datasets(mnist):
    (x_train, y_train), (x_test, y_test) = data.load("mnist")
    assert x_train.shape == (60000, 28, 28, 1) and x_test.shape == (10000, 28, 28, 1)
    assert x_train.dtype == np.float32 and (x_train.min(), x_train.max()) == (0, 1)
    np.testing.assert_array_equal(np.bincount(y_test)[:3], [980, 1135, 1032])
    np.testing.assert_allclose(x_train[:100], mnist[0][0][:100], atol=1e-7)
