"""The Jacobian penalties against NumPy, finite differences and closed forms."""

import keras
import numpy as np
import pytest
import reference
from backend import BACKEND, to_numpy, value_and_gradient
from datasets import gaussian
from keras import layers, ops
from models import Subclassed, compiled, feature_map, hidden, network

import keras_powerlaw as kp
from keras_powerlaw.jacobian import (
    output_jacobian_penalty,
    random_directions,
    standard_basis,
)

INPUTS, HIDDEN, CLASSES, BATCH = 5, 7, 3, 11


@pytest.fixture
def data():
    return gaussian(BATCH, (INPUTS,), CLASSES)


def mlp(optimizer=None, **options):
    model = network(hidden(HIDDEN), shape=(INPUTS,), classes=CLASSES)
    return compiled(model, optimizer or keras.optimizers.SGD(1.0), **options)


def outputs_of(weights, data, projections=CLASSES):
    """In NumPy: a function from inputs to logits or, without projections, losses."""
    w1, b1, w2, b2 = map(np.float64, weights)

    def function(x):
        z = np.tanh(x @ w1 + b1) @ w2 + b2
        loss = np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), data[1]]
        return loss if projections is None else z

    return function


def expected_penalty(weights, data, projections=None):
    """1/B Σ_b ‖∂function_b / ∂s_b‖², by finite differences in the inputs."""
    function, x = outputs_of(weights, data, projections), np.float64(data[0])
    slopes = [
        reference.directional_derivative(function, x, axis) for axis in np.eye(INPUTS)
    ]
    return np.sum(np.square(slopes)) / len(x)


def penalty_of(regularized, x, y):
    return float(ops.stop_gradient(regularized.jacobian_penalty(x, y)))


def first_step(model, x, y):
    """Loss and weight changes, as a vector, of a step of gradient descent at rate 1."""
    before = model.get_weights()
    history = model.fit(x, y, batch_size=len(x), epochs=1, verbose=0).history
    changes = flat(model.get_weights()) - flat(before)
    model.set_weights(before)
    return history["loss"][0], changes


def flat(weights):
    return np.concatenate([np.float64(weight).ravel() for weight in weights])


@pytest.mark.parametrize("projections", [None, CLASSES])
def test_fit_and_evaluate_add_the_penalty_and_fit_its_gradient(data, projections):
    model, beta = mlp(), 0.5
    weights = model.get_weights()
    penalty = beta * expected_penalty(weights, data, projections)
    plain_loss, plain_changes = first_step(model, *data)
    regularized = kp.add_jacobian_regularizer(model, beta, projections=projections)
    loss, changes = first_step(regularized, *data)
    assert loss - plain_loss == pytest.approx(penalty, rel=1e-4)
    loss = regularized.evaluate(*data, verbose=0)
    assert loss == pytest.approx(plain_loss + penalty, rel=1e-4)

    def penalty_at(vector):
        ends = np.cumsum([weight.size for weight in weights])[:-1]
        parts = zip(np.split(vector, ends), weights, strict=True)
        shaped = [part.reshape(weight.shape) for part, weight in parts]
        return beta * expected_penalty(shaped, data, projections)

    gradient, rng = plain_changes - changes, np.random.default_rng(0)
    reference.assert_is_gradient(gradient, penalty_at, flat(weights), rng)


def test_the_jacobian_of_a_linear_model_is_its_kernel(data):
    model = compiled(network(shape=(INPUTS,), classes=CLASSES))
    kernel, bias = model.get_weights()
    exact = kp.add_jacobian_regularizer(model, 1.0, projections=CLASSES)
    assert penalty_of(exact, *data) == pytest.approx(np.sum(kernel**2), rel=1e-5)

    # ∂L/∂s = W (softmax(z) − onehot(y))
    x, y = data
    odds = np.exp(x @ kernel + bias)
    residual = odds / odds.sum(1, keepdims=True) - np.eye(CLASSES)[y]
    expected = np.mean(np.sum((residual @ kernel.T) ** 2, axis=1))
    of_loss = kp.add_jacobian_regularizer(model, 1.0)
    assert penalty_of(of_loss, *data) == pytest.approx(expected, rel=1e-5)


