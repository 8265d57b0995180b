"""Renewing the eigenbasis, within `fit()` and outside."""

from __future__ import annotations

import collections
import contextlib
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_powerlaw.spectral.activity import (
    Progress,
    flatten_layers,
    output_units,
    stream_covariances,
)
from keras_powerlaw.spectral.regularizers import (
    SpectralActivityRegularizer,
    regularized_layers,
)
from keras_powerlaw.spectral.spectra import (
    Spectrum,
    eigendecomposition,
    variances_along,
)
from keras_powerlaw.support.arguments import invalid_value


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
            layer's width or the number of directions its activations vary in, `x` is
            empty, does not fit the model, is not finite, or has fewer than two
            examples, the layers have too many units for the memory there is, or the
            model has other activity regularizers under `tf.distribute`.

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
    return _refresh(
        model,
        x,
        max_samples=max_samples,
        batch_size=batch_size,
        seed=seed,
        verbose=verbose,
        staleness=None,
    )


def _refresh(model, x, *, max_samples, batch_size, seed, verbose, staleness):
    """`refresh_eigenbasis()`, which also fills a dictionary with each old basis's."""
    layers = _layers_with_basis(model)
    if not layers:
        raise invalid_value(
            "model",
            "a model with at least one layer whose `activity_regularizer` is a "
            "SpectralActivityRegularizer that uses an eigenbasis",
            f"'{model.name}', which has none",
        )
    _check_replicas(model)
    if hasattr(model, "jax_state_sync"):  # within `fit()`, JAX holds newer weights
        model.jax_state_sync()
    statistics = stream_covariances(
        model,
        x,
        layers,
        [layer.activity_regularizer.reduction for layer in layers],
        batch_size=batch_size,
        max_samples=max_samples,
        seed=seed,
        progress=Progress("Eigenbasis", verbose),
    )
    spectra, bases = {}, []
    for layer, running in zip(layers, statistics, strict=True):
        regularizer = layer.activity_regularizer
        sigma = running.covariance()
        eigenvalues, eigenvectors = eigendecomposition(sigma)
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
        if staleness is not None:
            staleness[layer.name] = _staleness(regularizer, sigma, eigenvalues)

    with _new_bases(model, layers):
        for layer, eigenvectors in zip(layers, bases, strict=True):
            layer.activity_regularizer.set_basis(eigenvectors)
    return spectra


def _staleness(regularizer, sigma, eigenvalues):
    """The share of the penalty that the regularizer's present basis does not show."""
    if regularizer.basis is None:
        return float("nan")
    variances = variances_along(sigma, _to_float32(regularizer.basis))
    shown, true = (
        float(regularizer.penalty_of_variances(keras.ops.convert_to_tensor(tail)))
        for tail in (variances, eigenvalues[regularizer.tau - 1 :].astype("float32"))
    )
    return max(0.0, 1 - shown / true) if true else 0.0


# As often, and on as many examples, as it takes for the penalty to reach the real
# spectrum: docs/benchmarks.md has what more and less of both does.
EVERY_STEPS = 20
EXAMPLES_PER_UNIT = 5
FEWEST_EXAMPLES = 2000  # narrow layers are better off with more, at no cost


