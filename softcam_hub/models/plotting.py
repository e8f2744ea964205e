"""Draw maps beside their images as a matplotlib figure, with labels and a colour bar.

matplotlib is imported when the first figure is drawn, so that a copy of this folder on the Hub loads without it.
"""

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from .alignment import Grid
from .overlays import Scale, spread, tint
from .text import printable

if TYPE_CHECKING:
    try:  # transformers makes recipients install every package that is imported outside of a `try`
        from matplotlib.figure import Figure
    except ImportError:
        raise

PANEL = 2.3
"""Width of a panel in inches."""

LABEL_WIDTH = 26
"""Characters in a line of a label. A label takes two lines at most."""


@dataclass(frozen=True)
class Row:
    """One image and its maps.

    Args:
        title: Text above the picture.
        picture: Picture that the model saw, or None where it is not known.
        maps: Maps (k, H, W) of the image.
        captions: Label and percentage of each map.
        scale: Colours of the values, which all maps of the row share.
        grid: Places of the cells in the picture.
    """

    title: str
    picture: Image.Image | None
    maps: Tensor
    captions: list[tuple[str, str]]
    scale: Scale
    grid: Grid


def make_figure(for_window: bool = False) -> "Figure":
    """Make an empty figure.

    Args:
        for_window: Let `plt.show()` show the figure in a window, where there is one. Notebooks show the figure that a
            cell ends with, and would show it twice if pyplot kept it too.
    """
    try:
        from matplotlib import pyplot
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures of explanations need matplotlib: pip install matplotlib") from error
    if not for_window:
        return Figure()
    figure = pyplot.figure()
    if pyplot.get_backend().lower() == "agg" or "inline" in pyplot.get_backend():
        pyplot.close(figure)
    return figure


def draw_rows(figure: "Figure", rows: list[Row], note: str) -> None:
    """Draw a row of panels for each image: the picture, then every map over it, and the colour bar of the row.

    Args:
        figure: Empty figure.
        rows: Images and their maps.
        note: Text below the panels.
    """
    columns = 1 + max(len(row.captions) for row in rows)
    width = PANEL * columns + 0.8
    lines = textwrap.wrap(note, int(13 * width))
    heights = [PANEL * _proportion(row) + 0.6 for row in rows]
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    figure.set_size_inches(width, sum(heights) + 0.2 * len(lines))
    widths = [1] * columns + [0.05]
    grid = figure.subplots(len(rows), columns + 1, squeeze=False, height_ratios=heights, width_ratios=widths)
    for row, axes in zip(rows, grid, strict=True):
        for one in axes[:-1]:
            one.axis("off")
        _draw_panels(row, axes[:-1])
        _draw_colour_bar(row.scale, axes[-1])
    figure.supxlabel("\n".join(lines), fontsize=8, parse_math=False)


def _proportion(row: Row) -> float:
    """Return the height of a picture over its width."""
    width, height = row.picture.size if row.picture else row.maps.shape[:-3:-1]
    return height / width


def _draw_panels(row: Row, axes: Any) -> None:
    """Draw the picture of a row and its maps, each into one of the axes."""
    canvas = row.picture or Image.new("RGB", (256, round(256 * _proportion(row))), "white")
    if row.picture:
        axes[0].imshow(row.picture)
        axes[0].set_title(row.title, fontsize=9)
    for values, (label, share), one in zip(row.maps, row.captions, axes[1:], strict=False):
        one.imshow(tint(canvas, spread(values, canvas, row.grid), row.scale))
        lines = textwrap.wrap(printable(label), LABEL_WIDTH, max_lines=2, placeholder="…")
        one.set_title("\n".join([*lines, share]), fontsize=9, parse_math=False)


def _draw_colour_bar(scale: Scale, axes: Any) -> None:
    """Draw the colours of a scale as a vertical bar, with labels at its ends and its middle."""
    strengths = np.linspace(1, -1 if scale.diverging else 0, 256)[:, None]
    axes.imshow(scale.paint(strengths).astype(np.uint8), aspect="auto", extent=(0, 1, 0, 1))
    axes.set_box_aspect(20)
    axes.yaxis.tick_right()
    axes.set_yticks([0, 0.5, 1], scale.labels(), fontsize=8)
    axes.set_xticks([])
