"""Spectra of a model's layers: over a data set, and in the course of `fit()`."""

from __future__ import annotations

import warnings
from collections.abc import MutableMapping, Sequence
from typing import Any, cast, overload

import keras
import numpy as np
from keras import ops

from keras_powerlaw.activations import add_activations, validate_sampling
from keras_powerlaw.arguments import (
    LayerChoice,
    Reduction,
    Tensor,
    Verbose,
    invalid_value,
    require_memory,
    validate_intervals,
    validate_optional_integer,
    validate_verbose,
)
from keras_powerlaw.basis import ActivationWindow, creating_state
from keras_powerlaw.keras_internals import (
    flatten_layers,
    hold_current_weights,
    retrace,
    set_activity_regularizer,
    set_sublayer,
    strategy_of,
)
from keras_powerlaw.layers import (
    find_layers,
    require_called,
    require_found_in_a_step,
    require_one_output,
    require_training_argument,
    unique_names,
)
from keras_powerlaw.progress import Progress
from keras_powerlaw.regularizer import SpectralActivityRegularizer
from keras_powerlaw.spectrum import Covariance, Spectrum, validate_fit_range
from keras_powerlaw.units import output_units, to_samples, validate_reduction

# So many samples for each eigenvalue of the fit: fewer make the exponent of 1/n in 200
# units too large by more than 0.1.
ENOUGH = 5


@overload
def measure_spectrum(
    model: keras.Model, x: Any, layer: keras.layers.Layer | str, **options: Any
) -> Spectrum: ...


@overload
def measure_spectrum(
    model: keras.Model,
    x: Any,
    layer: type[keras.layers.Layer] | Sequence[LayerChoice],
    **options: Any,
) -> dict[str, Spectrum]: ...


def measure_spectrum(  # type: ignore[misc]
    model: keras.Model,
    x: Any,
    layer: LayerChoice | Sequence[LayerChoice],
    *,
    reduction: Reduction = "flatten",
    fit_range: tuple[int, int] | None = None,
    components: int | None = None,
    max_samples: int | None = None,
    batch_size: int = 1024,
    seed: int = 0,
    verbose: Verbose = "auto",
) -> Spectrum | dict[str, Spectrum]:
    """Measures the covariance spectrum of a layer's activations, or of many layers'.

    The data pass through the model in inference mode, batch by batch, once for all
    layers. Of each, the `(units, units)` covariance is stored, in float64, or the
    samples as long as there are fewer of them than units. The model keeps the state
    that it has, even a stateful LSTM. It may be measured in a callback, and while other
    threads measure it or predict with it, but not while another thread trains it.

    It warns of exponents that have too few samples: fewer than the units, or than five
    for each eigenvalue of the fit. `moment_spectrum` of the activations needs no more.

    Args:
        model: A built Keras model.
        x: The data, in any form that `fit()` takes except a generator: array, data
            frame, sparse matrix (made dense batch by batch), a list or dictionary of
            them for several inputs, `tf.data.Dataset`, `keras.utils.PyDataset`, or
            another iterable of batches that can be iterated more than once. Labels in
            the batches are ignored. An array in a file may be larger than the memory.
        layer: A layer of the model with one output, or its name; or several: a list of
            layers and names, a class, for all layers of that class, such as
            `keras.layers.Conv2D`, or a list of classes.
        reduction: How an output with more than two dimensions is divided into samples
            and units: `"flatten"`, `"channels"` or `"mean"`; see
            `SpectralActivityRegularizer`, and use the same as for the layer's
            regularizer. Defaults to `"flatten"`.
        fit_range: `(first, last)`, 1-based and inclusive: the eigenvalues to which the
            exponent is fitted. Defaults to `(11, 500)`, cut off where eigenvalues are
            rounding error.
        components: Compute only so many of the largest eigenvalues of each layer, which
            takes less time and is as exact. Defaults to `None`: all.
        max_samples: Maximum number of examples: a random choice from an array, random
            batches of a `PyDataset`, the first ones of another data set. Defaults to
            all, which an endless data set does not allow.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the random choice. Defaults to 0.
        verbose: `"auto"` shows progress when the measurement is slow, 0 never,
            1 always. Defaults to `"auto"`.

    Returns:
        A `Spectrum`, with `.eigenvalues`, `.exponent`, `.exponent_interval`,
        `.fit_range`, `.floor`, `.dimension_90` and more. Of several layers, a
        dictionary of them by name, or by path (`"tower/hidden"`) where names are equal,
        which `plot_spectrum` takes.

    Raises:
        ValueError: If there is no such layer or reduction; if the layer has several
            outputs, as with `return_state=True`; if `x` is empty, does not fit the
            model, is endless or not finite, or has fewer than two examples; or if the
            layers have too many units for the available memory.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_powerlaw as kp

    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(50, activation="tanh", name="hidden"),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(500, 20))
    spectrum = kp.measure_spectrum(model, x, "hidden")
    print(spectrum.exponent, spectrum.dimension_90)
    spectra = kp.measure_spectrum(model, x, keras.layers.Dense)
    print(list(spectra))  # ['hidden', 'logits']
    ```

    Reference:
        Nassar et al. (2020), Figure 2A; Stringer et al. (2019) for the fit.
    """
    targets, is_one = find_layers(model, layer)
    found, small = _measured(
        *(model, x, targets, reduction, fit_range, components),
        batch_size=batch_size,
        max_samples=max_samples,
        seed=seed,
        verbose=verbose,
    )
    if small:
        warnings.warn(_too_small(small), stacklevel=2)
    return next(iter(found.values())) if is_one else found


