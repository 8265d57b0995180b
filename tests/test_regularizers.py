"""The regularizer within layers and models, and adding it to models that exist."""

import keras
import numpy as np
import pytest
import reference
from backend import BACKEND, to_numpy, value_and_gradient
from datasets import gaussian
from keras import layers, ops
from models import Subclassed, compiled, feature_map, hidden, network

import keras_powerlaw as kp
from keras_powerlaw import basis as eigenbasis
from keras_powerlaw.basis import product_dtype
from keras_powerlaw.penalty import projected_variances

FORMS = ["nearest", "paper", "log"]
ALPHAS = [0.5, 1.0, 1.5, 2.0]


def dense_model(regularizer=None):
    return network(hidden(30, regularizer))


def with_adam(model):
    return compiled(model, keras.optimizers.Adam(1e-2), metrics=["accuracy"])


@pytest.fixture
def data():
    return gaussian(300)


def with_basis(basis, **settings):
    regularizer = kp.SpectralActivityRegularizer(**settings)
    regularizer.eigenbasis.renew(basis)
    return regularizer


class TestValueAndGradient:
    """Against the paper's equation in NumPy and against finite differences."""

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("exact", [False, True], ids=["frozen", "exact"])
    @pytest.mark.parametrize("shape", [(90, 40), (90, 3, 4, 3)], ids=["flat", "conv"])
    def test_are_those_of_the_equations(self, shape, exact, form):
        rng = np.random.default_rng(1)
        activity = rng.normal(size=shape)
        settings = (1.5, 5, 2.0, form)
        basis = reference.orthonormal(int(np.prod(shape[1:])), rng)
        options = dict(zip(("alpha", "tau", "beta", "form"), settings, strict=True))
        if exact:
            regularizer = kp.SpectralActivityRegularizer(exact=True, **options)
        else:
            regularizer = with_basis(basis, **options)

        def variances(x):
            if not exact:
                return reference.variances(x, basis)
            flat = x.reshape(len(x), -1)
            return np.linalg.eigvalsh(np.cov(flat, rowvar=False))[::-1]

        value, gradient = value_and_gradient(regularizer.penalty, activity)
        fixed, direction = variances(activity), rng.normal(size=shape)
        expected = reference.penalty(fixed, *settings)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        slope = reference.directional_derivative(
            lambda x: reference.penalty(variances(x), *settings, kappa_from=fixed),
            activity,
            direction,
        )
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-3)

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
        monkeypatch.setattr(eigenbasis, "product_dtype", lambda units: "bfloat16")
        rng = np.random.default_rng(7)
        units, batch = 600, 1500
        basis = reference.orthonormal(units, rng)
        scores = rng.normal(size=(batch, units)) * np.arange(1, units + 1) ** (
            -alpha / 2
        )
        activity = scores @ basis.T + 3 * rng.normal(size=units)
        expected = reference.variances(activity, basis)
        target = {"alpha": 3 - alpha, "tau": 1, "form": form}
        regularizer = with_basis(basis, **target)
        found = projected_variances(
            ops.convert_to_tensor(activity.astype("float32")), regularizer.basis
        )
        error = np.abs(to_numpy(found) - expected)
        assert np.all(error <= 2e-3 * expected + 5e-5 * expected.mean())
        assert np.all(error < 0.5 * np.sqrt(2 / batch) * expected)

        rounded, gradient_rounded = value_and_gradient(regularizer.penalty, activity)
        monkeypatch.setattr(eigenbasis, "product_dtype", lambda units: "float32")
        value, gradient = value_and_gradient(
            with_basis(basis, **target).penalty, activity
        )
        np.testing.assert_allclose(rounded, value, rtol=1e-3)
        difference = np.linalg.norm(gradient_rounded - gradient)
        # Most where the spectrum is steep: the large directions round into the small,
        # whose gradient vanishes in eq. (2).
        assert difference < most * np.linalg.norm(gradient)


