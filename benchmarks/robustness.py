"""The strong attacks on networks of MNIST, and the flags that they raise.

Training the networks takes about ten minutes on two cores.
"""

import keras

import keras_powerlaw as kp
from benchmarks.networks import PENALTY, mnist
from research.networks import build_model
from research.presets import EPSILONS, PRESETS
from research.table import report_row
from research.training import train

SHALLOW = {"architecture": "shallow", **PRESETS["cpu"]["shallow"]}
# Settings as `build_model` and `train` take them: the networks of section 4.1, with a
# penalty and without, and the paper's convolutional one, plain.
NETWORKS = {
    "plain": {**SHALLOW, "condition": "vanilla"},
    "regularized": {**SHALLOW, "condition": "last", **PENALTY},
    "cnn": {
        **{"architecture": "cnn", "condition": "vanilla", "width": 1000},
        **{"epochs": 10, "learning_rate": 1e-3, "batch_size": 500},
    },
}


def cases(args):
    for network in NETWORKS:
        settings = {"network": network, "images": args.strong or 500}
        yield settings, lambda settings: flags(**settings, data=mnist(args.data))


def flags(network, images, data):
    """What the strong attacks find on a network, and the flags that are raised."""
    settings, ((x, y), (x_test, y_test)) = {**NETWORKS[network], "seed": 0}, data
    keras.utils.set_random_seed(settings["seed"])
    model, _ = build_model(settings, x.shape[1:])
    train(model, settings, x, y)
    attacked = x_test[:images], y_test[:images]
    return report_row(
        kp.evaluate_robustness(model, *attacked, EPSILONS, "strong", verbose=0)
    )


def table(results):
    """Accuracies in per cent, and the flags."""
    names = ["fgsm", "pgd", "noise", "uniform_noise"]
    names += ["pgd_ce", "pgd_dlr", "autopgd", "square"]
    yield "network", "clean", "ε", *names, "worst case", "flags"
    for result in results:
        for index, epsilon in enumerate(result["epsilons"]):
            accuracies = [result["accuracy"][name][index] for name in names]
            accuracies.append(result["worst_case"][index])
            yield (
                *(result["settings"]["network"], f"{100 * result['clean']:.1f}"),
                *(f"{epsilon:g}", *(f"{100 * each:.1f}" for each in accuracies)),
                "" if index else " ".join(result["flags"]),
            )
