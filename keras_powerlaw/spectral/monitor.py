"""The callback that measures the spectra of layers without a penalty in `fit()`."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_powerlaw.arguments import (
    LayerChoice,
    Reduction,
    Verbose,
    invalid_value,
    validate_verbose,
)
from keras_powerlaw.keras_internals import (
    hold_current_weights,
    retrace,
    strategy_of,
)
from keras_powerlaw.spectral.measuring import measure_spectrum
from keras_powerlaw.spectral.schedule import Schedule
from keras_powerlaw.spectral.taps import ActivationTap
from keras_powerlaw.spectrum import Covariance, Spectrum
from keras_powerlaw.support.batches import validate_sampling
from keras_powerlaw.support.layers import (
    find_layers,
    require_one_output,
    require_training_argument,
    unique_names,
)
from keras_powerlaw.support.memory import require_memory
from keras_powerlaw.units import output_units, validate_reduction

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
        schedule = Schedule.from_arguments(every_epochs, every_steps)
        self.every_steps = schedule.every_steps if every_steps is not None else None
        self.every_epochs = schedule.every_epochs
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
        self._taps: dict[str, ActivationTap] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        self._steps_before = self._steps
        found, _ = find_layers(self.model, self._choice)
        self._found = dict(zip(unique_names(self.model, found), found, strict=True))
        if self._x is None:
            self._tap()

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
        if self._taps:
            for tap in self._taps.values():
                tap.close()
            self._taps = {}
            retrace(self.model)

    def _tap(self) -> None:
        """Lets the training steps keep the activations of the layers."""
        if getattr(strategy_of(self.model), "num_replicas_in_sync", 1) > 1:
            raise ValueError(
                "On several devices, give `x`, the data to measure on: "
                "SpectrumMonitor(x, layers)."
            )
        require_training_argument(self.model)
        for layer in self._found.values():
            require_one_output(layer)
        widths = {
            name: output_units(layer, self._reduction)
            for name, layer in self._found.items()
        }
        require_memory([(name, units) for name, units in widths.items() if units])
        self.on_train_end()  # of a training that was interrupted
        self._taps = {
            name: ActivationTap(layer, self._reduction)
            for name, layer in self._found.items()
        }
        for tap in self._taps.values():
            tap.open()
        retrace(self.model)

    def _measure(self) -> None:
        silent = self.verbose == "auto" and not (self.params or {}).get("verbose", 1)
        spectra: Any
        if self._x is None:
            spectra = self._from_training()
        else:
            spectra = measure_spectrum(
                self.model,
                self._x,
                list(self._found.values()),
                reduction=self._reduction,
                fit_range=self._fit_range,
                verbose=0 if silent else self.verbose,
                **self._options,
            )
        if spectra:
            self.spectra = {**self.spectra, **spectra}
            self.history.append((self._steps, spectra))

    def _from_training(self) -> dict[str, Spectrum]:
        hold_current_weights(self.model)
        spectra = {}
        for name, tap in self._taps.items():
            samples = tap.samples()
            if samples is None or not np.all(np.isfinite(samples)):
                continue
            running = Covariance(self._found[name].compute_dtype, keeps_samples=True)
            running.update(samples)
            spectra[name] = Spectrum(
                running.eigenvalues(), self._fit_range, running.floor()
            )
        return spectra