class TestTrainingLoss:
    """What Keras adds to the loss is eq. (2) and nothing else."""

    @pytest.mark.parametrize("batch", [50, 200])
    @pytest.mark.parametrize("exact", [False, True], ids=["frozen", "exact"])
    def test_model_losses_are_the_penalty_at_any_batch_size(self, data, batch, exact):
        x = data[0][:batch]
        model = dense_model(
            kp.SpectralActivityRegularizer(tau=5, beta=3.0, exact=exact)
        )
        if not exact:
            kp.refresh_eigenbasis(model, data[0])
        model(x, training=True)
        activity = model.layers[0](x)
        regularizer = model.layers[0].activity_regularizer
        model(x, training=True)
        total = sum(float(loss) for loss in model.losses)
        np.testing.assert_allclose(total, float(regularizer.penalty(activity)), 1e-6)
        assert total > 0

    def test_train_on_batch_reports_loss_plus_penalty(self, data):
        x, y = data
        model = with_adam(dense_model(kp.SpectralActivityRegularizer(tau=5, beta=3.0)))
        kp.refresh_eigenbasis(model, x)
        logits = model(x, training=True)
        data_loss = float(model.loss(y, logits))
        penalty = sum(float(loss) for loss in model.losses)
        reported = model.evaluate(x, y, batch_size=300, verbose=0)[0]
        np.testing.assert_allclose(reported, data_loss + penalty, rtol=1e-5)
        reported = model.train_on_batch(x, y)[0]
        np.testing.assert_allclose(reported, data_loss + penalty, rtol=1e-5)

    LAYERS = {
        "dense": lambda r: layers.Dense(9, activity_regularizer=r),
        "conv": lambda r: layers.Conv2D(2, 3, activity_regularizer=r),
        "pooling": lambda r: layers.MaxPooling2D(activity_regularizer=r),
        "batch norm": lambda r: layers.BatchNormalization(activity_regularizer=r),
        "activation": lambda r: layers.Activation("tanh", activity_regularizer=r),
        "flatten": lambda r: layers.Flatten(activity_regularizer=r),
    }

    @pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
    def test_any_layer_takes_it(self, layer):
        x, y = gaussian(64, (6, 6, 1))
        regularized = layer(kp.SpectralActivityRegularizer(tau=2, beta=2.0))
        model = with_adam(network(regularized, layers.Flatten(), shape=(6, 6, 1)))
        history = model.fit(
            x,
            y,
            batch_size=32,
            epochs=2,
            verbose=0,
            callbacks=[kp.EigenbasisRefresh(x)],
        ).history
        activity = keras.Model(model.inputs, model.layers[0].output)(x, training=False)
        flat = ops.convert_to_numpy(activity).reshape(64, -1)
        regularizer = model.layers[0].activity_regularizer
        assert regularizer.basis.shape == (flat.shape[1], flat.shape[1] - 1)
        assert np.all(np.isfinite(history["loss"]))
        model(x, training=True)
        assert sum(float(loss) for loss in model.losses) > 0

    def test_last_batch_of_one_example_is_not_penalized(self, data):
        x, y = data
        model = with_adam(dense_model(kp.SpectralActivityRegularizer(tau=5)))
        history = model.fit(
            x[:201],
            y[:201],
            batch_size=100,
            epochs=2,
            verbose=0,
            callbacks=[kp.EigenbasisRefresh(x)],
        ).history
        assert np.all(np.isfinite(history["loss"]))
        model(x[:1], training=True)
        assert sum(float(loss) for loss in model.losses) == 0.0

    @pytest.mark.parametrize("form", FORMS)
    def test_last_batches_of_a_few_examples_do_not_explode(self, form):
        """The inverse square of an estimate from five has no mean."""
        x, y = gaussian(640, (64,))
        regularizer = kp.SpectralActivityRegularizer(form=form)
        model = with_adam(network(hidden(100, regularizer), shape=(64,)))
        refresh = kp.EigenbasisRefresh(x)
        model.fit(x, y, batch_size=32, epochs=2, verbose=0, callbacks=[refresh])

        def penalty(count, start):
            model(x[start : start + count])
            return sum(float(loss) for loss in model.losses)

        usual = np.mean([penalty(32, start) for start in range(0, 640, 32)])
        for count in (2, 3, 5, 15):
            worst = max(penalty(count, start) for start in range(0, 640, 5))
            if form == "nearest":
                assert worst <= regularizer.beta
            else:
                assert worst < 20 * usual + 20 * (form == "log")

    def test_a_small_batch_takes_the_share_of_the_anchor_from_the_refresh(self, data):
        x = data[0]
        regularizer = kp.SpectralActivityRegularizer(tau=5, beta=1.0, form="paper")
        model = dense_model(regularizer)
        eigenvalues = kp.refresh_eigenbasis(model, x)["hidden"].eigenvalues
        hidden_units = keras.Model(model.inputs, model.layers[0].output)
        for count in (15, 16):
            activity = to_numpy(hidden_units(x[:count]))
            tail = reference.variances(activity, to_numpy(regularizer.basis))
            share = eigenvalues[4] / eigenvalues[4:].sum()
            anchor = share * tail.sum() if count < 16 else tail[0]
            ratios = tail / anchor * np.arange(5, 5 + len(tail)) / 5
            terms = (ratios - 1) ** 2 + np.maximum(0, ratios - 1)
            expected = terms.sum() / (4 + len(tail))
            model(x[:count])
            np.testing.assert_allclose(
                sum(float(loss) for loss in model.losses), expected, rtol=1e-4
            )

    def test_dead_units_leave_it_finite(self, data):
        x, y = data
        model = with_adam(dense_model(kp.SpectralActivityRegularizer(tau=5)))
        kernel, bias = model.layers[0].get_weights()
        kernel[:, :20] = 0.0
        model.layers[0].set_weights([kernel, bias])
        kp.refresh_eigenbasis(model, x)
        assert np.isfinite(model.train_on_batch(x, y)[0])
        assert all(np.isfinite(w).all() for w in model.get_weights())

    def test_nan_activations_give_a_nan_loss(self, data):
        model = dense_model(kp.SpectralActivityRegularizer(tau=5))
        kp.refresh_eigenbasis(model, data[0])
        model(np.full((10, 12), np.nan, "float32"))
        assert np.isnan(sum(float(loss) for loss in model.losses))

    def test_trains_the_spectrum_toward_the_power_law(self, digits):
        (x, y), _ = digits
        regularizer = kp.SpectralActivityRegularizer(tau=5, beta=5.0)
        model = with_adam(
            network(
                layers.Flatten(),
                hidden(40, regularizer),
                shape=(8, 8, 1),
                classes=10,
            )
        )
        # The gradient of eq. (2) vanishes with λₙ: the last ones may never rise.
        before = kp.measure_spectrum(model, x, "hidden", fit_range=(5, 35)).exponent
        refresh = kp.EigenbasisRefresh(x)
        model.fit(x, y, batch_size=200, epochs=30, verbose=0, callbacks=[refresh])
        after = kp.measure_spectrum(model, x, "hidden", fit_range=(5, 35)).exponent
        assert before > 1.5
        assert abs(after - 1) < 0.15


