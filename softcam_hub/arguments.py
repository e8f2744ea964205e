"""Provide the command-line parser that every command, tool and benchmark of this project uses.

- Names of options are written with dashes, and accepted with underscores: `--batch_size` is `--batch-size`.
- Names are never completed. By default, argparse completes abbreviations, so that a mistyped option silently becomes
  another one.
- A mistake is answered with the nearest name. Nothing here imports torch or timm, so that it is answered at once.
"""

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints


def _is_command_line() -> bool:
    """Tell whether this process is `softcam-hub`, `python -m softcam_hub` or our script, and no program of a user."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # until Python has found the module
        return sys.orig_argv[-len(sys.argv)] == __package__
    return Path(program).name in ("softcam-hub", "softcam-hub.exe", "softcam-hub-script.py", "train_accelerate.py")


COMMAND_LINE = _is_command_line()
"""Whether this process is `softcam-hub`, whose packages leave out what is slow to import until a command needs it."""

METAVARS = {int: "N", float: "X", str: "TEXT"}


class HelpFormatter(argparse.HelpFormatter):
    """Format help with 120 columns, whatever the width of the terminal, and with choices after the explanation."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=120)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help is None or not action.choices:
            return action.help
        return f"{action.help} One of {', '.join(map(str, action.choices))}."


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that accepts options by their full names only, with dashes or underscores.

    With `exit_on_error=False`, every mistake raises ValueError.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **options, "allow_abbrev": False})

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse words with the names of options in either spelling; unknown names are errors here, too."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        try:
            return super().parse_known_args([*map(self._spell, words[:end]), *words[end:]], namespace)
        except argparse.ArgumentError as error:
            raise ValueError(str(error)) from None

    def _spell(self, word: str) -> str:
        """Return a word of the command line, with dashes in the name of an option."""
        if not word.startswith("--") or " " in word.partition("=")[0]:
            return word
        name, equals, value = word.partition("=")
        spelled = name.replace("_", "-")
        if spelled not in self._option_string_actions:
            self.error(f"unknown option {name!r}{did_you_mean(spelled, self._option_string_actions)}; see --help")
        return f"{spelled}{equals}{value}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = list(map(str, action.choices))
            expected = did_you_mean(str(value), names) or f": expected one of {', '.join(names)}"
            raise argparse.ArgumentError(action, f"{value!r} is not a choice{expected}")

    def error(self, message: str) -> NoReturn:
        """Print the usage of the command with a message, and exit with code 2."""
        if not self.exit_on_error:
            raise ValueError(message)
        super().error(message)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ": did you mean ...?" with the known name that is nearest, or nothing if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {near[0]}?" if near else ""


def check_names(names: Iterable[str], known: Sequence[str], what: str) -> None:
    """Raise ValueError for the first unknown name, with the known name that is nearest.

    Args:
        names: Names that a user gives.
        known: Names that exist.
        what: Noun for the names in the message, such as "measure".
    """
    for name in names:
        if name not in known:
            hint = did_you_mean(str(name), known) or f": expected one of {', '.join(known)}"
            raise ValueError(f"unknown {what} {name!r}{hint}")


def add_fields(parser: Any, group: type, names: Sequence[str] | None = None) -> None:
    """Add an option for each field of a configuration, whose value is parsed only where it is given.

    Args:
        parser: Parser or argument group.
        group: Dataclass whose fields have a help text.
        names: Names of the fields; all by default.
    """
    types = get_type_hints(group)
    for field in dataclasses.fields(group):
        if names is None or field.name in names:
            _add_field(parser, field, types[field.name])


def _add_field(parser: Any, field: dataclasses.Field, hint: Any) -> None:
    """Add an option for a field of type bool, int, float, str or Literal, which may be None."""
    name, text = f"--{field.name.replace('_', '-')}", field.metadata["help"]
    value_type = get_args(hint)[0] if type(None) in get_args(hint) else hint
    options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    if value_type is bool:
        parser.add_argument(name, type=read_bool, nargs="?", const=True, metavar="BOOL", help=text, **options)
        if field.default:
            parser.add_argument(f"--no-{name[2:]}", action="store_false", help=f"The same as {name} false.", **options)
        return
    if field.default not in (None, ""):
        text += f" [{field.default}]".replace("%", "%%")
    choices = get_args(value_type) if get_origin(value_type) is Literal else None
    value_type = type(choices[0]) if choices else value_type
    parser.add_argument(name, type=value_type, choices=choices, metavar=METAVARS[value_type], help=text, **options)


def read_bool(text: str) -> bool:
    """Read a truth value as YAML and command lines write it."""
    values = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]
