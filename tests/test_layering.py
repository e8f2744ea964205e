"""Imports point downward only, and the folder that travels to the Hub stands on its own."""

import ast
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports

from tools.house import measure

PACKAGE = Path(__file__).parents[1] / "softcam_hub"

FLOORS = [
    {"models", "explanation_scores", "files", "arguments", "threads", "memory", "deferred_imports"},
    {"data", "output_folder", "loading", "figures", "architectures", "precisions", "pipeline"},
    {"hub", "temperature"},
    {"training", "explainers", "export"},
    {"registry", "evaluation", "post_fitting", "web"},
    {"public"},
    {""},
    {"demo"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
"""From the ground up; a module may import from floors below its own. "" stands for the package's public names."""

TRAVELLERS = {
    "models": {"torch", "timm", "transformers", "huggingface_hub", "numpy", "PIL", "fsspec", "typing_extensions"},
    "explanation_scores": {"torch", "numpy", "evaluate", "datasets", "gradio"},
}
"""Folders that are copied to the Hub -> the packages they may import beside the standard library."""


def imports_of(file):
    """(level, module) of every import statement in a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
        elif isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)


def own_imports(file):
    """The modules of our own package, by their first name, that a file imports."""
    depth = len(file.relative_to(PACKAGE).parts)
    for level, module in imports_of(file):
        if level == 0 and module.split(".")[0] == PACKAGE.name:
            yield module.split(".")[1] if "." in module else ""
        elif level == depth:
            yield module.split(".")[0]


def floor_of(name):
    return next((height for height, floor in enumerate(FLOORS) if name in floor), None)


MODULES = [
    file
    for file in PACKAGE.rglob("*.py")
    if file != PACKAGE / "__init__.py" and "spaces" not in file.parts  # a Space is a program on top of the package
]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_downward(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert floor_of(own) is not None, f"{own} has no floor: add it to FLOORS"
    for name in own_imports(file):
        assert floor_of(name) < floor_of(own), f"{file.name} imports {name}, which is not below it"


@pytest.mark.parametrize("folder", TRAVELLERS)
def test_a_folder_that_travels_is_flat_and_self_contained(folder):
    allowed = TRAVELLERS[folder] | set(sys.stdlib_module_names)
    assert not [path for path in (PACKAGE / folder).iterdir() if path.is_dir() and path.name != "__pycache__"]
    for file in (PACKAGE / folder).glob("*.py"):
        assert not set(get_imports(file)) - allowed, f"{file.name}: transformers makes recipients install these"
        for level, module in imports_of(file):
            assert level <= 1, f"{file.name} reaches out of its folder"
            assert level == 0 or module, f"{file.name}: transformers does not see 'from . import x'"
            optional = {"matplotlib", "pandas"}  # inside of a `try`, as get_imports has seen
            assert level == 1 or module.split(".")[0] in allowed | optional, f"{file.name} imports {module}"


def test_the_registry_is_not_needed_by_the_models():
    assert "registry" not in {name for file in (PACKAGE / "models").glob("*.py") for _, name in imports_of(file)}


@pytest.fixture(scope="module")
def counts():
    return measure(PACKAGE.parent)


def test_no_module_imports_itself_through_others(counts):
    assert counts["modules in circles"] == 0


def test_no_family_is_compared_by_its_name_outside_models(counts):
    assert counts["family comparisons outside models/"] == 0
