"""The command-line parser of every command, tool and benchmark of this project."""

import argparse
from typing import Any


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that takes options by their whole names only.

    argparse completes abbreviations by default. `benchmark --out DIR` was then read as another option, and ran with
    settings that nobody had asked for. Sub-commands are made by the same class, so they refuse abbreviations too.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "allow_abbrev": False})
