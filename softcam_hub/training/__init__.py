"""How the classifiers are trained."""

from .callback import ExplanationCallback
from .trainer import EvidenceTrainer

__all__ = ["EvidenceTrainer", "ExplanationCallback"]
