"""The callback that keeps the eigenbasis of a model up to date during `fit()`."""

from __future__ import annotations

import os
import warnings
from collections.abc import MutableMapping
from typing import Any, Literal

import keras
import numpy as np

from keras_powerlaw.arguments import (
    Verbose,
    invalid_value,
    validate_optional_path,
    validate_verbose,
)
from keras_powerlaw.backends import steps_taken
from keras_powerlaw.spectral.backup import BasisBackup, CallbackState
from keras_powerlaw.spectral.basis import renewing
from keras_powerlaw.spectral.layers import named_layers
from keras_powerlaw.spectral.refresh import discard_unknown_bases
from keras_powerlaw.spectral.renewal import NO_RENEWAL, Renewal
from keras_powerlaw.spectral.schedule import Schedule, default_steps
from keras_powerlaw.spectral.sources import Data, Source, TrainingSteps
from keras_powerlaw.spectral.watch import (
    PenaltyWatch,
    warn_of_shortfall,
    warn_of_stale_basis,
)
from keras_powerlaw.support.batches import validate_data, validate_sampling


class EigenbasisRefresh(keras.callbacks.Callback):  # type: ignore[misc]
    """Renews the eigenbasis of every regularized layer during `fit()`.

    The penalty of `SpectralActivityRegularizer` estimates the eigenvalues as the
    variances along the eigenvectors over the training set. The estimate holds only
    while the weights have changed little since the eigenvectors were computed, so this
    callback recomputes them from the activations of the last training steps: up to two
    and a half samples per unit, or 1,250 if that is more. By default it does so every
    N/25 steps for N units, but no more often than every 5 and no less than every 20.
    Until there are two samples per unit, the penalty is left out; its beginning is
    printed, and a warning if training ends before. Another `fit()` goes on with the
    basis of the last one, unless the model has been compiled anew.

    Given data, it passes some of them through the model in inference mode instead, by
    default at the start of every epoch and every 20 steps within it. For the paper's
    schedule, every epoch on all examples, pass `x, every_epochs=1, max_samples=None`.

    For each layer it logs figures from a refresh in the last 20 steps or, if that is
    longer ago, from the last one, NaN before the first:

    - `<layer name>_exponent`, fitted from n = τ + 1;
    - `<layer name>_penalty`, that of the measured spectrum, which unlike the loss does
      not depend on the batch size, and `<layer name>_share`, relative to the epoch's
      loss, after the penalty has yielded (below): above 1 if a stale basis shows less;
    - `<layer name>_staleness`, the share of the penalty that the previous basis no
      longer showed, between 0 and 1, NaN at the first refresh;
    - `<layer name>_rank`, the number of directions in which the activations vary, and
      `<layer name>_dead`, the share of units that are constant.

    Layers of equal names are logged by their paths, `tower/hidden_exponent`. A layer
    whose activations vary in fewer than τ directions keeps its basis, and its penalty
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
            random choice each time. A data set is read once an epoch, random batches of
            a `PyDataset` or the first examples of another, which are kept in memory for
            the epoch, unless they take more than a quarter of what is available. Of a
            `tf.data.Dataset` with `cache(filename)`, which may not be read while
            `fit()` writes the file, the examples read before training are kept to its
            end. `None` uses all examples, at every refresh. Defaults to `"auto"`: five
            times the units of the widest regularized layer, and at least 2,000.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the random choices. Defaults to 0.
        backup_dir: Directory for the state that `keras.callbacks.BackupAndRestore` does
            not save: eigenbasis, latest activations, and when the next basis is due. It
            is written at the end of every epoch and removed after training. Interrupted
            training that resumes at the end of an epoch then takes the same course as
            uninterrupted training; without `backup_dir`, it resumes like one that
            begins. Pass the same directory to both callbacks, and list this one first.
            Defaults to `None`.
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
        schedule = Schedule.from_arguments(every_epochs, every_steps)
        self.schedule = schedule.of_windows if x is None else schedule
        self._adapts = x is None and every_epochs is None and every_steps is None
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
        self.source: Source = (
            TrainingSteps() if x is None else Data(x, max_samples, batch_size, seed)
        )
        folder = validate_optional_path("backup_dir", backup_dir)
        self.backup = None if folder is None else BasisBackup(folder)
        self.verbose = validate_verbose(verbose)
        self._take({})
        self._refreshes = 0
        self._trained: keras.Model | None = None

    def _take(self, renewals: dict[str, Renewal]) -> None:
        """Stores the results of refreshes, by layer name or path."""
        self.renewals = renewals
        self.spectra = {name: each.spectrum for name, each in renewals.items()}
        self.staleness = {name: each.staleness for name, each in renewals.items()}
        if self._adapts and self.spectra:
            widest = max(len(each.eigenvalues) for each in self.spectra.values())
            self.schedule = Schedule(None, default_steps(widest))

    def on_train_begin(self, logs: Any = None) -> None:
        self._watches: dict[str, PenaltyWatch] = {}
        self._steps = 0  # in finished epochs
        self._steps_in_epoch = 0
        self._last_refresh: int | None = None
        continues = self.source.begin(self.model) and self.model is self._trained
        if not continues:  # nothing is left of another model, or of other weights
            self._take({})
        self._trained = self.model

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._steps_in_epoch = 0
        starts = self._last_refresh is None
        if starts and self.backup is not None:
            # By now, BackupAndRestore has restored the weights.
            self._restore(self.backup)
        self.source.begin_epoch(self._refreshes, is_first=starts)
        if self.schedule.due_at_epoch(epoch, self._last_refresh):
            self._refresh(self._steps)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        step = self._steps + batch
        if self.schedule.due_at_step(step, self._last_refresh):
            self._refresh(step)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._steps_in_epoch = batch + 1

    def on_epoch_end(
        self, epoch: int, logs: MutableMapping[str, Any] | None = None
    ) -> None:
        self._steps += self._steps_in_epoch
        if logs is not None:
            for name, layer in named_layers(self.model).items():
                renewal = self.renewals.get(name, NO_RENEWAL)
                strength = layer.activity_regularizer.eigenbasis.yielded_to
                loss = logs.get("loss") or np.nan  # zero before the penalty begins
                share = strength * renewal.penalty / loss
                logs[f"{name}_exponent"] = renewal.spectrum.exponent
                logs[f"{name}_staleness"] = renewal.staleness
                logs[f"{name}_penalty"] = renewal.penalty
                logs[f"{name}_share"] = share
                logs[f"{name}_rank"] = renewal.spectrum.rank or np.nan
                logs[f"{name}_dead"] = renewal.dead
        if self.backup is not None:
            self._back_up(self.backup)

    def on_train_end(self, logs: Any = None) -> None:
        self.source.end()
        if self.backup is not None:
            self.backup.remove()
        if self._last_refresh is None:
            self._end_without_basis()
        layers = named_layers(self.model)
        for name, watch in self._watches.items():
            regularizer = layers[name].activity_regularizer
            shortfall = watch.shortfall()
            if shortfall is not None and regularizer.beta:
                warn_of_shortfall(name, regularizer, shortfall)

    def _refresh(self, step: int) -> None:
        is_first = self._last_refresh is None
        silent = self.verbose == "auto" and not (self.params or {}).get("verbose", 1)
        renewals = self.source.renew(
            self._refreshes,
            keeps_degenerate=not is_first,
            measures=is_first or self.schedule.measures(self._refreshes),
            verbose=0 if silent else self.verbose,
        )
        if renewals is None:  # not enough samples yet
            return
        self._take(self.renewals | renewals)
        self._refreshes += 1
        self._last_refresh = step
        if is_first and step and not silent and self.verbose != 0:
            print(f"\nThe spectral penalty begins with step {step + 1}.", flush=True)
        layers = named_layers(self.model)
        for name, renewal in renewals.items():
            regularizer = layers[name].activity_regularizer
            watch = self._watches.setdefault(
                name, PenaltyWatch(regularizer.alpha, regularizer.tau)
            )
            steps = watch.observe(step, renewal.staleness, renewal.spectrum)
            if steps is not None:
                warn_of_stale_basis(name, regularizer, steps, renewal.spectrum.exponent)

    def _end_without_basis(self) -> None:
        missing = discard_unknown_bases(self.model)
        if not missing or not self._steps:
            return  # known from an earlier training, or there was none
        seen = "; ".join(
            f"layer '{name}': {count} of {needed}"
            for name, count, needed in missing
            if count < needed
        )
        reason = "before a refresh was due"
        if seen:
            reason = f"with too few samples of activations for an eigenbasis ({seen})"
        warnings.warn(
            f"The spectral penalty never acted: training ended after {self._steps} "
            f"steps, {reason}. Train for longer, or pass the training data: "
            "`keras_powerlaw.EigenbasisRefresh(x_train)`. A layer without any does not "
            "know that it trains: pass `training` on to it in the model's `call()`.",
            stacklevel=2,
        )

    def _back_up(self, backup: BasisBackup) -> None:
        backup.write(
            steps_taken(self.model),
            CallbackState(self._steps, self._last_refresh, self._refreshes),
            [
                (layer.activity_regularizer, self.renewals.get(name))
                for name, layer in named_layers(self.model).items()
            ],
        )

    def _restore(self, backup: BasisBackup) -> None:
        layers = named_layers(self.model)
        regularizers = [layer.activity_regularizer for layer in layers.values()]
        with renewing(self.model, [each.eigenbasis for each in regularizers]):
            restored = backup.read(steps_taken(self.model), regularizers)
        if restored is not None:
            state, renewals = restored
            self._steps = state.steps
            self._last_refresh = state.last_refresh
            self._refreshes = state.refreshes
            self._take(
                {
                    name: renewal
                    for name, renewal in zip(layers, renewals, strict=True)
                    if renewal is not None
                }
            )
