"""Render an explained image as HTML: tiles of pictures with captions, tables, and files to download.

- Every number is text beside its picture, so that it can be read aloud, copied and tested.
- A map lies as a picture of its own over the grey photograph, so that the page can change its opacity at once.
- Class names come from models, and file names from visitors. Both are escaped like all text.
"""

import base64
import html
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..figures import Scale, outline, per_class, stack_vertically
from ..figures.captions import caption_of
from ..figures.difference import tiers
from ..figures.drawing import enlarge
from ..models.alignment import Grid
from ..models.explanation import Explanation
from ..models.heads import describe_kind
from ..models.overlays import backdrop, meaning_of, opacities, scale_of, spread
from ..models.regions import Regions
from ..models.text import format_share, printable
from .models import ExplainedImage

SIDE = 360
"""Height of the picture in a tile, in pixels."""


@dataclass(frozen=True)
class Tile:
    """A picture with a caption, and perhaps a map over it.

    Args:
        caption: Lines of text. The first line is the heading.
        picture: Picture of any size.
        layer: Map of the same size, transparent where nothing stands out.
    """

    caption: str
    picture: Image.Image
    layer: Image.Image | None = None


def render_tiles(tiles: list[Tile]) -> str:
    """Render tiles side by side, as many in a row as the screen has room for."""
    return f'<div class="tiles">{"".join(map(_render_tile, tiles))}</div>'


def _render_tile(tile: Tile) -> str:
    heading, *lines = (html.escape(line) for line in tile.caption.split("\n"))
    text = "<br>".join([f"<strong>{heading}</strong>", *lines])
    layer = f'<img class="layer" src="{_data_url(tile.layer, "WEBP")}" alt="">' if tile.layer else ""
    pictures = f'<div class="stack"><img src="{_data_url(tile.picture, "WEBP")}" alt="{heading}">{layer}</div>'
    return f"<figure>{pictures}<figcaption>{text}</figcaption></figure>"


def _data_url(picture: Image.Image, form: str) -> str:
    content = io.BytesIO()
    picture.save(content, form, quality=90)
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def _map_tile(caption: str, canvas: Image.Image, values: Tensor, scale: Scale) -> Tile:
    """Lay a map over a picture.

    Args:
        caption: Caption of the tile.
        canvas: Picture of H×W pixels.
        values: Map (H, W).
        scale: Colours of the values.
    """
    strengths = scale.strengths(values)
    pixels = np.concatenate([scale.paint(strengths), 255 * opacities(strengths)[..., None]], axis=-1)
    return Tile(caption, backdrop(canvas, scale), Image.fromarray(pixels.round().astype(np.uint8), "RGBA"))


def _render_colour_bar(scale: Scale, labels: list[str] | None = None) -> str:
    """Render the colours of a scale, with labels below the ends and the middle."""
    low, middle, high = labels or scale.labels()
    colours = ", ".join(f"rgb{colour}" for colour in scale.colours)
    look = f'aria-label="Colours from {low} to {high}" style="background: linear-gradient(90deg, {colours})"'
    ticks = "".join(f"<span>{label}</span>" for label in (low, middle, high))
    return f'<div class="scale"><div role="img" {look}></div>{ticks}</div>'


def _render_beside(tile: Tile, content: str) -> str:
    """Render a tile with HTML to its right, or below it where the screen is narrow."""
    return f'<div class="beside">{_render_tile(tile)}<div>{content}</div></div>'


def render_sentence(text: str, name: str = "") -> str:
    """Render a paragraph, or nothing for an empty text.

    Args:
        text: Text of the paragraph.
        name: Class of the paragraph in the style sheet.
    """
    return f'<p class="{name}">{html.escape(text)}</p>' if text else ""


def render_notice(text: str, is_error: bool = False) -> str:
    """Render a sentence on the uploaded file, or nothing for an empty text."""
    return f'<p class="notice" role="{"alert" if is_error else "status"}">{html.escape(text)}</p>' if text else ""


CLASSES = 5
"""Largest number of classes in the table of a prediction."""


