"""Maps that do not depend on the model, which every method must surpass."""

from zlib import crc32

import torch
from torch import Tensor

from .explained_model import Activations


def random_maps(activations: Activations, seed: int = 0) -> Tensor:
    """Draw uniform noise that depends on image, class and seed alone."""
    maps = []
    for image, classes in zip(activations.images, activations.classes.tolist(), strict=True):
        checksum = crc32(image.float().cpu().numpy().tobytes(), seed)
        for label in classes:
            generator = torch.Generator().manual_seed(crc32(str(label).encode(), checksum))
            maps.append(torch.rand(activations.features.shape[2:], generator=generator))
    return torch.stack(maps).view(_map_shape(activations)).to(activations.features)


def centre(activations: Activations) -> Tensor:
    """Return a Gaussian in the middle of the image, whose deviation is a quarter of each side."""
    return bump(*activations.features.shape[2:]).expand(_map_shape(activations)).to(activations.features)


def bump(height: int, width: int) -> Tensor:
    """Return a Gaussian (H, W) in the middle whose deviation is a quarter of each side."""
    rows, columns = (((torch.arange(n) + 0.5) / n - 0.5) / 0.25 for n in (height, width))
    return torch.exp(-(rows[:, None] ** 2 + columns**2) / 2)


def _map_shape(activations: Activations) -> tuple[int, ...]:
    return (*activations.classes.shape, *activations.features.shape[2:])
