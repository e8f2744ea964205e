"""Read the settings of a run from the command line, or from a recipe with flags over it.

- Recipes are YAML files with one setting per line, in `recipes/` or written by the user. A recipe may name
  another recipe as its `base` and change some of its settings.
- The settings of a recipe are parsed as if they stood on a command line, so that both are checked in the same way.
"""

import argparse
import dataclasses
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..arguments import ArgumentParser, add_fields, did_you_mean
from ..files import read_mapping
from .config import Config, as_recorded

RECIPES = Path(__file__).parent / "recipes"

NOTES, BASE = "notes", "base"
"""Keys of a recipe that are not settings: remarks on hardware, time and score; and another recipe."""

GROUPS = {group.name: group.default_factory for group in dataclasses.fields(Config)}
"""Dataclasses of the settings, by their names in `Config`."""

SETTING_NAMES = [item.name for group in GROUPS.values() for item in dataclasses.fields(group)]


def make_config(**settings: Any) -> Config:
    """Check settings and return them as a `Config`.

    make_config(model="cape_resnet18", epochs=3)
    """
    return combine(argparse.Namespace(recipe=None, **read_settings(settings, "make_config()")))


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Parse the settings of a run, or raise ValueError.

    Args:
        arguments: Flags, such as `["--recipe", "lesions-cape", "--epochs", "3"]`. The default is
            `sys.argv[1:]`.
    """
    return combine(make_parser().parse_args(arguments))


def make_parser() -> ArgumentParser:
    """Make a parser of all settings that raises ValueError for mistakes."""
    parser = ArgumentParser(exit_on_error=False)
    add_settings(parser)
    return parser


def add_settings(parser: ArgumentParser) -> None:
    """Add an option for the recipe and for each setting, in groups."""
    parser.add_argument("--recipe", metavar="NAME", help="Name of a recipe, or a YAML file. Flags override it.")
    for group in GROUPS.values():
        add_fields(parser.add_argument_group(group._argument_group_name), group)
    parser.epilog = f"Recipes: {', '.join(recipes())}."


def combine(options: argparse.Namespace) -> Config:
    """Combine parsed flags with the recipe that they name.

    Args:
        options: Result of a parser with `add_settings`.
    """
    flags = dict(vars(options))
    recipe = flags.pop("recipe")
    settings = read_settings(read_recipe(recipe), f"recipe {recipe!r}") if recipe else {}
    settings |= flags
    groups = {}
    for name, group in reversed(GROUPS.items()):  # the model last, because its checks alone need torch
        own = [item.name for item in dataclasses.fields(group)]
        groups[name] = group(**{item: settings[item] for item in own if item in settings})
    config = Config(**groups)

    # every fold has folders of its own, so that none starts from weights that have seen its test images
    name = recipe if recipe in recipes() else Path(recipe or config.model.model).stem
    fold = str(config.data.fold)
    config.run.output = os.path.expanduser((config.run.output or f"runs/{name}").replace("{fold}", fold))
    config.run.cache_dir = config.run.cache_dir and os.path.expanduser(config.run.cache_dir)
    config.model.init = config.model.init and config.model.init.replace("{fold}", fold)
    return config


def read_settings(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """Convert settings to the types of their fields, and refuse unknown names.

    Args:
        settings: Values by name, as YAML or a caller gives them. None stands for the default.
        source: Origin of the settings, for error messages.
    """
    flags = []
    for name, value in settings.items():
        if name not in SETTING_NAMES:
            raise ValueError(
                f"{source} sets {name!r}, which is not a setting{did_you_mean(name, SETTING_NAMES)}; see --help"
            )
        if name == "mixed_precision" and value is False:
            value = "no"  # YAML reads an unquoted `no` as false
        if value is not None:
            flags.append(f"--{name}={value}")
    parsed = vars(make_parser().parse_args(flags))
    del parsed["recipe"]
    return parsed


def recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(str(file.relative_to(RECIPES).with_suffix("")) for file in RECIPES.rglob("*.yaml"))


def read_recipe(name: str, dependents: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read the settings of a recipe, over those of the recipe that it is based on.

    Args:
        name: Name of a recipe of the package, or a YAML file. A file that a recipe names lies beside that
            recipe.
        dependents: Files of the recipes that are based on this one, the nearest last.
    """
    file = _recipe_file(name, dependents)
    if file in dependents:
        chain = " -> ".join(str(each) for each in (*dependents, file))
        raise ValueError(f"recipe {file} is based on itself, {chain}: change its {BASE!r}")
    settings = as_recorded(read_mapping(file, "a recipe has a line `name: value` for every setting"))
    base = settings.get(BASE)
    if not isinstance(base, str | None):
        raise ValueError(f"{BASE!r} in {file} must be the name of a recipe or of a YAML file, got {base!r}")
    inherited = read_recipe(base, (*dependents, file)) if base else {}
    return inherited | {name: value for name, value in settings.items() if name not in (NOTES, BASE)}


def _recipe_file(name: str, dependents: tuple[Path, ...]) -> Path:
    if name.endswith((".yaml", ".yml")):
        file = (dependents[-1].parent if dependents else Path()) / name
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}: expected a recipe, or the name of one without .yaml")
        return file.resolve()
    if name not in recipes():
        near = difflib.get_close_matches(name, recipes(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"expected one of {', '.join(recipes())}"
        raise ValueError(f"there is no recipe {name!r}: {hint}")
    return (RECIPES / f"{name}.yaml").resolve()
