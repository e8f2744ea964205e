"""`softcam-hub COMMAND ...`: one module of `commands/` per command, imported when it is used.

A command module has `HELP`, `add_arguments(parser)` and `run(arguments)`, which may return an exit code. Its options
are checked before torch, timm and transformers are imported, which takes seconds. An error that a user can correct
ends with a sentence and exit code 1, or 2 for options that the parser refuses. Other errors keep their traceback.
"""

import importlib
import os
import sys
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Sequence
from types import ModuleType

from . import __version__
from .arguments import ArgumentParser
from .memory import keep_freed_memory
from .threads import set_up_threads

COMMANDS = ("list", "train", "explain", "benchmark", "compare", "accuracy", "card", "push", "export", "demo")
"""Names of the commands and of their modules in `commands/`."""

COMPUTING = ("train", "explain", "benchmark", "accuracy")
"""Commands that may compute for minutes and then end."""

PROGRAM = "softcam-hub"

USER_ERRORS = (ValueError, OSError, ImportError)
"""Errors that the library raises where a user can correct something."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code.

    Args:
        arguments: Words of the command line. Those of the process by default.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    set_up_threads()
    try:
        code = run_command(words)
        sys.stdout.flush()  # here, where a closed pipe is met with the answer below
        return code
    except KeyboardInterrupt as interrupt:
        print("; ".join([f"{PROGRAM}: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except USER_ERRORS as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1


def run_command(words: Sequence[str]) -> int:
    """Run the command that the first word names, or answer the options that need no command."""
    if words and words[0] in COMMANDS:
        if words[0] in COMPUTING:
            keep_freed_memory()
        options = make_parser(words[0]).parse_args(words[1:])
        return load_command(words[0]).run(options) or 0
    parser = make_main_parser()
    parser.parse_args(words)
    parser.print_help()
    return 2


def make_main_parser() -> ArgumentParser:
    """Make the parser of a command line without a known command, whose help has a line for each command."""
    commands = "\n".join(f"  {name:<11}{load_command(name).HELP}" for name in COMMANDS)
    parser = ArgumentParser(
        PROGRAM,
        usage=f"{PROGRAM} COMMAND [OPTIONS]",
        description=f"Image classifiers that explain themselves.\n\ncommands:\n{commands}",
        epilog=f"`{PROGRAM} COMMAND --help` lists the options of a command.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=COMMANDS, help=SUPPRESS)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


def make_parser(command: str) -> ArgumentParser:
    """Make the parser of one command."""
    module = load_command(command)
    parser = ArgumentParser(f"{PROGRAM} {command}", description=module.HELP)
    module.add_arguments(parser)
    return parser


def load_command(name: str) -> ModuleType:
    """Import the module of a command."""
    return importlib.import_module(f".commands.{name}", __package__)
