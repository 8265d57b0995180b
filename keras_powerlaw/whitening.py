"""Whitening of a layer's activations, eq. (10), and coloring them by a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.backend import standardize_dtype

from keras_powerlaw.activations import add_activations
from keras_powerlaw.arguments import (
    Tensor,
    Verbose,
    invalid_value,
    is_number,
    validate_boolean,
    validate_number,
    validate_verbose,
)
from keras_powerlaw.backends import of_first_process
from keras_powerlaw.layers import plain_layers, validate_model
from keras_powerlaw.penalty import covariance
from keras_powerlaw.progress import Progress
from keras_powerlaw.spectrum import Covariance
from keras_powerlaw.targets import Target, as_target, relative_levels
from keras_powerlaw.units import count_examples, to_samples

# The factor was found in all cases where this times ε ‖Σ‖_F was added, with a margin of
# four: covariances of any rank of up to 1,500 units and 3,000 examples.
MARGIN = 16


@keras.saving.register_keras_serializable(package="keras_powerlaw")
class WhiteningLayer(keras.layers.Layer):  # type: ignore[misc]
    """Whitens activations, or gives them another spectrum, by construction.

        x̃ = diag(γₙ)^½ R⁻¹ (x − μ),  R Rᵀ = Σ + ridge · I

    where μ and Σ are the mean and covariance over the batch, and R is the lower
    Cholesky factor. Without a `target`, γₙ = 1: the output is white, of mean zero and
    covariance the identity. With one, its covariance is diagonal, with the target's
    levels, whose mean is one: unit n has the n-th largest variance. Gradients flow
    through μ, Σ and R. Inputs with more than two dimensions are flattened to
    `(batch, units)`, and the output has the input's shape.

    As in batch normalization, inference uses moving averages of μ and Σ, so that an
    example's output does not depend on the others in its batch. The first batch sets
    them; until then, inference is nearly the identity. They lag behind weights that
    change, and the output then has another spectrum: call `refresh_whitening()` after
    `fit()`. A frozen layer (`trainable` is `False`) always runs in inference mode.

    All computations are in float32, under any dtype policy but float64. Where float32
    could not resolve `ridge` next to the covariance, it is raised to 16 ε ‖Σ‖_F with
    ε = 1.2e-7, and to at least 1.1e-19. The factor therefore exists for every batch
    whose variances are finite: of one example, of fewer examples than units, of
    constants or zeros, even with `ridge=0`.

    Args:
        momentum: Momentum of the moving averages, in [0, 1). Defaults to 0.9.
        ridge: Added to the variances, at least 0. Defaults to 1e-5.
        use_batch_statistics: If `True`, use the batch's mean and covariance at
            inference too, as the paper's authors did. Each output then depends on the
            whole batch, and so does every attack on the model. Defaults to `False`.
        target: The exponent α of the output's spectrum n^(−α), or a target: a
            `PowerLaw`, a `BrokenPowerLaw` or a `Spectrum`. In training, the spectrum is
            exact in batches of more examples than units, but for `ridge`. Defaults to
            `None`, a white output.
        **kwargs: Those of every Keras layer, such as `name` and `dtype`.

    Input shape:
        `(batch, …)`.

    Output shape:
        That of the input.

    Raises:
        ValueError: If an argument is outside its range, or if a dimension of the input
            other than the first is unknown.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_powerlaw as kp

    x = np.random.default_rng(0).normal(size=(500, 4)) @ np.diag([1.0, 2.0, 3.0, 4.0])
    white = kp.WhiteningLayer()(x.astype("float32"), training=True)
    print(np.cov(keras.ops.convert_to_numpy(white), rowvar=False).round(3))
    ```

    Reference:
        Nassar et al. (2020), eq. (10).
    """

    def __init__(
        self,
        momentum: float = 0.9,
        ridge: float = 1e-5,
        use_batch_statistics: bool = False,
        target: float | Target | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        if not is_number(momentum) or not 0 <= momentum < 1:
            raise invalid_value("momentum", "a number in [0, 1)", repr(momentum))
        self.momentum = float(momentum)
        self.ridge = validate_number("ridge", ridge)
        self.use_batch_statistics = validate_boolean(
            "use_batch_statistics", use_batch_statistics
        )
        if isinstance(target, dict):  # of a config
            target = keras.saving.deserialize_keras_object(target)
        self.target = None if target is None else as_target(target)
        self.passes_on = False  # its input, for `refresh_whitening()` to look at

    def build(self, input_shape: Sequence[int | None]) -> None:
        if len(input_shape) < 2 or None in input_shape[1:]:
            raise ValueError(
                "The input of a WhiteningLayer must have a known size in every "
                f"dimension but the first. Received: input_shape={input_shape}"
            )
        units = math.prod(size for size in input_shape[1:] if size is not None)

        def statistic(
            name: str, shape: tuple[int, ...], initializer: str
        ) -> keras.Variable:
            return self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                dtype=self._precision,
                trainable=False,
                autocast=False,
                aggregation="mean",  # the replicas' values are equal
            )

        if self.target is not None:
            levels = relative_levels(self.target, 1, units)
            self._deviations = np.sqrt(levels / np.mean(levels))
        self.moving_mean = statistic("moving_mean", (units,), "zeros")
        self.moving_covariance = statistic(
            "moving_covariance", (units, units), "identity"
        )
        self.updates = statistic("updates", (), "zeros")

    @property
    def _precision(self) -> str:
        return "float64" if self.compute_dtype == "float64" else "float32"

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if self.passes_on:
            return inputs
        activity = to_samples(ops.cast(inputs, self._precision))
        training = training and self.trainable
        if training or self.use_batch_statistics:
            mean, sigma = covariance(activity)
        else:
            mean, sigma = self.moving_mean.value, self.moving_covariance.value
        if training:
            self._update(mean, sigma, count_examples(activity))
        factor = ops.cholesky(_with_ridge(sigma, self.ridge))
        centered = ops.transpose(activity - mean)
        white = ops.transpose(ops.solve_triangular(factor, centered, lower=True))
        if self.target is not None:
            white = white * ops.cast(self._deviations, self._precision)
        return ops.cast(ops.reshape(white, ops.shape(inputs)), self.compute_dtype)

    def _update(self, mean: Tensor, sigma: Tensor, count: Tensor) -> None:
        # A plain average over the first batches, an exponential one afterwards: from
        # the start, it would let the initial identity swamp small variances for a long
        # time. A single example has no covariance and is left out.
        updates = self.updates.value
        counts = ops.cast(count > 1, updates.dtype)
        momentum = ops.minimum(updates / (updates + 1), self.momentum)
        weight = counts * (1 - momentum)
        for moving, value in (
            (self.moving_mean, mean),
            (self.moving_covariance, sigma),
        ):
            # Not as a change: of the initial identity, rounding errors would remain.
            new = weight * ops.stop_gradient(value)
            moving.assign((1 - weight) * moving.value + new)
        self.updates.assign(updates + counts)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "ridge": self.ridge,
            "use_batch_statistics": self.use_batch_statistics,
            "target": keras.saving.serialize_keras_object(self.target),
        }


def _with_ridge(sigma: Tensor, ridge: float) -> Tensor:
    """Σ + ridge · I, with a ridge that lets rounding leave it positive definite.

    The rounding errors of Σ and of its factorization make the smallest eigenvalue
    negative by at most (B + N) ε trace(Σ), for B examples of N units. But they cancel:
    of that bound, which would swamp most spectra, a small multiple of ε ‖Σ‖_F was seen.
    """
    precision = np.finfo(standardize_dtype(sigma.dtype))
    # Relative to the trace, so that the squares in the norm don't underflow.
    trace = ops.maximum(ops.trace(ops.stop_gradient(sigma)), float(precision.tiny))
    norm = trace * ops.norm(ops.stop_gradient(sigma) / trace)
    # Its square root is inverted, and in gradients it is.
    smallest = float(precision.tiny) ** 0.5
    ridge = ops.maximum(max(ridge, smallest), MARGIN * float(precision.eps) * norm)
    return sigma + ridge * ops.eye(sigma.shape[0], dtype=sigma.dtype)


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
        sigma = Covariance(layer.compute_dtype)
        layer.passes_on = True
        try:
            add_activations(
                [sigma],
                model,
                x,
                [layer],
                ["flatten"],
                batch_size=batch_size,
                max_samples=max_samples,
                seed=seed,
                progress=progress,
            )
        finally:
            layer.passes_on = False
        for variable, value in (
            (layer.moving_mean, sigma.mean()),
            (layer.moving_covariance, sigma.matrix()),
        ):
            variable.assign(of_first_process(value.astype(variable.dtype), variable))