class TestProjections:
    KERNEL = np.random.default_rng(1).normal(size=(INPUTS, CLASSES)).astype("float32")
    EXACT = np.sum(KERNEL**2)

    def penalty(self, directions):
        x = ops.zeros((directions.shape[1], INPUTS))
        return float(
            output_jacobian_penalty(lambda s: ops.matmul(s, self.KERNEL), x, directions)
        )

    @pytest.mark.parametrize("count", [1, 2])
    def test_random_ones_are_unbiased(self, count):
        directions = random_directions(count, 20_000, CLASSES, seed=3)
        np.testing.assert_allclose(ops.norm(directions, axis=-1), 1, rtol=1e-5)
        # The spread of one projection of one example, C ‖vᵀJ‖², bounds the error.
        single = CLASSES * np.sum((to_numpy(directions) @ self.KERNEL.T) ** 2, axis=-1)
        error = single.std() / np.sqrt(single.size)
        assert abs(self.penalty(directions) - self.EXACT) < 4 * error
        assert error < 0.01 * self.EXACT  # so that the line above says something

    def test_a_basis_is_exact_and_random_ones_are_not(self):
        basis = self.penalty(standard_basis(4, CLASSES))
        assert basis == pytest.approx(self.EXACT, rel=1e-5)
        random = self.penalty(random_directions(CLASSES, 4, CLASSES, seed=0))
        assert random != pytest.approx(self.EXACT, rel=1e-2)

    def test_are_new_in_every_step(self, data):
        model = mlp(optimizer=keras.optimizers.SGD(0.0))
        regularized = kp.add_jacobian_regularizer(model, 1.0, projections=1)
        history = regularized.fit(*data, batch_size=BATCH, epochs=3, verbose=0)
        assert len(set(history.history["loss"])) == 3


def test_the_spectral_penalty_is_kept_counted_once_and_refreshed(data):
    model = kp.add_spectral_regularizer(mlp(), "hidden", tau=2, beta=3.0)
    kp.refresh_eigenbasis(model, data[0])
    hidden_layer = model.get_layer("hidden")
    activity = hidden_layer(data[0])
    spectral = float(hidden_layer.activity_regularizer.penalty(activity))
    weights = model.get_weights()
    losses = outputs_of(weights, data, None)(np.float64(data[0]))
    expected = losses.mean() + spectral + 0.5 * expected_penalty(weights, data)
    regularized = kp.add_jacobian_regularizer(model, 0.5)
    assert spectral > 0.1
    assert first_step(regularized, *data)[0] == pytest.approx(expected, rel=1e-4)
    assert regularized.evaluate(*data, verbose=0) == pytest.approx(expected, rel=1e-4)
    refresh = kp.EigenbasisRefresh(data[0])
    regularized.fit(*data, callbacks=[refresh], verbose=0)
    assert set(refresh.spectra) == {"hidden"}


def test_batch_norm_and_dropout_see_each_batch_once(data):
    """The Jacobian is that of the network in inference mode."""
    norm = layers.BatchNormalization(momentum=0.5)
    parts = norm, layers.Dropout(0.5, seed=1)
    model = network(*parts, shape=(INPUTS,), classes=CLASSES)
    compiled(model, keras.optimizers.SGD(0.0))
    norm.moving_variance.assign([4.0] * INPUTS)
    # An example at a time through z = kernel · x / √(4 + ε) + …, no mask.
    expected = np.sum(to_numpy(model.layers[2].kernel) ** 2) / (4 + 1e-3)
    regularized = kp.add_jacobian_regularizer(model, 1.0, projections=CLASSES)
    assert penalty_of(regularized, *data) == pytest.approx(expected, rel=1e-4)
    regularized.fit(*data, batch_size=BATCH, verbose=0)
    mean = 0.5 * data[0].mean(0)
    np.testing.assert_allclose(to_numpy(norm.moving_mean), mean, atol=1e-6)


