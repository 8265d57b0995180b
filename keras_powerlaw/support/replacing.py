"""Replacing the activity regularizers of a model's layers, in one thread at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras import ops

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.keras_internals import flatten_layers


@contextlib.contextmanager
def replaced_activity_regularizers(
    model: keras.Model, replacements: Mapping[int, Any]
) -> Iterator[None]:
    """Replaces the activity regularizers of `model`'s layers within this context.

    Keras passes a layer's activations to its activity regularizer, in every kind of
    model and at any depth, so a function in its place sees the activations. In other
    threads, those that predict or measure meanwhile, nothing is replaced.

    Args:
        model: The model.
        replacements: The replacement for a layer's regularizer, keyed by the `id` of
            the layer. All other layers have none.
    """
    replaced = []
    with _REPLACING:
        for layer in flatten_layers(model):
            if layer.activity_regularizer is None and id(layer) not in replacements:
                continue
            replaced.append(_ReplacedRegularizer.of(layer))
            replaced[-1].enter(replacements.get(id(layer)))
    try:
        yield
    finally:
        with _REPLACING:
            for each in replaced:
                each.leave()


# Held while regularizers are replaced and put back, but not in between.
_REPLACING = threading.Lock()


class _ReplacedRegularizer:
    """Stands in a layer for its activity regularizer, which threads have replaced."""

    def __init__(self, layer: keras.layers.Layer) -> None:
        # Bypasses Keras's tracking, which rejects changes to a built layer.
        self._attributes = vars(layer)
        self._original = self._attributes.get("activity_regularizer", _ABSENT)
        self._attributes["activity_regularizer"] = self
        self._of_threads: dict[int, list[Any]] = {}

    @classmethod
    def of(cls, layer: keras.layers.Layer) -> _ReplacedRegularizer:
        found = layer.activity_regularizer
        return found if isinstance(found, cls) else cls(layer)

    def enter(self, replacement: Any) -> None:
        self._of_threads.setdefault(threading.get_ident(), []).append(replacement)

    def leave(self) -> None:
        own = self._of_threads[threading.get_ident()]
        own.pop()
        if not own:
            del self._of_threads[threading.get_ident()]
        if self._of_threads:
            return
        if self._original is _ABSENT:
            del self._attributes["activity_regularizer"]
        else:
            self._attributes["activity_regularizer"] = self._original

    def __call__(self, activity: Tensor) -> Tensor:
        own = self._of_threads.get(threading.get_ident())
        regularizer = own[-1] if own else self._original
        if regularizer is None or regularizer is _ABSENT:
            return ops.zeros(())
        return regularizer(activity)


_ABSENT = object()
