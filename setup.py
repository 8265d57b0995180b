"""Metadata and dependencies; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
URL = "https://github.com/keras-powerlaw/keras_powerlaw"


def read(path):
    """Returns the text of a file, or nothing where it does not exist (an sdist)."""
    path = ROOT / path
    return path.read_text(encoding="utf-8") if path.exists() else ""


def version():
    """Returns `__version__` without importing the package (and Keras)."""
    source = read("keras_powerlaw/__init__.py")
    match = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError("keras_powerlaw/__init__.py has no `__version__` line.")
    return match.group(1)


def description():
    """Returns README.md with absolute links, for where it is shown on its own."""
    text = re.sub(r"(!\[[^]]*\]\()(?!https:)", rf"\1{URL}/raw/main/", read("README.md"))
    return re.sub(r"(\]\()(?!https:|#)", rf"\1{URL}/blob/main/", text)


# Keras runs on one of these; which one is the user's choice.
TENSORFLOW = ["tensorflow>=2.20"]
# The oldest that was tested and passes; 0.4.30 gives wrong gradients on processors.
JAX = ["jax>=0.6.2"]
TORCH = ["torch>=2.6"]

ROBUSTNESS = ["cleverhans>=4.0.0"]
STRONG = ["adversarial-robustness-toolbox>=1.20"]
PLOTS = ["matplotlib>=3.9"]
DIGITS = ["scikit-learn>=1.4"]
EXAMPLES = [
    *TENSORFLOW,
    *ROBUSTNESS,
    *PLOTS,
    *DIGITS,
    "tensorflow-datasets>=4.9.7",
    "importlib_resources>=6",  # tensorflow-datasets imports it without declaring it
]
# Held to one minor version, because each may format differently; mypy to one major
# version, because each may find something else in the same types.
RUFF = "ruff==0.17.*"
# The site runs the notebooks, which need the examples' packages; ruff lays out its
# signatures.
DOCS = [
    *EXAMPLES,
    RUFF,
    "griffelib>=2",
    "ipykernel>=6.29",
    "latex2mathml>=3.77",
    "mkdocs-glightbox>=0.5",
    "mkdocs-material>=9.5",
    "mkdocstrings[python]>=1.0",
    "nbclient>=0.10",
    "nbconvert>=7.16",
    "selenium>=4.20",
]
# What the tests need beside a backend; those of the site need DOCS as well.
TEST = [
    *ROBUSTNESS,
    *STRONG,
    *PLOTS,
    *DIGITS,
    "dimensionality>=0.1.4",
    "pandas>=2.1",
    "pytest>=8",
    "pytest-xdist>=3",
    "tensorboard",
]
DEV = [*DOCS, *TEST, "mypy==2.*", "pre-commit>=3"]

setup(
    name="keras-powerlaw",
    version=version(),
    description="A 1/n spectral regularizer for Keras models, and its measurements",
    long_description=description(),
    long_description_content_type="text/markdown",
    author="The maintainers of keras_powerlaw",
    url=URL,
    project_urls={
        "Documentation": f"{URL}/tree/main/docs",
        "Source": URL,
        "Issues": f"{URL}/issues",
        "Changes": f"{URL}/blob/main/CHANGELOG.md",
        "Paper": "https://arxiv.org/abs/2012.04729",
    },
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords="keras tensorflow jax pytorch robustness eigenspectrum power-law",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["keras_powerlaw*"]),
    package_data={"keras_powerlaw": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "keras>=3.12",
        "numpy>=1.26",
        "scipy>=1.11",
        "threadpoolctl>=3.1",
    ],
    extras_require={
        "tensorflow": TENSORFLOW,
        "jax": JAX,
        "torch": TORCH,
        "robustness": ROBUSTNESS,
        "strong": STRONG,
        "plots": PLOTS,
        "examples": EXAMPLES,
        "test": TEST,
        "docs": DOCS,
        "gpu": ["tensorflow[and-cuda]>=2.20"],
        "dev": DEV,
    },
)
