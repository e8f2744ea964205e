"""How the classifiers are trained."""

from .callback import ExplanationCallback
from .config import Config, make_config, parse, recipes
from .loop import NotFinite
from .run import run
from .trainer import EvidenceTrainer

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
