"""The package as a whole: what it imports, names, documents and declares."""

import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import keras_powerlaw

ROOT = Path(__file__).parent.parent
OPTIONAL = ["cleverhans", "matplotlib", "sklearn", "tensorflow_datasets"]


def test_import_needs_no_optional_package():
    # Keras itself loads Matplotlib and scikit-learn where it finds them, so the
    # names are blocked rather than looked for afterwards.
    code = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))\n"
    code += "import keras_powerlaw"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", keras_powerlaw.__all__)
def test_public_name_is_documented(name):
    assert inspect.getdoc(getattr(keras_powerlaw, name))
    api = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert f"::: keras_powerlaw.{name}\n" in api


def test_version_is_that_of_the_installed_package():
    installed = importlib.metadata.version("keras-powerlaw")
    assert keras_powerlaw.__version__ == installed, "Reinstall: pip install -e ."


def test_package_names_no_path_outside_the_project():
    for path in Path(keras_powerlaw.__file__).parent.rglob("*.py"):
        assert "../" not in path.read_text(encoding="utf-8"), path
