"""Draw README's first picture: a photograph, and what a network with ImageNet weights sees in it.

python -m tools.draw_photograph    # docs/photograph.png; prints the percentages, and those of the vanilla classifier

- The model is off-the-shelf CAPE, as `pretrained=True` gives it: EfficientNet-Lite0 with its own ImageNet weights in
  CAPE's head, not trained further.
- The photograph is `rocket` of scikit-image, which SpaceX released into the public domain.
- Cells are drawn where the network looks. The first `explain` measures that, on noise.
"""

from pathlib import Path

from PIL import Image, ImageOps
from skimage import data

from benchmarks.imagenet_weights import imagenet_folder
from softcam_hub import Explanation, build
from softcam_hub.figures import Scale, captioned_row
from softcam_hub.figures.layout import GAP, colour_bar
from softcam_hub.models.overlays import scale_of, spread, tint
from softcam_hub.models.text import format_share

ARCHITECTURE, STRIDE = "tf_efficientnet_lite0", 16
"""timm name of the backbone, and number of its pixels for each cell of a map."""

SIDE, LETTERS, LABELS = 288, 19, 17
"""Height in pixels of a panel, of the letters of captions, and of those of labels. README shows two thirds of it."""

DIGITS = 2
"""Digits of percentages after the point: so many that the reader's subtraction gives the difference."""

PICTURE = Path(__file__).parents[1] / "docs" / "photograph.png"


def load_photograph() -> Image.Image:
    """Return the photograph of a rocket between two towers."""
    return Image.fromarray(data.rocket())


def explain_photograph(family: str = "cape", classes: list[int] | None = None) -> Explanation:
    """Explain two classes of the photograph, which the network sees in its whole height.

    Args:
        family: Family of the head: `cape`, or `softcam` for the probabilities of the vanilla classifier.
        classes: Indices of the classes. The default is the two most probable ones.
    """
    settings = {"file": str(imagenet_folder(ARCHITECTURE) / "model.safetensors"), "crop_pct": 1.0}
    model = build(f"{family}_{ARCHITECTURE}", True, pretrained_cfg_overlay=settings, output_stride=STRIDE).eval()
    return model.explain(load_photograph(), classes=classes, top_k=2)


def draw_photograph(explanation: Explanation) -> Image.Image:
    """Return the photograph, the maps of its two classes, and their difference, side by side.

    Args:
        explanation: `cape` maps of two classes of the photograph.
    """
    # The photograph itself is sharper than the pixels that the network saw.
    canvas, grid = ImageOps.fit(load_photograph(), (SIDE, SIDE)), explanation.layout()
    maps, difference = explanation.maps[0], explanation.difference()[0]
    names = [label.partition(",")[0] for label in explanation.labels[0]]  # ImageNet adds synonyms behind commas

    scale = scale_of(maps, explanation.kind)
    labels = ["0%", "", f"{scale.format(scale.high)} per cell"]
    panels = [("photograph\nby SpaceX", _add_bar(canvas))]
    for name, share, values in zip(names, explanation.probabilities[0].tolist(), maps, strict=True):
        shown = tint(canvas, spread(values, canvas, grid), scale)
        panels.append((f"{name}\n{format_share(share, digits=DIGITS)}", _add_bar(shown, scale, labels)))

    scale = Scale.of(difference, diverging=True, percent=True)
    shown = tint(canvas, spread(difference, canvas, grid), scale)
    caption = f"difference\n{format_share(float(difference.sum()), '+', DIGITS)}"
    panels.append((caption, _add_bar(shown, scale, [names[1], "", names[0]])))
    return captioned_row(panels, panels[0][1].height, letter_size=LETTERS)


def _add_bar(picture: Image.Image, scale: Scale | None = None, labels: list[str] | None = None) -> Image.Image:
    """Put the colour bar of a scale below a picture, or the same room without a scale."""
    bar = colour_bar(scale or Scale(1.0), picture.width + GAP, labels, left=0, letter_size=LABELS)
    sheet = Image.new("RGB", (picture.width, picture.height + bar.height), "white")
    sheet.paste(picture)
    if scale:
        sheet.paste(bar, (0, picture.height))
    return sheet


def main() -> None:
    """Draw the picture, and print the percentages of CAPE and of the vanilla classifier."""
    explanation = explain_photograph()
    draw_photograph(explanation).save(PICTURE, optimize=True)
    print(explanation)
    print("the vanilla classifier:", explain_photograph("softcam", explanation.classes[0].tolist()))


if __name__ == "__main__":
    main()
