"""Which training of each penalty is the best, by images kept out of all of them."""

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
