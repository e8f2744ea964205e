"""Measure explanations on a data set: values per image, a row per explainer, and the papers' tables."""

from .config import BenchmarkConfig
from .run import benchmark

__all__ = ["BenchmarkConfig", "benchmark"]
