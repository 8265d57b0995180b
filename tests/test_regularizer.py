"""The regularizer within layers and models: what Keras adds to the loss, and when."""

import keras
import numpy as np
import pytest
import reference
from backend import BACKEND, to_numpy, value_and_gradient
from datasets import gaussian
from keras import layers, ops
from models import compiled, hidden, network

import keras_powerlaw as kp
from keras_powerlaw import basis as bases
from keras_powerlaw.basis import product_dtype
from keras_powerlaw.penalty import projected_variances

# Compiling takes longer than a few steps, but on JAX, which compiles every operation.
EAGERLY = {"run_eagerly": BACKEND != "jax"}
FORMS = ["nearest", "paper", "log"]
UNITS = 30
SETTINGS = {"alpha": 1.5, "tau": 5, "beta": 3.0}


@pytest.fixture(scope="module")
def data():
    return gaussian(300)


def plain_model():
    return compiled(network(hidden(UNITS)), **EAGERLY)


def regularized_model(**settings):
    regularizer = kp.SpectralActivityRegularizer(**SETTINGS | settings)
    return compiled(network(hidden(UNITS, regularizer)), **EAGERLY)


def regularizer_of(model):
    return model.get_layer("hidden").activity_regularizer


def penalty_of(model, x):
    model(x)
    return float(sum(model.losses))


def activity_of(model, x):
    kernel, bias, *_ = map(np.float64, model.get_weights())
    return np.tanh(x @ kernel + bias)


def with_basis(basis, **settings):
    regularizer = kp.SpectralActivityRegularizer(**settings)
    regularizer.eigenbasis.renew(basis, np.ones(len(basis)))
    return regularizer


class TestValueAndGradient:
    @pytest.mark.parametrize("exact", [False, True], ids=["frozen", "exact"])
    @pytest.mark.parametrize(
        "shape, reduction",
        [
            ((90, 40), "flatten"),
            *(((40, 3, 2, 5), each) for each in ("flatten", "channels", "mean")),
            ((20, 6, 5), "channels"),
        ],
        ids=str,
    )
    def test_are_those_of_the_equation_on_the_samples(self, shape, reduction, exact):
        rng = np.random.default_rng(1)
        activity = rng.normal(size=shape)
        basis = reference.orthonormal(
            reference.samples(activity, reduction).shape[1], rng
        )
        settings = {"alpha": 1.5, "tau": 2, "beta": 3.0, "reduction": reduction}
        if exact:
            regularizer = kp.SpectralActivityRegularizer(**settings, exact=True)
        else:
            regularizer = with_basis(basis, **settings)

        def variances(x):
            samples = reference.samples(x, reduction)
            if exact:
                return reference.eigenvalues(samples)
            return reference.variances(samples, basis)

        fixed = variances(activity)

        def penalty(x):
            return reference.penalty(variances(x), 1.5, 2, 3.0, kappa_from=fixed)

        value, gradient = value_and_gradient(regularizer.penalty, activity)
        np.testing.assert_allclose(value, penalty(activity), rtol=1e-4)
        reference.assert_is_gradient(gradient, penalty, activity, rng)

    @pytest.mark.skipif(
        BACKEND == "tensorflow" and product_dtype(600) != "bfloat16",
        reason="without instructions for bfloat16, TensorFlow accumulates in it, and "
        "the basis is in float32",
    )
    @pytest.mark.parametrize(("form", "most"), [("paper", 0.05), ("nearest", 0.1)])
    @pytest.mark.parametrize("alpha", [1.0, 2.0])
    def test_bfloat16_products_round_below_the_sampling_error(
        self, alpha, form, most, monkeypatch
    ):
        rng, units, batch = np.random.default_rng(7), 600, 1500
        basis = reference.orthonormal(units, rng)
        scores = rng.normal(size=(batch, units)) * np.arange(1, units + 1) ** (
            -alpha / 2
        )
        activity = scores @ basis.T + 3 * rng.normal(size=units)
        found = {}
        for dtype in ("float32", "bfloat16"):
            monkeypatch.setattr(bases, "product_dtype", lambda units, to=dtype: to)
            regularizer = with_basis(basis, alpha=3 - alpha, tau=1, form=form)
            found[dtype] = value_and_gradient(regularizer.penalty, activity)
        tensor = ops.convert_to_tensor(activity.astype("float32"))
        expected = reference.variances(activity, basis)
        error = np.abs(
            to_numpy(projected_variances(tensor, regularizer.basis)) - expected
        )
        assert np.all(error <= 2e-3 * expected + 5e-5 * expected.mean())
        assert np.all(error < 0.5 * np.sqrt(2 / batch) * expected)
        (value, gradient), (rounded, gradient_rounded) = found.values()
        np.testing.assert_allclose(rounded, value, rtol=1e-3)
        difference = np.linalg.norm(gradient_rounded - gradient)
        # Most where the spectrum is steep: the large directions round into the small,
        # whose gradient vanishes in eq. (2).
        assert difference < most * np.linalg.norm(gradient)

    def test_without_a_basis_there_is_none(self):
        with pytest.raises(ValueError, match="refresh_eigenbasis"):
            kp.SpectralActivityRegularizer(tau=1).penalty(np.ones((3, 2)))


