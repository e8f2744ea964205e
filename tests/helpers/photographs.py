"""Photographs of scikit-image that their photographers gave to everyone (CC0), prepared for a classifier."""

import torch
from PIL import Image
from skimage import data
from timm.data import create_transform, resolve_model_data_config

CLASSES = {"chelsea": "tabby, tabby cat", "coffee": "espresso", "camera": "tripod"}
"""Name of a photograph -> its ImageNet class."""


def load_photographs(model: torch.nn.Module) -> torch.Tensor:
    """Return all photographs as a batch, prepared as timm says for a model."""
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    return torch.stack([transform(Image.fromarray(getattr(data, name)()).convert("RGB")) for name in CLASSES])
