"""Read the settings of a run from flags, or from a recipe with flags over it.

- A recipe's settings are read as if they stood on the command line before the flags, so that both are checked alike.
"""

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..arguments import ArgumentParser
from .config import Config

NOTES, BASE = "notes", "base"
"""Keys of a recipe that are no settings: hardware, time and score; and the recipe that it changes."""

GROUPS = [group.default_factory for group in dataclasses.fields(Config)]


def make_config(**settings: Any) -> Config:
    """The settings of a run by name, checked as on the command line: `make_config(model="cape_resnet18", epochs=3)`."""
    return parse(as_flags(settings, "make_config()"))


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Settings from the command line, `sys.argv` by default."""
    flags = sys.argv[1:] if arguments is None else list(arguments)
    parser = make_parser()
    try:
        recipe = _recipe_parser().parse_known_args(flags)[0].recipe
        settings = as_flags(read_recipe(recipe), f"recipe {recipe!r}") if recipe else []
        *groups, _, rest = parser.parse_args_into_dataclasses(
            settings + flags, return_remaining_strings=True, look_for_args_file=False
        )
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    if rest:
        raise ValueError(f"unknown option {rest[0]!r}{_suggest(rest[0].lstrip('-').replace('-', '_'))}; see --help")
    config = Config(*groups)
    name = recipe if recipe in recipes() else Path(recipe or config.model.model).stem
    config.run.output = _in_fold(config.run.output or f"runs/{name}", config)
    config.model.init = config.model.init and _in_fold(config.model.init, config)
    return config


def _in_fold(place: str, config: Config) -> str:
    """The folder of one fold, so that no fold starts from what learnt from its test images."""
    return place.replace("{fold}", str(config.data.fold))


def make_parser() -> HfArgumentParser:
    return HfArgumentParser(
        GROUPS,
        prog="train_accelerate.py",
        usage="train_accelerate.py [--recipe NAME_OR_FILE] [--SETTING VALUE ...]",
        formatter_class=_Help,
        allow_abbrev=False,
        exit_on_error=False,
        parents=[_recipe_parser()],
        description="Train a SoftCAM or CAPE classifier, or the black box that it is compared with.",
        epilog=f"Recipes: {', '.join(recipes())}.",
    )


class _Help(argparse.HelpFormatter):
    """One line of `--help` per setting where it fits: its name, what it is, and its default if it has one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=120)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return action.option_strings[0] if action.option_strings else super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.default not in (None, "", False, argparse.SUPPRESS)
        choices = f"; {', '.join(map(str, action.choices))}" if action.choices else ""
        return f"{action.help}{choices}" + (f" [{action.default}]".replace("%", "%%") if shown else "")


def _recipe_parser() -> ArgumentParser:
    parser = ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--recipe", help="name of a recipe, or a YAML file; flags go over its settings")
    return parser


def as_flags(settings: dict[str, Any], source: str) -> list[str]:
    """Settings as the command line would give them; None stands for the default."""
    known = _names()
    for name in settings:
        if name not in known:
            raise ValueError(f"{source} sets {name!r}, which is no setting{_suggest(name)}; see --help")
    if settings.get("mixed_precision") is False:
        settings = {**settings, "mixed_precision": "no"}  # which YAML takes for false
    return [part for name, value in settings.items() if value is not None for part in (f"--{name}", str(value))]


def _names() -> list[str]:
    return [item.name for group in GROUPS for item in dataclasses.fields(group)]


def _suggest(name: str) -> str:
    near = difflib.get_close_matches(name, _names(), n=1)
    return f": did you mean {near[0]}?" if near else ""


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
