"""Figures 2D and 3: sensitivity maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import invalid_value, is_integer
from keras_powerlaw.plotting.axes import (
    new_axes,
    validate_axes,
    validate_kind,
)
from keras_powerlaw.sensitivity import SensitivityMaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_sensitivity(
    sensitivity: SensitivityMaps,
    axes: Sequence[Axes] | None = None,
    *,
    image: int | None = None,
) -> NDArray[Any]:
    """Plots sensitivity maps as images, one panel per eigenvalue.

    Brightening a red pixel raises the eigenvalue λₙ, brightening a blue one lowers it.
    Each panel has its own scale, symmetric about zero: eigenvalues differ by orders of
    magnitude, and networks are distinguished by the patterns.

    Args:
        sensitivity: The result of `sensitivity_maps` for images of shape
            `(height, width)` or `(height, width, channels)`; channels are summed.
        axes: A row of Matplotlib axes, one per component. Defaults to those of a new
            figure.
        image: Index of the image whose maps are drawn, from 0. Defaults to None: the
            sum of the maps over all images is drawn.

    Returns:
        The axes, an array of shape `(components,)`.

    Raises:
        ValueError: If the maps are not of images, if `image` is not among those kept,
            or if the number of axes differs from the number of components.
        ImportError: If Matplotlib is missing.

    Example:

    ```python
    import keras_powerlaw as kp
    import numpy as np

    maps = np.random.default_rng(0).normal(size=(3, 5, 8, 8))
    sensitivity = kp.SensitivityMaps(
        components=(1, 2, 10),
        eigenvalues=np.array([3.0, 2.0, 0.1]),
        maps=maps,
        total=maps.sum(axis=1),
    )
    axes = kp.plot_sensitivity(sensitivity, image=0)
    axes[0].figure.savefig("sensitivity.png")
    ```

    Reference:
        [Nassar et al., 2020](https://arxiv.org/abs/2012.04729), figures 2D and 3; the
        maps are equation (9).
    """
    validate_kind("sensitivity", [sensitivity], SensitivityMaps, "SensitivityMaps")
    count, kept = len(sensitivity.components), sensitivity.maps.shape[1]
    if sensitivity.total.ndim not in (3, 4):
        raise invalid_value(
            "sensitivity",
            "maps of images, (height, width) or (height, width, channels)",
            f"maps of shape {sensitivity.total.shape[1:]}",
        )
    images: NDArray[Any]
    if image is None:
        images = sensitivity.total
    elif is_integer(image) and 0 <= image < kept:
        images = sensitivity.maps[:, image]
    else:
        raise invalid_value(
            "image", f"None or an integer from 0 to {kept - 1}", repr(image)
        )
    if images.ndim == 4:
        images = images.sum(axis=-1)
    row = new_axes(count) if axes is None else axes
    panels = np.ravel(np.asarray(row, dtype=object))
    if len(panels) != count:
        raise invalid_value("axes", f"{count} axes, one for each map", len(panels))
    validate_axes("axes", panels)

    for n, panel, ax in zip(sensitivity.components, images, panels, strict=True):
        largest = np.abs(panel).max() or 1.0
        ax.imshow(panel, cmap="RdBu_r", vmin=-largest, vmax=largest)
        ax.set(title=f"$\\partial\\lambda_{{{n}}}/\\partial x$", xticks=[], yticks=[])
    return panels
