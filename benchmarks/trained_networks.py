"""Networks of the examples to be attacked, trained once and then read from a cache."""

import keras

from benchmarks.forms import PENALTY
from examples.experiments.networks import build_model
from examples.experiments.one_run import train
from examples.experiments.presets import PRESETS
from examples.experiments.results import written_whole

SHALLOW = {"architecture": "shallow", **PRESETS["cpu"]["shallow"]}
# Settings as `build_model` and `train` take them.
NETWORKS = {
    "plain": {**SHALLOW, "condition": "vanilla"},
    "regularized": {**SHALLOW, "condition": "last", **PENALTY},
    "cnn": {
        **{"architecture": "cnn", "condition": "vanilla", "width": 1000},
        **{"epochs": 10, "learning_rate": 1e-3, "batch_size": 500},
    },
}


def trained(name, data, cache):
    """A trained network, from the cache or trained now and saved there.

    Args:
        name: `"plain"` and `"regularized"` are the networks of
            `examples/shallow_mlp.py`, without a penalty and with β = 5. `"cnn"` is the
            paper's convolutional network, plain.
        data: `(x_train, y_train), (x_test, y_test)`.
        cache: Folder of the weights.
    """
    settings, ((x, y), _) = {**NETWORKS[name], "seed": 0}, data
    keras.utils.set_random_seed(settings["seed"])
    model, _ = build_model(settings, x.shape[1:])
    path = cache / f"{name}-{settings['epochs']}epochs.weights.h5"
    if path.exists():
        model.load_weights(path)
        return model
    train(model, settings, x, y)
    cache.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
        model.save_weights(unfinished)
    return model
