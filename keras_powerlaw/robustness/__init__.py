"""Accuracy under attack, and how far it can be trusted."""
