"""Train SoftCAM and CAPE classifiers, and the vanilla classifiers that they are compared with."""

from .config import Config
from .loop import NotFinite
from .parsing import make_config, parse, recipes
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
