"""The table of results: a line of JSON for each run, and what figures need beside it.

A run's file holds everything, a table everything but the spectra and the maps. They
have files of their own: spectra with 4 digits at 200 values of n, which are spaced
logarithmically, and sensitivity maps. `load` reads either.

    runs.jsonl     settings, accuracies, exponents, λ/γ: all that tables print
    spectra.jsonl  a line for each hidden layer of a run
    maps.npz       eq. (9), of the runs of which a figure shows it
"""

import json
import pathlib

import numpy as np

import keras_powerlaw as kp

from .settings import run_name

# Of the sampled spectra.
COUNT, DIGITS = 200, 4
SPECTRA = ("eigenvalues", "floor")


def load(folder):
    """The results in a folder: those of a table, or of a file for each run."""
    folder = pathlib.Path(folder)
    if not (folder / "runs.jsonl").exists():
        return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    results = _lines(folder / "runs.jsonl")
    layers = {name_of(r): r.get("layers", {}) for r in results}
    for line in _lines(folder / "spectra.jsonl"):
        name, layer = line.pop("run"), line.pop("layer")
        layers[name][layer] |= {
            "eigenvalues": expanded(line["sampled"], line["units"]),
            "floor": line["floor"],
        }
    with np.load(folder / "maps.npz") as maps:
        for result in results:
            if name_of(result) in maps:
                result["sensitivity"]["total"] = maps[name_of(result)]
    return results


def save(results, folder):
    """Writes the table of results, and its spectra and maps."""
    rows, spectra, maps = [], [], {}
    for result in results:
        row = {key: result[key] for key in result if key not in ("layers", "history")}
        name = name_of(result)
        if "history" in result:
            history = result["history"]
            row["trained"] = {
                k: rounded(history[k][-1], 5) for k in ("loss", "accuracy")
            }
        if "layers" in result:
            row["layers"] = {}
        for layer, found in result.get("layers", {}).items():
            row["layers"][layer] = {k: found[k] for k in found if k not in SPECTRA}
            if "eigenvalues" in found:
                n = sampled_at(units := len(found["eigenvalues"]))
                sampled = rounded(np.take(found["eigenvalues"], n - 1), DIGITS)
                line = {"run": name, "layer": layer, "units": units}
                spectra.append({**line, "floor": found["floor"], "sampled": sampled})
        if "sensitivity" in result:
            row["sensitivity"] = {**result["sensitivity"]}
            if "total" in row["sensitivity"]:
                maps[name] = np.array(row["sensitivity"].pop("total"), "float16")
        rows.append(row)
    for name, lines in {"runs": rows, "spectra": spectra}.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    np.savez_compressed(folder / "maps.npz", **maps)


def _lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def name_of(result):
    return f"{result['experiment']}/{run_name(result['settings'])}"


def sampled_at(units):
    """The values of n, from 1 to the number of units."""
    return np.unique(np.geomspace(1, units, COUNT).round().astype(int))


def expanded(sampled, units):
    """All eigenvalues from those at `sampled_at`: lines on logarithmic axes."""
    n = np.log(sampled_at(units))
    tiny = np.finfo("float64").tiny
    logarithms = np.log(np.maximum(sampled, tiny))
    return np.exp(np.interp(np.log(np.arange(1, units + 1)), n, logarithms))


def layer_row(spectrum, alpha):
    """What is kept of a layer's spectrum, α being the exponent of its target."""
    return {
        "exponent": spectrum.exponent,
        "exponent_interval": rounded(spectrum.exponent_interval, 4),
        "fit_range": spectrum.fit_range,
        "dimension_90": spectrum.dimension_90,
        "participation_ratio": rounded(spectrum.participation_ratio, 5),
        "ratio": ratio_to_target(spectrum.eigenvalues, alpha),
        "eigenvalues": rounded(spectrum.eigenvalues, 6),
        "floor": rounded(spectrum.floor, 6),
    }


def ratio_to_target(eigenvalues, alpha=1.0, tau=10, last=500):
    """λ/γ: the median of λₙ/γₙ over n = τ + 1 … 500."""
    n = np.arange(tau + 1, min(last, len(eigenvalues)) + 1)
    target = eigenvalues[tau - 1] * (n / tau) ** -alpha
    return float(np.median(np.take(eigenvalues, n - 1) / target))


def report_row(report):
    """What is kept of a `RobustnessReport`: accuracies, but not those of each image."""
    return {
        "images": len(report.clean_correct),
        "epsilons": np.asarray(report.epsilons).tolist(),
        "clean": float(report.clean_accuracy),
        "accuracy": {name: each.tolist() for name, each in report.accuracy.items()},
        "worst_case": report.worst_case_accuracy.tolist(),
        "flags": [str(flag) for flag in report.flags],
    }


def report_of(row):
    """A `RobustnessReport` with the accuracies that `report_row` kept."""

    def correct(accuracy):
        return np.arange(row["images"]) < round(accuracy * row["images"])

    return kp.RobustnessReport(
        epsilons=np.array(row["epsilons"]),
        clean_correct=correct(row["clean"]),
        correct={
            name: np.array([correct(each) for each in accuracies])
            for name, accuracies in row["accuracy"].items()
        },
    )


def accuracies(results, epsilon, attack="pgd"):
    """Of each result on the test images, in per cent; clean without an epsilon."""
    if epsilon is None:
        return [100 * result["test_accuracy"] for result in results]
    rows = [result["robustness"] for result in results]
    return [
        100 * row["accuracy"][attack][row["epsilons"].index(epsilon)] for row in rows
    ]


def worst_cases(results):
    """Of each result under the strong attacks, in per cent; NaN if there were none."""
    return [
        100 * result["strong"]["worst_case"][0] if "strong" in result else np.nan
        for result in results
    ]


def rounded(array, digits):
    """The array as nested lists, each number with so many significant digits."""
    values = [float(f"{value:.{digits}g}") for value in np.ravel(array)]
    return np.reshape(values, np.shape(array)).tolist()
