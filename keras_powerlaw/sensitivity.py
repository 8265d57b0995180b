"""How the eigenvalues of a layer's covariance depend on the pixels of the input."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.activations import (
    InferencePasses,
    add_activations,
    input_batches,
)
from keras_powerlaw.arguments import (
    Reduction,
    Tensor,
    Verbose,
    invalid_value,
    is_integer,
    validate_integer,
    validate_verbose,
)
from keras_powerlaw.attach import observe
from keras_powerlaw.backends import vjp
from keras_powerlaw.layers import find_layer
from keras_powerlaw.progress import Progress
from keras_powerlaw.spectrum import Covariance, Spectrum
from keras_powerlaw.units import to_samples, validate_reduction


@dataclasses.dataclass(frozen=True, eq=False)
class SensitivityMaps:
    """Derivatives of covariance eigenvalues with respect to the input.

    Attributes:
        components: The K indices n, 1-based.
        eigenvalues: λₙ over the data set. Shape `(K,)`, float64.
        maps: ∂λₙ/∂x for single images, the first ones of the data set. Shape
            `(K, images, …)`, float32, in variance per unit of pixel value. Since each
            of M images contributes a share of λₙ, they shrink like 1/M.
        total: Their sum over *all* images: how λₙ changes if the same pixel changes in
            every image. Shape `(K, …)`, float64.
    """

    components: tuple[int, ...]
    eigenvalues: NDArray[np.float64]
    maps: NDArray[np.float32]
    total: NDArray[np.float64]


def sensitivity_maps(
    model: keras.Model,
    x: Any,
    layer: keras.layers.Layer | str,
    components: Sequence[int] = (1, 2, 5, 10, 50, 100),
    *,
    reduction: Reduction = "flatten",
    images: int = 10,
    batch_size: int = 1024,
    verbose: Verbose = "auto",
) -> SensitivityMaps:
    """Measures which pixels the eigenvalues of a layer's covariance depend on.

        ∂λₙ/∂x_m = 2/(M − 1) (vₙ · (h_m − μ)) vₙᵀ ∂h_m/∂x_m

    for image m of M, its activations h_m, and the eigenvector vₙ. Since
    ∂λₙ = vₙᵀ ∂Σ vₙ, this is the derivative through the covariance over the *whole*
    data set and its eigendecomposition. One pass over the data in inference mode
    measures μ, λₙ and vₙ; a second one computes one vector-Jacobian product per batch
    and component. No more than one batch is in memory at a time.

    Args:
        model: A built Keras model with one floating-point input.
        x: The data; see `measure_spectrum()`. A data set has to return the same
            batches in the same order each time.
        layer: A layer of the model, or its name.
        components: The indices n, 1-based, strictly increasing, and at most the number
            of eigenvalues above rounding errors. Defaults to `(1, 2, 5, 10, 50, 100)`.
        reduction: How an output with more than two dimensions is divided into samples
            and units: `"flatten"`, `"channels"` or `"mean"`; see
            `SpectralActivityRegularizer`. M above is the number of samples. Defaults to
            `"flatten"`.
        images: Number of images, the first ones, whose maps are kept; at least 0.
            Defaults to 10.
        batch_size: Examples per batch, for arrays. Defaults to 1024.
        verbose: `"auto"` shows progress when the measurement is slow, 0 never,
            1 always. Defaults to `"auto"`.

    Returns:
        A `SensitivityMaps`, with `.components`, `.eigenvalues`, `.maps` and `.total`.
        Where neighboring eigenvalues coincide, the derivative does not exist; where
        they nearly coincide, their maps mix.

    Raises:
        ValueError: If there is no such layer, component or reduction; if the model has
            several inputs; if `x` is empty, does not fit the model, is not finite, or
            has fewer than two examples; or if the layer has too many units for the
            available memory.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_powerlaw as kp

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(50, activation="tanh", name="hidden"),
            keras.layers.Dense(10),
        ]
    )
    x = np.random.default_rng(0).random((500, 8, 8, 1))
    sensitivity = kp.sensitivity_maps(model, x, "hidden", components=(1, 10))
    print(sensitivity.maps.shape)  # (2, 10, 8, 8, 1)
    kp.plot_sensitivity(sensitivity)
    ```

    Reference:
        Nassar et al. (2020), eq. (9), Figures 2D and 3.
    """
    indices = _validate_components(components)
    images = validate_integer("images", images, minimum=0)
    verbose = validate_verbose(verbose)
    target = find_layer(model, layer)
    sigma = Covariance(target.compute_dtype)
    add_activations(
        [sigma],
        model,
        x,
        [target],
        [validate_reduction(reduction)],
        batch_size=batch_size,
        progress=Progress("Sensitivity, covariance", verbose),
    )
    eigenvalues, eigenvectors = sigma.eigenvectors()
    rank = Spectrum(eigenvalues, floor=sigma.floor()).rank
    if indices[-1] > rank:
        raise invalid_value(
            "components",
            f"indices of at most {rank}, the number of eigenvalues above rounding "
            "errors",
            components,
        )
    chosen = np.array(indices) - 1
    mean, directions = sigma.mean(), eigenvectors[:, chosen].T

    maps: list[NDArray[np.float32]] = []
    total: Any = 0.0
    progress = Progress("Sensitivity, gradients", verbose)
    run = InferencePasses(model)
    batches, count = input_batches(model, x, batch_size, None, 0)
    for index, batch in enumerate(batches):
        activity, product = _activity_and_product(model, run, target, reduction, batch)
        deviations = ops.convert_to_numpy(activity).astype("float64") - mean
        gradients = np.stack(
            [
                _gradient(activity, product, np.outer(deviations @ vector, vector))
                for vector in directions
            ]
        )
        gradients *= 2 / (sigma.count - 1)
        total = total + gradients.sum(axis=1)
        kept = sum(part.shape[1] for part in maps)
        maps.append(gradients[:, : max(images - kept, 0)].astype("float32"))
        progress.update(index + 1, count)
    progress.finish()
    return SensitivityMaps(
        components=indices,
        eigenvalues=eigenvalues[chosen],
        maps=np.concatenate(maps, axis=1),
        total=total,
    )


def _activity_and_product(
    model: keras.Model,
    run: InferencePasses,
    layer: keras.layers.Layer,
    reduction: Reduction,
    batch: Any,
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A layer's activations, `(samples, units)`, and their vector-Jacobian product."""
    leaves = keras.tree.flatten(batch)
    if len(leaves) != 1:
        raise invalid_value("model", "a model with one input", f"{len(leaves)} inputs")

    def activities(inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        convert = functools.partial(to_samples, reduction=reduction)
        with observe(model, [layer], [convert]) as [observed]:
            state = run.run(inputs)
        # A layer that is called several times contributes every call.
        return ops.cast(ops.concatenate(observed, axis=0), "float32"), state

    inputs = ops.convert_to_tensor(leaves[0], keras.backend.floatx())
    activity, product, state = vjp(activities, inputs, has_aux=True)
    run.go_on_from(state)
    return activity, product


def _gradient(
    activity: Tensor,
    product: Callable[[Tensor], Tensor],
    cotangent: NDArray[np.float64],
) -> NDArray[np.float64]:
    gradient = product(ops.convert_to_tensor(cotangent, dtype=activity.dtype))
    array: NDArray[np.float64] = ops.convert_to_numpy(
        ops.stop_gradient(gradient)
    ).astype("float64")
    return array


def _validate_components(components: Any) -> tuple[int, ...]:
    try:
        values = tuple(components)
    except TypeError:
        values = ()
    if (
        not values
        or not all(is_integer(value) and value >= 1 for value in values)
        or list(values) != sorted(set(values))
    ):
        raise invalid_value(
            "components", "one or more increasing integers of at least 1", components
        )
    return tuple(int(value) for value in values)
