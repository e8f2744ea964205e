"""`softcam-hub COMMAND ...`: one module of `commands/` per command, imported when it is used.

A command module has `HELP`, `add_arguments(parser)` and `run(arguments)`, which may return an exit code. An
error that a user can correct ends with a sentence and exit code 1 (2 for options that argparse refuses).
Other errors keep their traceback.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from .arguments import ArgumentParser

COMMANDS = ("list", "explain", "benchmark", "accuracy", "card", "push", "export", "demo")
"""Names of the commands and of their modules in `commands/`."""

PROGRAM = "softcam-hub"

USER_ERRORS = (ValueError, OSError, ImportError)
"""Errors that the library raises where a user can correct something."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code.

    Args:
        arguments: Words of the command line. Those of the process by default.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parser = make_parser(words)
        options = parser.parse_args(words)
        if options.run is None:
            parser.print_help()
            return 2
        return options.run(options) or 0
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except USER_ERRORS as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1


def make_parser(words: Sequence[str]) -> ArgumentParser:
    """Make the parser of the command that the words name, or of all commands with one line of help each."""
    description = "Image classifiers that explain themselves."
    parser = ArgumentParser(PROGRAM, description=description, formatter_class=WideHelpFormatter)
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    named = next((word for word in words if not word.startswith("-")), None)
    for name in [named] if named in COMMANDS else COMMANDS:
        module = importlib.import_module(f".commands.{name}", __package__)
        child = commands.add_parser(name, help=module.HELP, description=module.HELP, formatter_class=WideHelpFormatter)
        child.set_defaults(run=module.run)
        if name == named:
            module.add_arguments(child)
    return parser


class WideHelpFormatter(argparse.HelpFormatter):
    """Format help with 120 columns, whatever the width of the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=120)