def render_prediction(explained: ExplainedImage) -> str:
    """Render the input of the model, and a table of its most probable classes."""
    labels = explained.labels
    values, indices = explained.probabilities.topk(min(CLASSES, len(labels)))
    rows = [
        f'<tr><th scope="row">{html.escape(labels[index])}</th><td>{html.escape(format_share(value))}</td>'
        f'<td class="bar"><div style="width: {100 * value:.1f}%"></div></td></tr>'
        for index, value in zip(indices.tolist(), values.tolist(), strict=True)
    ]
    others = len(labels) - len(rows)
    table = f"<table>{''.join(rows)}</table>"
    remark = render_sentence(f"and {others} less probable classes" if others else "")
    caption = f"{printable(explained.file)}\nas the model saw it"
    return _render_beside(Tile(caption, enlarge(explained.image, SIDE)), table + remark)


def render_maps(explained: ExplainedImage) -> str:
    """Render the model's own maps of the chosen classes. All maps of one kind share one scale."""
    canvas, parts = enlarge(explained.image, SIDE), []
    for kind, explanation in explained.explanations.items():
        maps = explanation.maps[0].cpu()
        scale, grid = scale_of(maps, kind), explanation.layout()
        tiles = [
            _map_tile(caption_of(explanation, explained.labels, 0, rank), canvas, spread(values, canvas, grid), scale)
            for rank, values in enumerate(maps)
        ]
        parts += [
            f"<h3>{explanation.map_kind.title}</h3>",
            render_sentence(describe_kind(kind).introduction or meaning_of(kind)),
            render_tiles(tiles),
            _render_colour_bar(scale),
            render_sentence(f"Values of these maps: {scale.describe_range(maps)} in a cell.", "small"),
        ]
    return "".join(parts) + render_sentence(describe_offset(explained.explanation.layout()), "small")


def describe_offset(grid: Grid) -> str:
    """Say how far cells are drawn from their squares; an empty text where that was not measured."""
    distances = [
        f"{abs(distance):.2f} cells {after if distance > 0 else before}"
        for distance, before, after in zip(grid.offset or (), ("up", "left"), ("down", "right"), strict=False)
        if distance is not None
    ]
    if not distances:
        return ""
    return f"Cells are drawn where the network looks: {' and '.join(distances)} of their square."


def render_downloads(explained: ExplainedImage) -> str:
    """Render links to a picture of all maps, and to their numbers as JSON. The files are a part of the page."""
    stem = Path(explained.file).stem
    sheets = [per_class(explained.image, one, explained.labels) for one in explained.explanations.values()]
    numbers = base64.b64encode(json.dumps(describe(explained)).encode()).decode()
    files = {
        "picture": (f"{stem}-explained.png", _data_url(stack_vertically(sheets), "PNG")),
        "numbers (JSON)": (f"{stem}-explained.json", f"data:application/json;base64,{numbers}"),
    }
    links = [
        f'<a class="download" download="{html.escape(name)}" href="{url}">Download {title}</a>'
        for title, (name, url) in files.items()
    ]
    return f"<p>{''.join(links)}</p>"


def describe(explained: ExplainedImage) -> dict[str, object]:
    """Return the prediction and the maps of the chosen classes, for JSON."""
    labels, best = explained.labels, int(explained.probabilities.argmax())
    return {
        "file": printable(explained.file),
        "model": explained.model,
        "label": labels[best],
        "score": float(explained.probabilities[best]),
        "probabilities": dict(zip(labels, explained.probabilities.tolist(), strict=True)),
        "explained": [labels[index] for index in explained.classes],
        "map_offset": explained.explanation.layout().offset,
        "maps": {kind: explanation.maps[0].tolist() for kind, explanation in explained.explanations.items()},
    }


def render_regions(explained: ExplainedImage, threshold: float) -> str:
    """Render the locations above a threshold in colour, with their share of the class probability.

    Nothing is rendered where the maps do not add up to the probability.
    """
    if not explained.adds_up:
        return ""
    canvas, regions = enlarge(explained.image, SIDE), explained.explanation.regions(threshold)
    grid = explained.explanation.layout()
    return render_tiles(
        [
            Tile(f"{explained.labels[index]}\n{regions.describe(rank=rank)}", _highlight(canvas, regions, rank, grid))
            for rank, index in enumerate(explained.classes)
        ]
    )


