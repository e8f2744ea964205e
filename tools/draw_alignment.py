"""Draw the picture of the documentation that shows what the alignment of a map changes.

python -m tools.draw_alignment    # docs/alignment.png

The shipped model explains one generated test image. The outline of the lesions is drawn for the reader.
"""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from softcam_hub import CAPE_LESIONS
from softcam_hub.data.lesions import VARIANTS, draw
from softcam_hub.figures import captioned_row, outline
from softcam_hub.figures.drawing import enlarge
from softcam_hub.loading import load_classifier
from softcam_hub.models.overlays import scale_of, spread, tint

INDEX, SIDE = 3, 288
"""Number of the test image, and height of a panel in pixels."""

PICTURE = Path(__file__).parents[1] / "docs" / "alignment.png"


def draw_alignment(index: int = INDEX) -> Image.Image:
    """Return the image, its map in squares, and its map where the network looks, side by side."""
    model = load_classifier(CAPE_LESIONS).model
    sample = draw(index, "test", model.input_size[1])
    mask, canvas = torch.from_numpy(sample.mask), enlarge(sample.image, SIDE)
    explanation = model.explain(sample.image, classes=sample.label)
    panels = [(f"image, {VARIANTS['lesions'][sample.label]}\noutlined", outline(canvas, mask, width=2))]
    titles = {"cells drawn as squares\n(aligned=False)": None, "cells drawn where\nthe network looks": explanation.grid}
    for title, grid in titles.items():
        shown, values = replace(explanation, grid=grid), explanation.maps[0, 0]
        picture = tint(canvas, spread(values, canvas, shown.layout()), scale_of(values, explanation.kind))
        panels.append((title, outline(picture, mask, width=2)))
    return captioned_row(panels, SIDE)


if __name__ == "__main__":
    draw_alignment().save(PICTURE, optimize=True)
