"""Spectra of activations: the penalty, its eigenbasis, and what is measured."""