class TestWithoutBasis:
    def test_fit_stops_before_the_first_step_and_names_the_cure(self, data):
        model = with_adam(dense_model(kp.SpectralActivityRegularizer(tau=5)))
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
        plain = with_adam(dense_model())
        model = with_adam(dense_model(kp.SpectralActivityRegularizer(tau=5)))
        model.set_weights(plain.get_weights())
        assert model.evaluate(*data, verbose=0) == plain.evaluate(*data, verbose=0)
        np.testing.assert_array_equal(
            model.predict(data[0], verbose=0), plain.predict(data[0], verbose=0)
        )

    def test_evaluate_counts_it_once_there_is_one(self, data):
        model = with_adam(dense_model(kp.SpectralActivityRegularizer(tau=5)))
        without = model.evaluate(*data, batch_size=300, verbose=0)[0]
        kp.refresh_eigenbasis(model, data[0])
        with_penalty = model.evaluate(*data, batch_size=300, verbose=0)[0]
        penalty = sum(float(loss) for loss in compiled_losses(model, data[0]))
        np.testing.assert_allclose(with_penalty, without + penalty, rtol=1e-5)
        assert penalty > 0

    def test_exact_needs_none(self, data):
        model = with_adam(
            dense_model(kp.SpectralActivityRegularizer(tau=5, exact=True))
        )
        plain = with_adam(dense_model())
        plain.set_weights(model.get_weights())
        losses = [
            each.fit(*data, batch_size=300, verbose=0).history["loss"][0]
            for each in (model, plain)
        ]
        assert losses[0] > losses[1] + 0.1
        assert model.layers[0].activity_regularizer.basis is None


def compiled_losses(model, x):
    model(x, training=False)
    return model.losses


