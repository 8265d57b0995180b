"""Keras components that shape a layer's covariance spectrum toward a power law."""

import keras_powerlaw.backends  # noqa: F401
from keras_powerlaw.attach import (
    add_spectral_regularizer,
    remove_spectral_regularizer,
)
from keras_powerlaw.coloring import color_weights
from keras_powerlaw.jacobian import add_jacobian_regularizer
from keras_powerlaw.measure import SpectrumMonitor, measure_spectrum
from keras_powerlaw.moments import (
    MomentSpectrum,
    moment_spectrum,
    participation_ratio,
)
from keras_powerlaw.plotting import plot_robustness, plot_sensitivity, plot_spectrum
from keras_powerlaw.recordings import (
    CrossValidatedSpectrum,
    cross_validated_spectrum,
)
from keras_powerlaw.refresh import EigenbasisRefresh, refresh_eigenbasis
from keras_powerlaw.regularizer import SpectralActivityRegularizer
from keras_powerlaw.robustness.evaluate import evaluate_robustness
from keras_powerlaw.robustness.flags import Flag
from keras_powerlaw.robustness.report import (
    RobustnessReport,
    RobustnessSummary,
    combine_reports,
)
from keras_powerlaw.sensitivity import SensitivityMaps, sensitivity_maps
from keras_powerlaw.spectrum import Spectrum
from keras_powerlaw.targets import BrokenPowerLaw, PowerLaw
from keras_powerlaw.whitening import WhiteningLayer, refresh_whitening

__version__ = "0.1.0"

__all__ = [
    "BrokenPowerLaw",
    "CrossValidatedSpectrum",
    "EigenbasisRefresh",
    "Flag",
    "MomentSpectrum",
    "PowerLaw",
    "RobustnessReport",
    "RobustnessSummary",
    "SensitivityMaps",
    "SpectralActivityRegularizer",
    "Spectrum",
    "SpectrumMonitor",
    "WhiteningLayer",
    "add_jacobian_regularizer",
    "add_spectral_regularizer",
    "color_weights",
    "combine_reports",
    "cross_validated_spectrum",
    "evaluate_robustness",
    "measure_spectrum",
    "moment_spectrum",
    "participation_ratio",
    "plot_robustness",
    "plot_sensitivity",
    "plot_spectrum",
    "refresh_eigenbasis",
    "refresh_whitening",
    "remove_spectral_regularizer",
    "sensitivity_maps",
]
