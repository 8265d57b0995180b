"""The Jacobian penalties against NumPy, finite differences and closed forms."""

import functools
import inspect

import keras
import numpy as np
import pytest
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


class Reference:
    """The network and its penalties in NumPy float64, by finite differences."""

    def __init__(self, weights, x, y):
        self.weights = [np.asarray(weight, "float64") for weight in weights]
        self.x, self.y = x.astype("float64"), y

    def logits(self, x, weights):
        w1, b1, w2, b2 = weights
        return np.tanh(x @ w1 + b1) @ w2 + b2

    def losses(self, x, weights):
        z = self.logits(x, weights)
        return np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), self.y]

    def squared_norm(self, function, weights, step=1e-5):
        """1/B Σ_b ‖∂function_b / ∂s_b‖², central differences in the inputs."""
        total = 0.0
        for direction in np.eye(INPUTS):
            change = function(self.x + step * direction, weights) - function(
                self.x - step * direction, weights
            )
            total += np.sum((change / (2 * step)) ** 2)
        return total / len(self.x)

    def penalty(self, projections, weights=None):
        function = self.losses if projections is None else self.logits
        return self.squared_norm(function, weights or self.weights)

    def weight_gradient(self, projections, step=1e-4):
        gradients = []
        for index, weight in enumerate(self.weights):
            gradient = np.zeros_like(weight)
            for position in np.ndindex(weight.shape):
                shifted = [value.copy() for value in self.weights]
                shifted[index][position] += step
                above = self.penalty(projections, shifted)
                shifted[index][position] -= 2 * step
                below = self.penalty(projections, shifted)
                gradient[position] = (above - below) / (2 * step)
            gradients.append(gradient)
        return gradients


def first_step(model, x, y):
    """Loss and weight changes of one step of gradient descent at rate 1."""
    before = model.get_weights()
    history = model.fit(x, y, batch_size=len(x), epochs=1, verbose=0)
    changes = [new - old for new, old in zip(model.get_weights(), before, strict=True)]
    model.set_weights(before)
    return history.history["loss"][0], changes


@pytest.mark.parametrize("projections", [None, CLASSES])
def test_adds_the_penalty_and_its_gradient_to_fit(data, projections):
    """Both against finite differences; the second is a derivative of a derivative."""
    model, beta = mlp(), 0.5
    reference = Reference(model.get_weights(), *data)
    plain_loss, plain_changes = first_step(model, *data)
    regularized = kp.add_jacobian_regularizer(model, beta, projections=projections)
    loss, changes = first_step(regularized, *data)

    assert loss - plain_loss == pytest.approx(
        beta * reference.penalty(projections), rel=1e-4
    )
    for change, plain, gradient in zip(
        changes, plain_changes, reference.weight_gradient(projections), strict=True
    ):
        np.testing.assert_allclose(change - plain, -beta * gradient, atol=2e-5)


@pytest.mark.parametrize("projections", [None, CLASSES])
def test_evaluate_counts_the_penalty(data, projections):
    model = mlp()
    regularized = kp.add_jacobian_regularizer(model, 0.5, projections=projections)
    penalty = Reference(model.get_weights(), *data).penalty(projections)
    assert regularized.evaluate(*data, verbose=0) == pytest.approx(
        model.evaluate(*data, verbose=0) + 0.5 * penalty, rel=1e-4
    )


def test_the_jacobian_of_a_linear_model_is_its_kernel(data):
    model = compiled(network(shape=(INPUTS,), classes=CLASSES))
    kernel, bias = model.get_weights()
    exact = kp.add_jacobian_regularizer(model, 1.0, projections=CLASSES)
    plain_loss = model.evaluate(*data, verbose=0)
    assert exact.evaluate(*data, verbose=0) == pytest.approx(
        plain_loss + np.sum(kernel**2), rel=1e-5
    )

    # ∂L/∂s = W (softmax(z) − onehot(y))
    x, y = data
    odds = np.exp(x @ kernel + bias)
    residual = odds / odds.sum(1, keepdims=True) - np.eye(CLASSES)[y]
    expected = np.mean(np.sum((residual @ kernel.T) ** 2, axis=1))
    of_loss = kp.add_jacobian_regularizer(model, 1.0)
    assert of_loss.evaluate(*data, verbose=0) == pytest.approx(
        plain_loss + expected, rel=1e-5
    )


