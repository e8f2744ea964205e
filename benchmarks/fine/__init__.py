"""Ways to finer evidence maps, tried side by side (see study.py)."""
