"""Provide the command-line parser that every command, tool and benchmark of this project uses."""

import argparse
from typing import Any


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that accepts options by their full names only.

    By default, argparse completes abbreviations, so that a mistyped option silently becomes another one.
    Sub-commands are parsed by the same class, and refuse abbreviations, too.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "allow_abbrev": False})
