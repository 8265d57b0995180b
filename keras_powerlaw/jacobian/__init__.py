"""Jacobian regularization, eq. (11): penalties on input-output sensitivity."""
