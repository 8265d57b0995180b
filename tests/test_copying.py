"""A copy is the model: its outputs, its compilation, and how it goes on training."""

import keras
import model_zoo
import numpy as np
import pytest
from backend import BACKEND, only, to_numpy
from datasets import gaussian
from keras import layers, ops
from model_zoo import zoo
from models import compiled, hidden, network

import keras_powerlaw as kp
from keras_powerlaw.spectral.layers import regularized_layers

# Compiling takes longer than a few steps, but on JAX, which compiles every operation.
EAGERLY = {"run_eagerly": BACKEND != "jax"}


def copied(model, layer="hidden"):
    """A copy whose penalty is zero, and which can be trained on."""
    copy = kp.add_spectral_regularizer(model, layer, tau=2, beta=0.0)
    kp.refresh_eigenbasis(copy)
    return copy


def trained(model, data, **settings):
    compiled(model, **{**EAGERLY, **settings})
    model.train_on_batch(*data)
    return model


def assert_same_outputs(one, other, x):
    outputs = (keras.tree.flatten(model(x, training=False)) for model in (one, other))
    for expected, found in zip(*outputs, strict=True):
        np.testing.assert_array_equal(*map(to_numpy, (found, expected)))


def assert_same_step(model, copy, data):
    """Both take the same next step, from the same state of optimizer and seeds."""
    results = []
    for each in model, copy:
        each.reset_metrics()
        keras.utils.set_random_seed(1)  # PyTorch's dropout takes no seed of a layer
        results.append(each.train_on_batch(*data))
    assert results[0] == results[1]
    for expected, found in zip(model.weights, copy.weights, strict=True):
        np.testing.assert_allclose(
            *map(to_numpy, (found, expected)), rtol=1e-5, atol=1e-6
        )


class TestZoo:
    @zoo()
    def test_copy_is_the_model(self, name):
        model = model_zoo.build(name)
        data = model_zoo.examples_for(model, 16)
        trained(model, data, metrics=["accuracy"])
        copy = copied(model)
        assert type(copy) is type(model)
        assert_same_outputs(model, copy, data[0])
        names = [layer.name for layer in model.layers]
        assert [layer.name for layer in copy.layers] == names
        assert_same_step(model, copy, data)

    @zoo(*(name for name in model_zoo.ZOO if name not in model_zoo.SLOW))
    def test_a_basis_changes_no_step_if_beta_is_zero(self, name):
        model = model_zoo.build(name)
        x, y = model_zoo.examples_for(model, 16)
        trained(model, (x, y))
        copy = kp.add_spectral_regularizer(model, "hidden", tau=2, beta=0.0)
        kp.refresh_eigenbasis(copy, x)
        [layer] = regularized_layers(copy)
        assert layer.activity_regularizer.basis is not None
        assert_same_step(model, copy, (x, y))

    @zoo("nested_sequential", "siamese", "lstm", "adapted_normalization")
    def test_taking_the_penalty_off_gives_the_model_back(self, name):
        model = model_zoo.build(name)
        x, _ = model_zoo.examples_for(model, 16)
        plain = kp.remove_spectral_regularizer(copied(model))
        assert_same_outputs(model, plain, x)
        assert not any(layer.activity_regularizer for layer in plain.layers)


def sparse_loss(y, logits):
    return keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)


def mean_logit(y, logits):
    return ops.mean(logits)


class OwnMetric(keras.metrics.Mean):
    def update_state(self, y, logits, sample_weight=None):
        super().update_state(ops.max(logits))


class Scores(keras.metrics.Mean):
    """Has a setting that is not in its config."""

    def __init__(self, factor=1.0, **settings):
        super().__init__(**settings)
        self.factor = factor

    def update_state(self, y, logits, sample_weight=None):
        super().update_state(self.factor * ops.max(logits))


class OwnOptimizer(keras.optimizers.SGD):
    pass


