"""timm image classifiers, made self-explaining. Importing this registers its models with timm and transformers.

transformers is not imported for that: its models are registered when a program imports it, or uses a public name that
needs it. The program `softcam-hub` leaves timm and torch, too, to those of its commands that need models: they take
seconds to import, and its `--help`, its list of architectures and its answers to mistyped options need none of them.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import public
from .arguments import COMMAND_LINE
from .deferred_imports import import_name

__version__ = "0.1.0"

CAPE_LESIONS = str(Path(__file__).parent / "assets" / "cape_lesions")
"""Folder of a small model trained on generated lesions; timm loads it as `f"local-dir:{CAPE_LESIONS}"`."""


if TYPE_CHECKING:
    from .public import *  # noqa: F403

__all__ = ["CAPE_LESIONS", *public.NAMES]


def register() -> None:
    """Make our models known to timm, and to transformers once it is imported."""
    importlib.import_module(".registry", __name__).register()


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name, or a module of the package, when it is first used."""
        if name in public.NAMES:
            register()
        return import_name(__name__, public.MODULES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not COMMAND_LINE:
    register()
