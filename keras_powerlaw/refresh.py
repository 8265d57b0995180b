"""The refresh: new eigenvectors for every regularized layer, in and outside `fit()`."""

from __future__ import annotations

import dataclasses
import inspect
import os
import warnings
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_powerlaw.activations import (
    FirstBatches,
    add_activations,
    is_endless,
    is_nested_arrays,
    select_inputs,
    validate_data,
    validate_sampling,
)
from keras_powerlaw.arguments import (
    Tensor,
    Verbose,
    invalid_value,
    require_memory,
    validate_intervals,
    validate_optional_path,
    validate_verbose,
)
from keras_powerlaw.backends import is_on_host, steps_taken
from keras_powerlaw.backup import Course, read_backup, write_backup
from keras_powerlaw.basis import Eigenbasis, creating_state
from keras_powerlaw.keras_internals import (
    call_once,
    call_twice,
    has_noise,
    hold_current_weights,
    retrace,
    retrace_evaluation,
    stop_warning,
    strategy_of,
    warn_at_step,
)
from keras_powerlaw.layers import (
    layers_to_renew,
    layers_up_to,
    layers_with_basis,
    named_layers,
    require_found_in_a_step,
    require_training_argument,
    unique_names,
)
from keras_powerlaw.penalty import covariance, projected_variances
from keras_powerlaw.progress import Progress
from keras_powerlaw.regularizer import SpectralActivityRegularizer, validate_width
from keras_powerlaw.spectrum import (
    Covariance,
    Degenerate,
    Spectrum,
    epsilon_of,
    rounding_floor,
)
from keras_powerlaw.units import output_units
from keras_powerlaw.watch import PenaltyWatch

# Steps between refreshes: often enough for the penalty to change the true spectrum. A
# basis from the training steps costs narrow layers little, and brings the spectrum
# nearer to the target the more often it is renewed. docs/benchmarks.md compares both.
EVERY_STEPS = 20
FEWEST_STEPS = 5
UNITS_PER_STEP = 25
# Where a refresh is dear, in layers of 500 units and more, the interval begins with so
# many steps and grows by this factor up to this multiple, as long as the last basis
# still shows a twentieth of the penalty. docs/cost.md has what that saves.
FIRST_STEPS = 12
STRETCH = 1.4
LONGEST = 7
STRETCHED_UP_TO = 0.95  # of the staleness

# A basis that has not been renewed for so many steps is one that was forgotten.
PATIENCE = 200

# Examples of `x` that are enough; narrow layers benefit from more, at no cost.
EXAMPLES_PER_UNIT = 5
FEWEST_EXAMPLES = 2000

# The staleness is estimated along so many directions; more would cost wide layers as
# much as the eigendecomposition.
DIRECTIONS = 256


