"""Batches of any data that `fit()` takes, and passes of them through a model."""

import concurrent.futures
import threading

import keras
import numpy as np
import pytest
import reference
import scipy.sparse
from backend import BACKEND, tensorflow, to_numpy, within_fit
from datasets import Again, Batches, gaussian, tf_dataset
from keras import layers, ops
from models import compiled, hidden, network

import keras_powerlaw as kp
from keras_powerlaw.activations import input_batches, keeping_state

MODEL = keras.Sequential([keras.Input((3,), name="rows"), layers.Dense(4)])
X = np.arange(3000, dtype="float32").reshape(1000, 3)


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


class EndlessPyDataset(Batches):
    num_batches = None


def read(x, max_samples=None, seed=0, model=MODEL):
    """All that is read of `x`, as one array."""
    batches, _ = input_batches(model, x, 32, max_samples, seed)
    return np.concatenate([np.asarray(ops.convert_to_numpy(each)) for each in batches])


def frame(x):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    return pandas.DataFrame(x)


def tf_sparse(x):
    return tensorflow().sparse.from_dense(x)


KINDS = {
    "tensor": ops.convert_to_tensor,
    "tensor of TensorFlow": lambda x: tensorflow().constant(x),
    "data frame": frame,
    "data frame of several types": lambda x: frame(x).astype({0: "float64", 1: object}),
    "SciPy matrix by rows": scipy.sparse.csr_matrix,
    "SciPy array by entries": scipy.sparse.coo_array,
    "tf.SparseTensor": tf_sparse,
}


