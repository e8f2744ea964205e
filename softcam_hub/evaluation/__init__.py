"""Measure explanations on a data set: values per image, a row per explainer, and the papers' tables."""

from typing import TYPE_CHECKING

from ..arguments import COMMAND_LINE
from .config import BenchmarkConfig

if TYPE_CHECKING or not COMMAND_LINE:
    from .run import benchmark

__all__ = ["BenchmarkConfig", "benchmark"]
