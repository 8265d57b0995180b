"""Jacobian regularization, eq. (11): a penalty on how the input moves the output."""
