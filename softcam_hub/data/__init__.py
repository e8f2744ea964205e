"""Data sets: what classifiers are trained and evaluated on."""

from .lesions import load_lesions

__all__ = ["load_lesions"]
