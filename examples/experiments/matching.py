"""Which training of each penalty is the best, and which strength of each condition.

Both by accuracy under PGD, among those that keep the task, on images kept out.
"""

from .presets import CHOSEN_AT
from .results import accuracies, grouped

# How far the clean accuracy of a network may be below that of the best plain one.
CLEAN_POINTS = 0.02


def penalty_of(settings):
    """What is compared: the condition, and the form of a spectral penalty."""
    form = settings.get("form")
    return settings["condition"] if form is None else f"{settings['condition']}-{form}"


def lowest_clean(results, architecture):
    """Below this clean accuracy, a network does not keep the task."""
    plain = [
        result["kept_out"]["clean"]
        for result in results
        if result["settings"]["architecture"] == architecture
        and result["settings"]["condition"] == "vanilla"
    ]
    return max(plain) - CLEAN_POINTS


def select_best(results):
    """The settings of the best training of each penalty, for each architecture.

    The best has the highest accuracy under PGD on the images kept out, among those that
    keep the task: whose clean accuracy there is not below `lowest_clean`.

    Args:
        results: Of runs, some of them plain.
    """
    best = {}
    for result in results:
        settings, found = result["settings"], result["kept_out"]
        architecture = settings["architecture"]
        if found["clean"] < lowest_clean(results, architecture):
            continue
        key = architecture, penalty_of(settings)
        if key not in best or found["pgd"] > best[key]["kept_out"]["pgd"]:
            best[key] = result
    return [result["settings"] for result in best.values()]


def best_strengths(results):
    """The best β of each condition of one architecture, by the first seed of each.

    The one with the highest accuracy under PGD among those that keep the task, whose
    clean accuracy is at most `CLEAN_POINTS` below the plain network's; if none does,
    the most accurate one. By the images kept out, or by test images if none were.

    Returns:
        A dictionary of β by condition.
    """
    found = {}
    for result in sorted(results, key=lambda result: result["settings"]["seed"]):
        strengths = found.setdefault(result["settings"]["condition"], {})
        strengths.setdefault(result["settings"]["beta"], _chosen_by(result))
    plain, _ = found["vanilla"][None] if "vanilla" in found else (0, 0)

    def preference(accuracy):
        clean, pgd = accuracy
        keeps = clean >= plain - CLEAN_POINTS
        return keeps, pgd if keeps else clean

    return {
        condition: max(strengths, key=lambda beta: preference(strengths[beta]))
        for condition, strengths in found.items()
    }


def of_best_strengths(runs, results):
    """The settings of those runs that have the best β of their condition.

    Of a condition without results, all.
    """
    best = {
        (architecture, condition): beta
        for architecture, found in grouped(
            results, lambda settings: settings["architecture"]
        ).items()
        for condition, beta in best_strengths(found).items()
    }
    return [
        settings
        for settings in runs
        if settings["beta"]
        == best.get((settings["architecture"], settings["condition"]), settings["beta"])
    ]


def _chosen_by(result):
    """Clean accuracy, and that under PGD."""
    if "kept_out" in result:
        return result["kept_out"]["clean"], result["kept_out"]["pgd"]
    [clean], [pgd] = (accuracies([result], epsilon) for epsilon in (None, CHOSEN_AT))
    return clean / 100, pgd / 100
