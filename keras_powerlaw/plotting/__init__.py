"""The paper's figures: spectra, robustness curves and sensitivity maps.

Matplotlib is imported when a function is called.
"""

from keras_powerlaw.plotting.robustness import plot_robustness
from keras_powerlaw.plotting.sensitivity import plot_sensitivity
from keras_powerlaw.plotting.spectrum import plot_spectrum

__all__ = ["plot_robustness", "plot_sensitivity", "plot_spectrum"]
