"""Explain any image classifier, by post-hoc methods or by the maps of a self-explaining model."""
