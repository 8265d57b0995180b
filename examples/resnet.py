"""The spectral penalty on one stage of a network of keras.applications.

Trains a fresh ResNet50 for some steps on synthetic images of 224×224 pixels, with the
penalty on the output of one stage, and prints that output's spectrum before and after,
and the peak of the memory. The feature maps are too wide to flatten (56×56×256 would
be 802,816 units), so the channels are the units.

    python examples/resnet.py
    python examples/resnet.py --layer conv4_block6_out --reduction mean
    python examples/resnet.py --application VGG16 --layer block2_pool --size 32
"""

import argparse
import resource
import sys

import keras
import numpy as np

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
    args = parser.parse_args(argv)

    keras.utils.set_random_seed(0)
    x, y = gratings(args.images, args.size, np.random.default_rng(0))
    plain = getattr(keras.applications, args.application)(
        weights=None,
        input_shape=x.shape[1:],
        classes=CLASSES,
        classifier_activation=None,
    )
    follow_quickly(plain)
    model = kp.add_spectral_regularizer(
        *(plain, args.layer, args.alpha, args.tau, args.beta),
        reduction=args.reduction,
    )
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=keras.backend.backend() == "jax",
    )

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
    # Means over the positions are too few here for training batches to suffice.
    data = {} if args.reduction == "channels" else {"x": x}
    refresh = kp.EigenbasisRefresh(**data, batch_size=args.batch_size)
    model.fit(x, y, args.batch_size, args.epochs, verbose=2, callbacks=[refresh])
    after = measure("after")
    print(f"peak of the memory: {peak_gib():.1f} GiB")
    return before, after


if __name__ == "__main__":
    main()
