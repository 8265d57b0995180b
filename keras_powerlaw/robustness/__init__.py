"""Accuracy under attack, and how far it is to be trusted."""
