"""Data in the forms that `fit()` takes, as batches."""

import itertools

import keras
import numpy as np
import pytest
import scipy.sparse
from backend import tensorflow
from datasets import Batches, tf_dataset
from keras import layers, ops

from keras_powerlaw.activations import input_batches
from keras_powerlaw.support import samples
from keras_powerlaw.support.samples import EpochSample

MODEL = keras.Sequential([keras.Input((3,), name="rows"), layers.Dense(4)])


class OnDisk:
    """An array larger than the memory: single rows can be read, but not all of it."""

    def __init__(self, array):
        self.array = array
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self.rows_read = 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        found = self.array[rows]
        self.rows_read += len(found)
        return found

    def __array__(self, *_, **__):
        raise MemoryError


def read(x, max_samples=None, seed=0, model=MODEL):
    """All that is read of `x`, as one array."""
    batches, _ = input_batches(model, x, 32, max_samples, seed)
    return np.concatenate([np.asarray(ops.convert_to_numpy(each)) for each in batches])


@pytest.fixture
def x():
    return np.arange(3000, dtype="float32").reshape(1000, 3)


@pytest.mark.parametrize("max_samples, read", [(None, 1000), (120, 120)])
def test_only_the_rows_of_the_sample_are_read(x, max_samples, read):
    on_disk = OnDisk(x)
    batches, count = input_batches(MODEL, on_disk, 32, max_samples, seed=0)
    rows = np.concatenate(list(batches))
    assert len(rows) == on_disk.rows_read == read
    assert count == -(-read // 32)
    assert len(np.unique(rows[:, 0])) == read


def frame(x):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    return pandas.DataFrame(x)


def tf_sparse(x):
    return tensorflow().sparse.from_dense(x)


def tf_tensor(x):
    return tensorflow().constant(x)


KINDS = {
    "a tensor": ops.convert_to_tensor,
    "a tensor of TensorFlow": tf_tensor,
    "a data frame": frame,
    "a data frame of columns of several types": lambda x: frame(x).astype(
        {0: "float64", 1: object}
    ),
    "a SciPy matrix by rows": scipy.sparse.csr_matrix,
    "a SciPy array by entries": scipy.sparse.coo_array,
    "a tf.SparseTensor": tf_sparse,
}


class TestKinds:
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
    @pytest.mark.parametrize("max_samples", [None, 100])
    def test_are_read_and_sampled_as_an_array(self, x, kind, max_samples):
        found = read(kind(x), max_samples, seed=3)
        np.testing.assert_array_equal(found, read(x, max_samples, seed=3))

    def test_a_series_is_one_column(self, x):
        np.testing.assert_array_equal(read(frame(x)[1]), x[:, 1:2])

    def test_a_sparse_tensor_with_more_dimensions(self, x):
        cube = x.reshape(250, 4, 3)
        np.testing.assert_array_equal(read(tf_sparse(cube), 30), read(cube, 30))

    def test_batches_of_a_data_set_may_be_of_any_kind(self, x):
        for kind in (frame, scipy.sparse.csr_matrix, tf_sparse):
            batches = [(kind(x[:60]), np.zeros(60)), (kind(x[60:100]), np.zeros(40))]
            found = read(Endless(itertools.cycle(batches)), max_samples=90)
            np.testing.assert_array_equal(found, x[:90])

    def test_a_data_frame_with_words_is_refused(self, x):
        words = frame(x).assign(name="a")
        with pytest.raises(
            ValueError, match="argument `x`. Expected a data frame of n"
        ):
            read(words)


def test_arrays_of_several_inputs_are_sampled_alike(x):
    batches, _ = input_batches(two_inputs(list), [x, -x], 32, 50, seed=0)
    for one, two in batches:
        np.testing.assert_array_equal(one, -two)


def two_inputs(form):
    """A model of the inputs `second` and `first`, in this order, in a `form`."""
    inputs = {name: keras.Input((3,), name=name) for name in ("second", "first")}
    tensors = inputs if form is dict else form(inputs.values())
    return keras.Model(tensors, layers.Concatenate()(list(inputs.values())))


class TestDictionaries:
    @pytest.mark.parametrize("form", [list, tuple, dict])
    @pytest.mark.parametrize("in_batches", [False, True])
    def test_inputs_are_found_by_name(self, x, form, in_batches):
        model = two_inputs(form)
        entries = {"first": x, "id": np.array(["a"] * len(x)), "second": -x}
        if in_batches:
            entries = Endless([(entries, np.zeros(len(x)))])
        batches, _ = input_batches(model, entries, 1000, None, seed=0)
        [batch] = batches
        np.testing.assert_array_equal(model(batch), np.concatenate([-x, x], axis=1))

    @pytest.mark.parametrize("model", [MODEL, keras.Model(MODEL.inputs, MODEL.outputs)])
    def test_the_only_input_is_found_by_name(self, x, model):
        name = model.inputs[0].name
        np.testing.assert_array_equal(read({"a": -x, name: x}, model=model), x)

    def test_entries_are_all_passed_to_a_subclassed_model(self, x):
        class Model(keras.Model):
            def call(self, inputs):
                return inputs["one"]

        batches, _ = input_batches(Model(), {"one": x, "two": -x}, 1000, None, seed=0)
        [batch] = batches
        assert list(batch) == ["one", "two"]

    def test_without_an_input_are_refused(self, x):
        with pytest.raises(ValueError, match="argument `x`") as error:
            input_batches(two_inputs(list), {"first": x, "third": x}, 32, None, seed=0)
        message = str(error.value)
        assert "Expected a dictionary with the inputs ['second', 'first']" in message
        assert "Received: x=one without ['second']" in message


class Endless:
    """Batches of which no one knows the number; `opened` counts the iterators."""

    def __init__(self, batches):
        self.batches, self.opened = batches, 0

    def __iter__(self):
        self.opened += 1
        yield from self.batches


class EndlessPyDataset(Batches):
    num_batches = None


class TestDataSets:
    @pytest.mark.parametrize("form", [Batches, tf_dataset])
    def test_are_read_in_order_without_max_samples(self, x, form):
        np.testing.assert_array_equal(read(form(x, size=30)), x)

    def test_of_a_tf_dataset_the_first_examples(self, x):
        np.testing.assert_array_equal(read(tf_dataset(x, size=30), 100), x[:100])

    def test_of_a_py_dataset_random_batches_and_no_more_than_needed(self, x):
        delivered = []
        for seed in (1, 1, 2):
            batches = Batches(x, size=30)
            found = read(batches, max_samples=100, seed=seed)
            assert len(found) == len(np.unique(found[:, 0])) == 100
            delivered.append(batches.delivered)
        assert delivered[0] == delivered[1] != delivered[2]
        assert len(delivered[0]) == 4 and delivered[0] != [0, 1, 2, 3]

    @pytest.mark.parametrize(
        "form",
        [
            lambda x: tf_dataset(x, size=30).repeat(),
            lambda x: EndlessPyDataset(x, size=30),
        ],
    )
    def test_without_end_need_max_samples(self, x, form):
        np.testing.assert_array_equal(read(form(x), max_samples=100), x[:100])
        with pytest.raises(
            ValueError, match="argument `x`. Expected a finite data set"
        ):
            read(form(x))

    def test_of_anything_but_arrays_are_refused(self):
        with pytest.raises(
            ValueError, match="argument `x`. Expected batches of arrays"
        ):
            read(Endless([([1.0, 2.0], [0, 1])]))


class TestEpochSample:
    def draw(self, sample, x, max_samples=100, seed=0):
        return read(sample.draw(MODEL, x, max_samples, seed), max_samples, seed)

    def test_is_read_once_an_epoch(self, x):
        batches, sample = Endless([x[:80], x[80:200]]), EpochSample()
        for epoch in range(3):
            sample.begin_epoch()
            for seed in range(4):
                found = self.draw(sample, batches, seed=seed)
                np.testing.assert_array_equal(found, x[:100])
            assert batches.opened == epoch + 1

    def test_changes_with_the_epoch(self, x):
        batches, sample = Batches(x, size=30), EpochSample()
        first = self.draw(sample, batches)
        sample.begin_epoch()
        assert not np.array_equal(self.draw(sample, batches, seed=1), first)

    @pytest.mark.parametrize("max_samples", [None, 100])
    def test_arrays_are_not_kept(self, x, max_samples):
        assert EpochSample().draw(MODEL, {"rows": x}, max_samples, 0)["rows"] is x

    def test_all_examples_are_not_kept(self, x):
        batches = Endless([x])
        assert EpochSample().draw(MODEL, batches, None, 0) is batches

    @pytest.mark.parametrize("enough", [True, False])
    def test_is_kept_if_a_quarter_of_the_memory_is_enough(self, x, enough, monkeypatch):
        needed = 4 * x[:100].nbytes
        monkeypatch.setattr(samples, "available_bytes", lambda: needed - (not enough))
        batches, sample = Endless([x]), EpochSample()
        for _ in range(3):
            np.testing.assert_array_equal(self.draw(sample, batches), x[:100])
        assert batches.opened == (1 if enough else 4)

    @pytest.mark.parametrize("filename", ["", "file"])
    def test_is_kept_throughout_where_tf_data_writes_a_file(
        self, x, filename, tmp_path
    ):
        filename = filename and str(tmp_path / filename)
        batches = tf_dataset(x, size=30).cache(filename).repeat().prefetch(1)
        sample = EpochSample()
        first = sample.draw(MODEL, batches, 100, 0)
        sample.begin_epoch()
        assert (sample.draw(MODEL, batches, 100, 1) is first) == bool(filename)
