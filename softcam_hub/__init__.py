"""Any timm image classifier, made self-explaining. Importing this registers its models with timm and transformers.

The program `softcam-hub` alone leaves that to those of its commands that need models: torch, timm and transformers take
seconds to import, and its `--help`, its list of architectures and its answers to mistyped options need none of them.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import COMMAND_LINE

__version__ = "0.1.0"

CAPE_LESIONS = str(Path(__file__).parent / "assets" / "cape_lesions")
"""Folder of a small model trained on generated lesions; timm loads it as `f"local-dir:{CAPE_LESIONS}"`."""


if TYPE_CHECKING or not COMMAND_LINE:
    from . import public
    from .public import *  # noqa: F403

    __all__ = ["CAPE_LESIONS"]
    __all__ += public.__all__
else:

    def __getattr__(name: str) -> Any:
        """Import the public names when one of them is first used."""
        return getattr(importlib.import_module(".public", __name__), name)
