"""Attaching in place: what was there stays, and whatever Keras trains, trains on."""

import concurrent.futures

import keras
import model_zoo
import numpy as np
import pytest
from backend import BACKEND, only, to_numpy
from datasets import gaussian
from keras import layers, ops
from model_zoo import zoo
from models import Subclassed, compiled, hidden, network

import keras_powerlaw as kp
from keras_powerlaw.attach import observe

# Compiling takes longer than a few steps, but on JAX, which compiles every operation.
EAGERLY = {"run_eagerly": BACKEND != "jax"}


def deep_model():
    normalized = layers.BatchNormalization(name="norm")
    return network(hidden(20, name="first"), normalized, hidden(16, name="second"))


def take_steps(model, data, count=1):
    keras.utils.set_random_seed(1)  # PyTorch's dropout takes no seed of a layer
    return [model.train_on_batch(*data) for _ in range(count)]


def attach_and_compare(build, data, layer="hidden"):
    """Trains a model, attaches a penalty of strength zero, and trains it on.

    The weights must be, bit by bit, those of another model that is only trained.
    """
    plain, model = build(), build()
    model.set_weights(plain.get_weights())
    for each in plain, model:
        take_steps(each, data)
    assert kp.add_spectral_regularizer(model, layer, tau=2, beta=0.0) is model
    kp.refresh_eigenbasis(model, data[0])
    expected, found = (take_steps(each, data, 2) for each in (plain, model))
    assert found == expected
    assert_same_weights(model, plain)
    return model


def assert_same_weights(one, other):
    for first, second in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(*map(to_numpy, (first, second)))


@zoo(*(name for name in model_zoo.ZOO if name not in model_zoo.SLOW))
def test_with_beta_zero_a_model_of_the_zoo_trains_as_without(name):
    data = model_zoo.examples_for(model_zoo.build(name), 16)
    attach_and_compare(lambda: compiled(model_zoo.build(name), **EAGERLY), data)


class HalvingRate(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1 * 0.5 ** ops.cast(step, "float32")


def with_exclusions(optimizer):
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma"])
    return optimizer


class TestWhatWasSetStays:
    @pytest.mark.parametrize(
        "optimizer",
        [
            lambda: with_exclusions(keras.optimizers.AdamW(0.01, weight_decay=0.5)),
            lambda: keras.optimizers.AdamW(use_ema=True, clipnorm=0.1),
            lambda: keras.optimizers.SGD(HalvingRate(), momentum=0.9),
            lambda: keras.optimizers.Adafactor(),
            lambda: keras.optimizers.SGD(gradient_accumulation_steps=2),
        ],
        ids=["excluded from decay", "average", "schedule", "factored", "accumulated"],
    )
    def test_of_an_optimizer(self, optimizer):
        def build():
            return compiled(model_zoo.build("batch_norm"), optimizer(), **EAGERLY)

        attach_and_compare(build, gaussian(16))

    def test_of_the_compilation(self):
        metric = keras.metrics.MeanMetricWrapper(lambda y, logits: ops.max(logits))
        model = compiled(network(hidden(16)), metrics=[metric], jit_compile=False)
        model.run_eagerly = True
        before = model.optimizer, model.loss
        kp.add_spectral_regularizer(model, "hidden", tau=2)
        assert (model.optimizer, model.loss) == before
        assert (model.jit_compile, model.run_eagerly) == (False, True)

    def test_of_frozen_layers_and_low_rank_adaptation(self):
        def build():
            keras.utils.set_random_seed(0)
            model = network(hidden(12, name="first"), hidden(16))
            model.get_layer("first").trainable = False
            model.get_layer("hidden").enable_lora(2)
            return compiled(model, **EAGERLY)

        attach_and_compare(build, gaussian(16))

    def test_of_mixed_precision(self):
        def build():
            keras.utils.set_random_seed(0)
            keras.config.set_dtype_policy("mixed_float16")
            try:
                return compiled(network(hidden(16)), **EAGERLY)
            finally:
                keras.config.set_dtype_policy("float32")

        model = attach_and_compare(build, gaussian(16))
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)

    def test_an_uncompiled_model_stays_uncompiled(self):
        assert not kp.add_spectral_regularizer(deep_model(), ["first"]).compiled


class Told(Subclassed):
    """A subclassed model whose parts are told whether they train."""

    def call(self, x, training=False):
        for part in self.parts:
            x = part(x, training=training)
        return x