class EigenbasisRefresh(keras.callbacks.Callback):
    """Renews the eigenbasis of every regularized layer during `fit()`.

    The penalty of `SpectralActivityRegularizer` takes the variances along the
    eigenvectors over the training set for the eigenvalues. This holds while the
    weights have moved little since those were computed, so this callback computes
    them anew: by default at the start of every epoch and every 20 steps within it, on a
    choice of the examples. For the paper's schedule, every epoch on all examples, give
    `every_epochs=1, max_samples=None`.

    It logs what it measured of each layer at the last refresh: `<layer name>_exponent`,
    and `<layer name>_staleness`, the share of the penalty that the basis before it no
    longer showed, between 0 and 1, NaN for the first. A network can satisfy the penalty
    in a stale basis while its real spectrum stays as it is. A warning says so when for
    200 steps, and five refreshes at least, the staleness was above one half and the
    exponent came no nearer to α. List the callback before `CSVLogger` and
    `TensorBoard`, so that they see these logs.

    Args:
        x: The training data; see `refresh_eigenbasis()`.
        every_epochs: Refresh at the start of every so many epochs, and at no other
            time. Defaults to `None`.
        every_steps: Refresh every so many optimizer steps, and at no other time.
            Defaults to `None`.
        max_samples: Use at most so many examples: of an array, a new random choice at
            each refresh; of a data set, the first ones. `None` uses all. Defaults to
            `"auto"`, five times the units of the widest regularized layer, and at
            least 2,000.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the random choices.
        backup_dir: Directory for what `keras.callbacks.BackupAndRestore` does not
            keep: the eigenbasis and when the next one is due, written at the end of
            every epoch and removed after training. With it, training that was
            interrupted and goes on from an epoch's end takes the same course; without
            it, it goes on with a refresh. Give both callbacks the same directory, and
            list this one first. Defaults to `None`.
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
        every_epochs=None,
        every_steps=None,
        max_samples="auto",
        batch_size=1024,
        seed=0,
        backup_dir=None,
        verbose="auto",
    ):
        super().__init__()
        for name, value in ("every_epochs", every_epochs), ("every_steps", every_steps):
            if value is not None and not _is_count(value):
                raise invalid_value(name, "None or an integer of at least 1", value)
        if every_epochs is not None and every_steps is not None:
            raise ValueError(
                "Give `every_epochs` or `every_steps`, not both. Received: "
                f"every_epochs={every_epochs}, every_steps={every_steps}"
            )
        if every_epochs is None and every_steps is None:
            every_epochs, every_steps = 1, EVERY_STEPS
        self.x = x
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.max_samples = max_samples
        self.batch_size = batch_size
        self.seed = seed
        self.backup_dir = None if backup_dir is None else Path(backup_dir)
        self.verbose = verbose
        self.spectra = {}
        self.staleness = {}
        self._refreshes = 0

    def on_train_begin(self, logs=None):
        self._recent = {}
        self._steps = 0  # of finished epochs
        self._last_step = None

    def on_epoch_begin(self, epoch, logs=None):
        self._steps_in_epoch = 0
        if self._last_step is None and self.backup_dir is not None:
            # By now, BackupAndRestore has restored the weights.
            self._restore()
        if self.every_epochs is not None and (
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
            logs[f"{name}_staleness"] = self.staleness[name]
        if self.backup_dir is not None:
            self._back_up()

    def on_train_end(self, logs=None):
        if self.backup_dir is not None:
            for path in self.backup_dir.glob("eigenbasis-*.npz"):
                path.unlink()

    def _refresh(self, batch):
        silent = self.verbose == "auto" and not (self.params or {}).get("verbose", 1)
        staleness = {}
        self.spectra = _refresh(
            self.model,
            self.x,
            max_samples=self._samples(),
            batch_size=self.batch_size,
            seed=self.seed + self._refreshes,
            verbose=0 if silent else self.verbose,
            staleness=staleness,
        )
        self.staleness = staleness
        self._refreshes += 1
        self._last_step = self._steps + batch
        for layer in _layers_with_basis(self.model):
            self._watch(layer)

    def _samples(self):
        if self.max_samples != "auto":
            return self.max_samples
        units = [_units(layer) for layer in _layers_with_basis(self.model)]
        # Until a layer has been called, its units may be unknown.
        if None in units:
            return None
        return max(FEWEST_EXAMPLES, EXAMPLES_PER_UNIT * max(units, default=0))

    def _watch(self, layer):
        name, alpha = layer.name, layer.activity_regularizer.alpha
        exponent = self.spectra[name].exponent
        distance = abs(exponent - alpha)
        recent = self._recent.setdefault(name, collections.deque())
        recent.append((self._last_step, self.staleness[name], distance))
        while len(recent) > 6 and recent[1][0] <= self._last_step - 200:
            recent.popleft()
        begin, _, first_distance = recent[0]
        if (
            len(recent) >= 6
            and begin <= self._last_step - 200
            and all(staleness > 0.5 for _, staleness, _ in list(recent)[1:])
            and distance > max(0.2, 0.95 * first_distance)
        ):
            recent.clear()
            warnings.warn(
                f"The penalty of layer '{name}' is satisfied in a stale basis: for "
                f"{self._last_step - begin} steps, the basis showed less than half of "
                f"it at every refresh, and the exponent, {exponent:.2f}, has come no "
                f"nearer to alpha={alpha:g}. Refresh more often, with a smaller "
                "`every_steps`, or set `log_ratio=True`, whose gradient is larger.",
                stacklevel=2,
            )

    def _backup_path(self):
        # The weights that the backup belongs to are known by their age.
        return (
            self.backup_dir / f"eigenbasis-{int(self.model.optimizer.iterations)}.npz"
        )

    def _back_up(self):
        self.backup_dir.mkdir(parents=True, exist_ok=True)
        path = self._backup_path()
        state = {
            "steps": self._steps,
            "last_step": self._last_step,
            "refreshes": self._refreshes,
        }
        for index, layer in enumerate(_layers_with_basis(self.model)):
            spectrum = self.spectra[layer.name]
            basis = layer.activity_regularizer.basis
            state[f"basis{index}"] = _to_float32(basis)
            state[f"eigenvalues{index}"] = spectrum.eigenvalues
            state[f"fit_range{index}"] = spectrum.fit_range
            state[f"staleness{index}"] = self.staleness[layer.name]
        unfinished = path.with_suffix(".tmp")
        with open(unfinished, "wb") as file:
            np.savez(file, **state)
        unfinished.replace(path)
        # The one before stays: the weights of this epoch may not be written yet.
        for old in sorted(self.backup_dir.glob("eigenbasis-*.npz"), key=_age)[:-2]:
            old.unlink()

    def _restore(self):
        path = self._backup_path()
        if not path.exists():
            return
        layers = _layers_with_basis(self.model)
        with np.load(path) as state, _new_bases(self.model, layers):
            for index, layer in enumerate(layers):
                layer.activity_regularizer.restore_basis(state[f"basis{index}"])
                self.spectra[layer.name] = Spectrum(
                    state[f"eigenvalues{index}"], state[f"fit_range{index}"]
                )
                self.staleness[layer.name] = float(state[f"staleness{index}"])
            self._steps = int(state["steps"])
            self._last_step = int(state["last_step"])
            self._refreshes = int(state["refreshes"])


def _units(layer):
    regularizer = layer.activity_regularizer
    if regularizer.basis is not None:
        return regularizer.basis.shape[0]
    return output_units(layer, regularizer.reduction)


def _layers_with_basis(model):
    return [
        layer
        for layer in regularized_layers(model)
        if not layer.activity_regularizer.exact
    ]


@contextlib.contextmanager
def _new_bases(model, layers):
    """Within this context, the layers of `model` can be given their first basis."""
    first_time = any(layer.activity_regularizer.basis is None for layer in layers)
    strategy = getattr(model, "distribute_strategy", None)
    # Under `tf.distribute`, on every replica, as the model's other variables are.
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        yield
    if first_time and model.compiled:
        # Functions traced before have left the penalty out.
        model.make_train_function(force=True)
        model.make_test_function(force=True)


def _to_float32(basis):
    return keras.ops.convert_to_numpy(keras.ops.cast(basis, "float32"))


def _age(path):
    return path.stat().st_mtime_ns


def _is_count(value):
    return isinstance(value, int | np.integer) and value >= 1


def _check_replicas(model):
    # Collective operations make Keras lose the losses that layers have recorded before.
    strategy = getattr(model, "distribute_strategy", None)
    if getattr(strategy, "num_replicas_in_sync", 1) == 1:
        return
    others = [
        layer.name
        for layer in flatten_layers(model)
        if layer.activity_regularizer is not None
        and not isinstance(layer.activity_regularizer, SpectralActivityRegularizer)
    ]
    if others:
        raise invalid_value(
            "model",
            "a model without other activity regularizers under a `tf.distribute` "
            "strategy of several replicas, since Keras mixes up their losses",
            f"'{model.name}' with activity regularizers of layers {others}",
        )
