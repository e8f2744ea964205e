"""Charts drawn with matplotlib and returned as Pillow images: curves with a legend, and stacked bars.

- Every line has its own pair of colour and line style, and every part of a bar its own pair of colour and
  hatch: they can be told apart without colour vision and in grey print.
- Figures are built with matplotlib's objects instead of pyplot: no figure stays registered, and no display is
  needed.
- matplotlib is imported when a chart is drawn, so that importing the package stays fast.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .text import font, readable, shorten

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[float, float]]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555", "#e69f00", "#56b4e9", "#6e1423")
LINE_STYLES = ("solid", "dashed", "dashdot", "dotted")
HATCHES = ("", "///", "...", "xxx")

DPI = 100
TITLE_SIZE, TEXT_SIZE, LABEL_SIZE = 16, 14, 12
"""Heights of letters in pixels: titles, everything else, and the percentages in bars."""

LEGEND_LINE, BAR_HEIGHT = 20, 34
"""Pixels that an entry of a legend and a bar with its gap take."""


def curves(
    panels: dict[str, dict[str, Points]], x_label: str, width: int = 560, height: int = 360, shared: bool = False
) -> Image.Image:
    """Draw line charts beside one another, each with a legend below.

    Args:
        panels: Title of a chart -> name of a line -> points of the line. Values that are not finite are left
            out.
        x_label: Label of every horizontal axis.
        width: Width of one chart in pixels.
        height: Height of one chart in pixels, without its legend.
        shared: Give all charts the same vertical axis, for charts of one measure.
    """
    return _rendered(plot_curves(panels, x_label, width, height, shared))


def stacked_bars(title: str, bars: dict[str, dict[str, float]], width: int = 720) -> Image.Image:
    """Draw horizontal bars below one another, each divided into parts that add up to a whole.

    Args:
        title: Title of the chart.
        bars: Name of a bar -> name of a part -> share of the part. The shares of a bar add up to 1.
        width: Width of the chart in pixels.
    """
    return _rendered(plot_stacked_bars(title, bars, width))


def plot_curves(
    panels: dict[str, dict[str, Points]], x_label: str, width: int, height: int, shared: bool = False
) -> "Figure":
    """Build the figure of `curves`, with one matplotlib axes for each chart."""
    panels = panels or {"": {}}
    legend_height = LEGEND_LINE * max(len(lines) for lines in panels.values())
    figure = _new_figure(width * len(panels), height + legend_height + 10)
    grid = figure.subplots(1, len(panels), sharey=shared, squeeze=False)
    for axes, (title, lines) in zip(grid[0], panels.items(), strict=True):
        _set_title(axes, title, width)
        _plot_lines(axes, lines, readable(x_label), width)
        # Charts that share their axis would lose their tick labels.
        axes.tick_params(labelleft=True, labelsize=_points(TEXT_SIZE))
    return figure


def _plot_lines(axes: "Axes", lines: dict[str, Points], x_label: str, width: int) -> None:
    from matplotlib.ticker import MaxNLocator

    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in lines.items()}
    if not any(finite.values()):
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing to show", fontsize=_points(TEXT_SIZE), ha="center", va="center")
        return
    handles = []
    for index, points in enumerate(finite.values()):
        colour = COLOURS[index % len(COLOURS)]
        style = LINE_STYLES[(index + index // len(COLOURS)) % len(LINE_STYLES)]
        # A single point has no line through it, and needs a marker to be seen.
        marker = "o" if len(points) == 1 else None
        xs, ys = [x for x, _ in points], [y for _, y in points]
        handles += axes.plot(xs, ys, color=colour, linestyle=style, linewidth=2, marker=marker)
    axes.grid(color="0.88")
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, fontsize=_points(TEXT_SIZE), parse_math=False)
    if all(float(x).is_integer() for points in finite.values() for x, _ in points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _add_legend(axes, handles, list(lines), width, below=52)


def plot_stacked_bars(title: str, bars: dict[str, dict[str, float]], width: int) -> "Figure":
    """Build the figure of `stacked_bars`."""
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    figure = _new_figure(width, 50 + BAR_HEIGHT * len(bars) + LEGEND_LINE * len(parts))
    axes = figure.subplots()
    _set_title(axes, title, width)
    axes.set(xlim=(0, 1), ylim=(max(1, len(bars)) - 0.5, -0.5), xticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False)
    names = [shorten(name, width / 3, font(TEXT_SIZE)) for name in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=_points(TEXT_SIZE), parse_math=False)

    starts = np.zeros(len(bars))
    handles, labels = [], []
    for index, part in enumerate(parts):
        shares = [bar.get(part, 0.0) for bar in bars.values()]
        colour, hatch = COLOURS[index % len(COLOURS)], HATCHES[index // len(COLOURS) % len(HATCHES)]
        look = {"color": colour, "hatch": hatch, "edgecolor": "white"}
        drawn = axes.barh(range(len(bars)), shares, 0.76, starts, **look)
        texts = [f"{share:.1%}" for share in shares]
        style = {"fontsize": _points(LABEL_SIZE), "color": _ink_on(colour)}
        labels += zip(axes.bar_label(drawn, texts, label_type="center", **style), drawn, strict=True)
        handles.append(drawn)
        starts += shares
    if parts:
        _add_legend(axes, handles, parts, width, below=6)

    # Percentages that are wider than their part would run into their neighbours.
    figure.draw_without_rendering()
    for text, part in labels:
        text.set_visible(text.get_window_extent().width < part.get_window_extent().width)
    return figure


def _set_title(axes: "Axes", title: str, width: int) -> None:
    text = shorten(title, width - 60, font(TITLE_SIZE))
    axes.set_title(text, fontsize=_points(TITLE_SIZE), parse_math=False)


def _add_legend(axes: "Axes", handles: list["Artist"], names: list[str], width: int, below: int) -> None:
    """Put a legend `below` pixels under the axes, with its entries below one another."""
    pad = below / TEXT_SIZE  # matplotlib measures the distance in heights of letters
    position = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": pad, "borderpad": 0}
    style = {"fontsize": _points(TEXT_SIZE), "frameon": False, "handlelength": 3.2}
    numbers = [str(number) for number in range(len(names))]
    legend = axes.legend(handles, numbers, **position, **style)
    for text, name in zip(legend.get_texts(), names, strict=True):
        # Written afterwards: a legend skips labels that begin with an underscore, and reads "$" as
        # mathematics.
        text.set(text=shorten(name, width - 150, font(TEXT_SIZE)), parse_math=False)


def _new_figure(width: int, height: int) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / DPI, height / DPI), DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=10 / DPI, h_pad=6 / DPI)  # inches between a chart and its edges
    FigureCanvasAgg(figure)
    return figure


def _rendered(figure: "Figure") -> Image.Image:
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


def _points(pixels: float) -> float:
    """Convert a height in pixels into typographic points."""
    return pixels * 72 / DPI


def _ink_on(colour: str) -> str:
    """Choose black or white, whichever is easier to read on a colour."""
    from matplotlib.colors import to_rgb

    return "black" if np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.55 else "white"