class TestCompiledLoss:
    """The penalty is the squared gradient of what `compile()` makes of the loss."""

    ONE, SEVERAL = (1, "sigmoid"), (CLASSES, "softmax")
    LABELS = {
        "row": lambda y: (y % 2).astype("float32"),
        "column": lambda y: (y % 2).astype("float32")[:, None],
        "integers": lambda y: y,
        "integers in a column": lambda y: y[:, None],
        "one-hot": lambda y: np.eye(CLASSES, dtype="float32")[y],
    }

    @staticmethod
    def classifier(units, activation, **options):
        keras.utils.set_random_seed(0)
        parts = [hidden(HIDDEN), layers.Dense(units, activation)]
        model = keras.Sequential([keras.Input((INPUTS,)), *parts])
        model.compile("sgd", **options)
        return model

    def check(self, model, x, y, factor=1.0):
        """Against the gradient of Keras's own total, for a mean over the examples."""

        def total(x):
            outputs = model(x, training=False)
            return model.compute_loss(x, ops.convert_to_tensor(y), outputs)

        _, gradient = value_and_gradient(total, x)
        expected = np.sum((len(x) * gradient) ** 2) / len(x)
        found = penalty_of(kp.add_jacobian_regularizer(model, 1.0), x, y)
        np.testing.assert_allclose(found, factor * expected, rtol=1e-3, atol=1e-12)

    @pytest.mark.parametrize(
        "loss, kinds",
        [
            *((name, ["row", "column"]) for name in ("mse", "bce", "hinge")),
            ("ce", list(LABELS)),
            ("kl_divergence", ["one-hot"]),
            (keras.losses.MeanSquaredError, ["column", "one-hot"]),
            (lambda y, z: ops.mean((y - z) ** 4, axis=-1), ["row", "one-hot"]),
            (["cosine_similarity"], ["one-hot"]),
            (keras.losses.CategoricalCrossentropy(label_smoothing=0.1), ["one-hot"]),
            (keras.losses.CategoricalGeneralizedCrossEntropy(q=0.3), ["integers"]),
            ("circle", ["integers", "integers in a column"]),
        ],
    )
    def test_of_every_kind_for_labels_of_every_kind(self, data, loss, kinds):
        for kind in kinds:
            output = self.ONE if kind in ("row", "column") else self.SEVERAL
            y = self.LABELS[kind](data[1])
            self.check(self.classifier(*output, loss=loss), data[0], y)

    @pytest.mark.parametrize(
        "options",
        [
            {"loss": keras.losses.BinaryCrossentropy(from_logits=True)},
            {"loss": "mse", "loss_weights": [3.0]},
        ],
        ids=["from logits", "weighted"],
    )
    def test_with_its_settings(self, data, options):
        y = self.LABELS["row"](data[1])
        self.check(self.classifier(1, None, **options), data[0], y)

    def test_of_a_dictionary(self, data):
        inputs = keras.Input((INPUTS,))
        model = keras.Model(inputs, layers.Dense(1, "sigmoid", name="last")(inputs))
        model.compile("sgd", {"last": "hinge"})
        self.check(model, data[0], (data[1] % 2).astype("float32"))

    @pytest.mark.parametrize("loss", ["ctc", keras.losses.CTC()], ids=type)
    def test_ctc_has_no_second_derivative_but_on_jax(self, data, loss):
        x, y = data[0], np.random.default_rng(0).integers(1, 4, size=(BATCH, 2))
        steps = [layers.Dense(20), layers.Reshape((5, 4))]
        model = keras.Sequential([keras.Input((INPUTS,)), *steps])
        model.compile(keras.optimizers.SGD(0.1), loss)
        robust = kp.add_jacobian_regularizer(model, 1.0)
        if BACKEND != "jax":
            with pytest.raises(ValueError, match="CTC cannot.*Received: loss="):
                robust.jacobian_penalty(x, y)
            return
        self.check(model, x, y)
        before = penalty_of(robust, x, y)
        robust.fit(x, y, batch_size=BATCH, epochs=5, verbose=0)
        assert penalty_of(robust, x, y) < 0.99 * before

    @pytest.mark.parametrize("is_masked", [False, True])
    @pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
    def test_of_positions_of_which_masked_ones_have_none(self, reduction, is_masked):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(6, 4, 3)).astype("float32"), rng.random((6, 4, 2))
        parts = [keras.Input((4, 3)), layers.Dense(2, "tanh")]
        if is_masked:
            x[:2, 2:] = 0
            parts.insert(1, layers.Masking())
        model = keras.Sequential(parts)
        model.compile("sgd", keras.losses.MeanSquaredError(reduction=reduction))
        # A sum over the examples, and no mean, is B times as large.
        self.check(model, x, y, factor=1 / 6**2 if reduction == "sum" else 1)

    @pytest.mark.parametrize("axis", [None, 0, (0, 1)])
    def test_of_the_whole_batch_is_refused(self, data, axis):
        model = self.classifier(CLASSES, "softmax", loss=keras.losses.Dice(axis=axis))
        robust = kp.add_jacobian_regularizer(model)
        with pytest.raises(ValueError, match="need an `axis` that leaves out 0"):
            robust.jacobian_penalty(data[0], np.eye(CLASSES, dtype="float32")[data[1]])

    def test_that_is_a_scalar_is_refused(self, data):
        regularized = kp.add_jacobian_regularizer(mlp(loss=lambda y, z: ops.mean(z)))
        with pytest.raises(
            ValueError, match=r"one value per exam.*returns values of shape \(\)"
        ):
            regularized.evaluate(*data, verbose=0)


