"""Draw a map over its image: colour scales, overlays, and the picture that the model saw.

Both colour scales keep their order in grey print and for colour-blind readers. The sequential scale goes from
black over violet and orange to pale yellow. The diverging scale, for signed maps, goes from blue over white
to orange and has the same length on both sides of zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Colour = tuple[int, int, int]

SEQUENTIAL = ((0, 0, 0), (70, 15, 110), (170, 45, 100), (235, 110, 40), (250, 190, 60), (255, 255, 200))
DIVERGING = ((5, 60, 130), (90, 150, 210), (250, 250, 250), (240, 150, 60), (150, 60, 0))


@dataclass(frozen=True)
class Scale:
    """Colours for values from 0 to `high`, or from -`high` to `high` if the scale is diverging.

    Args:
        high: Upper limit. A scale with limit 0 shows every value as zero.
        diverging: Show values below zero in blue and values above zero in orange.
        percent: Write labels as percentages, for values that are probabilities.
    """

    high: float
    diverging: bool = False
    percent: bool = False

    @classmethod
    def of(cls, values: Tensor, diverging: bool = False, percent: bool = False) -> "Scale":
        """Return the shortest scale that holds all values, or their positive part if it is not diverging."""
        return cls(float((values.abs() if diverging else values.relu()).max()), diverging, percent)

    @property
    def colours(self) -> tuple[Colour, ...]:
        return DIVERGING if self.diverging else SEQUENTIAL

    def strengths(self, values: Tensor) -> np.ndarray:
        """Express values as fractions of `high`, clamped to [-1, 1] or to [0, 1]."""
        fractions = values.double() / self.high if self.high > 0 else torch.zeros_like(values)
        return fractions.clamp(-1 if self.diverging else 0, 1).cpu().numpy()

    def paint(self, strengths: np.ndarray) -> np.ndarray:
        """Convert fractions (H, W) of `high` to colours (H, W, 3)."""
        return apply_colours(strengths / 2 + 0.5 if self.diverging else strengths, self.colours)

    def labels(self) -> list[str]:
        """Write the lower limit, the middle and the upper limit, for a colour bar."""
        low = -self.high if self.diverging and self.high else 0.0
        values = (low, (low + self.high) / 2, self.high)
        factor, unit = (100, "%") if self.percent else (1, "")
        return [f"{factor * value:{'+' if self.diverging and value else ''}.3g}{unit}" for value in values]


def apply_colours(values: np.ndarray, scale: tuple[Colour, ...] = SEQUENTIAL) -> np.ndarray:
    """Convert values (H, W) in [0, 1] to colours (H, W, 3) from 0 to 255."""
    stops = np.linspace(0, 1, len(scale))
    channels = [np.interp(values, stops, levels) for levels in zip(*scale, strict=True)]
    return np.stack(channels, axis=-1)


def denormalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Turn a normalised image back into a picture of what the model saw, resized and cropped.

    Args:
        image: Normalised image (C, H, W).
        mean: Mean of each channel that was subtracted.
        std: Standard deviation of each channel that was divided by.
    """
    scale, shift = torch.tensor(std)[:, None, None], torch.tensor(mean)[:, None, None]
    pixels = (image.float().cpu() * scale + shift).clamp(0, 1).expand(3, -1, -1)
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())


def spread(values: Tensor, image: Image.Image, smooth: bool = True) -> Tensor:
    """Resize a map (H, W) to the pixels of an image.

    Args:
        values: Map (H, W) of any resolution.
        image: Image of the wanted size.
        smooth: Interpolate bilinearly; otherwise every cell becomes one block.
    """
    values = values.detach().cpu().float()[None, None]
    return F.interpolate(values, size=image.size[::-1], mode="bilinear" if smooth else "nearest")[0, 0]


def overlay(image: Image.Image, heatmap: Tensor, opacity: float = 0.75) -> Image.Image:
    """Draw a heat map over its image in grey; the hotter a pixel, the more opaque.

    Args:
        image: Image of H×W pixels.
        heatmap: Heat map (H, W) with values in [0, 1].
        opacity: Opacity of the hottest pixels.
    """
    return tint(image, heatmap, Scale(1.0), opacity)


def tint(image: Image.Image, values: Tensor, scale: Scale, opacity: float = 0.75) -> Image.Image:
    """Colour an image in grey by a map; the farther a value is from zero, the more opaque.

    Under a diverging scale the grey is pale, so that zero looks the same everywhere and both colours stand
    out.

    Args:
        image: Image of H×W pixels.
        values: Map (H, W).
        scale: Colours of the values.
        opacity: Opacity at the limits of the scale.
    """
    strengths = scale.strengths(values)
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=float)
    grey = 150 + grey * 105 / 255 if scale.diverging else grey
    weight = opacity * np.sqrt(np.abs(strengths))[..., None]
    return Image.fromarray(((1 - weight) * grey + weight * scale.paint(strengths)).astype(np.uint8))