class TestEveryKindOfModel:
    def test_a_compiled_and_trained_one_gets_the_penalty_in_its_next_fit(self):
        data = gaussian(40)
        model = compiled(network(hidden(16)))
        model.fit(*data, verbose=0)
        plain = model.evaluate(*data, verbose=0)
        kp.add_spectral_regularizer(model, "hidden", tau=2, beta=3.0)
        kp.refresh_eigenbasis(model, data[0])
        penalty = model.evaluate(*data, verbose=0) - plain
        assert penalty > 0.01
        kp.remove_spectral_regularizer(model)
        assert model.evaluate(*data, verbose=0) == pytest.approx(plain)

    @pytest.mark.parametrize("is_trained", [False, True], ids=["fresh", "trained"])
    def test_a_subclassed_one(self, is_trained):
        data = gaussian(80)
        model = compiled(Told(hidden(16), layers.Dense(4)))
        if is_trained or BACKEND == "jax":  # which needs to know the units before
            model.fit(*data, verbose=0)
        kp.add_spectral_regularizer(model, "hidden", tau=2)
        refresh = kp.EigenbasisRefresh()
        model.fit(*data, epochs=5, verbose=0, callbacks=[refresh])
        assert set(refresh.spectra) == {"hidden"}

    def test_layers_of_nested_models_and_wrappers_and_their_files(self, tmp_path):
        base = keras.Sequential([keras.Input((12,)), hidden(20, name="in")])
        wrapped = layers.SpectralNormalization(hidden(16), name="outer")
        model = network(base, wrapped)
        x = gaussian(50)[0]
        before = model.predict(x, verbose=0)
        kp.add_spectral_regularizer(model, ["in", "hidden"], tau=3)
        np.testing.assert_array_equal(model.predict(x, verbose=0), before)
        model.save(tmp_path / "model.keras")
        for each in model, keras.saving.load_model(tmp_path / "model.keras"):
            assert set(kp.refresh_eigenbasis(each, x)) == {"in", "hidden"}
            np.testing.assert_array_equal(each.predict(x, verbose=0), before)

    def test_a_recurrent_one(self):
        both = layers.Bidirectional(layers.LSTM(4), name="hidden")
        model = compiled(network(both, shape=(5, 6)))
        data = gaussian(60, (5, 6))
        kp.add_spectral_regularizer(model, "hidden", tau=2)
        refresh = kp.EigenbasisRefresh(data[0])
        model.fit(*data, verbose=0, callbacks=[refresh])
        assert set(refresh.spectra) == {"hidden"}

    @only("tensorflow", why="elsewhere, compiled steps can decompose")
    def test_an_exact_penalty_is_not_compiled_by_xla(self):
        model = compiled(network(hidden(8)), jit_compile=True)
        kp.add_spectral_regularizer(model, "hidden", tau=2, exact=True)
        assert not model.jit_compile


class TestSettings:
    def test_are_one_for_all_layers_or_one_for_each(self):
        model, each = deep_model(), {"alpha": np.array([1.0, 1.5]), "tau": [2, 3]}
        kp.add_spectral_regularizer(
            model, ["second", "first"], **each, beta=4, form="log"
        )
        shared = {"beta": 4.0, "exact": False, "form": "log", "reduction": "flatten"}
        for name, alpha, tau in ("first", 1.5, 3), ("second", 1.0, 2):
            found = model.get_layer(name).activity_regularizer.get_config()
            assert found == {"alpha": alpha, "tau": tau, "target": None, **shared}

    def test_are_replaced_by_adding_again(self):
        model = kp.add_spectral_regularizer(deep_model(), "first", beta=1.0)
        kp.add_spectral_regularizer(model, "first", beta=2.0)
        assert model.get_layer("first").activity_regularizer.beta == 2.0
        assert len(kp.refresh_eigenbasis(model, gaussian(40)[0])) == 1

    @pytest.mark.parametrize("layer", ["dense", "relu"])
    def test_are_warned_of_where_units_are_rectified(self, layer):
        dense = layers.Dense(16, "relu", name="dense")
        model = network(dense, layers.ReLU(name="relu"))
        kp.add_spectral_regularizer(model, layer)
        for form in ("paper", "log"):
            with pytest.warns(UserWarning, match=f"'{layer}' are rectified.*'{form}'"):
                kp.add_spectral_regularizer(model, layer, form=form)


class OwnConfig(layers.Layer):
    def call(self, x):
        return x

    def get_config(self):
        return {"name": self.name}


class OwnArguments(layers.Layer):
    def __init__(self, name=None):
        super().__init__(name=name)

    def call(self, x):
        return x


def sequence_model(layer):
    return network(layer, layers.Flatten(), shape=(5, 6))


BASE = keras.Sequential([keras.Input((12,)), hidden(9)], name="base")
TIMES = layers.TimeDistributed(hidden(9), name="times")
LOOP = layers.RNN(layers.GRUCell(4, name="cell"), name="loop")
TRANSFORMER = model_zoo.build("transformer")