def test_rounded_inputs_are_no_error_and_no_penalty(data):
    """Nothing leads from the output back to the image."""
    rounding = layers.Lambda(lambda x: ops.cast(ops.cast(x, "int32"), "float32"))
    model = network(rounding, hidden(HIDDEN), shape=(INPUTS,), classes=CLASSES)
    compiled(model)
    for projections in (None, 2):
        robust = kp.add_jacobian_regularizer(model, 1.0, projections=projections)
        assert penalty_of(robust, *data) == 0.0
        history = robust.fit(*data, verbose=0).history
        assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("projections", [None, 2])
def test_training_with_it_shrinks_the_jacobian_of_a_convolutional_network(
    digits, projections
):
    x, y = digits[0]
    parts = feature_map(4), layers.MaxPooling2D(), layers.Flatten()
    norms = {}
    for beta in (0.0, 1.0):
        keras.utils.set_random_seed(0)
        model = network(*parts, shape=(8, 8, 1), classes=10)
        compiled(model, keras.optimizers.Adam(1e-2))
        robust = kp.add_jacobian_regularizer(model, beta, projections=projections)
        losses = robust.fit(x, y, batch_size=128, epochs=3, verbose=0).history["loss"]
        assert losses[-1] < 0.9 * losses[0]
        norms[beta] = penalty_of(robust, x[:200], y[:200])
    assert norms[1.0] < 0.5 * norms[0.0]


