"""Draw a map over its image: colour scales, overlays, and the picture that the model saw.

Both colour scales keep their order in grey print and for colour-blind readers. The sequential scale goes from
black over violet and orange to pale yellow. The diverging scale, for signed maps, goes from blue over white
to orange and has the same length on both sides of zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .alignment import Grid
from .heads import describe_kind

Colour = tuple[int, int, int]

SEQUENTIAL = ((0, 0, 0), (70, 15, 110), (170, 45, 100), (235, 110, 40), (250, 190, 60), (255, 255, 200))
DIVERGING = ((5, 60, 130), (90, 150, 210), (250, 250, 250), (240, 150, 60), (150, 60, 0))

FAINTEST = 0.4
"""Share of the opacity at which a map is drawn that has its largest value everywhere."""


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
        values = values.detach().cpu().double()  # Apple's GPUs have no float64
        fractions = values / self.high if self.high > 0 else torch.zeros_like(values)
        return fractions.clamp(-1 if self.diverging else 0, 1).numpy()

    def paint(self, strengths: np.ndarray) -> np.ndarray:
        """Convert fractions (H, W) of `high` to colours (H, W, 3)."""
        return apply_colours(strengths / 2 + 0.5 if self.diverging else strengths, self.colours)

    def labels(self) -> list[str]:
        """Write the lower limit, the middle and the upper limit, for a colour bar."""
        low = -self.high if self.diverging and self.high else 0.0
        return [self.format(value) for value in (low, (low + self.high) / 2, self.high)]

    def format(self, value: float) -> str:
        """Write a value in the unit of the scale; values too small for its colours are zero."""
        value = value if abs(value) >= self.high / 1000 else 0.0
        factor, unit = (100, "%") if self.percent else (1, "")
        return f"{factor * value:{'+' if self.diverging and value else ''}.3g}{unit}"

    def describe_range(self, values: Tensor) -> str:
        """Say between which limits values lie: often only a part of what the scale shows."""
        return f"from {self.format(float(values.min()))} to {self.format(float(values.max()))}"


def apply_colours(values: np.ndarray, scale: tuple[Colour, ...] = SEQUENTIAL) -> np.ndarray:
    """Convert values (H, W) in [0, 1] to colours (H, W, 3) from 0 to 255."""
    stops = np.linspace(0, 1, len(scale))
    channels = [np.interp(values, stops, levels) for levels in zip(*scale, strict=True)]
    return np.stack(channels, axis=-1)


def scale_of(maps: Tensor, kind: str) -> Scale:
    """Return the colour scale that holds all values of maps of a kind."""
    description = describe_kind(kind)
    return Scale.of(maps, diverging=description.signed, percent=description.sums_to_probability)


def meaning_of(kind: str) -> str:
    """Say in a sentence what the values and colours of a kind of map mean."""
    description = describe_kind(kind)
    if description.caption:
        return description.caption
    if description.sums_to_probability:
        return description.statement
    if description.signed:
        mean = "; the mean of a map is the logit of its class" if description.averages_to_logit else ""
        return f"Orange speaks for the class and blue against it{mean}."
    return "The brighter a location is, the more it matters to the class."


def denormalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Turn a normalised image back into a picture of what the model saw, resized and cropped.

    Args:
        image: Normalised image (C, H, W).
        mean: Mean of each channel that was subtracted.
        std: Standard deviation of each channel that was divided by.
    """
    return to_picture(restore_pixels(image, mean, std))


def restore_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalisation of images (..., C, H, W) of one or three channels, to bytes (..., 3, H, W)."""
    scale, shift = (images.new_tensor(values, dtype=torch.float32)[:, None, None] for values in (std, mean))
    pixels = (images.float() * scale + shift).clamp(0, 1)
    return (pixels * 255).round().byte().expand(*images.shape[:-3], 3, -1, -1)


def to_picture(pixels: Tensor) -> Image.Image:
    """Turn bytes (3, H, W) into a picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def spread(values: Tensor, image: Image.Image, grid: Grid, smooth: bool = True) -> Tensor:
    """Resize a map (H, W) to the pixels of an image.

    Args:
        values: Map (H, W) of any resolution.
        image: Image of the wanted size.
        grid: Places of the cells in the image, as `Explanation.layout` returns it.
        smooth: Interpolate bilinearly; otherwise every pixel has the value of the nearest cell.
    """
    return grid.upsample(values.detach().cpu().float(), image.size[::-1], nearest=not smooth)


def overlay(image: Image.Image, heatmap: Tensor, opacity: float = 0.75) -> Image.Image:
    """Draw a heat map over its image in grey; the hotter a pixel, the more opaque.

    Args:
        image: Image of H×W pixels.
        heatmap: Heat map (H, W) with values in [0, 1].
        opacity: Opacity of the hottest pixels.
    """
    return tint(image, heatmap, Scale(1.0), opacity)


def tint(image: Image.Image, values: Tensor, scale: Scale, opacity: float = 0.75) -> Image.Image:
    """Colour an image in grey by a map; the more a value stands out, the more opaque.

    Args:
        image: Image of H×W pixels.
        values: Map (H, W).
        scale: Colours of the values.
        opacity: Opacity of values that stand out most, between 0 and 1.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be between 0 and 1, got {opacity!r}")
    strengths = scale.strengths(values)
    grey = np.asarray(backdrop(image, scale), dtype=float)
    weight = opacity * opacities(strengths)[..., None]
    return Image.fromarray(((1 - weight) * grey + weight * scale.paint(strengths)).astype(np.uint8))


def backdrop(image: Image.Image, scale: Scale) -> Image.Image:
    """Return an image in grey, on which the colours of a scale are laid.

    Under a diverging scale the grey is pale, so that zero looks the same everywhere and both colours stand out.
    """
    grey = image.convert("L").convert("RGB")
    return grey.point([150 + level * 105 // 255 for level in range(256)] * 3) if scale.diverging else grey


def opacities(strengths: np.ndarray) -> np.ndarray:
    """Return how opaque each value of a map is drawn, as a fraction of the largest opacity.

    Values far from zero are more opaque. A map without zeros, such as the nearly uniform map of an unsure model, would
    hide its photograph that way, so that its values also have to stand out from the one that is nearest to zero.

    Args:
        strengths: Values (H, W) as fractions of the limit of their scale.
    """
    sizes = np.abs(strengths)
    least = abs(np.clip(0, strengths.min(), strengths.max()))
    contrast = 1 - least / np.maximum(sizes, np.finfo(float).tiny)
    return np.sqrt(sizes) * (FAINTEST + (1 - FAINTEST) * contrast)