@pytest.mark.parametrize("name", ["alpha", "tau", "beta", "form", "reduction", "exact"])
def test_settings_are_not_changed_under_steps_that_are_compiled(name):
    regularizer = kp.SpectralActivityRegularizer()
    with pytest.raises(AttributeError, match=f"`{name}` of .* layers, {name}=..."):
        setattr(regularizer, name, getattr(regularizer, name))


class TestTrainingLoss:
    @pytest.mark.parametrize(
        "settings", [*({"form": form} for form in FORMS), {"exact": True}], ids=str
    )
    def test_is_the_data_loss_and_the_penalty_at_any_batch_size(self, data, settings):
        x, y = data
        model = regularized_model(**settings)
        if "exact" not in settings:
            kp.refresh_eigenbasis(model, x)
        for size in 50, 300:
            activity = activity_of(model, x[:size])
            if "exact" in settings:
                variances = reference.eigenvalues(activity)
            else:
                basis = to_numpy(regularizer_of(model).basis)
                tail = reference.variances(activity, basis)
                variances = np.concatenate([np.ones(SETTINGS["tau"] - 1), tail])
            form = settings.get("form", "nearest")
            penalty = reference.penalty(variances, *SETTINGS.values(), form)
            np.testing.assert_allclose(penalty_of(model, x[:size]), penalty, rtol=1e-4)
            batch = x[:size], y[:size]
            expected = float(model.loss(batch[1], model(batch[0]))) + penalty
            reported = model.evaluate(*batch, batch_size=size, verbose=0)
            np.testing.assert_allclose(reported, expected, rtol=1e-4)
            reported = model.train_on_batch(*batch)
            np.testing.assert_allclose(reported, expected, rtol=1e-4)

    def test_has_the_penalty_of_any_layer(self):
        data = gaussian(64, (8, 8, 1))
        parts = [
            layers.Conv2D(4, 3),
            layers.MaxPooling2D(),
            layers.BatchNormalization(),
            layers.Activation("tanh"),
            layers.Flatten(),
            layers.Dense(9),
        ]
        model = compiled(network(*parts, shape=(8, 8, 1)), **EAGERLY)
        kp.add_spectral_regularizer(model, parts, tau=2)
        refresh = kp.EigenbasisRefresh(data[0])
        model.fit(*data, batch_size=32, epochs=2, verbose=0, callbacks=[refresh])
        model(data[0])
        penalties = [float(loss) for loss in model.losses if float(loss)]
        assert len(penalties) == len(parts)
        assert np.all(np.isfinite(penalties))
        for part in parts:
            units = int(np.prod(part.output.shape[1:]))
            assert part.activity_regularizer.basis.shape == (units, units - 1)

    @pytest.mark.parametrize("form", FORMS)
    def test_does_not_explode_in_last_batches_of_a_few_examples(self, form):
        """The inverse square of an estimate from five has no mean."""
        data = gaussian(641, (64,))
        regularizer = kp.SpectralActivityRegularizer(form=form)
        model = compiled(network(hidden(100, regularizer), shape=(64,)))
        refresh = kp.EigenbasisRefresh(data[0])
        history = model.fit(*data, epochs=2, verbose=0, callbacks=[refresh]).history
        assert np.all(np.isfinite(history["loss"]))
        activity = ops.stop_gradient(model.get_layer("hidden")(data[0]))

        def penalties(count, every):
            starts = range(0, 641 - count, every)
            batches = (activity[start : start + count] for start in starts)
            return [float(regularizer.penalty(batch)) for batch in batches]

        assert penalties(1, 300) == [0.0, 0.0, 0.0]  # there is no covariance
        usual = np.mean(penalties(32, 32))
        most = 20 * usual + 20 * (form == "log")
        for count in (2, 3, 5, 15):
            most = regularizer.beta if form == "nearest" else most
            assert max(penalties(count, 15)) <= most

    def test_takes_its_anchor_from_the_refresh_in_small_batches(self, data):
        model = regularized_model(alpha=1.0, beta=1.0, form="paper")
        spectrum = kp.refresh_eigenbasis(model, data[0])["hidden"].eigenvalues[4:]
        basis, n = to_numpy(regularizer_of(model).basis), np.arange(5, UNITS + 1)
        for count in (15, 16):
            x = data[0][:count]
            tail = reference.variances(activity_of(model, x), basis)
            share = spectrum[0] / spectrum.sum()
            ratios = tail / (share * tail.sum() if count < 16 else tail[0]) * n / 5
            expected = np.sum((ratios - 1) ** 2 + np.maximum(0, ratios - 1)) / UNITS
            np.testing.assert_allclose(penalty_of(model, x), expected, rtol=1e-4)

    @pytest.mark.parametrize("form", FORMS)
    def test_of_wide_layers_is_estimated_from_directions_that_take_turns(self, form):
        rng = np.random.default_rng(0)
        samples = rng.normal(size=(64, 400)) * np.arange(1, 401) ** -0.4
        regularizer = kp.SpectralActivityRegularizer(form=form)
        regularizer.eigenbasis.renew(
            reference.orthonormal(400, rng).astype("float32"), np.ones(400)
        )
        value, gradient = value_and_gradient(regularizer.loss_of, samples)
        steps = [ops.convert_to_tensor(step) for step in range(996, 1002)]
        turns = [
            value_and_gradient(lambda x, t=t: regularizer.loss_of(x, t), samples)
            for t in steps
        ]
        # In the default form, each group has a level of its own.
        tolerance = 0.2 if form == "nearest" else 1e-4
        assert np.mean([turn[0] for turn in turns]) == pytest.approx(value, tolerance)
        error = np.linalg.norm(np.mean([turn[1] for turn in turns], axis=0) - gradient)
        assert error <= tolerance * np.linalg.norm(gradient)
        assert turns[0][0] != pytest.approx(turns[1][0], 1e-4)

    def test_is_finite_with_dead_units(self, data):
        model = regularized_model()
        kernel, *rest = model.get_weights()
        model.set_weights([kernel * (np.arange(UNITS) >= 20), *rest])
        kp.refresh_eigenbasis(model, data[0])
        assert np.isfinite(model.train_on_batch(*data))
        assert all(np.isfinite(weight).all() for weight in model.get_weights())

    @pytest.mark.parametrize("beta", [3.0, 0.0])
    def test_is_nan_with_nan_activations_unless_beta_is_zero(self, data, beta):
        model = regularized_model(beta=beta)
        kp.refresh_eigenbasis(model, data[0])
        nan = np.full((10, 12), np.nan, "float32")
        assert np.isnan(penalty_of(model, nan)) == bool(beta)

    def test_is_computed_when_it_is_asked_for(self, data, monkeypatch):
        model = regularized_model()
        kp.refresh_eigenbasis(model, data[0])
        regularizer, computed = regularizer_of(model), []
        loss_of = regularizer.loss_of
        monkeypatch.setattr(
            regularizer, "loss_of", lambda *x: computed.append(x) or loss_of(*x)
        )
        model.predict(data[0], verbose=0)
        model(data[0])
        assert computed == []
        assert float(model.losses[-1]) > 0
        assert model.losses and len(computed) == 1

    def test_moves_the_spectrum_toward_the_power_law(self, digits):
        regularizer = kp.SpectralActivityRegularizer(tau=5, beta=5.0)
        parts = layers.Flatten(), hidden(40, regularizer)
        model = network(*parts, shape=(8, 8, 1), classes=10)
        compiled(model, keras.optimizers.Adam(1e-2))
        x, y = digits[0]

        def exponent():
            # Without the last ones, which may never rise: their gradient vanishes.
            return kp.measure_spectrum(model, x, "hidden", fit_range=(5, 35)).exponent

        before, refresh = exponent(), kp.EigenbasisRefresh(x)
        model.fit(x, y, batch_size=200, epochs=30, verbose=0, callbacks=[refresh])
        assert before > 1.5
        assert abs(exponent() - 1) < 0.15


