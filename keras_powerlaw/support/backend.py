"""Imports Keras before all else: a missing backend is an error that says what to do."""

from keras_powerlaw.support import installation

TITLES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}

try:
    import keras  # noqa: F401
except ModuleNotFoundError as error:
    # Keras names the missing module, and not the setting that asks for it.
    if error.name not in TITLES:
        raise
    raise ModuleNotFoundError(
        f"Keras is set to run on {TITLES[error.name]}, which is not installed. Install "
        f"it with: {installation.command(error.name)}, or choose another backend "
        "before Python starts: export KERAS_BACKEND=jax, or torch, or tensorflow",
        name=error.name,
    ) from error