class TestFilesAndConfigs:
    def test_config_round_trip(self):
        regularizer = kp.SpectralActivityRegularizer(1.5, 7, 2, exact=True)
        config = keras.regularizers.serialize(regularizer)
        restored = keras.regularizers.get(config)
        assert isinstance(restored, kp.SpectralActivityRegularizer)
        assert restored.get_config() == regularizer.get_config()
        assert regularizer.get_config() == {
            "alpha": 1.5,
            "tau": 7,
            "beta": 2.0,
            "exact": True,
            "form": "nearest",
            "reduction": "flatten",
        }

    def test_layer_and_model_configs_round_trip(self, data):
        model = dense_model(kp.SpectralActivityRegularizer(1.5, 5, 2.0))
        kp.refresh_eigenbasis(model, data[0])
        for copy in (
            keras.Sequential.from_config(model.get_config()),
            keras.models.clone_model(model),
            keras.models.model_from_json(model.to_json()),
        ):
            regularizer = copy.layers[0].activity_regularizer
            assert regularizer is not model.layers[0].activity_regularizer
            assert regularizer.get_config() == {
                "alpha": 1.5,
                "tau": 5,
                "beta": 2.0,
                "exact": False,
                "form": "nearest",
                "reduction": "flatten",
            }
            assert regularizer.basis is None

    def test_saved_model_predicts_evaluates_and_trains_on(self, data, tmp_path):
        x, y = data
        model = with_adam(dense_model(kp.SpectralActivityRegularizer(tau=5)))
        model.fit(x, y, verbose=0, callbacks=[kp.EigenbasisRefresh(x)])
        kp.refresh_eigenbasis(model, x)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(
            loaded.predict(x, verbose=0), model.predict(x, verbose=0)
        )
        kp.refresh_eigenbasis(loaded, x)
        np.testing.assert_allclose(
            loaded.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0), rtol=1e-6
        )
        history = loaded.fit(x, y, verbose=0, callbacks=[kp.EigenbasisRefresh(x)])
        assert np.isfinite(history.history["loss"]).all()

    @pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".h5"])
    def test_files_of_plain_and_regularized_models_are_interchangeable(
        self, data, tmp_path, suffix
    ):
        plain = dense_model()
        model = dense_model(kp.SpectralActivityRegularizer(tau=5))
        kp.refresh_eigenbasis(model, data[0])
        for source, target in ((plain, model), (model, plain)):
            for weight in target.weights:
                weight.assign(weight + 1.0)
            path = str(tmp_path / f"{source.name}{suffix}")
            if suffix == ".weights.h5":
                source.save_weights(path)
            else:
                source.save(path)
            target.load_weights(path)
            for saved, loaded in zip(source.weights, target.weights, strict=True):
                np.testing.assert_array_equal(saved.numpy(), loaded.numpy())

    def test_basis_is_no_weight(self, data):
        model = dense_model(kp.SpectralActivityRegularizer(tau=5))
        count = model.count_params()
        kp.refresh_eigenbasis(model, data[0])
        assert model.count_params() == count == dense_model().count_params()
        assert len(model.get_weights()) == 4
        if BACKEND == "jax":  # whose training step is given every variable
            basis = model.layers[0].activity_regularizer.basis
            assert any(basis is variable for variable in model.non_trainable_variables)

    def test_losses_are_computed_when_they_are_asked_for(self, data, monkeypatch):
        regularizer = kp.SpectralActivityRegularizer(tau=5)
        model = with_adam(dense_model(regularizer))
        kp.refresh_eigenbasis(model, data[0])
        computed = []
        penalty = regularizer.penalty
        monkeypatch.setattr(
            regularizer, "penalty", lambda x: computed.append(x) or penalty(x)
        )
        model.predict(data[0], verbose=0)
        model(data[0])
        assert computed == []
        assert float(model.losses[-1]) > 0
        assert model.losses and len(computed) == 1