class TestWithoutBasis:
    def test_training_stops_before_the_first_step_and_names_the_cure(self, data):
        model = regularized_model()
        before = model.get_weights()
        with pytest.raises(ValueError, match="EigenbasisRefresh"):
            model.train_on_batch(*data)
        with pytest.raises(ValueError, match="EigenbasisRefresh") as error:
            model.fit(*data, verbose=0)
        if BACKEND == "jax":  # where Keras does not restore them
            assert "Build or load the model again" in str(error.value)
            return
        for old, new in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)

    def test_evaluate_and_predict_leave_the_penalty_out(self, data):
        plain, model = plain_model(), regularized_model()
        model.set_weights(plain.get_weights())
        assert model.evaluate(*data, verbose=0) == plain.evaluate(*data, verbose=0)
        np.testing.assert_array_equal(
            model.predict(data[0], verbose=0), plain.predict(data[0], verbose=0)
        )


class TestFilesAndConfigs:
    def test_configs_are_complete_and_round_trip(self, data):
        changed = {"exact": True, "form": "log", "reduction": "mean"}
        config = kp.SpectralActivityRegularizer(**SETTINGS, **changed).get_config()
        assert config == SETTINGS | changed | {"target": None}
        numbers = np.float32(1.5), np.int64(5), np.float64(3)
        config = kp.SpectralActivityRegularizer(*numbers).get_config()
        defaults = {
            **{"exact": False, "form": "nearest"},
            **{"reduction": "flatten", "target": None},
        }
        assert config == SETTINGS | defaults
        types = [type(value) for value in config.values()]
        assert types[:6] == [float, int, float, bool, str, str]
        model = regularized_model()
        kp.refresh_eigenbasis(model, data[0])
        for copy in (
            keras.Sequential.from_config(model.get_config()),
            keras.models.clone_model(model),
            keras.models.model_from_json(model.to_json()),
        ):
            assert regularizer_of(copy) is not regularizer_of(model)
            assert regularizer_of(copy).get_config() == config
            assert regularizer_of(copy).basis is None

    @pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".h5"])
    def test_files_of_plain_and_regularized_models_are_interchangeable(
        self, data, tmp_path, suffix
    ):
        plain, model = plain_model(), regularized_model()
        kp.refresh_eigenbasis(model, data[0])
        for source, target in ((plain, model), (model, plain)):
            source.layers[0].kernel.assign(source.layers[0].kernel + 1.0)
            path = str(tmp_path / f"{source.name}{suffix}")
            save = source.save_weights if suffix == ".weights.h5" else source.save
            save(path)
            target.load_weights(path)
            expected, found = activity_of(source, data[0]), activity_of(target, data[0])
            np.testing.assert_array_equal(found, expected)

    def test_the_basis_is_no_weight(self, data):
        model = regularized_model()
        kp.refresh_eigenbasis(model, data[0])
        assert model.count_params() == plain_model().count_params()
        assert len(model.get_weights()) == 4
        if BACKEND == "jax":  # whose training step is given every variable
            basis = regularizer_of(model).basis
            assert any(basis is variable for variable in model.non_trainable_variables)


class TestArguments:
    @pytest.mark.parametrize("exact", [False, True], ids=["frozen", "exact"])
    def test_tau_is_less_than_the_width(self, data, exact):
        """At τ = N, the only ratio is 1, and there would be no penalty."""
        model = regularized_model(tau=UNITS, exact=exact)
        callbacks = [] if exact else [kp.EigenbasisRefresh(data[0])]
        match = r"`tau`. Expected at most 29, .* 30 units \(with reduction='flatten'\)"
        with pytest.raises(ValueError, match=match):
            model.fit(*data, verbose=0, callbacks=callbacks)

    def test_each_layer_needs_an_object_of_its_own(self, data):
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        first, second = (hidden(9, regularizer, name) for name in ("first", "second"))
        with pytest.raises(ValueError, match="the same object for layers 'first' and"):
            kp.refresh_eigenbasis(network(first, second), data[0])
