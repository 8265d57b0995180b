"""Where things are in the house: what a module may import, name and do without."""

import ast
import functools
import graphlib
import inspect
import re
from pathlib import Path

import keras
import pytest

import keras_powerlaw

PACKAGE = Path(keras_powerlaw.__file__).parent
TESTS = Path(__file__).parent
TREES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(
        path.read_text("utf-8")
    )
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Of Keras, without an underscore, and in no page of its documentation.
UNDOCUMENTED = {
    *("distribute_strategy", "jax_state_sync"),
    *("make_test_function", "make_train_function"),
}
# What no installation is sure to have.
OPTIONAL = {
    *("art", "cleverhans", "jax", "matplotlib", "sklearn", "tensorflow"),
    *("tensorflow_datasets", "torch"),
}


def imports(tree, nested=True):
    """The absolute names that a module imports, but not for type checking alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif nested or not isinstance(node, ast.FunctionDef):
            yield from imports(node, nested)


@functools.cache
def undocumented_names():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    owners = keras.layers.Layer, keras.Model, keras.callbacks.Callback, keras.Variable
    names = {*vars(model), *vars(model.layers[0])}.union(*map(dir, owners))
    return {name for name in names if re.match(r"_[a-z]", name)} | UNDOCUMENTED


def internals_of_keras(tree):
    for node in ast.walk(tree):
        names = [getattr(node, "attr", None), getattr(node, "value", None)]
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        yield from (
            name
            for name in names
            if isinstance(name, str) and name in undocumented_names()
        )
    yield from (name for name in imports(tree) if name.startswith("keras.src"))


def test_internals_of_keras_are_named_in_one_module():
    for text in ("a._losses", "getattr(a, '_losses')", "import keras.src.backend"):
        assert set(internals_of_keras(ast.parse(text)))
    for name, tree in TREES.items():
        found = set(internals_of_keras(tree))
        assert bool(found) == (name == "keras_internals"), (name, found)


def test_no_module_imports_itself_by_way_of_others():
    graph = {
        name: {
            module
            for full in imports(tree)
            for found in [full.removeprefix("keras_powerlaw.")]
            for module in (found, found.rpartition(".")[0])
            if full.startswith("keras_powerlaw.") and module in TREES
        }
        for name, tree in TREES.items()
        if name != "__init__"
    }
    assert graph["attach"] >= {"arguments", "layers"}
    list(graphlib.TopologicalSorter(graph).static_order())  # or it raises CycleError


def test_nothing_optional_is_imported_before_it_is_used():
    for name, tree in TREES.items():
        found = {each.partition(".")[0] for each in imports(tree, nested=False)}
        assert not found & OPTIONAL, name


def test_nothing_is_asserted_and_nothing_refers_to_the_tests():
    for name, tree in TREES.items():
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), name
    for path in PACKAGE.rglob("*.py"):
        found = re.search(r"\btests/|\bshared/|\bpytest\b", path.read_text("utf-8"))
        assert not found, path


def test_every_module_has_its_tests():
    """Those of all attacks are in one file."""
    for name in TREES:
        module = "attacks" if "attacks" in name else name.rpartition(".")[2]
        assert module == "__init__" or (TESTS / f"test_{module}.py").exists(), name


@pytest.mark.parametrize("name", keras_powerlaw.__all__)
def test_a_public_docstring_has_its_sections(name):
    documented = getattr(keras_powerlaw, name)
    found = set(re.findall(r"^([A-Z]\w+):", inspect.getdoc(documented), re.MULTILINE))
    if inspect.isclass(documented):
        assert found & {"Args", "Attributes"}
        return
    needed = {"Args", "Raises", "Example"}
    if inspect.signature(documented).return_annotation != "None":
        needed.add("Returns")
    assert needed <= found
