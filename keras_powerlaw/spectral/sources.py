"""Where `EigenbasisRefresh` takes the eigenbasis from: training steps, or data."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import keras

from keras_powerlaw.arguments import Verbose
from keras_powerlaw.backends import steps_taken
from keras_powerlaw.spectral.layers import layers_with_basis, units_of
from keras_powerlaw.spectral.refresh import (
    forget_windows,
    open_windows,
    renew_from_data,
    renew_from_windows,
)
from keras_powerlaw.spectral.renewal import Renewal
from keras_powerlaw.support.batches import is_endless
from keras_powerlaw.support.samples import EpochSample

# Enough examples for the penalty to change the true spectrum; docs/benchmarks.md
# compares more and fewer.
EXAMPLES_PER_UNIT = 5
FEWEST_EXAMPLES = 2000  # narrow layers benefit from more, at no cost


class Source(Protocol):
    """What the callback tells a source in the course of a training."""

    def begin(self, model: keras.Model) -> bool:
        """Training begins. Returns whether it can go on with the basis there is."""

    def begin_epoch(self, index: int, is_first: bool) -> None:
        """An epoch begins, after `index` refreshes."""

    def end(self) -> None:
        """Training ends."""

    def renew(
        self, index: int, keeps_degenerate: bool, measures: bool, verbose: Verbose
    ) -> dict[str, Renewal] | None:
        """Performs refresh number `index`; None if it is too early for one.

        What comes of data is measured every time, whether it need be or not.
        """


class TrainingSteps:
    """The activations of the latest training steps."""

    def begin(self, model: keras.Model) -> bool:
        self._model = model
        # A new optimizer: the weights may be others than those of the activations. A
        # training step of one's own need not use the model's optimizer.
        is_standard = type(model).train_step is keras.Model.train_step
        anew = is_standard and model.optimizer is not None and not steps_taken(model)
        if anew:
            forget_windows(model)
        open_windows(model)
        return not anew

    def begin_epoch(self, index: int, is_first: bool) -> None:
        pass

    def end(self) -> None:
        pass

    def renew(
        self, index: int, keeps_degenerate: bool, measures: bool, verbose: Verbose
    ) -> dict[str, Renewal] | None:
        return renew_from_windows(self._model, keeps_degenerate, measures)


class Data:
    """Forward passes over data; the arguments are those of `EigenbasisRefresh`."""

    def __init__(
        self,
        x: Any,
        max_samples: int | Literal["auto"] | None,
        batch_size: int,
        seed: int,
    ) -> None:
        self._x = x
        self._max_samples = max_samples
        self._batch_size = batch_size
        self._seed = seed

    def begin(self, model: keras.Model) -> bool:
        self._model = model
        self._sample = EpochSample()
        return True

    def begin_epoch(self, index: int, is_first: bool) -> None:
        self._sample.begin_epoch()
        if is_first:  # before `fit()` opens a data set that it must read alone
            self._draw(index)

    def end(self) -> None:
        self._sample = EpochSample()  # frees its memory

    def renew(
        self, index: int, keeps_degenerate: bool, measures: bool, verbose: Verbose
    ) -> dict[str, Renewal] | None:
        return renew_from_data(
            self._model,
            self._draw(index),
            max_samples=self._count(),
            batch_size=self._batch_size,
            seed=self._seed + index,
            verbose=verbose,
            keeps_degenerate=keeps_degenerate,
        )

    def _draw(self, index: int) -> Any:
        return self._sample.draw(
            self._model, self._x, self._count(), self._seed + index
        )

    def _count(self) -> int | None:
        if self._max_samples != "auto":
            return self._max_samples
        widest = 0
        for layer in layers_with_basis(self._model):
            units = units_of(layer)
            if units is None:  # unknown until the layer has been called
                return FEWEST_EXAMPLES if is_endless(self._x) else None
            widest = max(widest, units)
        return max(FEWEST_EXAMPLES, EXAMPLES_PER_UNIT * widest)
