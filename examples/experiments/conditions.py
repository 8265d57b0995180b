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
}
# Those with a spectral penalty, and so with a strength β.
SPECTRAL = ("last", "whitened-last", "all", "tapered")
# What "tapered" adds to α in each hidden layer.
TAPER = (0.5, 0.25, 0.0)


def label(settings):
    """The name of a run's condition in figures and tables, with its β if it has one."""
    name = CONDITIONS[settings["condition"]]
    if settings["architecture"] in SHALLOW:
        name = name.removesuffix(", last layer")  # there is only one
    return name if settings["beta"] is None else f"{name}, β = {settings['beta']:g}"
