"""Where things are in the package: read from its text, without importing it."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "keras_powerlaw"
MODULES = sorted(PACKAGE.rglob("*.py"))

LONGEST = 300  # lines, docstrings included

# From the foundation to the roof: a part imports only what stands below it. The two
# wings stand side by side.
BELOW = {
    "support": set(),
    "spectral": {"support"},
    "robustness": {"support"},
    "jacobian": {"support"},
    "plotting": {"support", "spectral", "robustness"},
}

# What no installation is sure to have, and who may import it at all.
OPTIONAL = {
    "art",
    "cleverhans",
    "jax",
    "matplotlib",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
}

INTERNALS = PACKAGE / "keras_internals.py"
UNDERSCORED = {
    "_clear_losses",
    "_compile_config",
    "_flatten_layers",
    "_get_own_losses",
    "_inbound_nodes",
    "_remat_mode",
    "_trainable_variables",
}


def name_of(path):
    """The module's name within the package: `"spectral.basis"`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(tree, nested=True):
    """The absolute names that a module imports; `nested`: in functions too.

    What is imported for type checking alone is left out.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif nested or not isinstance(node, ast.FunctionDef):
            yield from imports(node, nested)


def crossings(part, names):
    """The imports by which a part of the package reaches where it may not."""
    for name in names:
        package, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if package == "keras_powerlaw" and other not in {part, *BELOW[part]}:
            yield name


def keras_internals(text):
    """Names of Keras with an underscore in front, and `keras.src`, in some text."""
    tree = ast.parse(text)
    known = keras_attributes()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.FunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]  # getattr(layer, "_losses")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = list(imports(ast.Module([node], [])))
        for name in names:
            if name in known or name.startswith("keras.src"):
                yield name


@functools.cache
def keras_attributes():
    """The underscored attributes of layers, models and their trainers."""
    import keras

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    owners = (keras.layers.Layer, keras.Model, keras.callbacks.Callback, keras.Variable)
    names = {*vars(model), *vars(model.layers[0])}
    for owner in owners:
        names.update(dir(owner))
    private = {name for name in names if re.match(r"_[a-z]", name)}
    undocumented = {
        *("distribute_strategy", "jax_state_sync"),
        *("make_test_function", "make_train_function"),
    }
    return private | undocumented


@pytest.mark.parametrize("path", MODULES, ids=name_of)
class TestEveryModule:
    def test_is_short(self, path):
        assert len(path.read_text("utf-8").splitlines()) <= LONGEST

    def test_imports_only_what_stands_below_it(self, path):
        part = name_of(path).partition(".")[0]
        if not part:  # the public names, from everywhere
            return
        tree = ast.parse(path.read_text("utf-8"))
        assert list(crossings(part, imports(tree))) == []

    def test_imports_nothing_optional_before_it_is_called(self, path):
        tree = ast.parse(path.read_text("utf-8"))
        names = {name.partition(".")[0] for name in imports(tree, nested=False)}
        assert names & OPTIONAL == set()

    def test_names_no_internals_of_keras(self, path):
        found = set(keras_internals(path.read_text("utf-8")))
        if path == INTERNALS:
            assert {name for name in found if name.startswith("_")} == UNDERSCORED
        else:
            assert found == set()

    def test_marks_no_sections(self, path):
        banners = re.findall(r"^# ?[-=#]{3,}.*", path.read_text("utf-8"), re.MULTILINE)
        assert banners == []


SCRIPTS = [
    path
    for folder in ("examples", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_is_short_and_finds_its_modules_without_tricks(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert "sys.path" not in text


class TestTheRulesThemselves:
    """Each of them fails where it should."""

    def test_a_crossing_of_the_wings(self):
        text = "from keras_powerlaw.robustness.flags import Flag"
        names = list(imports(ast.parse(text)))
        assert list(crossings("spectral", names)) == names
        assert list(crossings("support", names)) == names
        assert list(crossings("plotting", names)) == []

    def test_an_import_inside_of_a_function(self):
        tree = ast.parse("def f():\n    import art.attacks")
        assert list(imports(tree)) == ["art.attacks"]
        assert list(imports(tree, nested=False)) == []
        tree = ast.parse("try:\n    import art\nexcept ImportError:\n    pass")
        assert list(imports(tree, nested=False)) == ["art"]

    @pytest.mark.parametrize(
        "text, name",
        [
            ("model._flatten_layers()", "_flatten_layers"),
            ("getattr(model, '_losses')", "_losses"),
            ("def _clear_losses(self): pass", "_clear_losses"),
            ("from keras.src import backend", "keras.src.backend"),
            ("model.jax_state_sync()", "jax_state_sync"),
        ],
    )
    def test_an_internal_name_of_keras(self, text, name):
        assert list(keras_internals(text)) == [name]
