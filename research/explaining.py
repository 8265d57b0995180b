"""What might explain a network's robustness: where it is sensitive, and how much."""

import keras
import numpy as np
from keras import ops

from keras_powerlaw.backends import vjp

# Leading principal components of the training images.
COMPONENTS = 50
# A unit of tanh beyond this is called saturated.
SATURATED = 0.95


def explain(model, x_train, images, labels):
    """Figures of the gradient of the margin, and of the units.

    The margin is the logit of the true class less the largest of the others.

    Args:
        model: A trained model that returns logits.
        x_train: The training images, whose principal components are meant.
        images: Test images.
        labels: Their classes.

    Returns:
        A dictionary: `gradient`, the mean Euclidean norm of the gradient with respect
        to an image; `leading`, the share of its energy along the first 50 principal
        components; and `saturated`, the share of the first dense layer's activations
        beyond ±0.95.
    """
    logits, product, _ = vjp(
        lambda x: model(x, training=False), ops.convert_to_tensor(images)
    )
    logits = np.array(ops.convert_to_numpy(logits))
    rows = np.arange(len(labels))
    margin = np.zeros_like(logits)
    margin[rows, labels] = 1
    logits[rows, labels] = -np.inf
    margin[rows, logits.argmax(axis=1)] = -1
    gradient = ops.convert_to_numpy(product(ops.convert_to_tensor(margin)))
    gradient = gradient.reshape(len(gradient), -1)
    flat = x_train.reshape(len(x_train), -1)
    _, components = np.linalg.eigh(np.cov(flat, rowvar=False))
    leading = gradient @ components[:, ::-1][:, :COMPONENTS]
    dense = next(each for each in model.layers if isinstance(each, keras.layers.Dense))
    units = keras.Model(model.inputs[0], dense.output)(images)
    return {
        "gradient": float(np.mean(np.linalg.norm(gradient, axis=1))),
        "leading": float(np.sum(leading**2) / np.sum(gradient**2)),
        "saturated": float(np.mean(np.abs(ops.convert_to_numpy(units)) > SATURATED)),
    }
