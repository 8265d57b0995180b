"""Renewing the statistics with which whitening layers work at inference."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_powerlaw.arguments import Verbose, invalid_value, validate_verbose
from keras_powerlaw.backends import of_first_process
from keras_powerlaw.progress import Progress
from keras_powerlaw.spectral.streaming import stream_covariances
from keras_powerlaw.spectral.whitening import WhiteningLayer
from keras_powerlaw.support.layers import plain_layers, validate_model


def refresh_whitening(
    model: keras.Model,
    x: Any,
    *,
    max_samples: int | None = None,
    batch_size: int = 1024,
    seed: int = 0,
    verbose: Verbose = "auto",
) -> None:
    """Renews the statistics with which every `WhiteningLayer` works at inference.

    Their moving averages are of batches that earlier weights have seen. While the
    weights change, the smallest variances, by whose roots a whitening layer divides,
    change by the largest factors, and at inference its output is not white. This
    replaces the averages by μ and Σ over `x`, at the present weights and in inference
    mode, accumulated in float64: a pass over the data for each layer, in the order of
    the model's layers. The output is then white on `x`, but for `ridge`.

    Call it after `fit()`, before the model is tested, attacked or saved. Training may
    go on from there.

    Args:
        model: A built model with at least one `WhiteningLayer`. One with
            `use_batch_statistics=True` needs no refresh and gets none.
        x: The training data; see `measure_spectrum()`.
        max_samples: Maximum number of examples: a random choice from an array, random
            batches of a `PyDataset`, the first ones of another data set. It should be
            many times the number of units. Defaults to all, which an endless data set
            does not allow.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the random choice. Defaults to 0.
        verbose: `"auto"` shows progress when the refresh is slow, 0 never, 1 always.
            Defaults to `"auto"`.

    Raises:
        ValueError: If no layer uses moving averages; or if `x` is empty, does not fit
            the model, is endless or not finite, or has fewer than two examples. The
            layer whose data these are then keeps its statistics.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_powerlaw as kp

    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(50, activation="tanh"),
            kp.WhiteningLayer(name="white"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 20)), rng.integers(10, size=500)
    model.fit(x, y, batch_size=100, epochs=2, verbose=0)
    kp.refresh_whitening(model, x)
    print(kp.measure_spectrum(model, x, "white").eigenvalues[:3])
    ```

    Reference:
        Nassar et al. (2020), eq. (10), with Σ over the training set.
    """
    validate_model(model)
    layers = [
        layer
        for layer in plain_layers(model)
        if isinstance(layer, WhiteningLayer) and not layer.use_batch_statistics
    ]
    if not layers:
        raise invalid_value(
            "model",
            "a model with at least one WhiteningLayer that uses moving averages",
            f"'{model.name}', which has none",
        )
    progress = Progress("Whitening", validate_verbose(verbose))
    for layer in layers:
        with _passing_on(layer):
            [found] = stream_covariances(
                model,
                x,
                [layer],
                ["flatten"],
                batch_size=batch_size,
                max_samples=max_samples,
                seed=seed,
                progress=progress,
            )
        for variable, value in (
            (layer.moving_mean, found.mean()),
            (layer.moving_covariance, found.matrix()),
        ):
            variable.assign(of_first_process(value.astype(variable.dtype), variable))


@contextlib.contextmanager
def _passing_on(layer: keras.layers.Layer) -> Iterator[None]:
    """Makes the output of a layer its input, which no other place would show."""
    # Bypasses Keras's tracking, which rejects changes to a built layer.
    vars(layer)["call"] = lambda inputs, training=False: inputs
    try:
        yield
    finally:
        vars(layer).pop("call", None)