def _highlight(canvas: Image.Image, regions: Regions, rank: int, grid: Grid) -> Image.Image:
    """Return the picture, dark and grey outside of the regions."""
    mask = spread(regions.mask[0, rank].float(), canvas, grid, smooth=False)
    inside = Image.fromarray((mask * 255).byte().numpy())
    dark = canvas.convert("L").point([value // 3 for value in range(256)]).convert("RGB")
    return outline(Image.composite(canvas, dark, inside), mask, width=2)


def render_difference(explained: ExplainedImage) -> str:
    """Render the first chosen class minus the second, with the sum of all cells."""
    if len(explained.classes) < 2:
        return render_sentence("Choose two different classes to compare them.")
    canvas, values = enlarge(explained.image, SIDE), explained.explanation.difference()[0].float().cpu()
    first, second = (explained.labels[index] for index in explained.classes)
    scale = Scale.of(values, diverging=True, percent=explained.adds_up)
    blocks = spread(values, canvas, explained.explanation.layout(), smooth=False)
    tile = _map_tile(f"{first} minus {second}", canvas, blocks, scale)
    text = render_sentence(f"Orange: more evidence for {first}. Blue: more evidence for {second}.")
    text += _render_colour_bar(scale)
    if explained.adds_up:
        text += _render_tiers(values, 1, first) + _render_tiers(values, -1, second)
        total = format_share(float(values.double().sum()), "+")
        text += render_sentence(f"All cells add up to the difference of the probabilities: {total}")
    else:
        mean = float(values.double().mean())
        text += render_sentence(f"The mean of all cells is the difference of the logits: {mean:+.2f}")
    return _render_beside(tile, text)


def _render_tiers(values: Tensor, sign: int, name: str) -> str:
    """Render the sums of the strongest cells for one of two classes."""
    items = [
        f"<li>{tier.title} ({count} cell{'s' if count != 1 else ''}): {html.escape(format_share(abs(tier.total)))}</li>"
        for tier, count in ((tier, int(tier.cells.sum())) for tier in tiers(values, sign))
    ]
    return f"<p>For {html.escape(name)}:</p><ul>{''.join(items)}</ul>" if items else ""


def render_post_hoc(
    explained: ExplainedImage, explanations: dict[str, Explanation], reasons: dict[str, str], is_vanilla: bool
) -> str:
    """Render the maps of the first chosen class by post-hoc methods beside the model's own map.

    Args:
        explained: Image with the model's own maps.
        explanations: Method -> maps of the class.
        reasons: Method -> reason why it is left out.
        is_vanilla: Whether the methods explain the vanilla classifier rather than the model itself.
    """
    label = explained.labels[explained.classes[0]]
    texts = [f"Maps of {label}, each scaled from its own minimum to its own maximum."]
    subject = "the vanilla classifier of this model" if is_vanilla else "this same model, through its gradients"
    for probability in {float(explanation.probabilities[0, 0]) for explanation in explanations.values()}:
        texts.append(f"The post-hoc methods explain {subject}, which gives it {format_share(probability)}.")
    if reasons:
        texts.append(f"Not possible here: {', '.join(reasons)}.")
    return render_sentence(" ".join(texts)) + _render_heatmaps(explained, explanations)


def _render_heatmaps(explained: ExplainedImage, others: dict[str, Explanation]) -> str:
    """Render heat maps of the first chosen class, each on a scale of its own."""
    canvas, tiles, scale = enlarge(explained.image, SIDE), [], Scale(1.0)
    own = explained.explanation
    for name, explanation in {own.map_kind.title: own, **others}.items():
        heat = explanation.heatmaps((SIDE, canvas.width))[0, 0].cpu()
        tiles.append(_map_tile(name if heat.any() else f"{name}\nnothing stands out", canvas, heat, scale))
    return render_tiles(tiles) + _render_colour_bar(scale, ["minimum", "", "maximum"])