class TestArrays:
    @pytest.mark.parametrize("max_samples, count", [(None, 1000), (120, 120)])
    def test_are_read_no_further_than_the_sample(self, max_samples, count):
        on_disk = OnDisk(X)
        batches, number = input_batches(MODEL, on_disk, 32, max_samples, seed=0)
        rows = np.concatenate(list(batches))
        assert len(rows) == len(np.unique(rows[:, 0])) == on_disk.rows_read == count
        assert number == -(-count // 32)

    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
    @pytest.mark.parametrize("max_samples", [None, 100])
    def test_of_other_kinds_are_read_as_those_of_numpy(self, kind, max_samples):
        found = read(kind(X), max_samples, seed=3)
        np.testing.assert_array_equal(found, read(X, max_samples, seed=3))

    def test_of_one_column(self):
        np.testing.assert_array_equal(read(frame(X)[1]), X[:, 1:2])

    def test_of_several_inputs_are_sampled_alike(self):
        batches, _ = input_batches(two_inputs(list), [X, -X], 32, 50, seed=0)
        for one, two in batches:
            np.testing.assert_array_equal(one, -two)

    def test_of_different_lengths_are_refused(self):
        with pytest.raises(ValueError, match="the same number of examples"):
            input_batches(two_inputs(list), [X, X[:9]], 32, None, seed=0)


def two_inputs(form):
    """A model of the inputs `second` and `first`, in this order, in a `form`."""
    inputs = {name: keras.Input((3,), name=name) for name in ("second", "first")}
    tensors = inputs if form is dict else form(inputs.values())
    return keras.Model(tensors, layers.Concatenate()(list(inputs.values())))


class Takes(keras.Model):
    def call(self, inputs):
        return inputs["one"]


class TestDictionaries:
    @pytest.mark.parametrize("form", [list, tuple, dict])
    @pytest.mark.parametrize("in_batches", [False, True])
    def test_have_the_inputs_by_name(self, form, in_batches):
        model = two_inputs(form)
        entries = {"first": X, "id": np.array(["a"] * len(X)), "second": -X}
        x = Again((entries, np.zeros(len(X)))) if in_batches else entries
        [batch] = input_batches(model, x, 1000, None, seed=0)[0]
        np.testing.assert_array_equal(model(batch), np.concatenate([-X, X], axis=1))

    @pytest.mark.parametrize("model", [MODEL, keras.Model(MODEL.inputs, MODEL.outputs)])
    def test_have_the_only_input_by_name(self, model):
        np.testing.assert_array_equal(read({"a": -X, "rows": X}, model=model), X)

    def test_go_as_they_are_to_a_subclassed_model(self):
        [batch] = input_batches(Takes(), {"one": X, "two": -X}, 1000, None, seed=0)[0]
        assert list(batch) == ["one", "two"]

    def test_without_an_input_are_refused(self):
        message = r"the inputs \['second', 'first'\].*x=one without \['second'\]"
        with pytest.raises(ValueError, match=f"argument `x`. .*dictionary.*{message}"):
            input_batches(two_inputs(list), {"first": X, "third": X}, 32, None, seed=0)


class TestDataSets:
    @pytest.mark.parametrize(
        "x",
        [
            lambda: tf_dataset(X, size=30),
            lambda: EndlessPyDataset(X, size=30),
            lambda: Again(frame(X[:60]), frame(X[60:])),
            lambda: Again((scipy.sparse.csr_matrix(X[:60]), 0), (tf_sparse(X[60:]), 0)),
        ],
        ids=["tf.data", "endless", "frames", "sparse"],
    )
    def test_give_their_first_examples(self, x):
        np.testing.assert_array_equal(read(x(), max_samples=100), X[:100])

    def test_of_keras_give_random_batches_and_no_more_than_needed(self):
        delivered = []
        for seed in (1, 1, 2):
            batches = Batches(X, size=30)
            found = read(batches, max_samples=100, seed=seed)
            assert len(found) == len(np.unique(found[:, 0])) == 100
            delivered.append(batches.delivered)
        assert delivered[0] == delivered[1] != delivered[2]
        assert len(delivered[0]) == 4 and delivered[0] != [0, 1, 2, 3]

    @pytest.mark.parametrize(
        "x, expected",
        [
            (lambda: tf_dataset(X, size=30).repeat(), "a finite data set"),
            (lambda: EndlessPyDataset(X, size=30), "a finite data set"),
            (lambda: Again(([1.0, 2.0], [0, 1])), "batches of arrays"),
            (lambda: (row for row in [X]), "an array.*not a generator"),
        ],
        ids=["endless", "endless PyDataset", "of lists", "generator"],
    )
    def test_that_can_not_be_measured_on_are_refused(self, x, expected):
        with pytest.raises(ValueError, match=f"argument `x`. Expected {expected}"):
            read(x())


def states(layer):
    return [to_numpy(state) for state in layer.states]


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
class TestState:
    @pytest.fixture
    def model(self, kind):
        inputs = keras.Input(batch_shape=(20, 3, 4))
        regularized = hidden(6, kp.SpectralActivityRegularizer(tau=2))
        return keras.Sequential([inputs, kind(6, stateful=True), regularized])

    @pytest.mark.parametrize(
        "measure",
        [
            lambda *of: kp.measure_spectrum(*of, "hidden", batch_size=20),
            lambda *of: kp.refresh_eigenbasis(*of, batch_size=20)["hidden"],
            lambda *of: kp.sensitivity_maps(*of, "hidden", (1, 2), batch_size=20),
        ],
        ids=["spectrum", "refresh", "maps"],
    )
    def test_goes_from_batch_to_batch_and_is_then_as_before(self, model, measure):
        recurrent, x = model.layers[0], gaussian(60, (3, 4))[0]
        model(x[:20])
        before = states(recurrent)
        assert np.abs(before).max() > 0.01
        found = measure(model, x)
        np.testing.assert_array_equal(states(recurrent), before)
        activity = np.concatenate([to_numpy(model(batch)) for batch in np.split(x, 3)])
        expected = reference.eigenvalues(activity)[: len(found.eigenvalues)]
        np.testing.assert_allclose(found.eigenvalues, expected, rtol=1e-4)


def test_state_that_is_kept_comes_back_even_after_an_error():
    model = network(layers.BatchNormalization(name="norm"))
    mean = model.get_layer("norm").moving_mean
    with pytest.raises(KeyboardInterrupt), keeping_state(model):
        model(gaussian(5)[0], training=True)
        assert np.any(to_numpy(mean))
        raise KeyboardInterrupt
    assert not np.any(to_numpy(mean))


@pytest.fixture(scope="module")
def two_outputs():
    inputs = keras.Input((3, 4))
    lstm = layers.LSTM(6, return_state=True, name="lstm")
    lstm.activity_regularizer = kp.SpectralActivityRegularizer(tau=2)
    model = keras.Model(inputs, lstm(inputs)[0])
    model.compile("sgd")
    return model


class TestSeveralOutputs:
    @pytest.mark.parametrize(
        "use",
        [
            lambda model, x: kp.measure_spectrum(model, x, "lstm"),
            lambda model, x: kp.sensitivity_maps(model, x, "lstm", (1,)),
            lambda model, x: kp.add_spectral_regularizer(model, "lstm", tau=2),
            lambda model, x: kp.refresh_eigenbasis(model, x),
            lambda model, x: kp.refresh_eigenbasis(model),
            lambda model, x: model.fit(x, callbacks=[kp.EigenbasisRefresh()]),
            lambda model, x: model.fit(x, callbacks=[kp.SpectrumMonitor(None, "lstm")]),
        ],
        ids=["spectrum", "maps", "add", "refresh", "window", "fit", "monitor"],
    )
    def test_are_refused(self, two_outputs, use):
        message = "a layer with one output: .*Identity.* Received: layer='lstm'"
        with pytest.raises(ValueError, match=message):
            use(two_outputs, gaussian(20, (3, 4))[0])


def measurements(model, x, y):
    """One figure of each kind, of the model as it is now."""
    return [
        kp.measure_spectrum(model, x, "hidden").eigenvalues[0],
        kp.sensitivity_maps(model, x, "hidden", (1,)).eigenvalues[0],
        kp.evaluate_robustness(
            model, x, y, [0.1], ["noise"], clip=None, checks=False
        ).clean_accuracy,
    ]


class TestInCallbacks:
    DATA = gaussian(40)

    @pytest.mark.parametrize("shares", [False, True], ids=["itself", "its layers"])
    def test_the_weights_are_those_that_training_has_reached(self, shares):
        model = compiled(network(hidden(8)), keras.optimizers.SGD(1.0))
        trained = kp.add_jacobian_regularizer(model) if shares else model
        seen, look = [], keras.callbacks.Callback()

        def measure(step, logs=None):
            if shares and BACKEND == "jax" and not seen:
                with pytest.raises(ValueError, match="Call `jax_state_sync"):
                    measurements(model, *self.DATA)
            within_fit(trained)
            seen.append(measurements(model, *self.DATA))

        look.on_train_batch_end = look.on_epoch_end = measure
        trained.fit(*self.DATA, batch_size=20, verbose=0, callbacks=[look])
        first, *later = seen
        after = measurements(model, *self.DATA)
        np.testing.assert_allclose(later, [after, after], rtol=1e-6)
        assert first[0] != after[0]

    def test_they_are_the_same_in_evaluation_and_prediction(self):
        model = compiled(network(hidden(8)))
        expected = measurements(model, *self.DATA)
        seen, look = [], keras.callbacks.Callback()
        look.on_test_batch_end = look.on_predict_end = lambda *_, **__: seen.append(
            measurements(model, *self.DATA)
        )
        model.evaluate(*self.DATA, verbose=0, callbacks=[look])
        model.predict(self.DATA[0], verbose=0, callbacks=[look])
        np.testing.assert_allclose(seen[-2:], [expected] * 2, rtol=1e-6)


def test_threads_measure_one_model_at_once():
    x, _ = gaussian(400)
    model = network(hidden(8, "l2"), hidden(8, name="second"))
    before = [layer.activity_regularizer for layer in model.layers]
    names = ["hidden", "second"] * 6
    expected = {name: kp.measure_spectrum(model, x, name) for name in names[:2]}
    start = threading.Barrier(4)

    def measure(name):
        start.wait()
        return kp.measure_spectrum(model, x, name, batch_size=50).eigenvalues

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for name, found in zip(names, pool.map(measure, names), strict=True):
            np.testing.assert_allclose(found, expected[name].eigenvalues, rtol=1e-4)
    assert [layer.activity_regularizer for layer in model.layers] == before