def _measured(
    model: keras.Model,
    x: Any,
    targets: Sequence[keras.layers.Layer],
    reduction: Reduction,
    fit_range: tuple[int, int] | None,
    components: int | None = None,
    *,
    verbose: Verbose,
    **options: Any,
) -> tuple[dict[str, Spectrum], list[str]]:
    """The spectra by name, and the names of those with too few samples."""
    validate_reduction(reduction)
    validate_optional_integer("components", components, minimum=1)
    for target in targets:
        units = output_units(target, reduction)
        if fit_range is not None and units is not None:
            # Before the pass over the data.
            validate_fit_range(fit_range, min(units, components or units))
    covariances = [
        Covariance(target.compute_dtype, keeps_samples=True) for target in targets
    ]
    add_activations(
        covariances,
        model,
        x,
        targets,
        [reduction] * len(targets),
        progress=Progress("Spectrum", validate_verbose(verbose)),
        **options,
    )
    found, small = {}, []
    for name in unique_names(model, targets):
        sigma = covariances.pop(0)  # each is let go once it is decomposed
        found[name] = _spectrum(sigma, fit_range, components)
        if _has_few_samples(found[name], sigma):
            small.append(name)
    return found, small


def _has_few_samples(spectrum: Spectrum, sigma: Covariance) -> bool:
    """Whether there is an exponent that the number of samples makes wrong."""
    _, last = cast("tuple[int, int]", spectrum.fit_range)
    few = sigma.count < max(sigma.units, ENOUGH * min(last, spectrum.rank))
    return few and bool(np.isfinite(spectrum.exponent))


def _too_small(names: Sequence[str]) -> str:
    quoted = ", ".join(f"'{name}'" for name in names)
    return (
        f"The samples are too few for the exponent of {quoted}: fewer than the units, "
        "or than five for each eigenvalue of the fit. Of 200 units, as many samples "
        "make it too large by about 0.8, twice as many by 0.3, five times by 0.1; a "
        "tenth as many samples as units make it too small, by 0.1 to 0.3. Measure on "
        "more data, or take `keras_powerlaw.moment_spectrum(activations)`."
    )


def _spectrum(
    sigma: Covariance, fit_range: tuple[int, int] | None, components: int | None = None
) -> Spectrum:
    eigenvalues = sigma.eigenvalues(components)
    return Spectrum(eigenvalues, fit_range, sigma.floor(), sigma.total)


# What is logged of a spectrum.
FIGURES = ("exponent", "dimension_90", "participation_ratio")