@pytest.mark.parametrize("count", [1, 2])
def test_random_projections_are_unbiased(count):
    kernel = np.random.default_rng(1).normal(size=(INPUTS, CLASSES)).astype("float32")
    x = ops.zeros((20_000, INPUTS))
    directions = random_directions(count, len(x), CLASSES, seed=3)
    np.testing.assert_allclose(ops.norm(directions, axis=-1), 1, rtol=1e-5)

    estimate = output_jacobian_penalty(lambda s: ops.matmul(s, kernel), x, directions)
    # The spread of one projection of one example, C ‖vᵀJ‖², bounds the error.
    single = CLASSES * np.sum((to_numpy(directions) @ kernel.T) ** 2, axis=-1)
    error = single.std() / np.sqrt(single.size)
    assert abs(float(estimate) - np.sum(kernel**2)) < 4 * error
    assert error < 0.01 * np.sum(kernel**2)  # so that the line above says something


def test_a_basis_is_exact_and_random_directions_are_not():
    kernel = np.random.default_rng(1).normal(size=(INPUTS, CLASSES)).astype("float32")

    def penalty(directions):
        x = ops.zeros((4, INPUTS))
        return float(
            output_jacobian_penalty(lambda s: ops.matmul(s, kernel), x, directions)
        )

    exact = np.sum(kernel**2)
    assert penalty(standard_basis(4, CLASSES)) == pytest.approx(exact, rel=1e-5)
    random = random_directions(CLASSES, 4, CLASSES, seed=0)
    assert penalty(random) != pytest.approx(exact, rel=1e-2)


def test_every_step_draws_new_directions(data):
    model = mlp(optimizer=keras.optimizers.SGD(0.0))
    regularized = kp.add_jacobian_regularizer(model, 1.0, projections=1)
    history = regularized.fit(*data, batch_size=BATCH, epochs=3, verbose=0)
    assert len(set(history.history["loss"])) == 3


def test_spectral_penalty_is_kept_and_counted_once(data):
    model = kp.add_spectral_regularizer(mlp(), "hidden", tau=2, beta=3.0)
    kp.refresh_eigenbasis(model, data[0])
    spectral = float(
        model.get_layer("hidden").activity_regularizer.penalty(
            keras.Model(model.inputs[0], model.get_layer("hidden").output)(data[0])
        )
    )
    reference = Reference(model.get_weights(), *data)
    cross_entropy = reference.losses(reference.x, reference.weights).mean()
    expected = cross_entropy + spectral + 0.5 * reference.penalty(None)
    regularized = kp.add_jacobian_regularizer(model, 0.5)
    assert spectral > 0.1
    assert first_step(regularized, *data)[0] == pytest.approx(expected, rel=1e-4)
    assert regularized.evaluate(*data, verbose=0) == pytest.approx(expected, rel=1e-4)


def test_refreshes_within_fit(data):
    model = kp.add_spectral_regularizer(mlp(), "hidden", tau=2)
    history = kp.add_jacobian_regularizer(model).fit(
        *data, callbacks=[kp.EigenbasisRefresh(data[0])], verbose=0
    )
    assert "hidden_exponent" in history.history


