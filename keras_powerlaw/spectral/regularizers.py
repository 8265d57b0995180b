"""The spectral regularizer, and adding it to a model that exists."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import threading
import weakref
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.backend import get_stateless_scope  # nothing public tells the scope

from keras_powerlaw.spectral.activity import find_layer, flatten_layers, output_units
from keras_powerlaw.spectral.spectra import (
    check_reduction,
    exact_variances,
    power_law_penalty,
    projected_variances,
    to_samples,
)
from keras_powerlaw.support.arguments import invalid_value
from keras_powerlaw.support.memory import check_memory

# The ways into Keras that have no public name: without them, the penalty would silently
# be left out.
for _name in ("_get_own_losses", "_clear_losses", "_untrack_variable"):
    if not hasattr(keras.layers.Layer, _name):
        raise ImportError(
            f"This keras_powerlaw does not work with Keras {keras.__version__}, whose "
            f"layers have no `{_name}`. Install a newer one of the first, or an older "
            "one of the second."
        )


@dataclasses.dataclass
class _Call:
    """A batch of activations and, once it was asked for, its penalty."""

    activity: Any
    penalty: Any = None


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
class SpectralActivityRegularizer(keras.layers.Layer, keras.regularizers.Regularizer):
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
        alpha=1.0,
        tau=10,
        beta=1.0,
        *,
        exact=False,
        log_ratio=False,
        reduction="flatten",
    ):
        super().__init__(dtype="float32")
        self.alpha = checked_number("alpha", alpha)
        self.tau = _checked_tau(tau)
        self.beta = checked_number("beta", beta)
        self.exact = _checked_boolean("exact", exact)
        self.log_ratio = _checked_boolean("log_ratio", log_ratio)
        check_reduction(reduction)
        self.reduction = reduction
        self.basis = None
        self._calls_of_scopes = weakref.WeakKeyDictionary()
        self._calls_of_thread = threading.local()
        # The basis comes with the first refresh: there is nothing to build before.
        self.built = True
        if exact and keras.backend.backend() == "tensorflow":
            # XLA's eigendecomposition has returned wrong results under TensorFlow.
            self.supports_jit = False

    def call(self, activity, training=None):
        if self.exact or self.basis is not None:
            self._calls().append(_Call(activity))
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

    # The penalty is computed when the losses are asked for, as in training and in
    # `evaluate()`. `predict()`, attacks and exported graphs do without.
    def _get_own_losses(self):
        calls = self._calls()
        for call in calls:
            if call.penalty is None:
                call.penalty = self.penalty(call.activity)
        return [call.penalty for call in calls]

    def _clear_losses(self):
        super()._clear_losses()
        # Keras opens a scope for each JAX training step, but clears the losses in it at
        # each call of a layer, so that a shared layer would keep only its last one.
        if get_stateless_scope() is None:
            self._calls().clear()

    def _calls(self):
        """The calls since the model was last called, in this scope or thread.

        Each replica of `tf.distribute.MirroredStrategy` is a thread, and they take
        turns.
        """
        scope = get_stateless_scope()
        if scope is not None:
            return self._calls_of_scopes.setdefault(scope, [])
        return vars(self._calls_of_thread).setdefault("calls", [])

    def penalty(self, activity):
        """The value of eq. (2) for a batch of activations.

        Args:
            activity: Floating tensor of shape `(batch, …)`.

        Returns:
            A scalar, float32.
        """
        activity = to_samples(ops.cast(activity, "float32"), self.reduction)
        self.check_width(activity.shape[1])
        if self.exact:
            tail = exact_variances(activity)[self.tau - 1 :]
        elif self.basis is not None:
            tail = projected_variances(activity, self.basis)
        else:
            raise ValueError(
                "There is no eigenbasis yet: call `keras_powerlaw."
                "refresh_eigenbasis(model, x_train)` first."
            )
        return self.penalty_of_variances(tail)

    def penalty_of_variances(self, tail):
        """The value of eq. (2) for the eigenvalues λ_τ … λ_N."""
        return power_law_penalty(tail, self.alpha, self.tau, self.beta, self.log_ratio)

    def set_basis(self, eigenvectors):
        """Stores the eigenvectors that the penalty needs.

        Args:
            eigenvectors: Array of shape `(units, units)`, one eigenvector per column,
                sorted by eigenvalue, largest first.
        """
        self.check_width(len(eigenvectors))
        self.restore_basis(eigenvectors[:, self.tau - 1 :])

    def restore_basis(self, needed):
        """Stores what `basis` held before: the eigenvectors from the τ-th on."""
        if self.basis is None:
            self.basis = self.add_weight(
                name="basis",
                shape=needed.shape,
                dtype=product_dtype(len(needed)),
                autocast=False,
                initializer="zeros",
                trainable=False,
            )
            if keras.backend.backend() == "tensorflow":
                # It works untracked there, and so is in no exported graph.
                self._untrack_variable(self.basis)
        self.basis.assign(needed)

    def check_width(self, units):
        """Raises a `ValueError` if a layer of `units` units is too narrow for τ."""
        if self.tau > units:
            raise invalid_value(
                "tau",
                f"at most the width of the regularized layer, {units} units (with "
                f"reduction='{self.reduction}')",
                self.tau,
            )

    # The basis is a variable like a seed generator's state, not a weight: it is in no
    # file and not in `get_weights()`, so that regularized and plain models can exchange
    # both, and `count_params()` is that of the plain model.
    @property
    def weights(self):
        return []

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass

    def get_config(self):
        return {
            "alpha": self.alpha,
            "tau": self.tau,
            "beta": self.beta,
            "exact": self.exact,
            "log_ratio": self.log_ratio,
            "reduction": self.reduction,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def product_dtype(units):
    """The dtype of a basis of `units` units, and of the products with it.

    The 8 significant bits of bfloat16 change a variance by 1e-3 of itself and 2e-5 of
    the units' mean variance, where the sampling error in a batch of B examples is
    √(2/B) of itself. It is taken where it was measured to be twice as fast as float32:
    on processors with instructions for it, for products large enough to matter.
    """
    if (
        units >= 512
        and keras.backend.backend() in ("tensorflow", "torch")
        and "cpu" in str(ops.zeros(()).device).lower()
        and _processor_has_bfloat16()
    ):
        return "bfloat16"
    return "float32"


@functools.cache
def _processor_has_bfloat16():
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def regularized_layers(model):
    """The layers of `model` that have a `SpectralActivityRegularizer`.

    Raises:
        ValueError: If two of them share one regularizer.
    """
    found = [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer.activity_regularizer, SpectralActivityRegularizer)
    ]
    owners = {}
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


def add_spectral_regularizer(
    model,
    layers,
    alpha=1.0,
    tau=10,
    beta=1.0,
    *,
    exact=False,
    log_ratio=False,
    reduction="flatten",
):
    """Gives layers of an existing model a `SpectralActivityRegularizer`.

    Args:
        model: A Sequential or Functional model, fresh or trained, compiled or not. It
            is left as it is.
        layers: Layers of the model, or their names: one, or a list.
        alpha: Exponent α; a number for all layers, or a list with one for each.
        tau: First eigenvalue τ; likewise.
        beta: Strength β; likewise.
        exact: See `SpectralActivityRegularizer`.
        log_ratio: See `SpectralActivityRegularizer`.
        reduction: Likewise, the same for all layers.

    Returns:
        A new model with the same weights, whose predictions are equal bit by bit. If
        `model` is compiled, so is the new one, with the same settings and the state
        of the optimizer.

    Raises:
        ValueError: If the model is subclassed, a layer does not exist, has another
            activity regularizer, or has fewer than τ units or too many for the memory
            there is, or a list has not one entry per layer.

    Example:

    ```python
    import keras
    import keras_powerlaw as kp

    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(50, activation="tanh", name="first"),
            keras.layers.Dense(50, activation="tanh", name="last"),
            keras.layers.Dense(10),
        ]
    )
    regularized = kp.add_spectral_regularizer(
        model, ["first", "last"], alpha=[1.5, 1.0], tau=5
    )
    ```

    Reference:
        Nassar et al. (2020), eq. (2) and section 4.3; exponents that vary with depth
        are the outlook of its section 5.
    """
    if not isinstance(model, keras.Sequential) and not is_functional(model):
        raise invalid_value(
            "model",
            "a Sequential or Functional model (in a subclassed model, pass "
            "`activity_regularizer=keras_powerlaw.SpectralActivityRegularizer(...)` to "
            "the layer where it is created)",
            f"{model} (of type {type(model)})",
        )
    if isinstance(layers, str | keras.layers.Layer):
        layers = [layers]
    if not layers:
        raise invalid_value("layers", "at least one layer", layers)
    targets = [find_layer(model, layer) for layer in layers]
    shared = {"exact": exact, "log_ratio": log_ratio, "reduction": reduction}
    settings = [
        {"alpha": a, "tau": t, "beta": b, **shared}
        for a, t, b in zip(
            _one_per_layer("alpha", alpha, targets),
            _one_per_layer("tau", tau, targets),
            _one_per_layer("beta", beta, targets),
            strict=True,
        )
    ]
    regularizers, widths = {}, []
    for layer, setting in zip(targets, settings, strict=True):
        present = layer.activity_regularizer
        if present is not None and not isinstance(present, SpectralActivityRegularizer):
            raise invalid_value(
                "layers",
                "layers without another activity regularizer",
                f"'{layer.name}', which has {present}",
            )
        regularizer = SpectralActivityRegularizer(**setting)
        units = output_units(layer, reduction)
        if units is not None:
            regularizer.check_width(units)
            widths.append((layer.name, units))
        regularizers[id(layer)] = keras.regularizers.serialize(regularizer)
    check_memory(widths)

    def clone(layer):
        config = layer.get_config()
        if id(layer) in regularizers:
            config["activity_regularizer"] = regularizers[id(layer)]
        return layer.__class__.from_config(config)

    regularized = keras.models.clone_model(model, clone_function=clone, recursive=True)
    if model.built:
        regularized.set_weights(model.get_weights())
    if model.compiled:
        regularized.compile_from_config(model.get_compile_config())
        if model.optimizer.built:
            regularized.optimizer.build(regularized.trainable_variables)
            for new, old in zip(
                regularized.optimizer.variables, model.optimizer.variables, strict=True
            ):
                # A copy: a JAX training step consumes the arrays it is given.
                new.assign(np.array(ops.convert_to_numpy(old)))
    return regularized


def is_functional(model):
    # `keras.Model(inputs, outputs)` makes one; its class is not public.
    return isinstance(model, keras.Model) and type(model).__name__ == "Functional"


def _one_per_layer(name, value, layers):
    if not isinstance(value, list | tuple):
        return [value] * len(layers)
    if len(value) != len(layers):
        raise invalid_value(
            name,
            f"a number, or a list with one for each of the {len(layers)} layers",
            value,
        )
    return value


def checked_number(name, value):
    if (
        not isinstance(value, numbers.Real)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value < 0
    ):
        raise invalid_value(name, "a finite number of at least 0", repr(value))
    return float(value)


def _checked_boolean(name, value):
    if not isinstance(value, bool):
        raise invalid_value(name, "a boolean", repr(value))
    return value


def _checked_tau(tau):
    if not isinstance(tau, numbers.Integral) or isinstance(tau, bool) or tau < 1:
        raise invalid_value("tau", "an integer of at least 1", repr(tau))
    return int(tau)
