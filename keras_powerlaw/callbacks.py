"""Renewing the eigenbasis, within `fit()` and outside."""

from __future__ import annotations

import contextlib

import keras
import numpy as np

from keras_powerlaw.activity import Progress, stream_covariances
from keras_powerlaw.errors import invalid_value
from keras_powerlaw.regularizers import regularized_layers
from keras_powerlaw.spectra import Spectrum, eigendecomposition


def refresh_eigenbasis(
    model, x, *, max_samples=None, batch_size=1024, seed=0, verbose="auto"
) -> dict[str, Spectrum]:
    """Renews the eigenbasis of every regularized layer of a model.

    Σ = V Λ Vᵀ,  λ₁ ≥ λ₂ ≥ …

    One pass over the data in inference mode gives the covariance Σ of all regularized
    layers together, accumulated batch by batch in float64. LAPACK decomposes it,
    outside of any compiled program.

    Call it on the model that you train or evaluate: after loading a saved model, or
    in a training loop of your own. Within `fit()`, use `EigenbasisRefresh`.

    Args:
        model: A model with at least one `SpectralActivityRegularizer`.
        x: The training data: array, nested arrays for several inputs,
            `tf.data.Dataset`, `keras.utils.PyDataset`, or another iterable of batches
            that can be iterated again. Labels, if any, are ignored.
        max_samples: Use at most so many examples: a random choice of an array, the
            first ones of a data set. Defaults to all.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the random choice.
        verbose: `"auto"` shows progress when the refresh is slow, 0 never, 1 always.

    Returns:
        The measured `Spectrum` of each regularized layer, by the layer's name. Its
        exponent is fitted from n = τ + 1 to n = 500 or the spectrum's end.

    Raises:
        ValueError: If no layer is regularized, two share one regularizer, τ exceeds a
            layer's width or the number of directions its activations vary in, or `x`
            is empty, does not fit the model, is not finite, or has fewer than two
            examples.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_powerlaw as kp

    regularizer = kp.SpectralActivityRegularizer(tau=5)
    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(50, activity_regularizer=regularizer, name="hidden"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(500, 20))
    spectra = kp.refresh_eigenbasis(model, x)
    print(spectra["hidden"].exponent)
    ```

    Reference:
        Nassar et al. (2020), eq. (3) and section 3.2.
    """
    layers = [
        layer
        for layer in regularized_layers(model)
        if not layer.activity_regularizer.exact
    ]
    if not layers:
        raise invalid_value(
            "model",
            "a model with at least one layer whose `activity_regularizer` is a "
            "SpectralActivityRegularizer that uses an eigenbasis",
            f"'{model.name}', which has none",
        )
    if hasattr(model, "jax_state_sync"):  # within `fit()`, JAX holds newer weights
        model.jax_state_sync()
    statistics = stream_covariances(
        model,
        x,
        layers,
        batch_size=batch_size,
        max_samples=max_samples,
        seed=seed,
        progress=Progress("Eigenbasis", verbose),
    )
    spectra, bases = {}, []
    for layer, running in zip(layers, statistics, strict=True):
        regularizer = layer.activity_regularizer
        eigenvalues, eigenvectors = eigendecomposition(running.covariance())
        regularizer.check_width(len(eigenvalues))
        spectrum = Spectrum(eigenvalues)
        if spectrum.rank < regularizer.tau:
            raise ValueError(
                f"The activations of layer '{layer.name}' on `x` vary in only "
                f"{spectrum.rank} of {len(eigenvalues)} directions: most units are "
                "constant (dead or saturated), or there are too few examples. The "
                f"penalty needs at least tau={regularizer.tau}."
            )
        last = min(500, spectrum.rank)
        if regularizer.tau + 1 < last:
            spectrum = Spectrum(eigenvalues, (regularizer.tau + 1, last))
        spectra[layer.name] = spectrum
        bases.append(eigenvectors)

    first_time = any(layer.activity_regularizer.basis is None for layer in layers)
    with _variable_scope(model):
        for layer, eigenvectors in zip(layers, bases, strict=True):
            layer.activity_regularizer.set_basis(eigenvectors)
    if first_time and model.compiled:
        # Functions traced before have left the penalty out.
        model.make_train_function(force=True)
        model.make_test_function(force=True)
    return spectra


class EigenbasisRefresh(keras.callbacks.Callback):
    """Renews the eigenbasis of every regularized layer during `fit()`.

    The penalty of `SpectralActivityRegularizer` takes the variances along the
    eigenvectors over the training set for the eigenvalues. This holds while the
    weights have moved little since those were computed, so this callback computes
    them anew at the start of every epoch, or as often as asked.

    It logs the measured exponent of each layer as `<layer name>_exponent`, as it was
    at the last refresh. List it before `CSVLogger` and `TensorBoard`, so that they see
    it.

    Args:
        x: The training data; see `refresh_eigenbasis()`.
        every_epochs: Refresh at the start of every so many epochs. Defaults to 1.
        every_steps: Refresh every so many optimizer steps instead.
        max_samples: Use at most so many examples; of an array, a new random choice at
            each refresh. Defaults to all.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the random choices.
        verbose: `"auto"` shows progress when a refresh is slow, unless `fit()` is
            silent; 0 never, 1 always.

    Raises:
        ValueError: As `refresh_eigenbasis()`, before the first training step.

    Example: see `SpectralActivityRegularizer`.

    Reference:
        Nassar et al. (2020), section 3.2.
    """

    def __init__(
        self,
        x,
        *,
        every_epochs=1,
        every_steps=None,
        max_samples=None,
        batch_size=1024,
        seed=0,
        verbose="auto",
    ):
        super().__init__()
        if not _is_count(every_epochs):
            raise invalid_value(
                "every_epochs", "an integer of at least 1", every_epochs
            )
        if every_steps is not None and not _is_count(every_steps):
            raise invalid_value(
                "every_steps", "None or an integer of at least 1", every_steps
            )
        self.x = x
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.max_samples = max_samples
        self.batch_size = batch_size
        self.seed = seed
        self.verbose = verbose
        self.spectra = {}
        self._refreshes = 0

    def on_train_begin(self, logs=None):
        self._steps = 0  # of finished epochs
        self._last_step = None

    def on_epoch_begin(self, epoch, logs=None):
        self._steps_in_epoch = 0
        if self.every_steps is None and (
            epoch % self.every_epochs == 0 or self._last_step is None
        ):
            self._refresh(0)

    def on_train_batch_begin(self, batch, logs=None):
        if self.every_steps is not None:
            step = self._steps + batch
            if self._last_step is None or step - self._last_step >= self.every_steps:
                self._refresh(batch)

    def on_train_batch_end(self, batch, logs=None):
        self._steps_in_epoch = batch + 1

    def on_epoch_end(self, epoch, logs=None):
        self._steps += self._steps_in_epoch
        for name, spectrum in self.spectra.items():
            logs[f"{name}_exponent"] = spectrum.exponent

    def _refresh(self, batch):
        silent = self.verbose == "auto" and not (self.params or {}).get("verbose", 1)
        self.spectra = refresh_eigenbasis(
            self.model,
            self.x,
            max_samples=self.max_samples,
            batch_size=self.batch_size,
            seed=self.seed + self._refreshes,
            verbose=0 if silent else self.verbose,
        )
        self._refreshes += 1
        self._last_step = self._steps + batch


def _is_count(value):
    return isinstance(value, int | np.integer) and value >= 1


def _variable_scope(model):
    """Where `model`'s variables live, under `tf.distribute` on every replica."""
    strategy = getattr(model, "distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
