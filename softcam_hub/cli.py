"""`softcam-hub COMMAND ...`: one module of `commands/` each, imported when it is used.

A module has `HELP`, `add_arguments(parser)` and `run(arguments)`, which may return an exit code. What a user can put
right ends with a sentence and exit code 1 (2 for options that argparse refuses); other errors keep their traceback.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from .arguments import ArgumentParser

COMMANDS = ("list", "explain", "benchmark", "card", "push", "export", "demo")
"""Names of the commands and of their modules in `commands/`."""

PROGRAM = "softcam-hub"

MISTAKES = (ValueError, OSError, ImportError)
"""What the library raises where a user can put something right."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parser = make_parser(words)
        chosen = parser.parse_args(words)
        if chosen.run is None:
            parser.print_help()
            return 2
        return chosen.run(chosen) or 0
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MISTAKES as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1


def make_parser(words: Sequence[str]) -> ArgumentParser:
    """The parser: of the command that is named, or of all, each with its line of help."""
    parser = ArgumentParser(PROGRAM, description="Image classifiers that explain themselves.")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    named = next((word for word in words if not word.startswith("-")), None)
    for name in [named] if named in COMMANDS else COMMANDS:
        module = importlib.import_module(f".commands.{name}", __package__)
        child = commands.add_parser(name, help=module.HELP, description=module.HELP, formatter_class=Help)
        child.set_defaults(run=module.run)
        if name == named:
            module.add_arguments(child)
    return parser


class Help(argparse.HelpFormatter):
    """Options with their defaults, on lines as wide as the code's."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=120)