class SpectrumMonitor(keras.callbacks.Callback):  # type: ignore[misc]
    """Logs the spectra of layers during `fit()`, whether or not they have a penalty.

    For the plain network of a comparison: like `EigenbasisRefresh`, it measures on data
    that it is given or, without any, on the activations of the latest training steps:
    once there are two samples per unit, on up to two and a half per unit, or 1,250 if
    that is more. The training takes the same course with it as without.

    For each layer it logs, from the last measurement, NaN before the first:

    - `<layer name>_exponent`
    - `<layer name>_dimension_90` and `<layer name>_participation_ratio`

    List it before `CSVLogger` and `TensorBoard`, so that they see these logs, and after
    `EigenbasisRefresh`, whose `<layer name>_exponent` it replaces.
    `monitor.spectra` has the latest `Spectrum` of each layer by name, and
    `monitor.history` all of them: a list of pairs `(steps, spectra)`, the number of
    optimizer steps before, and such a dictionary.

    Args:
        x: Data to measure on, in inference mode; see `measure_spectrum()`. Defaults to
            `None`: the activations of the training steps, in training mode.
        layers: A layer, its name, a class of layers, or a list of these; see
            `measure_spectrum()`.
        every_epochs: Measure at the end of every `every_epochs`-th epoch, at least 1.
            Defaults to 1, unless `every_steps` is given.
        every_steps: Measure after every `every_steps` optimizer steps instead; at least
            1. Defaults to `None`.
        reduction: As in `measure_spectrum()`. Defaults to `"flatten"`.
        fit_range: As in `Spectrum`. Defaults to `None`, `(11, 500)`, cut off where
            eigenvalues are rounding error.
        max_samples: Maximum number of examples of `x`. Defaults to `None`: all.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the choice of `max_samples`. Defaults to 0.
        verbose: `"auto"` shows progress when a measurement is slow, unless `fit()` is
            silent; 0 never, 1 always. Defaults to `"auto"`.

    Raises:
        ValueError: If an argument is invalid; when training begins, if there are no
            such layers, if they are too wide for the memory, or if without `x` the
            model trains on several devices; else as `measure_spectrum()`.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_powerlaw as kp

    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(30, activation="tanh", name="hidden"),
            keras.layers.Dense(1),
        ]
    )
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(500, 20))
    monitor = kp.SpectrumMonitor(layers="hidden")
    history = model.fit(x, x[:, 0], epochs=2, callbacks=[monitor], verbose=0)
    print(history.history["hidden_exponent"], monitor.spectra["hidden"].rank)
    ```
    """

    def __init__(
        self,
        x: Any = None,
        layers: LayerChoice | Sequence[LayerChoice] = (),
        *,
        every_epochs: int | None = None,
        every_steps: int | None = None,
        reduction: Reduction = "flatten",
        fit_range: tuple[int, int] | None = None,
        max_samples: int | None = None,
        batch_size: int = 1024,
        seed: int = 0,
        verbose: Verbose = "auto",
    ) -> None:
        super().__init__()
        intervals = validate_intervals(every_epochs, every_steps)
        self.every_epochs, self.every_steps = intervals
        if every_epochs is None and every_steps is None:
            self.every_epochs = 1
        if isinstance(layers, tuple | list) and not layers:
            raise invalid_value("layers", "at least one layer", repr(layers))
        validate_sampling(batch_size, max_samples, seed)
        self._x = x
        self._choice = layers
        self._reduction = validate_reduction(reduction)
        self._fit_range = fit_range
        self._options: dict[str, Any] = {
            "max_samples": max_samples,
            "batch_size": batch_size,
            "seed": seed,
        }
        self.verbose = validate_verbose(verbose)
        self.spectra: dict[str, Spectrum] = {}
        self.history: list[tuple[int, dict[str, Spectrum]]] = []
        self._steps = 0
        self._watchers: dict[str, ActivationWatcher] = {}

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        # Before any of several monitors begins: of a training that was interrupted.
        release_watchers(model)

    def on_train_begin(self, logs: Any = None) -> None:
        self._steps_before = self._steps
        found, _ = find_layers(self.model, self._choice)
        self._found = dict(zip(unique_names(self.model, found), found, strict=True))
        if self._x is None:
            self._watch()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        before, self._steps = self._steps, self._steps_before + batch + 1
        every = self.every_steps
        # With `steps_per_execution`, not every step is seen.
        if every is not None and self._steps // every > before // every:
            self._measure()

    def on_epoch_end(
        self, epoch: int, logs: MutableMapping[str, Any] | None = None
    ) -> None:
        self._steps_before = self._steps
        if self.every_epochs is not None and (epoch + 1) % self.every_epochs == 0:
            self._measure()
        if logs is not None:
            for name in self._found:
                spectrum = self.spectra.get(name)
                for figure in FIGURES:
                    value = np.nan if spectrum is None else getattr(spectrum, figure)
                    logs[f"{name}_{figure}"] = value

    def on_train_end(self, logs: Any = None) -> None:
        release_watchers(self.model)
        self._watchers = {}

    def _watch(self) -> None:
        """Lets the training steps keep the activations of the layers."""
        if getattr(strategy_of(self.model), "num_replicas_in_sync", 1) > 1:
            raise ValueError(
                "On several devices, give `x`, the data to measure on: "
                "SpectrumMonitor(x, layers)."
            )
        require_training_argument(self.model)
        widths = []
        for name, layer in self._found.items():
            require_one_output(layer)
            require_called(self.model, layer)
            units = output_units(layer, self._reduction)
            if units is not None:
                widths.append((name, units))
            else:
                require_found_in_a_step(name)
        require_memory(widths)
        with creating_state(self.model):
            for name, layer in self._found.items():
                self._watchers[name] = ActivationWatcher(self._reduction)
                self._watchers[name].attach(layer, dict(widths).get(name))

    def _measure(self) -> None:
        silent = self.verbose == "auto" and not (self.params or {}).get("verbose", 1)
        spectra: Any
        if self._x is None:
            spectra = self._from_training()
        else:
            # Without the warning: what is logged is compared, not taken for the truth.
            spectra, _ = _measured(
                *(self.model, self._x, list(self._found.values())),
                *(self._reduction, self._fit_range),
                verbose=0 if silent else self.verbose,
                **self._options,
            )
        if spectra:
            self.spectra = {**self.spectra, **spectra}
            self.history.append((self._steps, spectra))

    def _from_training(self) -> dict[str, Spectrum]:
        hold_current_weights(self.model)
        spectra = {}
        for name, watcher in self._watchers.items():
            if not watcher.window.is_filled:
                continue
            samples = np.asarray(ops.convert_to_numpy(watcher.window.samples()))
            if np.all(np.isfinite(samples)):
                sigma = Covariance(self._found[name].compute_dtype)
                sigma.update(samples)
                spectra[name] = _spectrum(sigma, self._fit_range)
        return spectra


