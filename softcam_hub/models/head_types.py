"""How the head of a timm classifier may read its features; without torch, for commands that need not wait for it."""

EXACT = ("linear", "affine", "norm", "gated")
"""Types of heads whose pretrained classifier makes the maps, see `backbone.Anatomy`."""
