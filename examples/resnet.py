"""The spectral penalty on one stage of a network of keras.applications.

Trains a fresh ResNet50 for some steps on synthetic images of 224×224 pixels, with the
penalty on the output of one stage, and prints that output's spectrum before and after,
the time, and the peak of the memory. The feature maps are too wide to flatten
(56×56×256 would be 802,816 units), so the channels are the units.

    python examples/resnet.py
    python examples/resnet.py --layer conv4_block6_out --reduction mean
    python examples/resnet.py --application VGG16 --layer block2_pool --size 32
"""

import argparse
import resource
import sys
import time

import keras
import numpy as np
from experiments.networks import compile_classifier

import keras_powerlaw as kp

CLASSES = 10


def gratings(count, size, rng):
    """Noisy colored gratings; their direction is the class.

    Returns:
        Images in [0, 1], float32 of shape `(count, size, size, 3)`, and labels.
    """
    labels = rng.integers(CLASSES, size=count)
    rows, columns = np.mgrid[:size, :size] / size
    images = np.empty((count, size, size, 3), "float32")
    for image, label in zip(images, labels, strict=True):
        angle = np.pi * label / CLASSES
        across = np.cos(angle) * rows + np.sin(angle) * columns
        waves = np.sin(2 * np.pi * (rng.uniform(4, 8) * across + rng.random()))
        image[:] = 0.5 + 0.25 * waves[..., np.newaxis] * rng.uniform(-1, 1, size=3)
        image += rng.normal(scale=0.1, size=image.shape)
    if keras.config.image_data_format() == "channels_first":
        images = np.moveaxis(images, -1, 1)
    return images.clip(0, 1), labels


def follow_quickly(model):
    """Makes the moving averages of batch normalization follow the training quickly.

    `measure_spectrum` uses them. With the usual momentum of 0.99, they would still be
    those of a fresh network after the few steps here.
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.8


class Epochs(keras.callbacks.Callback):
    """Prints loss and measured exponent of every epoch."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        print(
            f"epoch {epoch + 1}: loss {logs['loss']:.2f}, accuracy "
            f"{logs['accuracy']:.2f}, "
            f"exponent {logs[f'{self.layer}_exponent']:.2f}, "
            f"{time.perf_counter() - self.begin:.0f} s",
            flush=True,
        )


def peak_gib():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--application", default="ResNet50")
    parser.add_argument("--layer", default="conv2_block3_out")
    parser.add_argument("--reduction", default="channels", choices=["channels", "mean"])
    parser.add_argument("--size", type=int, default=224, help="pixels, each way")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--tau", type=int, default=10)
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    keras.utils.set_random_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    x, y = gratings(args.images, args.size, rng)
    plain = getattr(keras.applications, args.application)(
        weights=None,
        input_shape=x.shape[1:],
        classes=CLASSES,
        classifier_activation=None,
    )
    follow_quickly(plain)
    shape = plain.get_layer(args.layer).output.shape
    try:
        kp.add_spectral_regularizer(plain, args.layer)
    except ValueError as error:
        print(f"{args.layer}, {shape}: {error}\n")
    model = kp.add_spectral_regularizer(
        *(plain, args.layer, args.alpha, args.tau, args.beta),
        reduction=args.reduction,
    )
    compile_classifier(model, learning_rate=1e-3)

    def measure(when):
        spectrum = kp.measure_spectrum(
            model,
            x,
            args.layer,
            reduction=args.reduction,
            batch_size=args.batch_size,
            verbose=0,
        )
        print(
            f"{when}: {len(spectrum.eigenvalues)} units, exponent "
            f"{spectrum.exponent:.2f} over n = {spectrum.fit_range[0]} … "
            f"{spectrum.fit_range[1]}, dimension at 90 % {spectrum.dimension_90}",
            flush=True,
        )
        return spectrum

    before = measure("before")
    model.fit(
        x,
        y,
        batch_size=args.batch_size,
        epochs=args.epochs,
        verbose=0,
        callbacks=[
            # Means over the positions are too few here for training batches to suffice.
            kp.EigenbasisRefresh()
            if args.reduction == "channels"
            else kp.EigenbasisRefresh(x, batch_size=args.batch_size),
            Epochs(args.layer),
        ],
    )
    after = measure("after")
    print(f"peak of the memory: {peak_gib():.1f} GiB")
    return before, after


if __name__ == "__main__":
    main()
