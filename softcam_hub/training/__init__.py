"""Train SoftCAM and CAPE classifiers, and the vanilla classifiers that they are compared with."""

from typing import TYPE_CHECKING

from ..arguments import COMMAND_LINE
from .config import Config
from .parsing import make_config, parse, recipes

if TYPE_CHECKING or not COMMAND_LINE:
    from .loop import NotFinite
    from .run import run
    from .trainer import EvidenceTrainer, ExplanationCallback

__all__ = [
    "Config",
    "EvidenceTrainer",
    "ExplanationCallback",
    "NotFinite",
    "make_config",
    "parse",
    "recipes",
    "run",
]