class TestArguments:
    @pytest.mark.parametrize("name", ["alpha", "beta"])
    @pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "1", None, True])
    def test_numbers(self, name, bad):
        with pytest.raises(ValueError) as error:
            kp.SpectralActivityRegularizer(**{name: bad})
        assert str(error.value) == (
            f"Invalid value for argument `{name}`. Expected a finite number of at "
            f"least 0. Received: {name}={bad!r}"
        )

    @pytest.mark.parametrize("bad", [0, -3, 2.5, float("nan"), "10", None, True])
    def test_tau(self, bad):
        with pytest.raises(ValueError) as error:
            kp.SpectralActivityRegularizer(tau=bad)
        assert str(error.value) == (
            "Invalid value for argument `tau`. Expected an integer of at least 1. "
            f"Received: tau={bad!r}"
        )

    def test_booleans(self):
        with pytest.raises(ValueError, match="argument `exact`. Expected a boolean"):
            kp.SpectralActivityRegularizer(exact="yes")

    def test_numpy_numbers_become_python_numbers(self):
        config = kp.SpectralActivityRegularizer(
            np.float32(1.5), np.int64(3), np.float64(2)
        ).get_config()
        assert [type(value) for value in config.values()] == [
            *(float, int, float, bool, str, str)
        ]

    @pytest.mark.parametrize("exact", [False, True], ids=["frozen", "exact"])
    @pytest.mark.parametrize("tau", [30, 31])
    def test_tau_of_the_layers_width_or_above(self, data, tau, exact):
        """At τ = N, the only ratio is 1, and there would be no penalty."""
        model = with_adam(
            dense_model(kp.SpectralActivityRegularizer(tau=tau, exact=exact))
        )
        callbacks = [] if exact else [kp.EigenbasisRefresh(data[0])]
        with pytest.raises(
            ValueError, match="argument `tau`. Expected at most 29, .* 30 un"
        ):
            model.fit(*data, verbose=0, callbacks=callbacks)

    def test_penalty_without_a_basis(self):
        with pytest.raises(ValueError, match="refresh_eigenbasis"):
            kp.SpectralActivityRegularizer(tau=1).penalty(np.ones((3, 2)))

    def test_one_object_for_two_layers(self, data):
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        model = network(
            hidden(9, regularizer, "first"), hidden(9, regularizer, "second")
        )
        with pytest.raises(ValueError, match="the same object for layers 'first' and"):
            kp.refresh_eigenbasis(model, data[0])