def refresh_eigenbasis(
    model: keras.Model,
    x: Any = None,
    *,
    max_samples: int | None = None,
    batch_size: int = 1024,
    seed: int = 0,
    verbose: Verbose = "auto",
) -> dict[str, Spectrum]:
    """Renews the eigenbasis of every regularized layer of a model.

        Σ = V Λ Vᵀ,  λ₁ ≥ λ₂ ≥ …

    A single pass over the data in inference mode measures the covariance Σ of every
    regularized layer, accumulated batch by batch in float64. LAPACK decomposes it,
    outside any compiled program.

    Without data, Σ is that of the activations in the latest training steps, in float32.
    The first call, which must come before such a step is compiled, makes them keep
    their activations. Until a layer has two samples per unit, it trains without the
    penalty.

    Call it on the model that you train or evaluate: after loading a saved model, or
    in a custom training loop. Within `fit()`, use `EigenbasisRefresh`.

    Args:
        model: A model with at least one `SpectralActivityRegularizer`.
        x: The training data; see `measure_spectrum()`. Defaults to `None`: the
            activations of training steps.
        max_samples: Maximum number of examples: a random choice from an array, random
            batches of a `PyDataset`, the first ones of another data set. Defaults to
            all, which an endless data set does not allow.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the random choice. Defaults to 0.
        verbose: `"auto"` shows progress when the refresh is slow, 0 never, 1 always.
            Defaults to `"auto"`.

    Returns:
        The measured `Spectrum` of each regularized layer, by layer name, or by path
        (`"tower/hidden"`) where names are equal; empty if there are too few activations
        yet. Its exponent is fitted from n = τ + 1 to n = 500 or the spectrum's end.

    Raises:
        ValueError: If no layer is regularized, or two share one regularizer; if τ is
            not less than a layer's width, or exceeds the number of directions in which
            its activations vary; if `max_samples` comes without `x`; if `x` is empty,
            does not fit the model, is not finite, or has fewer than two examples; if
            the layers have too many units for the available memory; or if the model has
            other activity regularizers under `tf.distribute`.

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
    layers_to_renew(model)  # which validates them
    _look_behind_noise(model)
    if x is not None:
        found = _renew_from_data(model, x, max_samples, batch_size, seed, verbose)
    elif max_samples is not None:
        raise invalid_value(
            "max_samples",
            "None without `x`: the basis then comes from the training steps",
            max_samples,
        )
    else:
        validate_verbose(verbose)
        _keep_samples(model)
        found = _renew_from_steps(model) or {}
    _expect_renewal(model, PATIENCE)
    return {
        name: each.spectrum for name, each in found.items() if isinstance(each, Renewal)
    }


def _expect_renewal(model: keras.Model, steps: int) -> None:
    """Warns if the model trains by so many steps before its bases are renewed."""
    warn_at_step(
        model,
        steps,
        "The penalty is measured along an eigenbasis that is not renewed any more: the "
        "loss can say that it is met while the spectrum is not. Pass `callbacks="
        "[keras_powerlaw.EigenbasisRefresh()]` to every `fit()`, or call "
        "`keras_powerlaw.refresh_eigenbasis()` every few steps.",
    )


class Renewal(NamedTuple):
    """What a refresh found for one layer.

    Attributes:
        spectrum: The spectrum of its activations on the data of the refresh.
        staleness: The share of the penalty that the previous basis no longer showed,
            from 0 to 1; NaN at the first refresh.
    """

    spectrum: Spectrum
    staleness: float


def renew_bases(
    model: keras.Model,
    found: Mapping[str, Covariance | CovarianceOnDevice | Degenerate],
    keeps_degenerate: bool = False,
    measures: bool = True,
) -> dict[str, Renewal | Degenerate]:
    """Gives every layer the eigenvectors of its covariance, Σ = V Λ Vᵀ, eq. (3).

    Args:
        model: The model that is trained.
        found: The covariance of each layer by name or path, or why there is none.
        keeps_degenerate: Whether a layer whose activations have become degenerate keeps
            the basis that it has, in which its penalty then yields.
        measures: Whether to measure, besides, how good the old bases were.

    Returns:
        For each name of a layer that has a new basis, if it was measured, a `Renewal`;
        for each that keeps its old one, the reason.

    Raises:
        Degenerate: If a layer is degenerate that has no basis, or may not keep it.
    """
    layers, new = named_layers(model), []
    renewals: dict[str, Renewal | Degenerate] = {}
    for name, sigma in found.items():
        regularizer = layers[name].activity_regularizer
        try:
            if isinstance(sigma, Degenerate):
                raise sigma
            eigenvalues, eigenvectors = sigma.eigenvectors()
            spectrum = _spectrum(name, regularizer, eigenvalues, sigma.floor())
            if measures:
                staleness = _staleness(regularizer, sigma, spectrum)
                renewals[name] = Renewal(spectrum, staleness)
            new.append((regularizer.eigenbasis, eigenvectors, eigenvalues))
        except Degenerate as error:
            if not keeps_degenerate or regularizer.eigenbasis.status != "known":
                raise
            regularizer.eigenbasis.weaken()
            renewals[name] = error
    # Last, so that an error in one layer leaves all bases unchanged.
    is_new = any(basis.status == "absent" for basis, _, _ in new)
    with creating_state(model, is_new):
        for basis, eigenvectors, eigenvalues in new:
            basis.renew(eigenvectors, eigenvalues)
    return renewals


def _spectrum(
    name: str, regularizer: SpectralActivityRegularizer, eigenvalues: Any, floor: float
) -> Spectrum:
    """The spectrum of a layer, with its exponent fitted from n = τ + 1."""
    tau, units = regularizer.tau, len(eigenvalues)
    validate_width(regularizer, units)
    spectrum = Spectrum(eigenvalues.astype("float64"), floor=floor)
    if spectrum.rank < tau:
        raise Degenerate(
            f"The activations of layer '{name}' vary in only "
            f"{spectrum.rank} of {units} directions by more than rounding "
            "errors: most units are constant (dead or saturated) or repeat others, or "
            f"there are too few examples. The penalty needs at least tau={tau}."
        )
    last = min(500, spectrum.rank)
    if tau + 1 < last:
        return dataclasses.replace(spectrum, fit_range=(tau + 1, last))
    return spectrum


def _staleness(
    regularizer: SpectralActivityRegularizer,
    sigma: Covariance | CovarianceOnDevice,
    spectrum: Spectrum,
) -> float:
    """The share of the penalty that the regularizer's current basis does not show."""
    if regularizer.eigenbasis.status != "known":
        return float("nan")
    tail = spectrum.eigenvalues[regularizer.tau - 1 :].astype("float32")
    penalty = float(regularizer.penalty_of(ops.convert_to_tensor(tail)))
    if not penalty:
        return 0.0
    # All directions that fix κ, and an even choice among the rest.
    every = np.arange(len(tail))
    spaced = np.linspace(0, len(tail) - 1, DIRECTIONS).round().astype(int)
    some = np.union1d(every[: 3 * regularizer.tau + 1], spaced)
    basis = ops.cast(ops.take(regularizer.eigenbasis.vectors, some, axis=1), "float32")
    variances = sigma.variances_along(ops.convert_to_numpy(basis))
    ratios = variances / np.maximum(tail[some], 1e-30)
    nearest = np.abs(every[:, np.newaxis] - some).argmin(axis=1)
    shown = ops.convert_to_tensor((tail * ratios[nearest]).astype("float32"))
    return max(0.0, 1 - float(regularizer.penalty_of(shown)) / penalty)


