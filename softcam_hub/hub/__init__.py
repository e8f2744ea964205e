"""Publishing on the Hugging Face Hub: model folders with their cards, and our Spaces."""

from .publishing import SPACES, PushResult, push, push_space

__all__ = ["SPACES", "PushResult", "push", "push_space"]
