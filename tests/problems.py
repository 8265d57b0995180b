"""What single attacks are handed, without an evaluation around them."""

import numpy as np

from keras_powerlaw.robustness.attacks.attack import Batch
from keras_powerlaw.robustness.classifier import classifier_of


def attacked(model, images, labels):
    """A model as a classifier, and its images and labels as one batch."""
    images = np.asarray(images, "float32")
    labels = np.asarray(labels, "int64")
    return classifier_of(model, images), Batch(images, labels, np.arange(len(images)))
