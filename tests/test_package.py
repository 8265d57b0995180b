"""The package as a whole: what it imports, names, documents and declares."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from backend import without

import keras_powerlaw

OPTIONAL = ["cleverhans", "matplotlib", "sklearn", "tensorflow_datasets"]


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_import_needs_no_optional_package():
    # Keras itself loads Matplotlib and scikit-learn where it finds them, so the
    # names are blocked rather than looked for afterwards.
    code = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))\n"
    result = run(code + "import keras_powerlaw")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "backend, title",
    {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}.items(),
)
def test_a_missing_backend_is_named(backend, title):
    result = run(without(backend) + "import keras_powerlaw", KERAS_BACKEND=backend)
    *_, message = result.stderr.strip().splitlines()
    assert message.startswith(
        f"ModuleNotFoundError: Keras is set to run on {title}, which is not installed. "
        f"Install it with: pip install 'keras-powerlaw[{backend}]', or choose another"
    )


def test_advice_names_extras_that_exist():
    extras = importlib.metadata.metadata("keras-powerlaw").get_all("Provides-Extra")
    named = {"robustness", "strong", "tensorflow", "jax", "torch", "plots"}
    assert named <= set(extras)


def test_links_are_absolute_where_the_readme_is_shown_without_the_repository():
    page = importlib.metadata.metadata("keras-powerlaw").get_payload()
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    assert len(links) > 5
    assert all(link.startswith(("https://", "#")) for link in links), links
    assert len(re.findall(r"!\[[^\]]*\]\(https://\S+/raw/\S+\.png\)", page)) == 1


def test_version_is_that_of_the_installed_package():
    installed = importlib.metadata.version("keras-powerlaw")
    assert keras_powerlaw.__version__ == installed, "Reinstall: pip install -e ."


# A parent folder, a home, or a folder of some machine; but not what Linux says of every
# machine in /proc and /sys, and not the path of an address on the web.
OUTSIDE = re.compile(
    r"""(?<![\w.])\.\.(?![\w.])   # .. as the whole name of a folder
    | \bpardir\b
    | (?<![\w~])~[\w-]*/
    | \bexpanduser\b | \bPath\.home\b
    | (?<![\w:/.])/(?!proc/|sys/)[a-z]\w*/\w
    | \b[A-Z]:[\\/]\w""",
    flags=re.VERBOSE,
)
PATHS_OUTSIDE = [
    'open("../other/data.npz")',
    'Path(__file__).parent / ".." / "data"',
    "os.path.join(here, os.pardir)",
    'open("/data/mnist.npz")',
    "see /home/somebody/notes",
    'Path("~/datasets")',
    'os.path.expanduser("~")',
    "Path.home()",
    r'open("C:\Users\somebody\data.npz")',
]
NO_PATHS_OUTSIDE = [
    'Path("/proc/meminfo")',
    "https://arxiv.org/abs/2012.04729",
    "1/n, λ/γ and B/N; from ... import; values[..., 0]",
    "tuple[int, ...], the square of x / y, `a/b/c`",
]


def test_no_module_names_a_path_outside_the_project():
    assert all(map(OUTSIDE.search, PATHS_OUTSIDE))
    assert not any(map(OUTSIDE.search, NO_PATHS_OUTSIDE))
    for path in sorted(Path(keras_powerlaw.__file__).parent.rglob("*.py")):
        found = OUTSIDE.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path}: {found.group()}"