def _renew_from_data(
    model: keras.Model,
    x: Any,
    max_samples: int | None,
    batch_size: int,
    seed: int,
    verbose: Verbose,
    keeps_degenerate: bool = False,
) -> dict[str, Renewal | Degenerate]:
    """Renews the bases from a pass over `x` in inference mode."""
    progress = Progress("Eigenbasis", validate_verbose(verbose))
    layers = layers_to_renew(model)
    names = unique_names(model, layers)
    covariances = [Covariance(layer.compute_dtype) for layer in layers]
    found: Mapping[str, Any] = dict(zip(names, covariances, strict=True))
    try:
        add_activations(
            covariances,
            model,
            x,
            layers,
            [layer.activity_regularizer.reduction for layer in layers],
            batch_size=batch_size,
            max_samples=max_samples,
            seed=seed,
            progress=progress,
        )
    except Degenerate as error:
        found = dict.fromkeys(names, error)
    return renew_bases(model, found, keeps_degenerate)


def _renew_from_steps(
    model: keras.Model,
    keeps_degenerate: bool = False,
    measures: bool = True,
    is_due: bool = True,
) -> dict[str, Renewal | Degenerate] | None:
    """Renews the bases from the activations of the latest training steps.

    Args:
        model: The model that is trained.
        keeps_degenerate: As for `renew_bases()`.
        measures: Likewise.
        is_due: Whether layers that have a basis need another.

    Returns:
        None if no layer has enough samples for a basis that it needs.
    """
    layers = layers_to_renew(model)
    hold_current_weights(model)
    found: dict[str, Any] = {}
    for name, layer in zip(unique_names(model, layers), layers, strict=True):
        basis = layer.activity_regularizer.eigenbasis
        if basis.window.is_filled and (is_due or basis.status != "known"):
            samples = basis.window.samples()
            try:
                found[name] = covariance_of(samples, layer.compute_dtype)
            except Degenerate as error:
                found[name] = Degenerate(f"Layer '{name}': {error} {_cause(model)}")
    if not found:
        return None
    return renew_bases(model, found, keeps_degenerate, measures)


def _cause(model: keras.Model) -> str:
    """Where NaN in activations comes from."""
    if all(bool(ops.all(ops.isfinite(each))) for each in model.trainable_weights):
        return "All weights are finite: it is in the data."
    return (
        "It is in the weights, too: look for it in the data, and then take a smaller "
        "learning rate."
    )


