"""How a black box is explained: the baselines, under one call signature with the maps of our own models."""