class HalvingRate(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1 * 0.5 ** ops.cast(step, "float32")

    def get_config(self):
        return {}


class TestCompilation:
    @pytest.fixture
    def data(self):
        return gaussian(16)

    @pytest.mark.parametrize(
        "settings",
        [
            {"loss": sparse_loss},
            {"loss": lambda y, logits: sparse_loss(y, logits) ** 2},
            {"metrics": [mean_logit, "accuracy", OwnMetric()]},
            {"metrics": [lambda y, logits: ops.min(logits)]},
            {"metrics": [Scores(factor=3.0)]},
            {"weighted_metrics": [keras.metrics.MeanMetricWrapper(mean_logit)]},
            {"loss": {"logits": sparse_loss}, "metrics": {"logits": [mean_logit]}},
            {"loss": [sparse_loss], "loss_weights": [3.0]},
            {"optimizer": lambda: OwnOptimizer(0.1, momentum=0.9)},
            {"optimizer": lambda: keras.optimizers.SGD(HalvingRate())},
            {"optimizer": lambda: keras.optimizers.AdamW(use_ema=True, clipnorm=0.1)},
            {"optimizer": lambda: keras.optimizers.Adafactor()},
            {"optimizer": lambda: keras.optimizers.SGD(gradient_accumulation_steps=2)},
        ],
        ids=lambda settings: "-".join(settings),
    )
    def test_is_that_of_the_model(self, data, settings):
        if "optimizer" in settings:
            settings = {"optimizer": settings["optimizer"]()}
        model = trained(model_zoo.build("functional"), data, **settings)
        assert_same_step(model, copied(model), data)

    def test_settings_of_running(self, data):
        steps = {} if BACKEND == "torch" else {"steps_per_execution": 3}
        model = compiled(network(hidden(16)), jit_compile=False, **steps)
        model.run_eagerly = True
        copy = copied(model)
        assert (copy.run_eagerly, copy.jit_compile) == (True, False)
        assert copy.steps_per_execution == model.steps_per_execution

    def test_metrics_of_the_copy_are_its_own(self, data):
        metric = OwnMetric()
        model = trained(network(hidden(16)), data, metrics=[metric])
        before = float(metric.result())
        copied(model).test_on_batch(data[0] * 9, data[1])
        assert float(metric.result()) == before

    def test_a_changed_learning_rate(self, data):
        model = trained(network(hidden(16)), data)
        model.optimizer.learning_rate = 0.125
        assert float(copied(model).optimizer.learning_rate) == 0.125

    @pytest.mark.parametrize("units", [12, 16], ids=["equal shapes", "other shapes"])
    @pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "thawed"])
    def test_slots_stay_with_their_layers(self, data, units, trainable):
        """Frozen or thawed since training, and not compiled again."""
        model = network(hidden(12, name="first"), hidden(units))
        first = model.get_layer("first")
        first.trainable = not trainable
        trained(model, data)
        first.trainable = trainable
        copy = copied(model)
        copy.train_on_batch(*data)
        slots = {slot.path.split("/")[-1]: slot for slot in copy.optimizer.variables}
        assert any("first" in path for path in slots) == trainable
        old = {slot.path.split("/")[-1]: slot for slot in model.optimizer.variables}
        model.get_layer("first").trainable = not trainable
        again = copied(model)
        for slot in again.optimizer.variables:
            path = slot.path.split("/")[-1]
            np.testing.assert_array_equal(to_numpy(slot), to_numpy(old[path]))

    def test_loss_scaling(self, data):
        keras.config.set_dtype_policy("mixed_float16")
        try:
            model = trained(network(hidden(16)), data)
            copy = copied(model)
        finally:
            keras.config.set_dtype_policy("float32")
        assert isinstance(copy.optimizer, keras.optimizers.LossScaleOptimizer)
        assert copy.dtype_policy == model.dtype_policy
        assert_same_step(model, copy, data)

    def test_after_saving_loading_and_a_jacobian_penalty(self, data, tmp_path):
        robust = kp.add_jacobian_regularizer(compiled(network(hidden(16)), **EAGERLY))
        robust.train_on_batch(*data)
        robust.save(tmp_path / "robust.keras")
        loaded = keras.saving.load_model(tmp_path / "robust.keras")
        loaded.run_eagerly = True
        copy = copied(loaded)
        assert (copy.beta, copy.projections) == (robust.beta, robust.projections)
        assert_same_step(loaded, copy, data)

    def test_refuses_a_compile_of_its_own(self, data):
        class Own(keras.Sequential):
            def compile(self, **settings):
                super().compile("sgd", "mse")

        model = Own([keras.Input((12,)), hidden(16)])
        model.compile()
        with pytest.raises(ValueError, match=r"Keras's `compile\(\)`"):
            kp.add_spectral_regularizer(model, "hidden")


class Scaled(layers.Layer):
    """Keeps a factor that is in no config, and another where no copy finds it."""

    factor = 1.0
    factors = np.ones(1, "float32")

    def call(self, x, training=False):
        return x * (self.factor if training else 1) * self.factors


