"""Read the settings of a run from the command line, or from a recipe with flags over it.

- Recipes are YAML files with one setting per line, in `recipes/` or written by the user. A recipe may name
  another recipe as its `base` and change some of its settings.
- The settings of a recipe are read as if they stood on the command line before the flags, so that both are
  checked in the same way.
"""

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..arguments import ArgumentParser
from .config import Config

RECIPES = Path(__file__).parent / "recipes"

NOTES, BASE = "notes", "base"
"""Keys of a recipe that are not settings: remarks on hardware, time and score; and another recipe."""

GROUPS = [group.default_factory for group in dataclasses.fields(Config)]
"""Dataclasses of the settings, in the order of `Config`."""

SETTING_NAMES = [item.name for group in GROUPS for item in dataclasses.fields(group)]


def make_config(**settings: Any) -> Config:
    """Check settings and return them as a `Config`.

    make_config(model="cape_resnet18", epochs=3)
    """
    return parse(as_flags(settings, "make_config()"))


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Parse the settings of a run.

    Args:
        arguments: Flags, such as `["--recipe", "lesions-cape", "--epochs", "3"]`. The default is
            `sys.argv[1:]`.
    """
    flags = sys.argv[1:] if arguments is None else list(arguments)
    parser = make_parser()
    try:
        recipe = _recipe_parser().parse_known_args(flags)[0].recipe
        settings = as_flags(read_recipe(recipe), f"recipe {recipe!r}") if recipe else []
        *groups, _, unknown = parser.parse_args_into_dataclasses(
            settings + flags, return_remaining_strings=True, look_for_args_file=False
        )
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    if unknown:
        suggestion = _suggest(unknown[0].lstrip("-").replace("-", "_"))
        raise ValueError(f"unknown option {unknown[0]!r}{suggestion}; see --help")

    # every fold has folders of its own, so that none starts from weights that have seen its test images
    config = Config(*groups)
    name = recipe if recipe in recipes() else Path(recipe or config.model.model).stem
    fold = str(config.data.fold)
    config.run.output = (config.run.output or f"runs/{name}").replace("{fold}", fold)
    config.model.init = config.model.init and config.model.init.replace("{fold}", fold)
    return config


def make_parser() -> HfArgumentParser:
    """Return the parser of all settings, whose `--help` lists them in groups."""
    return HfArgumentParser(
        GROUPS,
        prog="train_accelerate.py",
        usage="train_accelerate.py [--recipe NAME_OR_FILE] [--SETTING VALUE ...]",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
        parents=[_recipe_parser()],
        description="Train a SoftCAM or CAPE classifier, or the vanilla classifier that it is compared with.",
        epilog=f"Recipes: {', '.join(recipes())}.",
    )


class _HelpFormatter(argparse.HelpFormatter):
    """Formatter that gives a setting one line where it fits: name, explanation, choices and default value."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=120)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return action.option_strings[0] if action.option_strings else super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        has_default = action.default not in (None, "", False, argparse.SUPPRESS)
        choices = f" One of {', '.join(map(str, action.choices))}." if action.choices else ""
        return f"{action.help}{choices}" + (f" [{action.default}]".replace("%", "%%") if has_default else "")


def _recipe_parser() -> ArgumentParser:
    parser = ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--recipe", help="Name of a recipe, or a YAML file. Flags override its settings.")
    return parser


def as_flags(settings: dict[str, Any], source: str) -> list[str]:
    """Return settings as command-line flags, and refuse unknown names.

    Args:
        settings: Values by name. None stands for the default.
        source: Origin of the settings, for error messages.
    """
    flags = []
    for name, value in settings.items():
        if name not in SETTING_NAMES:
            raise ValueError(f"{source} sets {name!r}, which is not a setting{_suggest(name)}; see --help")
        if name == "mixed_precision" and value is False:
            value = "no"  # YAML reads an unquoted `no` as false
        if value is not None:
            flags += [f"--{name}", str(value)]
    return flags


def _suggest(name: str) -> str:
    near = difflib.get_close_matches(name, SETTING_NAMES, n=1)
    return f": did you mean {near[0]}?" if near else ""


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
    try:
        settings = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {file} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"recipe {file} must hold `name: value` lines, got {type(settings).__name__}")
    inherited = read_recipe(settings[BASE], (*dependents, file)) if BASE in settings else {}
    return inherited | {name: value for name, value in settings.items() if name not in (NOTES, BASE)}


def _recipe_file(name: str, dependents: tuple[Path, ...]) -> Path:
    if name.endswith((".yaml", ".yml")):
        file = (dependents[-1].parent if dependents else Path()) / name
    else:
        file = RECIPES / f"{name}.yaml"
    if not file.is_file():
        near = difflib.get_close_matches(name, recipes(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"expected one of {', '.join(recipes())}"
        raise ValueError(f"there is no recipe {name!r}: {hint}")
    return file.resolve()
