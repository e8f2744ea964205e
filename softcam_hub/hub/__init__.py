"""Publishing on the Hugging Face Hub: model folders with their cards, and our Spaces."""

from .publishing import SPACES, Pushed, push, push_space

__all__ = ["SPACES", "Pushed", "push", "push_space"]