class TestRefusals:
    @pytest.mark.parametrize(
        "model, layer, instead",
        [
            (network(BASE), "base", "its last layer, 'hidden'"),
            (sequence_model(TIMES), "hidden", "'times'"),
            (sequence_model(LOOP), "cell", "'loop'"),
            (network(OwnConfig(name="own")), "own", "Identity"),
            (network(OwnArguments(name="own")), "own", "kwargs.*Identity"),
            (TRANSFORMER, TRANSFORMER.layers[1], "Identity"),
        ],
        ids=["model", "time distributed", "cell", "config", "arguments", "attention"],
    )
    def test_of_layers_that_can_not_carry_it_say_where_to_put_it(
        self, model, layer, instead
    ):
        with pytest.raises(ValueError, match=f"argument `layers`.*{instead}"):
            kp.add_spectral_regularizer(model, layer, tau=2)
        assert not any(each.activity_regularizer for each in model.layers)

    def test_leave_the_model_as_it_was(self):
        model = network(hidden(16), OwnConfig(name="own"))
        kp.add_spectral_regularizer(model, "hidden", beta=1.0)
        with pytest.raises(ValueError, match="argument `layers`"):
            kp.add_spectral_regularizer(model, ["hidden", "own"], tau=2, beta=2.0)
        assert model.get_layer("hidden").activity_regularizer.beta == 1.0

    def test_of_another_activity_regularizer(self):
        model = network(hidden(16, keras.regularizers.L2(1e-3)))
        with pytest.raises(ValueError, match="without another activity regularizer"):
            kp.add_spectral_regularizer(model, "hidden")

    def test_of_attention_given_its_own_say_where_it_can_be(self):
        inputs = keras.Input((6, 8))
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        attention = layers.MultiHeadAttention(2, 4, activity_regularizer=regularizer)
        model = keras.Model(inputs, attention(inputs, inputs))
        with pytest.raises(ValueError, match=r"MultiHeadAtt.*Identity\(activity_reg"):
            kp.refresh_eigenbasis(model, gaussian(20, (6, 8))[0])


class TestRemoving:
    @zoo("nested_sequential", "siamese", "lstm", "adapted_normalization")
    def test_gives_the_plain_model_back(self, name):
        data = model_zoo.examples_for(model_zoo.build(name), 16)
        plain, model = (compiled(model_zoo.build(name), **EAGERLY) for _ in range(2))
        kp.add_spectral_regularizer(model, "hidden", tau=2)
        kp.refresh_eigenbasis(model, data[0])
        assert kp.remove_spectral_regularizer(model) is model
        assert take_steps(model, data, 2) == take_steps(plain, data, 2)
        assert_same_weights(model, plain)
        assert len(model.variables) == len(plain.variables)  # no basis is left

    def test_from_some_layers(self):
        model = network(hidden(16, name="first"), hidden(16))
        kp.add_spectral_regularizer(model, ["first", "hidden"], tau=2)
        kp.remove_spectral_regularizer(model, "first")
        assert set(kp.refresh_eigenbasis(model, gaussian(50)[0])) == {"hidden"}

    def test_is_what_quantization_asks_for(self):
        model = kp.add_spectral_regularizer(network(hidden(16)), "hidden", tau=2)
        with pytest.warns(UserWarning, match="remove_spectral_regularizer"):
            model.quantize("int8")
        model = kp.add_spectral_regularizer(network(hidden(16)), "hidden", tau=2)
        kp.remove_spectral_regularizer(model)
        model.quantize("int8")
        assert model.get_layer("hidden").dtype_policy.quantization_mode == "int8"

    @pytest.mark.parametrize("target", [None, "logits"])
    def test_refuses_layers_without_it(self, target):
        with pytest.raises(ValueError, match="with a SpectralActivityRegularizer, of"):
            kp.remove_spectral_regularizer(network(hidden(16)), target)


class TestObserving:
    def test_leaves_no_trace_even_after_an_error(self):
        l2 = keras.regularizers.L2(1e-3)
        model = network(hidden(20, l2), layers.Dense(3))
        model(gaussian(5)[0])
        before = [set(vars(layer)) for layer in model.layers]
        for error in (RuntimeError, KeyboardInterrupt):
            observing = observe(model, model.layers[:2], [len, len])
            with pytest.raises(error), observing as observed:
                model(gaussian(5)[0])
                raise error
            assert [len(calls) for calls in observed] == [1, 1]
        assert model.layers[0].activity_regularizer is l2
        assert [vars(layer).keys() for layer in model.layers] == before
        model(gaussian(5)[0])
        assert float(sum(model.losses)) > 0

    def test_in_one_thread_leaves_the_others_alone(self):
        model = network(hidden(20, keras.regularizers.L2(1e-3)))
        x = gaussian(5)[0]
        with (
            observe(model, model.layers[:1], [len]) as [observed],
            concurrent.futures.ThreadPoolExecutor() as pool,
        ):
            pool.submit(model, x).result()
            assert float(sum(model.losses)) > 0
            model(x)
        assert len(observed) == 1
