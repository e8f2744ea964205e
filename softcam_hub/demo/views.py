"""What the demo page shows of an answer, as HTML: tiles of pictures with captions, and tables.

Every number is text beside its picture, so that it can be read aloud, copied and tested. Class names come from models,
and are escaped as any text.
"""

import base64
import html
import io
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from ..figures import Scale, outline, overlay
from ..figures.captions import caption_of, meaning_of, scale_of
from ..figures.difference import Tier, tiers
from ..figures.drawing import enlarge, spread, tint
from ..figures.numbers import format_share
from ..models.explanation import Explanation, Regions

SIDE = 320
"""Height of a tile's picture in pixels."""

TITLES = {"cape": "CAPE", "mu-cape": "μ-CAPE", "softcam": "SoftCAM"}

MEANINGS = {"mu-cape": "Class evidence plus its mean over the classes, where that is positive: it ranks locations."}
"""Kind -> a sentence, where it says more than that of figures."""


@dataclass(frozen=True)
class Tile:
    """A picture and its caption, whose first line is a heading.

    Args:
        caption: lines of text.
        picture: any size.
    """

    caption: str
    picture: Image.Image


def tiles(shown: list[Tile]) -> str:
    """Tiles side by side, as many as the screen has room for."""
    return f'<div class="tiles">{"".join(map(_tile, shown))}</div>'


def _tile(tile: Tile) -> str:
    heading, *lines = (html.escape(line) for line in tile.caption.split("\n"))
    text = "<br>".join([f"<strong>{heading}</strong>", *lines])
    return f'<figure><img src="{_url(tile.picture)}" alt="{heading}"><figcaption>{text}</figcaption></figure>'


def _beside(tile: Tile, content: str) -> str:
    """A tile and HTML to the right of it; below it where the screen is narrow."""
    return f'<div class="beside">{_tile(tile)}<div>{content}</div></div>'


def _url(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def sentence(text: str) -> str:
    return f"<p>{html.escape(text)}</p>" if text else ""


def notice(text: str, mistake: bool = False) -> str:
    """A sentence on what was handed in."""
    return f'<p class="notice" role="{"alert" if mistake else "status"}">{html.escape(text)}</p>' if text else ""


def prediction(seen: Image.Image, labels: list[str], probabilities: Tensor, most: int = 5) -> str:
    """What the model saw, and a table of the most probable classes.

    Args:
        seen: the picture.
        labels: of all classes.
        probabilities: (C,).
        most: rows.
    """
    values, indices = probabilities.topk(min(most, len(labels)))
    rows = [
        f'<tr><th scope="row">{html.escape(labels[index])}</th><td>{_percent(value)}</td>'
        f'<td class="bar"><div style="width: {100 * value:.1f}%"></div></td></tr>'
        for index, value in zip(indices.tolist(), values.tolist(), strict=True)
    ]
    left = len(labels) - len(rows)
    table = f"<table>{''.join(rows)}</table>" + sentence(f"and {left} less probable classes" if left else "")
    return _beside(Tile("what the model saw", enlarge(seen, SIDE)), table)


def _percent(value: float) -> str:
    return f"{value:.2%}" if value >= 5e-5 else "under 0.01%"


def own_maps(seen: Image.Image, explanations: dict[str, Explanation], labels: list[str]) -> str:
    """The model's maps of the chosen classes, by kind; those of one kind share one scale."""
    canvas, parts = enlarge(seen, SIDE), []
    for kind, explanation in explanations.items():
        maps = explanation.maps[0].cpu()
        scale = scale_of(maps, kind)
        shown = [
            Tile(caption_of(explanation, labels, 0, rank), tint(canvas, spread(values, canvas), scale))
            for rank, values in enumerate(maps)
        ]
        low, _, high = scale.labels()
        limits = f"Colours from {low} to {high} in each cell."
        parts += [f"<h3>{TITLES[kind]}</h3>", sentence(f"{MEANINGS.get(kind) or meaning_of(kind)} {limits}")]
        parts.append(tiles(shown))
    return "".join(parts)


def difference(seen: Image.Image, explanation: Explanation, labels: list[str]) -> str:
    """Where the evidence for the first class exceeds that for the second, and what it adds up to."""
    canvas, values = enlarge(seen, SIDE), explanation.difference()[0].float().cpu()
    first, second = (labels[index] for index in explanation.classes[0].tolist())
    adds_up = explanation.kind == "cape"
    scale = Scale.of(values, diverging=True, percent=adds_up)
    low, _, high = scale.labels()
    tile = Tile(f"{first} minus {second}", tint(canvas, spread(values, canvas, smooth=False), scale))
    colours = f"Orange: more evidence for {first}, up to {high} in a cell. Blue: for {second}, down to {low}."
    if not adds_up:
        mean = f"The mean of all cells is the difference of the logits: {float(values.double().mean()):+.2f}"
        return _beside(tile, sentence(colours) + sentence(mean))
    difference = format_share(float(values.double().sum()), "+", 2)
    total = f"All cells add up to the difference of the probabilities: {difference}"
    return _beside(tile, sentence(colours) + _sums(values, first, second) + sentence(total))


def _sums(values: Tensor, first: str, second: str) -> str:
    """What the strongest cells for either class add up to."""
    return "".join(
        f"<p>For {html.escape(name)}:</p><ul>{''.join(map(_sum, found))}</ul>"
        for sign, name in ((1, first), (-1, second))
        if (found := tiers(values, sign))
    )


def _sum(tier: Tier) -> str:
    count, size = int(tier.cells.sum()), _percent(abs(tier.total))
    return f"<li>{tier.title} ({count} cell{'s' if count != 1 else ''}): {size}</li>"


def regions(seen: Image.Image, explanation: Explanation, labels: list[str], threshold: float) -> str:
    """The locations above the threshold, in colour, and the share of each class's probability that they carry."""
    canvas, found = enlarge(seen, SIDE), explanation.regions(threshold)
    return tiles(
        [
            Tile(f"{labels[index]}\n{found.describe(rank=rank)}", _lit(canvas, found, rank))
            for rank, index in enumerate(explanation.classes[0].tolist())
        ]
    )


def _lit(canvas: Image.Image, found: Regions, rank: int) -> Image.Image:
    """The picture, dark and grey outside of the regions."""
    mask = found.mask[0, rank].cpu()
    inside = Image.fromarray((spread(mask.float(), canvas, smooth=False) * 255).byte().numpy())
    dark = canvas.convert("L").point([value // 3 for value in range(256)]).convert("RGB")
    return outline(Image.composite(canvas, dark, inside), mask, width=2)


def side_by_side(seen: Image.Image, own: Explanation, others: dict[str, Explanation]) -> str:
    """The model's own map of its first class, and those of post-hoc methods, each on a scale of its own."""
    canvas, size = enlarge(seen, SIDE), (SIDE, enlarge(seen, SIDE).width)
    every = {TITLES[own.kind]: own, **others}
    shown = []
    for name, explanation in every.items():
        heat = explanation.heatmaps(size)[0, 0].cpu()
        shown.append(Tile(name if heat.any() else f"{name}\nnothing stands out", overlay(canvas, heat)))
    return tiles(shown)
