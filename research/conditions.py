"""The architectures and conditions that are compared, and what the figures call them.

`networks.build_model` says what each of them means; `presets` gives the sizes.
"""

SHALLOW = ("shallow", "shallow-nobn")
DEEP = ("mlp", "cnn")
ARCHITECTURES = {
    "shallow": "one hidden layer, batch norm",
    "shallow-nobn": "one hidden layer",
    "mlp": "MLP",
    "cnn": "CNN",
}

CONDITIONS = {
    "vanilla": "Vanilla",
    "whitened": "Whitened",
    "last": "SpecReg, last layer",
    "whitened-last": "Whitened, SpecReg, last layer",
    "all": "SpecReg, all layers",
    "tapered": "SpecReg, all layers, falling α",
    "jacobian": "Jacobian, eq. (11)",
    "output-jacobian": "Jacobian of the outputs",
    "colored": "Colored weights",
    "colored-last": "Colored weights, SpecReg",
    "constructed": "By construction",
}
# Of them, those of the control experiment alone.
CONTROLS = ("colored", "colored-last", "constructed")
# Those that the paper has of each architecture, and "tapered".
CONDITIONS_OF = {
    **dict.fromkeys(SHALLOW, ("vanilla", "last")),
    **dict.fromkeys(DEEP, tuple(each for each in CONDITIONS if each not in CONTROLS)),
}
# Those with a spectral penalty, and so with a strength β.
SPECTRAL = ("last", "whitened-last", "all", "tapered", "colored-last")
# What "tapered" adds to α in each hidden layer.
TAPER = (0.5, 0.25, 0.0)


# What a penalty is called where penalties are compared on one layer.
PENALTIES = {
    "vanilla": "none",
    "last-paper": "eq. (2)",
    "last-log": '"log"',
    "last-nearest": '"nearest"',
    "jacobian": "Jacobian, eq. (11)",
    "colored": "colored weights",
    "colored-last-log": 'colored weights, "log"',
    "constructed": "by construction",
}


def label(settings):
    """The name of a run's condition in figures and tables, with its β if it has one."""
    name = CONDITIONS[settings["condition"]]
    if settings["architecture"] in SHALLOW:
        name = name.removesuffix(", last layer")  # there is only one
    return name if settings["beta"] is None else f"{name}, β = {settings['beta']:g}"


def penalty_of(settings):
    """What is compared: the condition, and the form of a spectral penalty."""
    form = settings.get("form")
    return settings["condition"] if form is None else f"{settings['condition']}-{form}"


def alpha_of(settings, index):
    """The exponent that a hidden layer's spectrum is compared with: 1 by default."""
    taper = TAPER[index] if settings["condition"] == "tapered" else 0.0
    return (settings["alpha"] or 1.0) + taper
