"""Spectra of activations: the penalty, its eigenbasis, and measurements."""
