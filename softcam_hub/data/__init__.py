"""What the classifiers are shown."""

from .lesions import load_lesions

__all__ = ["load_lesions"]
