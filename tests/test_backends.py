"""Reverse-mode differentiation, alike on every backend."""

import numpy as np
from backend import to_numpy
from keras import ops

from keras_powerlaw.backends import vjp

X = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], "float32")


def test_products_are_those_of_the_jacobian_and_can_be_repeated():
    output, product, aux = vjp(
        lambda x: (ops.square(x) * 3, 2 * x), ops.convert_to_tensor(X), has_aux=True
    )
    np.testing.assert_allclose(to_numpy(output), 3 * X**2, rtol=1e-6)
    np.testing.assert_array_equal(to_numpy(aux), 2 * X)
    for scale in (1.0, -2.0):
        found = to_numpy(product(ops.convert_to_tensor(scale * np.ones_like(X))))
        np.testing.assert_allclose(found, 6 * scale * X, rtol=1e-6)


def test_without_a_path_to_the_input_the_gradient_is_zero():
    for function in (
        lambda x: ops.ones((2,)),
        lambda x: ops.cast(ops.cast(x, "int32"), "float32"),  # rounds
    ):
        output, product, _ = vjp(function, ops.convert_to_tensor(X))
        gradient = to_numpy(product(ops.ones_like(output)))
        np.testing.assert_array_equal(gradient, np.zeros_like(X))
