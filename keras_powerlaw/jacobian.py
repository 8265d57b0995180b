"""Regularizing the input-output Jacobian, eq. (11)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_powerlaw.activations import select_inputs
from keras_powerlaw.arguments import (
    Tensor,
    invalid_value,
    is_integer,
    validate_number,
)
from keras_powerlaw.backends import share_of_replica, vjp
from keras_powerlaw.keras_internals import compile_arguments, compiled_loss, mask_of
from keras_powerlaw.layers import is_sequential_or_functional
from keras_powerlaw.units import to_samples


def add_jacobian_regularizer(
    model: keras.Model, beta: float = 0.01, *, projections: int | None = None
) -> keras.Model:
    """Adds a penalty on the input-output Jacobian to the loss of an existing model.

    By default, the penalty is the mean squared norm of the gradient of the loss with
    respect to the input,

        R = β/B ∑_b ‖∂L(f(s_b), y_b) / ∂s_b‖²

    With `projections=P`, it is the mean squared Frobenius norm of the Jacobian of the C
    outputs, estimated from P random directions uniform on the unit sphere,

        R = β/B ∑_b C/P ∑_p ‖v_pbᵀ J_b‖²,  J_b = ∂f(s_b) / ∂s_b

    The estimate is unbiased, and exact for P = C, when v runs over the standard basis.

    The returned model works with ordinary `compile()` and `fit()`, and with
    `evaluate()`, whose loss includes the penalty as it does every regularizer. Spectral
    penalties and other losses of the layers are kept, and counted once. f is the
    network in inference mode, so that L_b depends on s_b alone, and batch normalization
    and dropout see each batch once. A step costs one forward pass more than double
    backpropagation. Sample weights do not affect the penalty.

    Args:
        model: A built Sequential or Functional model with one floating-point input
            and one output, compiled or not. To use both penalties, call
            `add_spectral_regularizer` first.
        beta: Strength β, at least 0. Defaults to 0.01.
        projections: None for the gradient of the loss; the model then needs exactly one
            loss, which returns one value per example. Or the number P of random
            directions, from 1 to the number of classes C, for outputs of shape
            `(batch, C)`. Defaults to None.

    Returns:
        A Functional model that *shares* the layers of `model` and, if that is compiled,
        its optimizer and settings: training one trains both, and `model` remains the
        plain network. The returned model is saved and loaded with the penalty; its
        weight files and those of `model` are interchangeable.

    Raises:
        ValueError: If the model is subclassed, not built, or has several inputs or
            outputs; if an argument is outside its range; or, in a training step, if
            the loss is not of the required form.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_powerlaw as kp

    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(50, activation="tanh"),
            keras.layers.Dense(10),
        ]
    )
    robust = kp.add_jacobian_regularizer(model, beta=0.01)
    robust.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 20)), rng.integers(10, size=500)
    robust.fit(x, y, epochs=2, verbose=0)
    ```

    Reference:
        Nassar et al. (2020), eq. (11). [Hoffman et al.,
        2019](https://arxiv.org/abs/1908.02729), for the projections. They and the code
        of Nassar et al. halve the squared norm, so that their β is half of this one.
    """
    if not is_sequential_or_functional(model) or not _trains_as_keras_does(model):
        raise invalid_value(
            "model",
            "a Sequential or Functional model, without a `compile()` or a training "
            "step of its own",
            f"{model} (of type {type(model)})",
        )
    if not model.built or len(model.inputs) != 1 or len(model.outputs) != 1:
        state = "not built"
        if model.built:
            state = f"{len(model.inputs)} inputs and {len(model.outputs)} outputs"
        raise invalid_value(
            "model",
            "a built model with one input and one output (a Sequential model is built "
            "once it begins with `keras.Input(shape)`, or has been called)",
            f"'{model.name}', {state}",
        )
    options = {"name": model.name, "beta": beta, "projections": projections}
    ends = model.inputs[0], model.outputs[0]
    if not isinstance(model, keras.Sequential):  # may be in dictionaries
        ends = model.input, model.output
    regularized = JacobianRegularizedModel(*ends, **options)
    if model.compiled:
        arguments = {**compile_arguments(model), "optimizer": model.optimizer}
        regularized.compile(**arguments)
        regularized.run_eagerly = model.run_eagerly
    return regularized


def _trains_as_keras_does(model: keras.Model) -> bool:
    return all(
        getattr(type(model), name) is getattr(keras.Model, name)
        for name in ("train_step", "test_step", "compute_loss", "compile")
    )


@keras.saving.register_keras_serializable(package="keras_powerlaw")
class JacobianRegularizedModel(keras.Model):  # type: ignore[misc]
    """The model that `add_jacobian_regularizer` returns and documents."""

    # From `*args` and `**kwargs`, Keras recognizes that the constructor accepts all
    # arguments of a Functional model, and saves and loads this one in the same way.
    def __init__(
        self,
        *args: Any,
        beta: float | None = None,
        projections: int | None = None,
        **kwargs: Any,
    ) -> None:
        if beta is None:  # `clone_model` passes no other arguments
            raise ValueError(
                "keras.models.clone_model() does not know of the Jacobian penalty. "
                "Clone the plain model, and call add_jacobian_regularizer() again."
            )
        super().__init__(*args, **kwargs)
        self.beta = validate_number("beta", beta)
        if not keras.backend.is_float_dtype(self.inputs[0].dtype):
            raise invalid_value(
                "model",
                "a model with a floating-point input, since there is no gradient with "
                "respect to integers",
                f"an input of dtype {self.inputs[0].dtype}",
            )
        shape = tuple(self.outputs[0].shape)
        if projections is not None:
            if len(shape) != 2:
                raise invalid_value(
                    "model",
                    "outputs of shape (batch, classes) for random projections",
                    f"outputs of shape {shape}",
                )
            if not is_integer(projections) or not 1 <= projections <= shape[1]:
                raise invalid_value(
                    "projections",
                    f"None or an integer from 1 to {shape[1]} (the number of classes)",
                    repr(projections),
                )
            projections = int(projections)
        self.projections = projections
        self.seed_generator = keras.random.SeedGenerator()

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        # Computed first, since the penalty's forward pass clears the layers' losses.
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        penalty = ops.cast(self.beta * self.jacobian_penalty(x, y), loss.dtype)
        return loss + share_of_replica(penalty)

    def jacobian_penalty(self, x: Any, y: Any) -> Tensor:
        """The penalty for a batch, without its factor β."""
        [x] = keras.tree.flatten(select_inputs(self, x))
        x = ops.cast(x, self.inputs[0].dtype)

        def outputs(images: Tensor) -> Tensor:
            images = keras.tree.pack_sequence_as(self.input, [images])
            [outputs] = keras.tree.flatten(self(images, training=False))
            return outputs

        if self.projections is None:
            loss = self._loss_per_example(y)
            return loss_gradient_penalty(lambda images: loss(outputs(images)), x)
        batch, classes = ops.shape(x)[0], self.outputs[0].shape[1]
        if self.projections == classes:
            directions = standard_basis(batch, classes)
        else:
            directions = random_directions(
                self.projections, batch, classes, self.seed_generator
            )
        return output_jacobian_penalty(outputs, x, directions)

    def _loss_per_example(self, y: Any) -> LossPerExample:
        """The compiled loss, as a function from outputs to losses, `(batch,)`."""
        losses = keras.tree.flatten(self.loss)
        if len(losses) != 1 or losses[0] is None or y is None:
            raise ValueError(
                "The Jacobian penalty is the gradient of the loss: it needs "
                "`compile(loss=...)` with exactly one loss, and labels. Received: "
                f"loss={self.loss}, y={y}"
            )
        [weight] = keras.tree.flatten(
            compile_arguments(self).get("loss_weights") or 1.0
        )
        labels = ops.convert_to_tensor(keras.tree.flatten(y)[0])
        return loss_per_example(losses[0], labels, weight)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "beta": self.beta,
            "projections": self.projections,
        }


def loss_gradient_penalty(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Mean squared norm of the per-example gradient of the loss.

    1/B Σ_b ‖∂L_b / ∂s_b‖²

    Args:
        loss: Function from a batch of inputs to the losses L_b of its examples, shape
            `(batch,)`. L_b must not depend on any example other than s_b.
        x: The inputs s, floating-point tensor of shape `(batch, …)`.

    Returns:
        A scalar, float32.

    Reference:
        Nassar et al. (2020), eq. (11), without its factor β.
    """
    losses, product, _ = vjp(loss, x)
    return ops.mean(_squared_norms(product(ops.ones_like(losses))))


def output_jacobian_penalty(
    outputs: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor
) -> Tensor:
    """Mean squared Frobenius norm of the Jacobian of the outputs, or its estimate.

    1/B Σ_b C/P Σ_p ‖v_pbᵀ J_b‖²,  J_b = ∂z_b / ∂s_b

    For directions v drawn uniformly from the unit sphere in C dimensions, this is an
    unbiased estimate of 1/B Σ_b ‖J_b‖². For the C vectors of an orthonormal basis it
    is exact.

    Args:
        outputs: Function from a batch of inputs to the outputs z, shape `(batch, C)`.
        x: The inputs s, floating-point tensor of shape `(batch, …)`.
        directions: Unit vectors v, tensor of shape `(P, batch, C)`.

    Returns:
        A scalar, float32.

    Reference:
        Hoffman et al. (2019), *Robust learning with Jacobian regularization*, without
        their factor 1/2.
    """
    z, product, _ = vjp(outputs, x)
    count, _, classes = directions.shape
    norms = [
        _squared_norms(product(ops.cast(directions[index], z.dtype)))
        for index in range(count)
    ]
    return ops.mean(sum(norms)) * (classes / count)


def random_directions(
    count: int, batch: Tensor, classes: int, seed: keras.random.SeedGenerator
) -> Tensor:
    """Random directions, uniform on the unit sphere: `(count, batch, classes)`."""
    normal = keras.random.normal((count, batch, classes), dtype="float32", seed=seed)
    return normal / ops.norm(normal, axis=-1, keepdims=True)


def standard_basis(batch: Tensor, classes: int) -> Tensor:
    """The unit vector of each class, for every example: `(classes, batch, classes)`."""
    eye = ops.eye(classes, dtype="float32")
    return ops.broadcast_to(eye[:, None], (classes, batch, classes))


def _squared_norms(gradients: Tensor) -> Tensor:
    """Squared norms, `(batch, …)` to `(batch,)`: float32, as float16 is too narrow."""
    return ops.sum(ops.square(to_samples(ops.cast(gradients, "float32"))), axis=1)


# Maps the outputs of a model to the losses of the examples, `(batch,)`.
LossPerExample = Callable[[Tensor], Tensor]


def loss_per_example(loss: Any, y: Any, weight: float = 1.0) -> LossPerExample:
    """The losses L_b of which the compiled loss is the mean, or the sum.

    Args:
        loss: What `compile(loss=...)` takes for one output: a name, a function, a
            `keras.losses.Loss` or its class.
        y: The labels, a tensor of shape `(batch, …)`.
        weight: The factor that `compile(loss_weights=...)` gives it.

    Raises:
        ValueError: When the losses are computed, if there is not one per example.
    """

    def per_example(outputs: Tensor) -> Tensor:
        resolved = compiled_loss(loss, y, outputs)
        _refuse_ctc(resolved)
        targets, predictions = (
            ops.convert_to_tensor(each, dtype=resolved.dtype) for each in (y, outputs)
        )
        values = resolved.call(targets, predictions)  # which does not reduce
        # A reduction over the batch leaves a fixed number of values.
        if not len(values.shape) or values.shape[0] not in (outputs.shape[0], None):
            raise ValueError(
                "The Jacobian penalty needs a loss that returns one value per "
                "example, which does not depend on the others (Dice and Tversky need "
                f"an `axis` that leaves out 0). Received: loss={loss}, which returns "
                f"values of shape {tuple(values.shape)}"
            )
        is_sum = resolved.reduction == "sum"
        masks = [mask_of(outputs), mask_of(values)]
        samples = to_samples(_masked(values, masks, is_sum))
        return weight * (ops.sum if is_sum else ops.mean)(samples, axis=1)

    return per_example


def _refuse_ctc(loss: Any) -> None:
    is_ctc = keras.losses.ctc in (loss, getattr(loss, "fn", None))
    backend = keras.backend.backend()
    if is_ctc and backend != "jax":
        raise invalid_value(
            "loss",
            "a loss that can be differentiated twice, since the penalty is a gradient "
            f"itself (on the {backend} backend, CTC cannot; on JAX it can. Or penalize "
            "the Jacobian of the outputs, by `projections`)",
            loss,
        )


def _masked(values: Tensor, masks: list[Tensor | None], is_sum: bool) -> Tensor:
    """Losses that are zero where a mask is, and in a mean larger for the others."""
    weights: Tensor = None
    for mask in masks:
        if mask is not None:
            mask = ops.cast(mask, values.dtype)
            weights = mask if weights is None else weights * mask
    if weights is None:
        return values
    if not is_sum:
        weights = ops.divide_no_nan(weights, ops.mean(weights))
    return values * weights