def covariance_of(
    samples: Tensor, computed_in: str = "float32"
) -> Covariance | CovarianceOnDevice:
    """The covariance of samples in float32, the precision of the penalty.

    Args:
        samples: Tensor of shape `(samples, units)`, float32.
        computed_in: Dtype in which a layer computed them. Defaults to `"float32"`.

    Raises:
        Degenerate: If there is NaN or infinity in the samples. Those of a layer that
            computed in float16 may have some, which are left out.
    """
    finite = ops.convert_to_numpy(ops.all(ops.isfinite(samples), axis=1))
    # Keras's loss scaling skips a step that overflows: it says nothing of the weights.
    if computed_in == "float16" and finite.any():
        samples = ops.take(samples, np.flatnonzero(finite), axis=0)
    elif not finite.all():
        raise Degenerate("There is NaN or infinity in its activations.")
    if not is_on_host(samples):
        return CovarianceOnDevice(samples, computed_in)
    sigma = Covariance(computed_in, dtype="float32")
    sigma.update(np.asarray(ops.convert_to_numpy(samples)))
    return sigma


class CovarianceOnDevice:
    """A `Covariance` that stays with its samples in the memory of an accelerator.

    Args:
        samples: Tensor of shape `(samples, units)`, float32.
        computed_in: Dtype in which a layer computed them.
    """

    def __init__(self, samples: Tensor, computed_in: str) -> None:
        self._samples = samples
        self._mean, self._sigma = covariance(samples)
        self._epsilon = max(epsilon_of(computed_in), epsilon_of("float32"))

    def eigenvectors(self) -> tuple[Any, Tensor]:
        ascending, vectors = ops.linalg.eigh(self._sigma)
        eigenvalues = np.maximum(ops.convert_to_numpy(ascending)[::-1], 0)
        self._largest = float(eigenvalues[0])
        return eigenvalues, ops.flip(vectors, axis=1)

    def floor(self) -> float:
        squares = ops.square(self._mean) + ops.diagonal(self._sigma)
        count, units = self._samples.shape
        rounding = rounding_floor(self._epsilon, float(ops.max(squares)), units, count)
        return max(rounding, 8 * epsilon_of("float32") * self._largest)

    def variances_along(self, directions: Any) -> Any:
        basis = ops.convert_to_tensor(directions)
        return ops.convert_to_numpy(projected_variances(self._samples, basis))


def _keep_samples(model: keras.Model) -> None:
    """Makes training steps keep their latest activations, from now on.

    Raises:
        ValueError: If a layer's number of units is unknown, or does not suit its
            regularizer, or is too large for the memory.
    """
    layers = [
        layer
        for layer in layers_to_renew(model)
        if layer.activity_regularizer.eigenbasis.window is None
        or layer.activity_regularizer.eigenbasis.status == "absent"
    ]
    if not layers:
        return
    require_training_argument(model)
    strategy = strategy_of(model)
    replicas = getattr(strategy, "num_replicas_in_sync", 1)
    if replicas > 1 and replicas != len(strategy.extended.worker_devices):
        raise ValueError(
            "With several workers, each would take the eigenbasis from its own "
            "batches. Give `x`, the training data, the same on every worker."
        )
    widths = [_units_of(layer) for layer in layers]
    for layer, units in zip(layers, widths, strict=True):
        if units is not None:
            validate_width(layer.activity_regularizer, units)
        else:
            require_found_in_a_step(layer.name)
    named = zip((layer.name for layer in layers), widths, strict=True)
    require_memory([(name, units) for name, units in named if units is not None])
    with creating_state(model):
        for layer, units in zip(layers, widths, strict=True):
            layer.activity_regularizer.eigenbasis.keep_samples(units, replicas)


def _look_behind_noise(model: keras.Model) -> None:
    """Lets regularizers behind dropout see what the network computes in use.

    In training, the noise covers the spectrum with its own, which is flat.
    """
    call_once(model)
    is_told = "training" in inspect.signature(model.call).parameters
    changed = []
    for layer in layers_with_basis(model):
        regularizer = layer.activity_regularizer
        noise = [each.name for each in layers_up_to(model, layer) if has_noise(each)]
        if noise and not is_told:
            warnings.warn(
                f"The penalty of layer '{layer.name}' acts on the noise of layer "
                f"'{noise[-1]}' as well: give the model's `call()` an argument "
                "`training`, and pass it on.",
                stacklevel=3,
            )
        needs = bool(noise and is_told and regularizer.beta)
        changed += [regularizer] if needs != regularizer.second_pass else []
        regularizer.second_pass = needs
    if any(
        layer.activity_regularizer.second_pass for layer in layers_with_basis(model)
    ):
        call_twice(model)
    if changed:
        retrace(model)