def test_batch_norm_and_dropout_see_each_batch_once(data):
    """The Jacobian is that of the network in inference mode."""
    model = network(
        layers.BatchNormalization(momentum=0.5),
        layers.Dropout(0.5, seed=1),
        shape=(INPUTS,),
        classes=CLASSES,
    )
    compiled(model, keras.optimizers.SGD(0.0))
    norm = model.layers[0]
    norm.moving_variance.assign([4.0] * INPUTS)
    # An example at a time through z = kernel · x / √(4 + ε) + …, no mask.
    kernel = model.layers[2].get_weights()[0]
    expected = np.sum(kernel**2) / (4 + 1e-3)
    regularized = kp.add_jacobian_regularizer(model, 1.0, projections=CLASSES)
    penalty = float(ops.stop_gradient(regularized.jacobian_penalty(data[0], data[1])))
    assert penalty == pytest.approx(expected, rel=1e-4)

    regularized.fit(*data, batch_size=BATCH, verbose=0)
    np.testing.assert_allclose(
        to_numpy(norm.moving_mean), 0.5 * data[0].mean(0), atol=1e-6
    )


@pytest.mark.parametrize(
    "loss, one_hot",
    [
        ("mse", True),
        (keras.losses.MeanSquaredError(reduction="sum"), True),
        (keras.losses.CategoricalCrossentropy(from_logits=True), True),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), False),
    ],
    ids=["name", "summed", "categorical", "labels in a column"],
)
def test_takes_any_loss_with_a_value_per_example(data, loss, one_hot):
    x, y = data
    model = mlp(loss=loss)
    reference = Reference(model.get_weights(), x, y)
    targets = np.eye(CLASSES)[y].astype("float32") if one_hot else y[:, None]

    def errors(inputs, weights):
        return np.mean((reference.logits(inputs, weights) - targets) ** 2, axis=1)

    squared = "mean_squared_error" in getattr(loss, "name", "mean_squared_error")
    function = errors if squared else reference.losses
    expected = reference.squared_norm(function, reference.weights)
    difference = kp.add_jacobian_regularizer(model, 1.0).evaluate(
        x, targets, verbose=0
    ) - model.evaluate(x, targets, verbose=0)
    assert difference == pytest.approx(expected, rel=1e-3)


