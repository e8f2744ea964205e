"""Recipes: settings in YAML files, of the package or one's own, that may stand on one another."""

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

NOTES, BASE = "notes", "base"
"""Keys of a recipe that are no settings: hardware, time and score; and the recipe that it changes."""


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    root = _recipe_folder()
    return sorted(str(file.relative_to(root).with_suffix("")) for file in root.rglob("*.yaml"))


def _recipe_folder() -> Path:
    return Path(str(files(__package__))) / "recipes"


def read_recipe(name: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a recipe, by name or file.

    Args:
        name: of the recipe; a file that another recipe names is looked for beside it.
        above: files of the recipes that stand on this one, the nearest last.
    """
    file = _recipe_file(name, above)
    if file in above:
        chain = " -> ".join(str(each) for each in (*above, file))
        raise ValueError(f"recipe {file} stands on itself, {chain}: change its {BASE!r}")
    try:
        settings = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {file} is no YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"recipe {file} must hold `name: value` lines, got {type(settings).__name__}")
    below = read_recipe(settings[BASE], (*above, file)) if BASE in settings else {}
    return below | {name: value for name, value in settings.items() if name not in (NOTES, BASE)}


def _recipe_file(name: str, above: tuple[Path, ...]) -> Path:
    if name.endswith((".yaml", ".yml")):
        file = (above[-1].parent if above else Path()) / name
    else:
        file = _recipe_folder() / f"{name}.yaml"
    if not file.is_file():
        near = difflib.get_close_matches(name, recipes(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(recipes())}"
        raise ValueError(f"no recipe {name!r}: {hint}")
    return file.resolve()