class TestAddSpectralRegularizer:
    def deep_model(self):
        normalized = layers.BatchNormalization(name="norm")
        return network(hidden(20, name="first"), normalized, hidden(16, name="second"))

    def functional_model(self):
        one, two = keras.Input((12,)), keras.Input((12,))
        first, shared = hidden(20, name="first"), hidden(16, name="second")
        merged = layers.Concatenate()(
            [shared(first(one)), shared(layers.Dense(20)(two))]
        )
        return keras.Model([one, two], layers.Dense(4)(merged))

    @pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
    def test_keeps_weights_and_predictions(self, data, trained):
        x, y = data
        model = with_adam(self.deep_model())
        if trained:
            model.fit(x, y, verbose=0)
        new = kp.add_spectral_regularizer(model, ["first", "second"], tau=3)
        np.testing.assert_array_equal(
            new.predict(x, verbose=0), model.predict(x, verbose=0)
        )
        assert new.get_layer("first").activity_regularizer.tau == 3
        assert model.get_layer("first").activity_regularizer is None
        assert [layer.name for layer in new.layers] == [
            layer.name for layer in model.layers
        ]

    def test_goes_on_with_compile_settings_and_optimizer_state(self, data):
        x, y = data
        model = with_adam(self.deep_model())
        model.fit(x, y, verbose=0)
        new = kp.add_spectral_regularizer(model, "first", tau=3, beta=0.0)
        assert new.optimizer.iterations == model.optimizer.iterations
        assert new.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)
        kp.refresh_eigenbasis(new, x)
        for _ in range(3):  # at β = 0, the same steps
            np.testing.assert_allclose(
                new.train_on_batch(x, y), model.train_on_batch(x, y), rtol=1e-6
            )

    def test_uncompiled_stays_uncompiled(self):
        new = kp.add_spectral_regularizer(self.deep_model(), ["first"])
        assert not new.compiled

    def test_functional_with_two_inputs_and_a_shared_layer(self, data):
        inputs = [data[0], data[0][::-1].copy()]
        model = self.functional_model()
        new = with_adam(kp.add_spectral_regularizer(model, ["first", "second"], tau=3))
        np.testing.assert_array_equal(
            new.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
        )
        refresh = kp.EigenbasisRefresh(inputs)
        new.fit(inputs, data[1], verbose=0, callbacks=[refresh])
        assert set(refresh.spectra) == {"first", "second"}

    def test_nested_model(self, data):
        outer = keras.Sequential([keras.Input((12,)), self.deep_model()])
        new = kp.add_spectral_regularizer(outer, "second", tau=3)
        np.testing.assert_array_equal(
            new.predict(data[0], verbose=0), outer.predict(data[0], verbose=0)
        )
        assert set(kp.refresh_eigenbasis(new, data[0])) == {"second"}

    def test_convolution_pooling_and_flatten(self):
        pool, flat = layers.MaxPooling2D(name="pool"), layers.Flatten(name="flat")
        model = network(feature_map(4), pool, flat, shape=(8, 8, 1))
        new = kp.add_spectral_regularizer(model, ["map", "pool", "flat"], tau=3)
        spectra = kp.refresh_eigenbasis(new, gaussian(40, (8, 8, 1))[0])
        widths = {name: len(s.eigenvalues) for name, s in spectra.items()}
        assert widths == {"map": 144, "pool": 36, "flat": 36}

    def test_settings_per_layer(self):
        new = kp.add_spectral_regularizer(
            self.deep_model(),
            ["second", "first"],
            alpha=np.array([1.0, 1.5]),
            tau=[2, 3],
            beta=4,
            form="log",
        )
        found = [
            new.get_layer(name).activity_regularizer.get_config()
            for name in ("first", "second")
        ]
        shared = {
            **{"beta": 4.0, "exact": False},
            **{"form": "log", "reduction": "flatten"},
        }
        assert found == [
            {"alpha": 1.5, "tau": 3, **shared},
            {"alpha": 1.0, "tau": 2, **shared},
        ]

    def test_replaces_a_spectral_regularizer(self):
        once = kp.add_spectral_regularizer(self.deep_model(), "first", beta=1.0)
        twice = kp.add_spectral_regularizer(once, "first", beta=2.0)
        assert twice.get_layer("first").activity_regularizer.beta == 2.0

    @pytest.mark.parametrize("layer", ["dense", "relu"])
    def test_warns_of_forms_that_are_not_for_rectified_units(self, layer):
        model = keras.Sequential(
            [
                keras.Input((12,)),
                keras.layers.Dense(16, "relu", name="dense"),
                keras.layers.ReLU(name="relu"),
            ]
        )
        kp.add_spectral_regularizer(model, layer)
        for form in ("paper", "log"):
            with pytest.warns(UserWarning, match=f"'{layer}' are rectified.*'{form}'"):
                kp.add_spectral_regularizer(model, layer, form=form)

    def test_refuses_a_subclassed_model(self):
        with pytest.raises(ValueError, match="argument `model`. Expected a Sequential"):
            kp.add_spectral_regularizer(Subclassed(), ["first"])

    def test_refuses_a_subclass_that_the_copy_would_not_be(self):
        """Its training step would be lost without a word."""

        class OwnStep(keras.Sequential):
            def __init__(self, units):
                super().__init__([keras.Input((12,)), hidden(units)])

            def train_step(self, *args):
                return {}

        with pytest.raises(
            ValueError, match=r"argument `model`\. .* of which the constructor fails"
        ):
            kp.add_spectral_regularizer(OwnStep(20), "hidden", tau=3)

    def test_lists_the_layers_if_one_does_not_exist(self):
        with pytest.raises(ValueError, match="'first', 'norm', 'second', 'logits'"):
            kp.add_spectral_regularizer(self.deep_model(), ["third"])

    def test_refuses_another_activity_regularizer(self):
        model = dense_model(keras.regularizers.L2(1e-3))
        with pytest.raises(ValueError, match="without another activity regularizer"):
            kp.add_spectral_regularizer(model, "hidden")

    def test_refuses_lists_of_another_length(self):
        with pytest.raises(ValueError, match="argument `alpha`. Expected a number, or"):
            kp.add_spectral_regularizer(self.deep_model(), ["first"], alpha=[1.0, 2.0])

    @pytest.mark.parametrize("tau", [16, 17])
    def test_refuses_tau_of_the_width_or_above(self, tau):
        with pytest.raises(
            ValueError, match="argument `tau`. Expected at most 15, .* 16 un"
        ):
            kp.add_spectral_regularizer(self.deep_model(), ["first", "second"], tau=tau)

    @pytest.mark.parametrize("none", [[], None, ()])
    def test_refuses_no_layers(self, none):
        with pytest.raises(
            ValueError, match="argument `layers`. Expected at least one"
        ):
            kp.add_spectral_regularizer(self.deep_model(), none)
