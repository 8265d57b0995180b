"""Colour, line and marker of each condition: the same in every figure.

The colours are those of Okabe and Ito, which differ for every eye; the markers tell the
conditions apart without colour. Plain networks are dashed.
"""

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"

LOOKS = {
    "vanilla": (BLACK, "o"),
    "whitened": (ORANGE, "D"),
    "last": (BLUE, "s"),
    "whitened-last": (SKY, "v"),
    "all": (VERMILION, "^"),
    "tapered": (PURPLE, "P"),
    "jacobian": (GREEN, "X"),
    "output-jacobian": (GREY, "*"),
    # Penalties that are compared on one layer.
    "last-paper": (BLUE, "s"),
    "last-log": (VERMILION, "^"),
    "last-nearest": (PURPLE, "P"),
    # Other ways to a spectrum.
    "colored": (ORANGE, "D"),
    "colored-last-log": (SKY, "v"),
    "constructed": (GREEN, "X"),
}
# Of networks that differ in anything but their condition.
IN_ORDER = (
    (VERMILION, "^"),
    (BLUE, "s"),
    (ORANGE, "D"),
    (SKY, "v"),
    (PURPLE, "P"),
)
# Of the strengths of one condition, from the first to the last.
LINES = ("-", "-.", ":")


def style(color, marker, line="-"):
    """Properties of a line, by Matplotlib's names."""
    return {"color": color, "marker": marker, "linestyle": line}


def look(settings, shown):
    """Properties of the line of a run: its colour, marker and dashes.

    Args:
        settings: Those of the run.
        shown: Those of all runs in the figure.
    """
    condition, beta = settings["condition"], settings["beta"]
    if condition == "vanilla":
        return style(*LOOKS[condition], "--")
    strengths = {each["beta"] for each in shown if each["condition"] == condition}
    place = sorted(strengths, key=lambda beta: beta or 0).index(beta)
    return style(*LOOKS[condition], LINES[place % len(LINES)])
