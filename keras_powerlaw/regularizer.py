"""The regularizer: eq. (2) on the activations of the layer it is attached to."""

from __future__ import annotations

from typing import Any, cast, get_args

import keras
from keras import ops

from keras_powerlaw.arguments import (
    Form,
    Reduction,
    Tensor,
    invalid_value,
    validate_boolean,
    validate_choice,
    validate_integer,
    validate_number,
)
from keras_powerlaw.backends import is_recorded
from keras_powerlaw.basis import Eigenbasis
from keras_powerlaw.keras_internals import DeferredLoss, in_second_pass
from keras_powerlaw.penalty import (
    exact_variances,
    gradient_bound,
    projected_variances,
    spectral_distance,
    spectral_penalty,
    steady_anchor,
)
from keras_powerlaw.targets import PowerLaw, Target, as_target, relative_levels
from keras_powerlaw.units import (
    count_examples,
    count_units,
    to_samples,
    validate_reduction,
)

SETTINGS = ("alpha", "tau", "beta", "exact", "form", "reduction", "target")
_NO_BASIS = (
    "A layer with a SpectralActivityRegularizer can't be trained before its eigenbasis "
    "is known. Pass `callbacks=[keras_powerlaw.EigenbasisRefresh()]` to `fit()`, or "
    "call `keras_powerlaw.refresh_eigenbasis(model)` before the steps of a training "
    "loop of your own, and the model with `training=True` in them."
)
# On JAX, any error in the first step of `fit()` costs the model its weights.
if keras.backend.backend() == "jax":
    _NO_BASIS += (
        " Build or load the model again first: on the JAX backend, Keras takes the "
        "values out of a model's variables for `fit()`, and an error in the first step "
        "loses them."
    )


