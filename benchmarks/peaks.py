"""Memory of training steps and of attacks, each in a process of its own. On Linux."""

import argparse
import gc
import json

import numpy as np

import keras_powerlaw as kp
from benchmarks.measuring import forget_peak, in_a_process, memory
from benchmarks.networks import mnist, shallow
from benchmarks.steps import epoch_seconds, with_basis


def cases(args):
    for form in args.forms:
        settings = {"form": form, "width": args.width, "batch": args.batch}
        yield settings, lambda settings: by_itself("steps", settings)


def attack_cases(args):
    for images in (1000, 10_000):
        yield {"images": images}, lambda settings: by_itself("attacks", settings)


def by_itself(what, settings):
    return in_a_process("benchmarks.peaks", what, json.dumps(settings))


def steps(form, width, batch, count=5):
    """MiB before a few training steps, and the peaks until then and in them."""
    (x, y), _ = mnist("random")
    model = with_basis(form, width, x[: max(count * batch, 2 * width)])
    result = {"before_mib": memory("VmRSS"), "peak_before_mib": memory("VmHWM")}
    forget_peak()
    epoch_seconds(model, x, y, batch, min(count, len(x) // batch))
    return {**result, "peak_mib": memory("VmHWM")}


def attacks(images):
    """MiB before an evaluation, and its peak."""
    model = shallow("plain", 2000)
    rng = np.random.default_rng(0)
    x = rng.random((images, 28, 28, 1), dtype="float32")
    y = model.predict(x, verbose=0).argmax(axis=1)  # none is left out as wrong
    names = ["fgsm", "pgd", "noise", "uniform_noise", "pgd_ce", "pgd_dlr"]

    def evaluate(x, y):
        options = {"pgd_steps": 10, "restarts": 2, "verbose": 0}
        kp.evaluate_robustness(model, x, y, [0.05, 0.1], names, **options)

    evaluate(x[:500], y[:500])  # compiles
    gc.collect()
    forget_peak()
    before = memory("VmRSS")
    evaluate(x, y)
    sizes = {"input_mib": x.nbytes / 2**20, "before_mib": before}
    return {k: round(v, 1) for k, v in {**sizes, "peak_mib": memory("VmHWM")}.items()}


def table(results):
    columns = ("before_mib", "peak_before_mib", "peak_mib")
    yield "width", "batch", "form", "before the steps", "peak until then", "in them"
    for result in results:
        yield (
            *(result["settings"][key] for key in ("width", "batch", "form")),
            *(f"{result[column]:,.0f} MiB" for column in columns),
        )


def attack_table(results):
    yield "images", "images themselves", "before", "peak"
    for result in results:
        columns = ("input_mib", "before_mib", "peak_mib")
        sizes = (f"{result[column]:,.1f} MiB" for column in columns)
        yield result["settings"]["images"], *sizes


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("steps", "attacks"))
    parser.add_argument("settings", type=json.loads)
    args = parser.parse_args()
    measure = {"steps": steps, "attacks": attacks}[args.what]
    print(json.dumps(measure(**args.settings)))
