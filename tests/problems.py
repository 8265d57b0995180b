"""What single attacks are handed, without an evaluation around them."""

from contextlib import ExitStack

import numpy as np

from keras_powerlaw.robustness.attacks.attack import Batch
from keras_powerlaw.robustness.classifier import classifier_of


def classifier(model, images):
    return classifier_of(model, images, 500, ExitStack())


def attacked(model, images, labels):
    """A model as a classifier, and its images and labels as one batch."""
    images = np.asarray(images, "float32")
    labels = np.asarray(labels, "int64")
    return classifier(model, images), Batch(images, labels, np.arange(len(images)))