class TestModels:
    def test_shares_layers_settings_and_optimizer(self, data):
        model = mlp(optimizer="adam")
        model.fit(*data, verbose=0)
        regularized = kp.add_jacobian_regularizer(model)
        assert regularized.optimizer is model.optimizer
        assert int(regularized.optimizer.iterations) == 1
        regularized.fit(*data, verbose=0)
        np.testing.assert_array_equal(
            regularized.predict(data[0], verbose=0), model.predict(data[0], verbose=0)
        )
        assert regularized.get_layer("hidden") is model.get_layer("hidden")
        uncompiled = network(shape=(INPUTS,), classes=CLASSES)
        assert not kp.add_jacobian_regularizer(uncompiled).compiled

    def test_keeps_dictionaries_of_inputs_and_outputs(self, data, tmp_path):
        x, y = {"image": data[0]}, {"digit": data[1]}
        model = mlp()
        named = keras.Model({"image": model.inputs[0]}, {"digit": model.outputs[0]})
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        compiled(named, loss={"digit": loss})
        regularized = kp.add_jacobian_regularizer(named, 1.0)
        regularized.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        expected = kp.add_jacobian_regularizer(model, 1.0).evaluate(*data, verbose=0)
        for each in (regularized, loaded):
            assert each.evaluate(x, y, verbose=0) == pytest.approx(expected, rel=1e-6)
            assert each.predict(x, verbose=0)["digit"].shape == (BATCH, CLASSES)
        more = x | {"another": np.arange(BATCH)}  # which the model does not take
        assert penalty_of(loaded, more, y) == penalty_of(loaded, x, y)
        regularized.fit(x, y, verbose=0)

    def test_is_saved_with_the_penalty(self, data, tmp_path):
        regularized = kp.add_jacobian_regularizer(mlp(), 0.5, projections=CLASSES)
        regularized.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert (loaded.beta, loaded.projections) == (0.5, CLASSES)
        expected = pytest.approx(regularized.evaluate(*data, verbose=0), rel=1e-6)
        assert loaded.evaluate(*data, verbose=0) == expected
        assert first_step(loaded, *data)[0] == expected

    def test_has_weight_files_that_plain_models_read(self, data, tmp_path):
        path = tmp_path / "model.weights.h5"
        regularized, plain = kp.add_jacobian_regularizer(mlp(), projections=1), mlp()
        for source, target in ((regularized, plain), (plain, regularized)):
            for weight in source.weights:
                weight.assign(weight + 1)
            source.save_weights(path)
            target.load_weights(path)
            found, expected = flat(target.get_weights()), flat(source.get_weights())
            np.testing.assert_array_equal(found, expected)

    def test_is_not_cloned_by_keras(self):
        regularized = kp.add_jacobian_regularizer(mlp())
        with pytest.raises(ValueError, match="clone_model.. does not know of the Jac"):
            keras.models.clone_model(regularized)

    def test_is_float32_in_half_precision(self, data):
        found = {}
        for policy in ("float32", "mixed_bfloat16"):
            keras.utils.set_random_seed(0)
            parts = [layers.Dense(n, "tanh", dtype=policy) for n in (HIDDEN, CLASSES)]
            model = compiled(keras.Sequential([keras.Input((INPUTS,)), *parts]))
            value = kp.add_jacobian_regularizer(model, 1.0).jacobian_penalty(*data)
            assert keras.backend.standardize_dtype(value.dtype) == "float32"
            found[policy] = float(ops.stop_gradient(value))
        rounded, precise = found["mixed_bfloat16"], found["float32"]
        assert precise != rounded == pytest.approx(precise, rel=0.05)


class OwnStep(keras.Sequential):
    def train_step(self, *args):
        return {}


def two_inputs():
    one, two = keras.Input((3,)), keras.Input((3,))
    return keras.Model([one, two], layers.Add()([one, two]))


REFUSED = {
    "its own training step": (
        lambda: OwnStep([keras.Input((INPUTS,)), layers.Dense(CLASSES)]),
        "without .* training step of its own",
    ),
    "regularized": (
        lambda: kp.add_jacobian_regularizer(mlp()),
        "without .* training step of its own",
    ),
    "subclassed": (Subclassed, "Expected a Sequential or Functional"),
    "not built": (
        lambda: keras.Sequential([layers.Dense(3)]),
        "Expected a built model.*not built",
    ),
    "two inputs": (two_inputs, "Received: .* 2 inputs and 1 outputs"),
    "integers": (
        lambda: keras.Sequential(
            [keras.Input((3,), dtype="int32"), layers.Embedding(4, 2)]
        ),
        "Received: .*dtype int32",
    ),
    "maps": (
        lambda: keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 3)]),
        r"Expected outputs of shape \(batch, cl",
    ),
}


@pytest.mark.parametrize("model, message", REFUSED.values(), ids=REFUSED)
def test_models_that_can_not_have_it_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        kp.add_jacobian_regularizer(model(), projections=1)
