"""Measure the measures: which of them prefer a map that is known to be right to maps that are known to be wrong."""
