"""How the classifiers are trained."""

from .callback import ExplanationCallback

__all__ = ["ExplanationCallback"]
