"""Publish model folders with their cards, and our Spaces, on the Hugging Face Hub."""

from .publishing import SPACES, PushResult, push

__all__ = ["SPACES", "PushResult", "push"]