class TestCompiledLoss:
    """The penalty is the squared gradient of what `compile()` makes of the loss."""

    OF_ONE_OUTPUT = [
        name
        for name, loss in vars(keras.losses).items()
        if inspect.isfunction(loss)
        and name
        not in {
            *("get", "serialize", "deserialize"),
            *("dice", "tversky"),  # of a batch
            *("circle", "ctc"),
        }
        and "categorical" not in name
    ]

    @staticmethod
    def penalty(model, x, y):
        """From the gradient of Keras's own total, for a mean over the examples."""

        def total(x):
            outputs = model(x, training=False)
            return model.compute_loss(x, ops.convert_to_tensor(y), outputs)

        _, gradient = value_and_gradient(total, x)
        return np.sum((len(x) * gradient) ** 2) / len(x)

    @staticmethod
    def classifier(units, activation, **options):
        keras.utils.set_random_seed(0)
        parts = [hidden(HIDDEN), layers.Dense(units, activation)]
        model = keras.Sequential([keras.Input((INPUTS,)), *parts])
        model.compile("sgd", **options)
        return model

    def check(self, model, x, y, factor=1.0):
        found = kp.add_jacobian_regularizer(model, 1.0).jacobian_penalty(x, y)
        np.testing.assert_allclose(
            to_numpy(ops.stop_gradient(found)),
            factor * self.penalty(model, x, y),
            rtol=1e-3,
            atol=1e-12,
        )

    @pytest.mark.parametrize("name", [*OF_ONE_OUTPUT, "mse", "bce", "ce"])
    def test_by_name_for_labels_in_a_row_or_a_column(self, data, name):
        x, y = data
        y = (y % 2).astype("float32")
        model = self.classifier(1, "sigmoid", loss=name)
        self.check(model, x, y)
        self.check(model, x, y[:, None])

    @pytest.mark.parametrize(
        "loss",
        [
            *("ce", "categorical_crossentropy", "hinge", "kl_divergence"),
            keras.losses.MeanSquaredError,
            keras.losses.mean_absolute_error,
            keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
            functools.partial(keras.losses.categorical_crossentropy, from_logits=True),
            lambda y, z: ops.mean((y - z) ** 4, axis=-1),
            ["cosine_similarity"],
        ],
    )
    def test_of_several_outputs_for_labels_in_one_hot_code(self, data, loss):
        x, y = data
        y = np.eye(CLASSES, dtype="float32")[y]
        self.check(self.classifier(CLASSES, "softmax", loss=loss), x, y)

    @pytest.mark.parametrize("loss", ["ce", "circle", "SparseCategoricalCrossentropy"])
    def test_of_several_outputs_for_integer_labels(self, data, loss):
        x, y = data
        model = self.classifier(CLASSES, "softmax", loss=loss)
        self.check(model, x, y)
        self.check(model, x, y[:, None])

    def test_generalized_cross_entropy(self, data):
        loss = keras.losses.CategoricalGeneralizedCrossEntropy(q=0.3)
        self.check(self.classifier(CLASSES, "softmax", loss=loss), *data)

    @pytest.mark.parametrize(
        "loss", ["ctc", keras.losses.CTC()], ids=["name", "object"]
    )
    def test_ctc_has_no_second_derivative_but_on_jax(self, data, loss):
        x, y = data[0], np.random.default_rng(0).integers(1, 4, size=(BATCH, 2))
        steps = [layers.Dense(20), layers.Reshape((5, 4))]
        model = keras.Sequential([keras.Input((INPUTS,)), *steps])
        model.compile(keras.optimizers.SGD(0.1), loss)
        if BACKEND != "jax":
            with pytest.raises(ValueError, match="CTC cannot.*Received: loss="):
                kp.add_jacobian_regularizer(model).jacobian_penalty(x, y)
            return
        self.check(model, x, y)
        robust = kp.add_jacobian_regularizer(model, 1.0)
        before = float(robust.jacobian_penalty(x, y))
        robust.fit(x, y, batch_size=BATCH, epochs=5, verbose=0)
        assert float(robust.jacobian_penalty(x, y)) < 0.99 * before

    def test_from_logits(self, data):
        x, y = data
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        self.check(self.classifier(1, None, loss=loss), x, (y % 2).astype("float32"))

    def test_of_a_dictionary(self, data):
        x, y = data
        inputs = keras.Input((INPUTS,))
        model = keras.Model(inputs, layers.Dense(1, "sigmoid", name="last")(inputs))
        model.compile("sgd", {"last": "hinge"})
        self.check(model, x, (y % 2).astype("float32"))

    def test_loss_weights(self, data):
        x, y = data
        y = (y % 2).astype("float32")
        self.check(self.classifier(1, None, loss="mse", loss_weights=[3.0]), x, y)

    def test_a_sum_over_positions(self):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(6, 4, 3)).astype("float32"), rng.random((6, 4, 2))
        model = keras.Sequential([keras.Input((4, 3)), layers.Dense(2, "tanh")])
        model.compile("sgd", keras.losses.MeanSquaredError(reduction="sum"))
        # The total is a sum over the examples, and no mean: B times as large.
        self.check(model, x, y, factor=1 / 6**2)

    @pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
    def test_masked_positions_have_no_loss(self, reduction):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(6, 4, 3)).astype("float32"), rng.random((6, 4, 2))
        x[:2, 2:] = 0
        model = keras.Sequential(
            [keras.Input((4, 3)), layers.Masking(), layers.Dense(2, "tanh")]
        )
        model.compile("sgd", keras.losses.MeanSquaredError(reduction=reduction))
        self.check(model, x, y, factor=1 / 6**2 if reduction == "sum" else 1)

    @pytest.mark.parametrize("axis", [None, 0, (0, 1)])
    def test_a_loss_of_the_whole_batch_is_refused(self, data, axis):
        x, y = data
        model = self.classifier(CLASSES, "softmax", loss=keras.losses.Dice(axis=axis))
        robust = kp.add_jacobian_regularizer(model)
        with pytest.raises(ValueError, match="need an `axis` that leaves out 0"):
            robust.jacobian_penalty(x, np.eye(CLASSES, dtype="float32")[y])