# Also a `Layer`: Keras then tracks it as a sub-layer of the layer it is attached to, so
# that every backend sees its loss and its basis, and it computes in float32 under any
# dtype policy.
@keras.saving.register_keras_serializable(package="keras_powerlaw")
class SpectralActivityRegularizer(
    DeferredLoss,
    keras.regularizers.Regularizer,  # type: ignore[misc]
):
    """Pulls the covariance spectrum of a layer's activations toward a power law.

    Adds to the training loss

        R = β/N ∑_{n=τ}^{N} (λₙ/γₙ − 1)²,  γₙ = κ n^(−α)

    where λ₁ ≥ … ≥ λ_N are the eigenvalues of the covariance of the layer's N units over
    the batch. κ makes R as small as it can be: the power law is the nearest one. So R
    depends on the shape of the spectrum alone, and not on its scale, and lies between 0
    and β. Its gradient for the activations of a batch has a bound, so that the task
    comes first. Another `target` takes the place of n^(−α). With `form="paper"`, it is
    the penalty of the paper,

        R = β/N ∑_{n=τ}^{N} [ (λₙ/γₙ − 1)² + max(0, λₙ/γₙ − 1) ],
        γₙ = λ_τ (n/τ)^(−α)

    where λ_τ within γₙ is treated as a constant in the gradient. On layers without
    batch normalization, it can end in activations that vary in a few directions only.

    For activations with more than two dimensions, `reduction` determines what the units
    are, and over which samples their covariance is taken. For activations of shape
    `(batch, height, width, channels)`:

    - `"flatten"`: `height · width · channels` units, `batch` samples (paper, 4.2).
    - `"channels"`: `channels` units, `batch · height · width` samples: every position
      of every example is one.
    - `"mean"`: `channels` units, `batch` samples: the means over the positions.

    The channels are the last axis, or axis 1 if `keras.config.image_data_format()` is
    `"channels_first"`. The same holds for 3-D convolutions. In sequences, `(batch,
    time, features)`, the features are always the last axis, every time step is a
    position, and masks are ignored. For activations of shape `(batch, units)`, all
    three reductions are the same.

    By default, the eigenvalues are estimated as the variances along fixed directions,
    the eigenvectors over the training set (eq. (5)). The eigenvectors are *derived
    state*: the `EigenbasisRefresh` callback or `refresh_eigenbasis()` renews them, and
    no saved file contains them. As long as there are none, a training step raises an
    error, and `evaluate()` and `predict()` omit the penalty. Where there are 250 or
    more, training steps use groups of them in turns. Behind dropout and other layers
    with noise, the activations are those of a second pass of the batch, in inference
    mode.

    Give it to any layer as `activity_regularizer`, a new object for each layer. The
    penalty is R at any batch size: it is a separate term in `model.losses`, and
    calling the regularizer returns zero. A batch of one sample has no covariance and is
    not penalized; of one of fewer than 16, with `form="paper"`, γ_τ is not λ_τ but a
    share of λ_τ + … + λ_N, that of the last refresh.

    Args:
        alpha: Exponent α of the target, at least 0. Defaults to 1.
        tau: 1-based index of the first eigenvalue of the power law, at least 1 and
            less than the number of units. Defaults to 10.
        beta: Strength β, at least 0. Defaults to 0.5.
        exact: If `True`, decompose the covariance of every batch instead. This is slow
            and needs more samples than units in every batch, but no
            `EigenbasisRefresh`. Defaults to `False`.
        form: `"nearest"` or `"paper"`, as above, or `"log"`: the terms are
            (log λₙ/γₙ)², and γ is fitted to λ_τ … λ_4τ in the mean of their logarithms.
            docs/theory.md says what each does to small eigenvalues. Defaults to
            `"nearest"`.
        reduction: `"flatten"`, `"channels"` or `"mean"`, as above. Defaults to
            `"flatten"`.
        target: What the spectrum is pulled toward instead of n^(−α): a
            `BrokenPowerLaw`, a `PowerLaw`, or a measured `Spectrum`, of a layer or of a
            recording. Its scale does not matter. Defaults to `None`.

    Raises:
        ValueError: If an argument is outside its range, or, in a training step, if
            there is no eigenbasis yet.
        AttributeError: If an argument is changed later.

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
    model.fit(x, y, epochs=2, callbacks=[kp.EigenbasisRefresh()], verbose=0)
    ```

    Reference:
        Nassar et al. (2020), *On 1/n neural representation and robustness*, eqs. (2)
        and (5).
    """

    def __init__(
        self,
        alpha: float = 1.0,
        tau: int = 10,
        beta: float = 0.5,
        *,
        exact: bool = False,
        form: Form = "nearest",
        reduction: Reduction = "flatten",
        target: Target | float | None = None,
    ) -> None:
        super().__init__(dtype="float32")
        self.alpha = validate_number("alpha", alpha)
        if target is not None and alpha != 1.0:
            raise invalid_value("alpha", "no exponent beside a `target`", alpha)
        self.target = PowerLaw(self.alpha) if target is None else as_target(target)
        self.tau = validate_integer("tau", tau, minimum=1)
        self.beta = validate_number("beta", beta)
        self.exact = validate_boolean("exact", exact)
        self.form = cast(Form, validate_choice("form", form, get_args(Form)))
        self.reduction = validate_reduction(reduction)
        # Directions without which a form has no level.
        always = {"nearest": 0, "paper": 1, "log": 3 * self.tau + 1}[self.form]
        self.eigenbasis = Eigenbasis(self, self.tau, always)
        self.units: int | None = None  # known once the layer has been called
        self.watcher: Any = None  # of a SpectrumMonitor
        self.supports_masking = True  # which it ignores
        # There is nothing to build: the first refresh creates the basis.
        self.built = True
        if exact and keras.backend.backend() == "tensorflow":
            # XLA's eigendecomposition has returned wrong results under TensorFlow.
            self.supports_jit = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SETTINGS and name in vars(self):
            raise AttributeError(
                f"`{name}` of a SpectralActivityRegularizer can't be changed, since "
                "steps that are compiled would not follow. Give the layer another one: "
                f"`keras_powerlaw.add_spectral_regularizer(model, layers, {name}=...)`."
            )
        super().__setattr__(name, value)

    @property
    def basis(self) -> Tensor | None:
        """Eigenvectors v_τ … v_N in columns, `(units, units − τ + 1)`, or None."""
        known = self.eigenbasis.status == "known"
        return self.eigenbasis.vectors if known else None

    def call(self, activity: Tensor, training: bool | None = None) -> Tensor:
        self.units = count_units(activity.shape, self.reduction)
        if self.watcher is not None and not in_second_pass():
            self.watcher(activity)
        if training or in_second_pass():  # one of the two has the activations to shape
            training = self.second_pass == in_second_pass()
            if not training:
                return ops.zeros(())
        basis = self.eigenbasis
        acts = self.exact or basis.status != "absent" or basis.window is not None
        if training and not acts:
            raise ValueError(_NO_BASIS)
        if acts:
            samples = self._samples_of(activity)
            basis.write(ops.stop_gradient(samples), bool(training))
            # With β = 0, nothing of the penalty, not even NaN, reaches the weights.
            if self.beta and (self.exact or basis.status != "absent"):
                counts = training and not self.exact
                self.record(samples, basis.count_step() if counts else None)
        elif self.beta and is_recorded(activity):
            self.record(self._samples_of(activity))  # whose loss is an error
        # Since version 3.14, Keras divides the value that an activity regularizer
        # returns by the batch size. The penalty therefore goes through `losses`.
        return ops.zeros(())

    def penalty(self, activity: Tensor) -> Tensor:
        """The penalty of a batch of activations.

        Args:
            activity: Floating-point tensor of shape `(batch, …)`.

        Returns:
            A scalar, float32.
        """
        return self.loss_of(self._samples_of(activity))

    def _samples_of(self, activity: Tensor) -> Tensor:
        return to_samples(ops.cast(activity, "float32"), self.reduction)

    def loss_of(self, samples: Tensor, step: Tensor | None = None) -> Tensor:
        """The penalty of a batch of samples, `(samples, units)`.

        Args:
            samples: The samples.
            step: In training, the number of steps before this one, which says which
                directions it uses, and how far the penalty may go. Defaults to `None`.
        """
        if not self.exact and self.eigenbasis.status == "absent":
            raise ValueError(_NO_BASIS)
        validate_width(self, samples.shape[1])
        if self.exact:
            return self.penalty_of(exact_variances(samples)[self.tau - 1 :])
        basis = self.eigenbasis
        vectors, n, weights = basis.directions(step)
        variances = projected_variances(samples, vectors)
        decay = relative_levels(self.target, self.tau, samples.shape[1])
        decay = ops.take(ops.convert_to_tensor(decay.astype("float32")), n)
        anchor = bound = None
        if self.form == "paper":
            tail = weights * variances
            anchor = steady_anchor(tail, basis.share, count_examples(samples))
        if self.form == "nearest" and step is not None:
            bound = gradient_bound(samples, self.beta, step + 1)
        distance = spectral_distance(
            variances, decay, weights, self.tau, self.form, anchor, bound
        )
        strength = ops.convert_to_tensor(basis.strength)
        return strength * (self.beta / samples.shape[1]) * distance

    def penalty_of(self, tail: Tensor) -> Tensor:
        """The penalty of the eigenvalues λ_τ … λ_N."""
        return spectral_penalty(tail, self.target, self.tau, self.beta, self.form)

    # The basis is a variable but not a weight, like a seed generator's state. It is
    # in no file and not in `get_weights()`: regularized and plain models can exchange
    # both, and `count_params()` is that of the plain model.
    @property
    def weights(self) -> list[keras.Variable]:
        return []

    def save_own_variables(self, store: Any) -> None:
        pass

    def load_own_variables(self, store: Any) -> None:
        pass

    def get_config(self) -> dict[str, Any]:
        config = {name: getattr(self, name) for name in SETTINGS}
        is_default = self.target == PowerLaw(self.alpha)
        target = (
            None if is_default else keras.saving.serialize_keras_object(self.target)
        )
        return {**config, "target": target}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SpectralActivityRegularizer:
        config = dict(config)
        if "log_ratio" in config:  # a file from before there was `form`
            config["form"] = "log" if config.pop("log_ratio") else "paper"
        if isinstance(config.get("target"), dict):
            target = keras.saving.deserialize_keras_object(config["target"])
            config["target"] = target
        return cls(**config)


def validate_width(regularizer: SpectralActivityRegularizer, units: int) -> None:
    """Raises a `ValueError` if a layer of `units` units is too narrow for its τ."""
    # The ratio at n = τ is 1 by definition, so the penalty needs another eigenvalue.
    if regularizer.tau >= units:
        raise invalid_value(
            "tau",
            f"at most {units - 1}, less than the width of the regularized layer, "
            f"{units} units (with reduction='{regularizer.reduction}')",
            regularizer.tau,
        )
