"""The regularizer: eq. (2) on the activity of the layer that it is given to."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_powerlaw.spectral.basis import Eigenbasis
from keras_powerlaw.spectral.penalty import (
    exact_variances,
    power_law_penalty,
    projected_variances,
)
from keras_powerlaw.support.arguments import (
    invalid_value,
    validate_boolean,
    validate_integer,
    validate_number,
)
from keras_powerlaw.support.keras_internals import DeferredLoss, flatten_layers
from keras_powerlaw.support.types import Reduction, Tensor
from keras_powerlaw.support.units import to_samples, validate_reduction

# An error in the first step of `fit()`, whatever its cause, comes too late there.
_LOST_BY_JAX = (
    " Build or load the model again first: on the JAX backend, Keras takes the values "
    "out of a model's variables for `fit()`, and an error in the first step loses them."
    if keras.backend.backend() == "jax"
    else ""
)


# A `Layer` as well: Keras then tracks it as a part of the layer it is given to, so that
# its loss and its basis are seen by every backend, and it computes in float32 under any
# dtype policy.
@keras.saving.register_keras_serializable(package="keras_powerlaw")
class SpectralActivityRegularizer(
    DeferredLoss,
    keras.regularizers.Regularizer,  # type: ignore[misc]
):
    """Pulls the covariance spectrum of a layer's activations toward a power law.

    Adds to the training loss

    R = β/N Σ_{n=τ}^{N} [ (λₙ/γₙ − 1)² + max(0, λₙ/γₙ − 1) ],
    γₙ = λ_τ (n/τ)^(−α)

    where λ₁ ≥ … ≥ λ_N are the eigenvalues of the covariance of the layer's N units over
    the batch, and λ_τ within γₙ is a constant for the gradient.

    What the units of activations with more than two dimensions are, and what the
    samples that the covariance is taken over, is the `reduction`. For activations of
    shape `(batch, height, width, channels)`:

    - `"flatten"`: `height · width · channels` units, `batch` samples (paper, 4.2).
    - `"channels"`: `channels` units, `batch · height · width` samples: every position
      of every example is one.
    - `"mean"`: `channels` units, `batch` samples: the means over the positions.

    The channels are the last axis, or axis 1 where `keras.config.image_data_format()`
    is `"channels_first"`. The same holds for 3-D convolutions; of sequences, `(batch,
    time, features)`, the features are always the last axis, every time step is a
    position, and masks are not looked at. On activations of shape `(batch, units)` all
    three are the same.

    By default the eigenvalues are estimated as the variances along fixed directions,
    the eigenvectors over the training set (eq. (5)). Those are *derived state*, renewed
    by the `EigenbasisRefresh` callback or `refresh_eigenbasis()`, and in no saved
    file. While there are none, a training step is refused, and `evaluate()` and
    `predict()` leave the penalty out.

    Give it to any layer as `activity_regularizer`, a new object to each. The penalty
    is eq. (2) whatever the batch size: it enters `model.losses` as one term of its own,
    and calling the regularizer returns zero. A batch of one sample, having no
    covariance, is not penalized.

    Args:
        alpha: Exponent α of the target, at least 0. Defaults to 1.
        tau: 1-based index of the first eigenvalue of the power law, at least 1 and at
            most the number of units. Defaults to 10.
        beta: Strength β, at least 0. Defaults to 1.
        exact: If `True`, decompose the covariance of every batch instead: slow, needs
            a batch of more samples than units, and no `EigenbasisRefresh`.
            Defaults to `False`.
        log_ratio: If `True`, (log λₙ/γₙ)² takes the place of the two terms in the
            bracket, and the power law γ goes through λ_τ … λ_4τ on the average of
            their logarithms. The gradient of the two terms vanishes with λₙ, so that
            small eigenvalues leave their place slowly; its gradient does not. Defaults
            to `False`.
        reduction: `"flatten"`, `"channels"` or `"mean"`, as above. Defaults to
            `"flatten"`.

    Raises:
        ValueError: If an argument is outside of its range, or, in a training step, if
            there is no eigenbasis yet.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_powerlaw as kp

    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(
                50,
                activation="tanh",
                activity_regularizer=kp.SpectralActivityRegularizer(tau=5, beta=2.0),
            ),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 20)), rng.integers(10, size=500)
    model.fit(x, y, epochs=2, callbacks=[kp.EigenbasisRefresh(x)], verbose=0)
    ```

    Reference:
        Nassar et al. (2020), *On 1/n neural representation and robustness*, eqs. (2)
        and (5).
    """

    def __init__(
        self,
        alpha: float = 1.0,
        tau: int = 10,
        beta: float = 1.0,
        *,
        exact: bool = False,
        log_ratio: bool = False,
        reduction: Reduction = "flatten",
    ) -> None:
        super().__init__(dtype="float32")
        self.alpha = validate_number("alpha", alpha)
        self.tau = validate_integer("tau", tau, minimum=1)
        self.beta = validate_number("beta", beta)
        self.exact = validate_boolean("exact", exact)
        self.log_ratio = validate_boolean("log_ratio", log_ratio)
        self.reduction = validate_reduction(reduction)
        self.eigenbasis = Eigenbasis(self, first=self.tau)
        # The basis comes with the first refresh: there is nothing to build before.
        self.built = True
        if exact and keras.backend.backend() == "tensorflow":
            # XLA's eigendecomposition has returned wrong results under TensorFlow.
            self.supports_jit = False

    @property
    def basis(self) -> keras.Variable | None:
        """Eigenvectors v_τ … v_N in columns, `(units, units − τ + 1)`, or None."""
        return self.eigenbasis.variable

    def call(self, activity: Tensor, training: bool | None = None) -> Tensor:
        if self.exact or self.basis is not None:
            self.record(activity)
        elif training:
            raise ValueError(
                "A layer with a SpectralActivityRegularizer can't be trained before "
                "its eigenbasis is known. Pass `callbacks=[keras_powerlaw."
                "EigenbasisRefresh(x_train)]` to `fit()`, or call `keras_powerlaw."
                "refresh_eigenbasis(model, x_train)` before a training loop of your "
                "own." + _LOST_BY_JAX
            )
        # Keras divides what an activity regularizer returns by the batch size (since
        # version 3.14, not before). The penalty is one of `losses` instead.
        return ops.zeros((), dtype="float32")

    def loss_of(self, activity: Tensor) -> Tensor:
        return self.penalty(activity)

    def penalty(self, activity: Tensor) -> Tensor:
        """The value of eq. (2) for a batch of activations.

        Args:
            activity: Floating tensor of shape `(batch, …)`.

        Returns:
            A scalar, float32.
        """
        activity = to_samples(ops.cast(activity, "float32"), self.reduction)
        validate_width(self, activity.shape[1])
        if self.exact:
            tail = exact_variances(activity)[self.tau - 1 :]
        elif self.basis is not None:
            tail = projected_variances(activity, self.basis)
        else:
            raise ValueError(
                "There is no eigenbasis yet: call `keras_powerlaw."
                "refresh_eigenbasis(model, x_train)` first."
            )
        return penalty_of_variances(self, tail)

    # The basis is a variable like a seed generator's state, not a weight: it is in no
    # file and not in `get_weights()`, so that regularized and plain models can exchange
    # both, and `count_params()` is that of the plain model.
    @property
    def weights(self) -> list[keras.Variable]:
        return []

    def save_own_variables(self, store: Any) -> None:
        pass

    def load_own_variables(self, store: Any) -> None:
        pass

    def get_config(self) -> dict[str, Any]:
        return {
            "alpha": self.alpha,
            "tau": self.tau,
            "beta": self.beta,
            "exact": self.exact,
            "log_ratio": self.log_ratio,
            "reduction": self.reduction,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SpectralActivityRegularizer:
        return cls(**config)


def penalty_of_variances(
    regularizer: SpectralActivityRegularizer, tail: Tensor
) -> Tensor:
    """The value of eq. (2) for the eigenvalues λ_τ … λ_N."""
    return power_law_penalty(
        tail,
        regularizer.alpha,
        regularizer.tau,
        regularizer.beta,
        regularizer.log_ratio,
    )


def validate_width(regularizer: SpectralActivityRegularizer, units: int) -> None:
    """Raises a `ValueError` if a layer of `units` units is too narrow for its τ."""
    if regularizer.tau > units:
        raise invalid_value(
            "tau",
            f"at most the width of the regularized layer, {units} units (with "
            f"reduction='{regularizer.reduction}')",
            regularizer.tau,
        )


def regularized_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of `model` that have a `SpectralActivityRegularizer`.

    Raises:
        ValueError: If two of them share one regularizer.
    """
    found = [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer.activity_regularizer, SpectralActivityRegularizer)
    ]
    owners: dict[int, keras.layers.Layer] = {}
    for layer in found:
        first = owners.setdefault(id(layer.activity_regularizer), layer)
        if first is not layer:
            raise invalid_value(
                "activity_regularizer",
                "a SpectralActivityRegularizer for each layer, since each has an "
                "eigenbasis of its own",
                f"the same object for layers '{first.name}' and '{layer.name}'",
            )
    return found
