"""First weights with which a layer's activations have a given spectrum."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.stats
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.activations import input_batches, require_finite
from keras_powerlaw.arguments import (
    Reduction,
    Tensor,
    Verbose,
    invalid_value,
    require_memory,
    validate_verbose,
)
from keras_powerlaw.backends import no_gradients
from keras_powerlaw.keras_internals import operations_of
from keras_powerlaw.layers import find_layers, is_sequential_or_functional
from keras_powerlaw.progress import Progress
from keras_powerlaw.spectrum import Covariance, Spectrum, blas_on_idle_cores
from keras_powerlaw.targets import Target, as_target
from keras_powerlaw.units import to_samples, validate_reduction

Array = NDArray[Any]

WEIGHTED = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)
# Of what a layer receives, directions with less than this share of the mean variance
# are left out. Pixels that are nearly constant, amplified, are all that it would hear.
SMALLEST = 1e-2
# Activations are measured on so many samples per unit, of so many examples at least.
SAMPLES_PER_UNIT = 5
FEWEST_EXAMPLES = 1000
# What a nonlinearity makes of a spectrum is made up for in so many steps, at most, …
CORRECTIONS = 6
# … each of this share, since a change at one n also moves the eigenvalues of others.
SHARE = 0.7
# Exponents that are tried for a flattened convolution.
SEARCHED = 10
# Patches take as many times the memory of images as they have positions: numbers at
# once.
NUMBERS = 2**25


def color_weights(
    model: keras.Model,
    x: Any,
    layers: keras.layers.Layer | str | Sequence[keras.layers.Layer | str],
    target: float | Target = 1.0,
    *,
    reduction: Reduction = "channels",
    max_samples: int | None = None,
    batch_size: int = 1024,
    seed: int = 0,
    verbose: Verbose = "auto",
) -> keras.Model:
    """Gives layers first weights with which their activations have a target's spectrum.

        W = U E^(−½) diag(γₙ)^½ Qᵀ,  b = −Wᵀ μ

    where μ and U E Uᵀ are the mean and covariance of what the layer receives on `x`, γₙ
    the target, and Q is random and orthonormal, such that all units have one variance.
    So Wᵀx + b has the target's spectrum exactly, and the variance per unit that it has
    with the present weights, or 1 if that is less, so as not to saturate what follows.
    Directions of U with less than a hundredth of the mean variance are left out.
    What a nonlinearity changes is then measured, and γ is corrected for it as long as
    that brings the activations nearer to the target. Training steps cost nothing more.

    A spectrum that holds at first need not hold after training; a
    `SpectralActivityRegularizer` keeps it. Either alone makes a network robust or not
    for reasons of its own: docs/results.md compares them.

    Args:
        model: A Sequential or Functional model, built, which is changed in place.
        x: The training data; see `measure_spectrum()`.
        layers: A layer, its name, a class of layers, or a list of these. Of a layer
            without a kernel, such as a `BatchNormalization` or an `Activation`, the
            weights are those of the nearest `Dense` or convolution before it, and what
            it makes of them gets the spectrum. Several are taken from the first to the
            last.
        target: The exponent α, at least 0, or a target: a `PowerLaw`, a
            `BrokenPowerLaw` or a `Spectrum`. Defaults to 1.0.
        reduction: What the units of a convolution are; see
            `SpectralActivityRegularizer`. With `"flatten"`, its few weights determine
            only the exponent, not each eigenvalue. Defaults to `"channels"`.
        max_samples: Maximum number of examples; see `measure_spectrum()`. Defaults to
            all.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of Q, and of the choice of `max_samples`. Defaults to 0.
        verbose: `"auto"` shows progress when it is slow, 0 never, 1 always. Defaults to
            `"auto"`.

    Returns:
        The same model.

    Warns:
        UserWarning: If what a layer receives varies noticeably in fewer directions than
            it has units: Wᵀx + b can't have more.

    Raises:
        ValueError: If there is no such layer; if its weights are not those of one
            `Dense` or ungrouped convolution that the model calls once, with nothing but
            layers of one input in between; or if `x` is empty, does not fit the model,
            is endless or not finite. The layers before it keep their new weights.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_powerlaw as kp

    model = keras.Sequential(
        [
            keras.Input((60,)),
            keras.layers.Dense(50, activation="tanh"),
            keras.layers.BatchNormalization(name="hidden"),
            keras.layers.Dense(10),
        ]
    )
    x = np.random.default_rng(0).normal(size=(2000, 60))
    kp.color_weights(model, x, "hidden", 1.0)
    print(kp.measure_spectrum(model, x, "hidden").exponent)  # 1.00
    ```
    """
    target = as_target(target)
    validate_reduction(reduction)
    progress = Progress("Coloring", validate_verbose(verbose))
    places, _ = find_layers(model, layers)
    if not is_sequential_or_functional(model) or not model.built:
        raise invalid_value(
            "model", "a Sequential or Functional model that is built", f"'{model.name}'"
        )
    # Keras warns about a list of one input.
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.input
    operations = operations_of(keras.Model(inputs, model.outputs))
    order = [operation for operation, _, _ in operations]
    chains = [_chain(operations, place) for place in places]
    for arriving, chain in sorted(chains, key=lambda each: order.index(each[1][0])):
        layer = chain[0]
        units = layer.kernel.shape[-1]
        before = keras.Model(inputs, arriving)
        received, count = Covariance(), 0
        kept: list[Tensor] = []
        batches, total = input_batches(model, x, batch_size, max_samples, seed)
        for index, batch in enumerate(batches):
            require_finite(batch, f"Invalid value for argument `x`: batch {index}")
            with no_gradients():
                arrived = before(batch, training=False)
            for patches in _patches(layer, arrived, reduction):
                if not received.count:
                    require_memory([(layer.name, patches.shape[1])])
                received.update(patches)
            examples = sum(len(each) for each in kept)
            if examples < FEWEST_EXAMPLES or count < SAMPLES_PER_UNIT * units:
                kept.append(arrived)
                count = received.count
            progress.update(index + 1, total)
        if received.count < 2:
            raise invalid_value("x", "at least two examples", received.count)
        coloring = _Coloring(layer, received, target, seed)
        if coloring.rank < units:
            warnings.warn(
                f"What layer '{layer.name}' receives varies noticeably in "
                f"{coloring.rank} directions, fewer than its {units} units: before its "
                "activation, there is no variance in others.",
                stacklevel=2,
            )
        _correct(coloring, chain, kept, target, reduction)
    progress.finish()
    return model


class _Coloring:
    """The weights of a layer, as a function of the variances γₙ that they make.

    Args:
        layer: The layer.
        received: The covariance of what it receives.
        target: The target.
        seed: Seed of Q.
    """

    def __init__(
        self, layer: keras.layers.Layer, received: Covariance, target: Target, seed: int
    ) -> None:
        self._layer = layer
        units = layer.kernel.shape[-1]
        self._mean = received.mean()
        eigenvalues, vectors = received.eigenvectors()
        smallest = max(received.floor(), SMALLEST * float(np.mean(eigenvalues)))
        rank = int(np.sum(eigenvalues > smallest))
        self.rank = min(rank, received.count - 1, units)
        self._whitening = vectors[:, : self.rank] / np.sqrt(eigenvalues[: self.rank])
        present = np.asarray(ops.convert_to_numpy(layer.kernel), "float64")
        variances = received.variances_along(present.reshape(-1, units))
        # Of no more than one, a nonlinearity is not saturated.
        self._total = units * (min(float(np.mean(variances)), 1.0) or 1.0)
        self.target = target.levels(np.arange(1, self.rank + 1))
        levels = np.zeros(units)
        levels[: self.rank] = self.target * (units / np.sum(self.target))
        with blas_on_idle_cores():
            # Of units with one variance, whose covariance has these eigenvalues.
            correlation = scipy.stats.random_correlation.rvs(
                levels, random_state=seed, tol=1e-6
            )
            _, vectors = scipy.linalg.eigh(correlation, driver="evd")
        self._rotation = vectors[:, ::-1][:, : self.rank]

    def white(self, samples: Array) -> Array:
        """Samples of what the layer receives, as coordinates of variance one."""
        return np.asarray((samples - self._mean) @ self._whitening)

    def assign(self, variances: Array) -> None:
        """Gives the layer the weights of `variances`, up to their scale."""
        scale = np.sqrt(variances * (self._total / np.sum(variances)))
        kernel = (self._whitening * scale) @ self._rotation.T
        self._layer.kernel.assign(kernel.reshape(self._layer.kernel.shape))
        if self._layer.use_bias:
            self._layer.bias.assign(-self._mean @ kernel)


def _correct(
    coloring: _Coloring,
    chain: Sequence[Any],
    arrived: Sequence[Tensor],
    target: Target,
    reduction: Reduction,
) -> None:
    """Assigns the target, and changes it until the activations come no nearer to it."""
    log_n, asked = np.log(np.arange(1, coloring.rank + 1)), np.log(coloring.target)

    def measured(log_levels: Array) -> Spectrum:
        coloring.assign(np.exp(log_levels))
        return _spectrum(chain, arrived, reduction)

    def error_of_exponent(change: float) -> float:
        spectrum = measured(asked - change * log_n)
        levels = target.levels(np.arange(1, len(spectrum.eigenvalues) + 1))
        return abs(spectrum.exponent - Spectrum(levels, spectrum.fit_range).exponent)

    after = measured(asked)
    if len(after.eigenvalues) != chain[0].kernel.shape[-1]:
        best = scipy.optimize.minimize_scalar(
            error_of_exponent, bounds=(-2, 3), options={"maxiter": SEARCHED}
        )
        coloring.assign(np.exp(asked - best.x * log_n))
        return
    # On few samples, γ has another spectrum than on all, and so has what follows from
    # it: what counts is the ratio of both.
    white = Covariance()
    for each in arrived:
        for patches in _patches(chain[0], each, reduction):
            white.update(coloring.white(patches))
    found = best = asked  # log γ
    smallest = np.inf
    for _ in range(CORRECTIONS):
        scale = np.exp(found / 2)
        before = np.linalg.eigvalsh(scale * white.matrix() * scale[:, np.newaxis])
        known = min(coloring.rank, after.rank)
        change = np.log(after.eigenvalues[:known]) - np.log(before[::-1][:known])
        ratios = np.zeros(coloring.rank)
        ratios[:known] = (found - asked)[:known] + change
        ratios -= np.mean(ratios)
        error = float(np.std(ratios))
        if not error < smallest:
            break
        best, smallest = found, error
        found = np.minimum.accumulate(found - SHARE * ratios)
        after = measured(found)
    coloring.assign(np.exp(best))


def _spectrum(
    chain: Sequence[Any], arrived: Sequence[Tensor], reduction: Reduction
) -> Spectrum:
    """The spectrum of what a chain of layers makes of what arrives at its first."""
    covariance = Covariance(keeps_samples=True)
    for activity in arrived:
        with no_gradients():
            for layer in chain:
                activity = layer(activity)
            samples = to_samples(ops.cast(activity, "float32"), reduction)
        covariance.update(np.asarray(ops.convert_to_numpy(samples)))
    return Spectrum(covariance.eigenvalues(), floor=covariance.floor())


def _patches(
    layer: keras.layers.Layer, arrived: Tensor, reduction: Reduction
) -> Iterator[Array]:
    """What the outputs of a layer are linear functions of, `(samples, d)`."""
    if isinstance(layer, keras.layers.Dense):
        yield np.reshape(ops.convert_to_numpy(arrived), (-1, arrived.shape[-1]))
        return
    shape = layer.kernel.shape
    size = int(np.prod(shape[:-1]))
    config = {
        **layer.get_config(),
        "name": None,
        "filters": size,
        "use_bias": False,
        "activation": None,
        "activity_regularizer": None,
    }
    unfold = type(layer).from_config(config)
    unfold.build(arrived.shape)
    unfold.kernel.assign(np.eye(size).reshape(*shape[:-1], size))
    positions = int(np.prod(unfold.compute_output_shape(arrived.shape)[1:])) // size
    step = max(1, NUMBERS // (positions * size))
    for start in range(0, len(arrived), step):
        with no_gradients():
            patches = unfold(arrived[start : start + step])
        if reduction != "mean":  # every position of an output is a sample of channels
            reduction = "channels"
        yield np.asarray(ops.convert_to_numpy(to_samples(patches, reduction)))


def _chain(
    operations: list[Any], place: keras.layers.Layer
) -> tuple[keras.KerasTensor, list[Any]]:
    """What arrives at the layer whose weights `place` depends on, and the way there.

    That is a list from that layer to `place`, both included.
    """
    refusal = invalid_value(
        "layers",
        "layers behind a Dense, Conv1D, Conv2D or Conv3D layer without groups that the "
        "model itself calls once, with nothing but layers of one input in between",
        f"'{place.name}'",
    )
    by_output = {
        id(output): operation
        for operation, _, outputs in operations
        for output in outputs
    }
    chain, operation = [place], place
    while True:
        calls = [inputs for called, inputs, _ in operations if called is operation]
        if len(calls) != 1 or len(calls[0]) != 1 or getattr(operation, "groups", 1) > 1:
            raise refusal
        [[arriving]] = calls
        if isinstance(operation, WEIGHTED):
            return arriving, chain
        operation = by_output[id(arriving)]
        chain.insert(0, operation)