@keras.saving.register_keras_serializable(package="keras_powerlaw")
class ActivationWatcher(
    keras.layers.Layer,  # type: ignore[misc]
    keras.regularizers.Regularizer,  # type: ignore[misc]
):
    """Keeps what a layer computes in training, and penalizes it as it was before.

    It is the layer's activity regularizer until training ends, in front of the one that
    the layer has, or looks together with a `SpectralActivityRegularizer`. A file that
    is saved meanwhile holds the layer's own regularizer, or one of strength zero.

    Args:
        reduction: How activations become samples of units.
    """

    def __init__(self, reduction: Reduction) -> None:
        super().__init__(dtype="float32", autocast=False)
        self.supports_masking = True  # which it ignores
        self.built = True
        self.original: Any = None
        self.window = ActivationWindow(self, 1)
        self._reduction = reduction

    def attach(self, layer: keras.layers.Layer, units: int | None) -> None:
        """Begins to look at a layer, in steps that are traced from now on."""
        if units is not None:
            self.window.open(units)
        present = layer.activity_regularizer
        if isinstance(present, SpectralActivityRegularizer):
            self.original = present.watcher
            set_sublayer(present, "watcher", self)
        else:
            self.original = present
            set_activity_regularizer(layer, self)

    def call(self, activity: Tensor, training: bool | None = None) -> Tensor:
        if training:
            samples = to_samples(ops.stop_gradient(activity), self._reduction)
            self.window.open(samples.shape[1])
            self.window.write(ops.cast(samples, "float32"))
        return ops.zeros(()) if self.original is None else self.original(activity)

    @property
    def weights(self) -> list[keras.Variable]:
        return []  # as of a `SpectralActivityRegularizer`

    def save_own_variables(self, store: Any) -> None:
        pass

    def load_own_variables(self, store: Any) -> None:
        pass

    def get_config(self) -> dict[str, Any]:
        original = self.original or keras.regularizers.L2(0.0)
        return {"original": keras.regularizers.serialize(original)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return keras.regularizers.get(config["original"])


def release_watchers(model: keras.Model) -> None:
    """Leaves all layers as they were before monitors looked at them."""
    watched = False
    for layer in flatten_layers(model):
        present = original = layer.activity_regularizer
        while isinstance(original, ActivationWatcher):
            original = original.original
        if original is not present:
            set_activity_regularizer(layer, original)
            watched = True
        elif getattr(present, "watcher", None) is not None:
            set_sublayer(present, "watcher", None)
            watched = True
    if watched:
        retrace(model)