def _units_of(layer: keras.layers.Layer) -> int | None:
    regularizer = layer.activity_regularizer
    return output_units(layer, regularizer.reduction) or regularizer.units


def _forget_samples(model: keras.Model) -> None:
    """Forgets the activations of an earlier training, and the bases made of them."""
    bases = [each.activity_regularizer.eigenbasis for each in layers_to_renew(model)]
    trained = [basis for basis in bases if basis.window and basis.window.count]
    with creating_state(model, is_new=bool(trained)):
        for basis in trained:
            basis.discard()


class EigenbasisRefresh(keras.callbacks.Callback):  # type: ignore[misc]
    """Renews the eigenbasis of every regularized layer during `fit()`.

    The penalty of `SpectralActivityRegularizer` estimates the eigenvalues as the
    variances along the eigenvectors over the training set. The estimate holds only
    while the weights have changed little since the eigenvectors were computed, so this
    callback recomputes them from the activations of the last training steps: up to two
    and a half samples per unit, or 1,250 if that is more. By default it does so every
    N/25 steps for N units, but no more often than every 5 and no less than every 20.
    From 500 units on, the 20 steps become up to 80: where the last basis still shows a
    twentieth of the penalty in every layer, the interval grows by a factor of 1.4, and
    where it does not, it shrinks by as much.

    Until a layer has two samples per unit, its penalty is left out; its beginning is
    printed, and a warning if training ends before. Another `fit()` goes on with the
    samples and the basis of the last one, unless the model has been compiled anew;
    without the callback, it warns.

    Given data, it passes some of them through the model in inference mode instead, by
    default at the start of every epoch and every 20 steps within it. For the paper's
    schedule, every epoch on all examples, pass `x, every_epochs=1, max_samples=None`.

    For each layer it logs figures from a refresh in the last 20 steps or, if that is
    longer ago, from the last one, NaN before the first:

    - `<layer name>_exponent`, fitted from n = τ + 1;
    - `<layer name>_staleness`, the share of the penalty that the previous basis no
      longer showed, between 0 and 1, NaN at the first refresh;
    - with `validation_data`, `val_<layer name>_exponent`, of its activations there, in
      inference mode; NaN if there are fewer than two samples per unit.

    `callback.spectra` has the `Spectrum` of each layer by name. Layers of equal names
    are logged by their paths, `tower/hidden_exponent`. A layer whose activations vary
    in fewer than τ directions, or are not finite, keeps its basis, and its penalty
    yields to a tenth, with a warning; with every later refresh it doubles again.

    A network can satisfy the penalty in a stale basis while its true spectrum stays the
    same. The callback warns if, for at least 200 steps and five refreshes, the
    staleness stayed above one half and the exponent came no closer to α. At the end of
    as long a training, it warns if the median of |log λₙ/γₙ| over n = τ … N/2 is more
    than one half, and more than half of what it was. List the callback before
    `CSVLogger` and `TensorBoard`, so that they see these logs.

    Args:
        x: Training data to measure on; see `measure_spectrum()`. Defaults to `None`:
            the activations of the training steps.
        every_epochs: Refresh at the start of every `every_epochs`-th epoch, and at no
            other time; at least 1. Defaults to `None`.
        every_steps: Refresh every `every_steps` optimizer steps, and at no other time;
            at least 1. At most one of the two may be given. Defaults to `None`.
        max_samples: Maximum number of examples of `x` per refresh: from an array, a new
            random choice each time, from a `PyDataset` random batches; the first ones
            of another data set, which are read before training and kept in memory to
            its end. `None` uses all examples, read at every refresh. Defaults to
            `"auto"`: five times the units of the widest regularized layer, and at least
            2,000.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the random choices. Defaults to 0.
        backup_dir: Directory for the state that `keras.callbacks.BackupAndRestore` does
            not save: eigenbasis, latest activations, and when the next basis is due. It
            is one file, written at the end of every epoch and removed after training.
            Interrupted training that resumes at the end of an epoch then takes the same
            course as uninterrupted training; without `backup_dir`, or with a warning if
            the file is missing or damaged, it resumes like one that begins. Pass the
            same directory to both callbacks, and list this one first. Defaults to
            `None`.
        verbose: `"auto"` shows progress when a refresh is slow, unless `fit()` is
            silent; 0 never, 1 always. Defaults to `"auto"`.

    Raises:
        ValueError: If an argument is invalid; at the first refresh, as
            `refresh_eigenbasis()`.

    Example: see `SpectralActivityRegularizer`.

    Reference:
        Nassar et al. (2020), section 3.2.
    """

    def __init__(
        self,
        x: Any = None,
        *,
        every_epochs: int | None = None,
        every_steps: int | None = None,
        max_samples: int | Literal["auto"] | None = "auto",
        batch_size: int = 1024,
        seed: int = 0,
        backup_dir: str | os.PathLike[str] | None = None,
        verbose: Verbose = "auto",
    ) -> None:
        super().__init__()
        intervals = validate_intervals(every_epochs, every_steps)
        self.every_epochs, self.every_steps = intervals
        if every_epochs is None and every_steps is None and x is not None:
            self.every_epochs, self.every_steps = 1, EVERY_STEPS
        if isinstance(max_samples, str) and max_samples != "auto":
            raise invalid_value(
                "max_samples", '"auto", None or an integer of at least 2', max_samples
            )
        if x is None and max_samples != "auto":
            raise invalid_value(
                "max_samples",
                '"auto" without `x`: the basis then comes from the training batches',
                max_samples,
            )
        examples = None if max_samples == "auto" else max_samples
        validate_sampling(batch_size, examples, seed)
        if x is not None:
            validate_data(x)
        self.x = x
        self.max_samples = max_samples
        self.batch_size = batch_size
        self.seed = seed
        folder = validate_optional_path("backup_dir", backup_dir)
        self.backup = None if folder is None else folder / "eigenbasis-backup.npz"
        self.verbose = validate_verbose(verbose)
        self._trained: keras.Model | None = None
        self._course = Course()
        self._validated: dict[str, float] = {}  # exponents
        self._forget()

    def _forget(self) -> None:
        self.spectra: dict[str, Spectrum] = {}  # of each layer at its last refresh, …
        self.staleness: dict[str, float] = {}  # … and what the basis before hid then
        self._figures: dict[str, Any] = {}  # what is logged: exponent and staleness

    def on_train_begin(self, logs: Any = None) -> None:
        stop_warning(self.model)
        _look_behind_noise(self.model)
        self._watches: dict[str, PenaltyWatch] = {}
        self._warned: set[str] = set()  # layers
        self._validated = {}
        self._course = Course(refreshes=self._course.refreshes)
        self._steps_in_epoch = 0
        self._every: int | None = None
        self._sample: Any = None
        continues = self.model is self._trained
        if self.x is None:
            # A new optimizer: the weights may be others than those of the activations.
            # A training step of one's own need not use the model's optimizer.
            is_standard = type(self.model).train_step is keras.Model.train_step
            if is_standard and self.model.optimizer and not steps_taken(self.model):
                _forget_samples(self.model)
                continues = False
            _keep_samples(self.model)
        self._some_wait = self.x is None
        if not continues:  # nothing is left of another model, or of other weights
            self._forget()
        self._trained = self.model
        self._began_at = steps_taken(self.model) if self.backup else 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._steps_in_epoch = 0
        begins = self._course.last_refresh < 0
        # By now, BackupAndRestore has restored the weights of interrupted training.
        if begins and self.backup and steps_taken(self.model) != self._began_at:
            if found := read_backup(self.backup, self.model):
                self._course, self._figures = found
            self._began_at = steps_taken(self.model)
        self._every = self._steps_between_refreshes()
        if begins and self.x is not None:
            self._draw()
        is_first = self._course.last_refresh < 0
        if self.every_epochs and (epoch % self.every_epochs == 0 or is_first):
            self._refresh(self._course.steps)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        step, last = self._course.steps + batch, self._course.last_refresh
        every = self._every
        is_due = last < 0 or (every is not None and step - last >= every)
        if is_due or self._some_wait:
            self._refresh(step, is_due)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._steps_in_epoch = batch + 1

    def on_epoch_end(
        self, epoch: int, logs: MutableMapping[str, Any] | None = None
    ) -> None:
        self._course.steps += self._steps_in_epoch
        if logs is not None:
            for name in named_layers(self.model):
                exponent, staleness = self._figures.get(name, (np.nan, np.nan))
                logs[f"{name}_exponent"] = float(exponent)
                logs[f"{name}_staleness"] = float(staleness)
            for name, exponent in self._validated.items():
                logs[f"val_{name}_exponent"] = float(exponent)
        if self.backup:
            write_backup(self.backup, self.model, self._course, self._figures)

    def on_test_begin(self, logs: Any = None) -> None:
        is_new = any(basis.validation is None for basis in self._bases().values())
        replicas = getattr(strategy_of(self.model), "num_replicas_in_sync", 1)
        hold_current_weights(self.model)
        with creating_state(self.model, is_new=False):
            for layer in layers_with_basis(self.model):
                if units := _units_of(layer):
                    basis = layer.activity_regularizer.eigenbasis
                    basis.keep_validation(units, replicas)
        if is_new:
            retrace_evaluation(self.model)

    def on_test_end(self, logs: Any = None) -> None:
        hold_current_weights(self.model)
        layers = named_layers(self.model)
        for name, basis in self._bases().items():
            window: Any = basis.validation
            try:
                if window is None or not window.is_filled:
                    raise Degenerate("There are too few samples.")
                sigma = covariance_of(window.samples(), layers[name].compute_dtype)
                eigenvalues, _ = sigma.eigenvectors()
                regularizer = layers[name].activity_regularizer
                spectrum = _spectrum(name, regularizer, eigenvalues, sigma.floor())
                self._validated[name] = spectrum.exponent
            except Degenerate:
                self._validated[name] = np.nan

    def on_train_end(self, logs: Any = None) -> None:
        self._sample = None  # frees its memory
        if self.backup:
            self.backup.unlink(missing_ok=True)
        self._end_of_waiting()
        for watch in self._watches.values():
            watch.end()
        _expect_renewal(self.model, 1)

    def _steps_between_refreshes(self) -> int | None:
        if self.every_steps is not None or self.every_epochs is not None:
            return self.every_steps
        widths = [_units_of(layer) or 0 for layer in layers_with_basis(self.model)]
        steps = max(widths, default=0) // UNITS_PER_STEP
        if steps < EVERY_STEPS:
            return max(steps, FEWEST_STEPS)
        return int(FIRST_STEPS * self._course.stretch)

    def _refresh(self, step: int, is_due: bool = True) -> None:
        """Renews the bases, or, before that is due, begins with layers that wait."""
        silent = self.verbose == "auto" and not (self.params or {}).get("verbose", 1)
        renewals: dict[str, Renewal | Degenerate] | None
        if self.x is None:
            # To measure a narrow layer takes longer than to renew its basis.
            every = -(-EVERY_STEPS // (self._steps_between_refreshes() or EVERY_STEPS))
            is_first = self._course.last_refresh < 0
            measures = is_first or not is_due or self._course.refreshes % every == 0
            renewals = _renew_from_steps(self.model, True, measures, is_due)
        else:
            renewals = _renew_from_data(
                self.model,
                self._draw(),
                self._examples(),
                self.batch_size,
                self.seed + self._course.refreshes,
                0 if silent else self.verbose,
                keeps_degenerate=True,
            )
        if renewals is None:  # not enough samples yet
            return
        if is_due:
            self._course.refreshes += 1
            self._course.last_refresh = step
            self._stretch(renewals.values())
        self._every = self._steps_between_refreshes()  # now that widths are known
        self._some_wait = self.x is None and bool(self._waiting())
        began = [name for name in renewals if name not in self._figures]
        if began and step and not silent and self.verbose != 0:
            of = ", ".join(f"'{name}'" for name in began)
            print(
                f"\nThe spectral penalty begins with step {step + 1}: {of}.", flush=True
            )
        for name, renewal in renewals.items():
            if isinstance(renewal, Renewal):
                self._observe(name, step, *renewal)
            else:
                self._keep(name, renewal)

    def _stretch(self, renewals: Iterable[Renewal | Degenerate]) -> None:
        """Lengthens the interval if every basis was good to its end."""
        found = [each.staleness for each in renewals if isinstance(each, Renewal)]
        if found and max(found) < STRETCHED_UP_TO:
            longer = STRETCH * self._course.stretch
            self._course.stretch = min(longer, float(LONGEST))
        elif found and max(found) > STRETCHED_UP_TO:
            self._course.stretch = max(self._course.stretch / STRETCH, 1.0)

    def _observe(
        self, name: str, step: int, spectrum: Spectrum, staleness: float
    ) -> None:
        self.spectra = {**self.spectra, name: spectrum}
        self.staleness = {**self.staleness, name: staleness}
        self._figures[name] = spectrum.exponent, staleness
        layer = named_layers(self.model)[name]
        regularizer = layer.activity_regularizer
        if name not in self._watches and regularizer.beta:
            before = layers_up_to(self.model, layer)
            is_frozen = not any(each.trainable_weights for each in before)
            if is_frozen and name not in self._warned:
                self._warned.add(name)
                warnings.warn(
                    f"The penalty of layer '{name}' can do nothing: neither it nor a "
                    "layer before it is trainable. Set `layer.trainable = True`, and "
                    "compile again.",
                    stacklevel=2,
                )
            watch = PenaltyWatch(name, regularizer.target, regularizer.tau)
            self._watches[name] = watch
        if name in self._watches and name not in self._warned:
            self._watches[name].observe(step, staleness, spectrum)

    def _keep(self, name: str, reason: Degenerate) -> None:
        """Logs NaN of a layer that keeps its basis, and says once why it does."""
        self._figures[name] = float("nan"), float("nan")
        if name in self._warned:
            return
        self._warned.add(name)
        warnings.warn(
            f"The eigenbasis of layer '{name}' could not be renewed. {reason} The "
            "penalty goes on in the last one, and each such refresh divides its "
            "strength by ten.",
            stacklevel=2,
        )

    def _draw(self) -> Any:
        """What to measure on: `x`, or its first examples, read before training."""
        count = self._examples()
        is_random = isinstance(self.x, keras.utils.PyDataset) or is_nested_arrays(
            select_inputs(self.model, self.x)
        )
        if is_random or count is None:
            return self.x
        if self._sample is None:
            self._sample = FirstBatches(self.model, self.x, count)
        return self._sample

    def _examples(self) -> int | None:
        if self.max_samples != "auto":
            return self.max_samples
        widths = [_units_of(layer) for layer in layers_to_renew(self.model)]
        if None in widths:  # unknown until the layer has been called
            return FEWEST_EXAMPLES if is_endless(self.x) else None
        widest = max(width for width in widths if width)
        return max(FEWEST_EXAMPLES, EXAMPLES_PER_UNIT * widest)

    def _waiting(self) -> dict[str, Eigenbasis]:
        """What layers keep that collect samples for their first basis, by name."""
        return {
            name: basis
            for name, basis in self._bases().items()
            if basis.window is not None and basis.status != "known"
        }

    def _bases(self) -> dict[str, Eigenbasis]:
        return {
            name: layer.activity_regularizer.eigenbasis
            for name, layer in named_layers(self.model).items()
        }

    def _end_of_waiting(self) -> None:
        """Keeps samples for the next `fit()`, and says so."""
        samples, empty = [], []
        for name, basis in self._waiting().items():
            window: Any = basis.window
            samples.append(f"layer '{name}': {window.count} of {window.needed}")
            empty += [] if window.count else [basis]
        with creating_state(self.model, is_new=bool(empty)):
            for basis in empty:
                basis.discard()
        if samples and self._course.steps:
            warnings.warn(
                f"The spectral penalty has not begun in {self._course.steps} steps: it "
                "does when there are two samples of activations per unit "
                f"({'; '.join(samples)}). The next `fit()` goes on with them; or pass "
                "the training data: `keras_powerlaw.EigenbasisRefresh(x_train)`. A "
                "layer without any does not know that it trains: pass `training` on to "
                "it in the model's `call()`.",
                stacklevel=2,
            )
