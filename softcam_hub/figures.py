"""Pictures of explanations: overlays and rows of captioned panels, with numpy and Pillow.

Both colour scales keep their order in grey and for colour-blind readers: a sequential one from black over violet and
orange to pale yellow, and a diverging one from blue over white to orange for signed maps.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SEQUENTIAL = ((0, 0, 0), (70, 15, 110), (170, 45, 100), (235, 110, 40), (250, 190, 60), (255, 255, 200))
DIVERGING = ((5, 60, 130), (90, 150, 210), (250, 250, 250), (240, 150, 60), (150, 60, 0))


def colour(values: np.ndarray, scale: tuple[tuple[int, int, int], ...] = SEQUENTIAL) -> np.ndarray:
    """(H, W) values in [0, 1] to (H, W, 3) colours of 0 to 255."""
    stops = np.linspace(0, 1, len(scale))
    return np.stack([np.interp(values, stops, [stop[c] for stop in scale]) for c in range(3)], axis=-1)


def picture(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """What the model saw: the normalised image (C, H, W), resized and cropped as it was, back in colours."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pixels = (image.float().cpu() * std + mean).clamp(0, 1).expand(3, -1, -1)
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())


def outlined(image: Image.Image, mask: Tensor, colour: tuple[int, int, int] = (0, 220, 255)) -> Image.Image:
    """The image with the border of a mask (H, W) drawn just outside of it."""
    inside = mask.bool().cpu()
    grown = F.max_pool2d(inside.float()[None], 3, stride=1, padding=1)[0] > 0
    pixels = np.array(image.convert("RGB"))
    pixels[(grown & ~inside).numpy()] = colour
    return Image.fromarray(pixels)


def overlay(image: Image.Image, heatmap: Tensor, opacity: float = 0.75) -> Image.Image:
    """A heat map in [0, 1], (H, W) like the image, over the image in grey; the hotter, the more opaque."""
    heat = heatmap.float().cpu().numpy()
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=float)
    weight = opacity * np.sqrt(heat)[..., None]
    return Image.fromarray(((1 - weight) * grey + weight * colour(heat)).astype(np.uint8))


def signed(values: Tensor, size: tuple[int, int]) -> Image.Image:
    """A signed map (H, W) at `size` (height, width): blue below zero, white at zero, orange above."""
    values = values.float().cpu()
    limit = values.abs().max().clamp_min(torch.finfo(values.dtype).tiny)
    pixels = colour((values / limit * 0.5 + 0.5).numpy(), DIVERGING).astype(np.uint8)
    return Image.fromarray(pixels).resize(size[::-1], Image.Resampling.NEAREST)


def column(rows: list[Image.Image]) -> Image.Image:
    """Pictures below one another."""
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for picture in rows:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def row(panels: list[tuple[str, Image.Image]], side: int = 256, gap: int = 12) -> Image.Image:
    """Captioned panels beside one another, each `side` pixels high."""
    font = ImageFont.load_default(size=15)
    lines = max(caption.count("\n") + 1 for caption, _ in panels)
    bar = 20 * lines + 8
    width = len(panels) * (side + gap) + gap
    sheet = Image.new("RGB", (width, side + bar + 2 * gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (caption, panel) in enumerate(panels):
        left = gap + index * (side + gap)
        draw.multiline_text((left, gap), caption, fill="black", font=font, spacing=4)
        sheet.paste(panel.resize((side, side), Image.Resampling.BICUBIC), (left, bar + gap))
    return sheet
