"""Explain any image classifier: post-hoc methods, and the own maps of our models, under one call signature."""