def test_rounded_inputs_are_no_error_and_no_penalty(data):
    """Nothing leads from the output back to the image."""
    rounding = layers.Lambda(lambda x: ops.cast(ops.cast(x, "int32"), "float32"))
    model = network(rounding, hidden(HIDDEN), shape=(INPUTS,), classes=CLASSES)
    plain = compiled(model).evaluate(*data, verbose=0)
    for projections in (None, 2):
        robust = kp.add_jacobian_regularizer(model, 1.0, projections=projections)
        np.testing.assert_allclose(robust.evaluate(*data, verbose=0), plain, rtol=1e-5)
        history = robust.fit(*data, verbose=0).history
        assert np.isfinite(history["loss"]).all()
        plain = compiled(model).evaluate(*data, verbose=0)


def test_convolutions_and_pooling(digits):
    (x, y), _ = digits
    model = network(
        feature_map(4),
        layers.MaxPooling2D(),
        layers.Flatten(),
        shape=(8, 8, 1),
        classes=10,
    )
    compiled(model, keras.optimizers.Adam(1e-2))
    regularized = kp.add_jacobian_regularizer(model, 0.1, projections=2)
    losses = regularized.fit(x, y, batch_size=128, epochs=3, verbose=0)
    assert losses.history["loss"][-1] < 0.9 * losses.history["loss"][0]


def test_training_with_the_penalty_shrinks_the_loss_gradient(digits):
    (x, y), _ = digits
    norms = {}
    for beta in (0.0, 1.0):
        keras.utils.set_random_seed(0)
        model = network(layers.Flatten(), hidden(50), shape=(8, 8, 1), classes=10)
        compiled(model, keras.optimizers.Adam(1e-2))
        regularized = kp.add_jacobian_regularizer(model, beta)
        regularized.fit(x, y, batch_size=128, epochs=5, verbose=0)
        penalty = regularized.jacobian_penalty(x[:200], y[:200])
        norms[beta] = float(ops.stop_gradient(penalty))
    assert norms[1.0] < 0.5 * norms[0.0]


def test_shares_layers_settings_and_optimizer(data):
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


def test_of_a_dictionary_it_takes_the_input_that_the_model_takes(data):
    x, y = data
    image = keras.Input((INPUTS,), name="image")
    model = compiled(keras.Model(image, mlp()(image)))
    regularized = kp.add_jacobian_regularizer(model, 1.0)
    both = {"another": np.arange(len(x)), "image": x}
    assert float(ops.stop_gradient(regularized.jacobian_penalty(both, y))) == float(
        ops.stop_gradient(regularized.jacobian_penalty(x, y))
    )
    regularized.fit(both, y, verbose=0)


def test_keeps_dictionaries_of_inputs_and_outputs(data, tmp_path):
    x, y = data
    model = mlp()
    named = keras.Model({"image": model.inputs[0]}, {"digit": model.outputs[0]})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(named, loss={"digit": loss})
    regularized = kp.add_jacobian_regularizer(named, 1.0)
    regularized.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = kp.add_jacobian_regularizer(model, 1.0).evaluate(x, y, verbose=0)
    for each in (regularized, loaded):
        found = each.evaluate({"image": x}, {"digit": y}, verbose=0)
        assert found == pytest.approx(expected, rel=1e-6)
        assert each.predict({"image": x}, verbose=0)["digit"].shape == (BATCH, CLASSES)
    regularized.fit({"image": x}, {"digit": y}, verbose=0)


def test_a_model_that_is_not_compiled_stays_so():
    model = network(shape=(INPUTS,), classes=CLASSES)
    assert not kp.add_jacobian_regularizer(model).compiled


def test_is_saved_with_the_penalty(data, tmp_path):
    regularized = kp.add_jacobian_regularizer(mlp(), 0.5, projections=CLASSES)
    regularized.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.beta, loaded.projections) == (0.5, CLASSES)
    assert loaded.evaluate(*data, verbose=0) == pytest.approx(
        regularized.evaluate(*data, verbose=0), rel=1e-6
    )
    before_training = loaded.evaluate(*data, verbose=0)
    assert first_step(loaded, *data)[0] == pytest.approx(before_training, rel=1e-6)