class WithLoadedState(layers.Layer):
    """Derives a factor from its weights when they are loaded."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.factor = 1.0

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.factor = float(self.scale)

    def call(self, x):
        return x * self.factor


class TestLayers:
    def test_state_derived_when_loaded(self):
        layer = WithLoadedState()
        model = network(layer, hidden(16))
        layer.load_own_variables({"0": np.float32(3)})
        assert_same_outputs(model, copied(model), gaussian(5)[0])

    def test_refuses_state_that_would_be_lost(self):
        layer = Scaled(name="scaled")
        layer.factors = np.full(1, 3, "float32")
        with pytest.raises(ValueError, match=r"whose copy predicts .* 'scaled' \(Scal"):
            copied(network(layer, hidden(16)))

    def test_attributes_that_matter_in_training_alone(self):
        layer = Scaled()
        layer.factor = 3.0
        copy = copied(network(layer, hidden(16)))
        assert copy.layers[0].factor == 3.0

    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
    def test_states_of_stateful_layers(self, kind):
        recurrent = getattr(layers, kind)(6, stateful=True)
        parts = [keras.Input(batch_shape=(8, 3, 4)), recurrent, hidden(5)]
        model, (x, _) = keras.Sequential(parts), gaussian(8, (3, 4))
        model(x)
        copy = copied(model)
        assert_same_outputs(model, copy, x)
        assert_same_outputs(model, copy, x)

    @only("tensorflow", why="only TensorFlow has tensors of strings")
    def test_weights_of_a_vocabulary(self, tmp_path):
        codes = layers.StringLookup(output_mode="tf_idf")
        codes.adapt([["one", "two", "two"], ["three", "one", "one"]])
        inputs = keras.Input((3,), dtype="string")
        model = keras.Model(inputs, hidden(16)(codes(inputs)))
        model.save(tmp_path / "model.keras")
        try:
            keras.models.load_model(tmp_path / "model.keras")
        except ValueError:
            pytest.skip(f"Keras {keras.__version__} can't load such a layer itself")
        words = ops.convert_to_tensor([["one", "two", "other"], ["three"] * 3])
        assert_same_outputs(model, copied(model), words)

    def test_functions_need_not_be_registered(self):
        x, _ = gaussian(5)
        factors = [2.0, 3.0]  # two lambdas of equal names
        parts = [
            layers.Dense(9, activation=lambda x, factor=factor: x * factor)
            for factor in factors
        ]
        inner = layers.SpectralNormalization(layers.Dense(9, activation=lambda x: -x))
        model = network(*parts, layers.Lambda(lambda x: x + 1), inner, hidden(16))
        assert_same_outputs(model, copied(model), x)

    def test_low_rank_adaptation_goes_on(self):
        data = gaussian(16)
        model = network(hidden(16))
        model.get_layer("hidden").enable_lora(2)
        trained(model, data)
        assert_same_step(model, copied(model), data)

    def test_random_layers_go_on_as_they_would(self):
        noise = layers.GaussianNoise(1.0)
        model, data = network(noise, hidden(16)), gaussian(16)
        trained(model, data)
        assert_same_step(model, copied(model), data)

    def test_copying_changes_nothing(self):
        model = model_zoo.build("regularized_gru")
        before = [to_numpy(variable) for variable in model.variables]
        copied(model)
        for value, variable in zip(before, model.variables, strict=True):
            np.testing.assert_array_equal(value, to_numpy(variable))


class OwnStep(keras.Sequential):
    def train_step(self, *args):
        return {}


class OwnFunctional(keras.Model):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.tracker = keras.metrics.Mean()

    def train_step(self, *args):
        return {}


class TestSubclasses:
    def test_keep_their_class_and_attributes(self):
        inputs = keras.Input((12,))
        models = (
            OwnStep([inputs, hidden(16)]),
            OwnFunctional(inputs, hidden(16)(inputs)),
            network(OwnStep([keras.Input((12,)), hidden(16)], name="nested")),
        )
        for model in models:
            model.temperature = 2.0
            copy = copied(model)
            assert type(copy) is type(model)
        assert type(copy.get_layer("nested")) is OwnStep
        assert copied(models[0]).temperature == 2.0
        assert copied(models[1]).tracker is not models[1].tracker

    def test_refuses_attributes_that_would_be_lost(self):
        model = OwnStep([keras.Input((12,)), hidden(16)])
        model.tracker = keras.metrics.Mean()
        with pytest.raises(ValueError, match="attribute `tracker` would be lost"):
            copied(model)

    def test_refuses_layers_of_the_constructor(self):
        class OwnLayers(keras.Sequential):
            def __init__(self, *args, **settings):
                super().__init__([keras.Input((12,)), hidden(16)])

        with pytest.raises(ValueError, match="makes layers of its own"):
            copied(OwnLayers())


def in_a_wrapper(layer):
    return network(layer, layers.Flatten(), shape=(5, 6))


def grouped_attention():
    inputs = keras.Input((5, 6))
    attention = layers.GroupQueryAttention(4, 2, 1, name="attention")
    return keras.Model(inputs, attention(inputs, inputs))


class TestTargets:
    def test_nested_models_and_wrappers_carry_it(self, tmp_path):
        base = keras.Sequential([keras.Input((12,)), hidden(20, name="in")])
        inner = layers.SpectralNormalization(hidden(16), name="outer")
        model = network(base, inner)
        copy = kp.add_spectral_regularizer(model, ["in", "hidden"], tau=3)
        copy.save(tmp_path / "model.keras")
        for each in copy, keras.saving.load_model(tmp_path / "model.keras"):
            assert set(kp.refresh_eigenbasis(each, gaussian(50)[0])) == {"in", "hidden"}
        assert not any(
            layer.activity_regularizer
            for layer in (base.layers[0], inner.layer, model.get_layer("outer"))
        )

    @pytest.mark.parametrize(
        "model, target, instead",
        [
            (
                network(keras.Sequential([keras.Input((12,)), hidden(9)], name="base")),
                "base",
                "its last layer, 'hidden'",
            ),
            (
                in_a_wrapper(layers.TimeDistributed(hidden(9), name="td")),
                "hidden",
                "'td'",
            ),
            (in_a_wrapper(layers.LSTM(4, name="rnn")), "lstm_cell", "'rnn'"),
            (
                in_a_wrapper(layers.RNN(layers.GRUCell(4, name="cell"), name="rnn")),
                "cell",
                "'rnn'",
            ),
            (network(layers.Discretization([0.0], name="bins")), "bins", "Identity"),
            (model_zoo.build("transformer"), "query", "'multi_head_attention'"),
            (model_zoo.build("transformer"), "multi_head_attention", "Identity"),
            (grouped_attention(), "attention", "Identity"),
            (in_a_wrapper(layers.SimpleRNN(4, name="rnn")), "rnn", "Identity"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_refuses_what_cannot_carry_it(self, model, target, instead):
        layer = target
        if target in ("lstm_cell",):
            layer = model.layers[0].cell
        if target == "multi_head_attention":
            layer = model.layers[1]
        with pytest.raises(ValueError, match=f"argument `layers`.*instead.*{instead}"):
            kp.add_spectral_regularizer(model, layer, tau=2)

    def test_says_where_attention_can_have_it(self):
        inputs = keras.Input((6, 8))
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        attention = layers.MultiHeadAttention(2, 4, activity_regularizer=regularizer)
        model = keras.Model(inputs, attention(inputs, inputs))
        with pytest.raises(ValueError, match=r"Identity\(activity_reg.*MultiHeadAtt"):
            kp.refresh_eigenbasis(model, gaussian(20, (6, 8))[0])


class TestRemoving:
    def test_some_layers(self):
        model = network(hidden(16, name="first"), hidden(16))
        both = kp.add_spectral_regularizer(model, ["first", "hidden"], tau=2)
        one = kp.remove_spectral_regularizer(both, "first")
        assert set(kp.refresh_eigenbasis(one, gaussian(50)[0])) == {"hidden"}

    def test_within_a_wrapper(self):
        inner = layers.SpectralNormalization(hidden(16))
        copy = kp.add_spectral_regularizer(network(inner), "hidden", tau=2)
        plain = kp.remove_spectral_regularizer(copy)
        assert plain.layers[0].layer.activity_regularizer is None

    def test_quantization_says_that_it_is_needed(self):
        copy = kp.add_spectral_regularizer(network(hidden(16)), "hidden", tau=2)
        with pytest.warns(UserWarning, match="remove_spectral_regularizer"):
            copy.quantize("int8")
        copy = kp.add_spectral_regularizer(network(hidden(16)), "hidden", tau=2)
        plain = kp.remove_spectral_regularizer(copy)
        plain.quantize("int8")
        assert plain.get_layer("hidden").dtype_policy.quantization_mode == "int8"

    @pytest.mark.parametrize("target", [None, "logits"])
    def test_refuses_layers_without_it(self, target):
        model = network(hidden(16))
        with pytest.raises(ValueError, match="with a SpectralActivityRegularizer, of"):
            kp.remove_spectral_regularizer(model, target)
