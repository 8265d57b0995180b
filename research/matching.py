"""Which training of each penalty is the best, and which strength of each condition.

Both by accuracy under PGD, among those that keep the task, on images kept out.
"""

from .conditions import penalty_of
from .presets import CHOSEN_AT
from .settings import grouped
from .table import accuracies

# How far the clean accuracy of a network may be below that of the best plain one.
CLEAN_POINTS = 0.02


def on_unseen(result):
    """Clean accuracy, and that under PGD, by which trainings are chosen.

    On the images kept out, or on test images if none were.
    """
    if "kept_out" in result:
        return result["kept_out"]["clean"], result["kept_out"]["pgd"]
    [clean], [pgd] = (accuracies([result], epsilon) for epsilon in (None, CHOSEN_AT))
    return clean / 100, pgd / 100


def lowest_clean(results):
    """Below this clean accuracy, a network of one architecture loses the task."""
    plain = [
        on_unseen(result)[0]
        for result in results
        if result["settings"]["condition"] == "vanilla"
    ]
    return max(plain) - CLEAN_POINTS


def select_best(results):
    """The settings of the best training of each penalty, for each architecture.

    The best has the highest accuracy under PGD on the images kept out, among those that
    keep the task: whose clean accuracy there is not below `lowest_clean`.

    Args:
        results: Of runs, some of them plain.
    """
    least = {
        architecture: lowest_clean(found)
        for architecture, found in grouped(results, _architecture).items()
    }
    best = {}
    for result in results:
        settings = result["settings"]
        clean, pgd = on_unseen(result)
        if clean < least[settings["architecture"]]:
            continue
        key = settings["architecture"], penalty_of(settings)
        if key not in best or pgd > on_unseen(best[key])[1]:
            best[key] = result
    return [result["settings"] for result in best.values()]


def best_strengths(results):
    """The best β of each condition of one architecture, by the first seed of each.

    The one with the highest accuracy under PGD among those that keep the task: whose
    clean accuracy is not below `lowest_clean`; if none does, the most accurate one.

    Returns:
        A dictionary of β by condition.
    """
    first = {}
    for result in sorted(results, key=lambda result: result["settings"]["seed"]):
        settings = result["settings"]
        first.setdefault((settings["condition"], settings["beta"]), result)
    plain = first.get(("vanilla", None))
    least = lowest_clean([plain]) if plain else 0

    def preference(result):
        clean, pgd = on_unseen(result)
        keeps = clean >= least
        return keeps, pgd if keeps else clean

    strengths = grouped(first.values(), lambda settings: settings["condition"])
    return {
        condition: max(found, key=preference)["settings"]["beta"]
        for condition, found in strengths.items()
    }


def of_best_strengths(runs, results):
    """The settings of those runs that have the best β of their condition.

    Of a condition without results, all.
    """
    best = {
        (architecture, condition): beta
        for architecture, found in grouped(results, _architecture).items()
        for condition, beta in best_strengths(found).items()
    }
    return [
        settings
        for settings in runs
        if settings["beta"]
        == best.get((settings["architecture"], settings["condition"]), settings["beta"])
    ]


def _architecture(settings):
    return settings["architecture"]