def test_weight_files_of_plain_models_are_interchangeable(data, tmp_path):
    path = tmp_path / "model.weights.h5"
    plain, other = mlp(), mlp()
    regularized, another = (
        kp.add_jacobian_regularizer(model, projections=1) for model in (plain, other)
    )
    for source, target in ((regularized, other), (plain, another)):
        for weight in target.weights:
            weight.assign(weight + 1)
        source.save_weights(path)
        target.load_weights(path)
        for saved, loaded in zip(
            source.get_weights(), target.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(loaded, saved)


def test_clone_model_is_refused():
    with pytest.raises(ValueError, match="clone_model.. does not know of the Jacobian"):
        keras.models.clone_model(kp.add_jacobian_regularizer(mlp()))


def test_half_precision(data):
    def penalty(policy):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((INPUTS,)),
                layers.Dense(HIDDEN, activation="tanh", dtype=policy),
                layers.Dense(CLASSES, dtype=policy),
            ]
        )
        regularized = kp.add_jacobian_regularizer(compiled(model), 1.0)
        value = regularized.jacobian_penalty(*data)
        assert keras.backend.standardize_dtype(value.dtype) == "float32"
        return float(ops.stop_gradient(value))

    rounded, precise = penalty("mixed_bfloat16"), penalty("float32")
    assert rounded != precise
    assert rounded == pytest.approx(precise, rel=0.05)


class TestErrors:
    def test_a_training_step_of_its_own(self):
        """The regularized model would leave it out."""

        class OwnStep(keras.Sequential):
            def train_step(self, *args):
                return {}

        for own in (
            OwnStep([keras.Input((INPUTS,)), layers.Dense(CLASSES)]),
            kp.add_jacobian_regularizer(mlp()),
        ):
            with pytest.raises(ValueError, match="without a training step of its own"):
                kp.add_jacobian_regularizer(own)

    def test_subclassed_model(self):
        with pytest.raises(ValueError, match="Expected a Sequential or Functional"):
            kp.add_jacobian_regularizer(Subclassed())

    def test_unbuilt_model(self):
        with pytest.raises(ValueError, match="Expected a built model.*not built"):
            kp.add_jacobian_regularizer(keras.Sequential([layers.Dense(3)]))

    def test_several_inputs(self):
        a, b = keras.Input((3,)), keras.Input((3,))
        with pytest.raises(ValueError, match="Received: .* 2 inputs and 1 outputs"):
            kp.add_jacobian_regularizer(keras.Model([a, b], layers.Add()([a, b])))

    def test_integer_input(self):
        model = keras.Sequential(
            [keras.Input((3,), dtype="int32"), layers.Embedding(4, 2)]
        )
        with pytest.raises(ValueError, match="Received: .*dtype int32"):
            kp.add_jacobian_regularizer(model)

    @pytest.mark.parametrize("beta", [-1, float("nan"), "strong"])
    def test_beta(self, beta):
        with pytest.raises(ValueError, match="argument `beta`. Expected a finite"):
            kp.add_jacobian_regularizer(mlp(), beta)

    @pytest.mark.parametrize("projections", [0, CLASSES + 1, 1.5, True])
    def test_projections(self, projections):
        with pytest.raises(ValueError, match="Expected None or an integer from 1 to 3"):
            kp.add_jacobian_regularizer(mlp(), projections=projections)

    def test_projections_of_outputs_that_are_no_classes(self):
        model = keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 3)])
        with pytest.raises(ValueError, match=r"Expected outputs of shape \(batch, cl"):
            kp.add_jacobian_regularizer(model, projections=1)

    def test_loss_that_returns_a_scalar(self, data):
        def scalar(y, z):
            return ops.mean(z)

        regularized = kp.add_jacobian_regularizer(mlp(loss=scalar))
        with pytest.raises(ValueError, match="one value per example.*returns a scalar"):
            regularized.evaluate(*data, verbose=0)
