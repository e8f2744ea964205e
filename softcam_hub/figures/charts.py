"""Charts drawn with matplotlib and returned as Pillow images: pages of curves, stacked bars, and matrices.

- Every line of a page has its own pair of colour and line style, the same in all charts, and every part of a bar
  its own pair of colour and hatch: they can be told apart without colour vision and in grey print.
- A page of two columns is 900 pixels wide, as documentation and browsers show it.
- Figures are built with matplotlib's objects instead of pyplot: no figure stays registered, and no display is
  needed.
- matplotlib is imported when a chart is drawn, so that importing the package stays fast.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..models.overlays import Scale
from .text import font, readable, shorten, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[float, float]]

Panel = tuple[str, dict[str, Points]]
"""Title of a chart, and the points of each of its lines by name."""

COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555", "#e69f00", "#56b4e9", "#6e1423"),
    *("#5b2a86", "#8a8a00", "#17becf", "#8c564b", "#b39ddb", "#7ac943", "#ff6f61", "#000000"),
)
"""Enough for all methods of a benchmark; the first eight are the easiest to tell apart."""

LINE_STYLES = ("solid", "dashed", "dashdot", "dotted")
HATCHES = ("", "///", "...", "xxx")

DPI = 100
TITLE_SIZE, TEXT_SIZE, LABEL_SIZE = 15, 14, 12
"""Heights of letters in pixels: titles, everything else, and the percentages in bars."""

LEGEND_LINE, BAR_HEIGHT = 20, 34
"""Pixels that a line of a legend and a bar with its gap take."""

CELL, LARGEST_CELL = 38, 64
"""Smallest and largest side of a cell of a matrix in pixels; a number with a sign and two digits fits the smallest."""

LEGEND_HANDLE = 80
"""Pixels that the sample of a line and the distance to the next column take in a legend."""


def curves(
    panels: Sequence[Panel], x_label: str, columns: int = 2, width: int = 450, height: int = 290, shared: bool = False
) -> Image.Image:
    """Draw a page of line charts in rows, with one legend below.

    Args:
        panels: Title and lines of each chart. Lines of the same name look the same in all charts. Values that are
            not finite are left out.
        x_label: Label of the horizontal axes, written below the lowest chart of each column.
        columns: Number of charts in a row.
        width: Width of one chart in pixels.
        height: Height of one chart in pixels.
        shared: Give all charts of a column the same vertical axis, for columns of one measure each.
    """
    return _rendered(plot_curves(panels, x_label, columns, width, height, shared))


def stacked_bars(title: str, bars: dict[str, dict[str, float]], width: int = 720) -> Image.Image:
    """Draw horizontal bars below one another, each divided into parts that add up to a whole.

    Args:
        title: Title of the chart.
        bars: Name of a bar -> name of a part -> share of the part. The shares of a bar add up to 1.
        width: Width of the chart in pixels.
    """
    return _rendered(plot_stacked_bars(title, bars, width))


def matrix(title: str, names: Sequence[str], values: Sequence[Sequence[float | None]], width: int = 560) -> Image.Image:
    """Draw a square matrix of correlations, from blue for -1 over white to orange for 1, with its numbers.

    Args:
        title: Title of the chart.
        names: Names of the rows, which are those of the columns, too.
        values: Rows of numbers from -1 to 1; None or NaN where there is none.
        width: Least width of the chart in pixels. Many names take more.
    """
    return _rendered(plot_matrix(title, names, values, width))


def plot_curves(
    panels: Sequence[Panel], x_label: str, columns: int, width: int, height: int, shared: bool = False
) -> "Figure":
    """Build the figure of `curves`, with one matplotlib axes for each chart."""
    panels = panels or [("", {})]
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    names = list(dict.fromkeys(name for _, lines in panels for name in lines))
    legend_rows = math.ceil(len(names) / _legend_columns(names, width * columns))

    figure = _new_figure(width * columns, height * rows + LEGEND_LINE * legend_rows + 20)
    grid = figure.subplots(rows, columns, sharey="col" if shared else False, squeeze=False).flatten()
    handles: dict[str, Any] = {}
    for axes, (title, lines) in zip(grid, panels, strict=False):
        _set_title(axes, title, width)
        handles |= _plot_lines(axes, lines, names)
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes in figure.axes[-columns:]:  # the lowest of each column: there is no chart below them
        axes.set_xlabel(readable(x_label), fontsize=_points(TEXT_SIZE), parse_math=False)
    if handles:
        shown = [name for name in names if name in handles]
        _add_legend(figure, [handles[name] for name in shown], shown, width * columns)
    return figure


def _plot_lines(axes: "Axes", lines: dict[str, Points], names: list[str]) -> dict[str, Any]:
    """Draw the lines of a chart, each in the look that its place among the names of the page gives it."""
    from matplotlib.ticker import MaxNLocator

    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in lines.items()}
    if not any(finite.values()):
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing to show", fontsize=_points(TEXT_SIZE), ha="center", va="center")
        return {}
    handles = {}
    for name, points in finite.items():
        index = names.index(name)
        colour = COLOURS[index % len(COLOURS)]
        style = LINE_STYLES[(index + index // len(COLOURS)) % len(LINE_STYLES)]
        # A single point has no line through it, and needs a marker to be seen.
        marker = "o" if len(points) == 1 else None
        xs, ys = [x for x, _ in points], [y for _, y in points]
        (handles[name],) = axes.plot(xs, ys, color=colour, linestyle=style, linewidth=2, marker=marker)
    axes.grid(color="0.88")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_points(TEXT_SIZE))
    if all(float(x).is_integer() for points in finite.values() for x, _ in points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return handles


def plot_stacked_bars(title: str, bars: dict[str, dict[str, float]], width: int) -> "Figure":
    """Build the figure of `stacked_bars`."""
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    legend_rows = math.ceil(len(parts) / _legend_columns(parts, width))
    figure = _new_figure(width, 60 + BAR_HEIGHT * len(bars) + LEGEND_LINE * legend_rows)
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
        _add_legend(figure, handles, parts, width)

    # Percentages that are wider than their part would run into their neighbours.
    figure.draw_without_rendering()
    for text, part in labels:
        text.set_visible(text.get_window_extent().width < part.get_window_extent().width)
    return figure


def plot_matrix(title: str, names: Sequence[str], values: Sequence[Sequence[float | None]], width: int) -> "Figure":
    """Build the figure of `matrix`."""
    letters = font(TEXT_SIZE)
    labels = [shorten(name, width / 3, letters) for name in names]
    room = max(map(letters.getlength, labels)) + 40  # beside the cells, and above them
    cell = min(LARGEST_CELL, max(CELL, (width - room) / len(names)))
    side = math.ceil(room + cell * len(names))
    width = max(width, side)
    heading = wrap(title, width - 60, font(TITLE_SIZE))
    figure = _new_figure(width, side + LEGEND_LINE * (len(heading) + 1))
    # A title of the axes would be centred above the cells, and leave the picture where names are long.
    figure.suptitle("\n".join(heading), fontsize=_points(TITLE_SIZE), parse_math=False)
    axes = figure.subplots()
    ticks, style = range(len(names)), {"fontsize": _points(TEXT_SIZE), "parse_math": False}
    axes.set_xticks(ticks, labels, rotation=90, **style)
    axes.set_yticks(ticks, labels, **style)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)

    numbers = np.array([[np.nan if value is None else value for value in row] for row in values])
    colours = Scale(1.0, diverging=True).paint(np.nan_to_num(numbers)) / 255
    colours[np.isnan(numbers)] = 0.88  # grey: neither white, which is zero, nor a colour
    axes.imshow(colours)
    for (row, column), number in np.ndenumerate(numbers):
        text = "-" if np.isnan(number) else f"{round(number, 2) + 0.0:.2f}"  # adding zero turns -0.0 into 0.0
        ink = _ink_on(tuple(colours[row, column]))
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=_points(LABEL_SIZE))
    return figure


def _set_title(axes: "Axes", title: str, width: int) -> None:
    text = "\n".join(wrap(title, width - 60, font(TITLE_SIZE)))
    axes.set_title(text, fontsize=_points(TITLE_SIZE), parse_math=False)


def _legend_columns(names: list[str], width: int) -> int:
    """Return the number of columns that a legend has room for."""
    longest = max((font(TEXT_SIZE).getlength(readable(name)) for name in names), default=0)
    return min(max(1, int((width - 40) / (longest + LEGEND_HANDLE))), max(1, len(names)))


def _add_legend(figure: "Figure", handles: list[Any], names: list[str], width: int) -> None:
    """Put a legend below the charts of a figure."""
    style = {"fontsize": _points(TEXT_SIZE), "frameon": False, "handlelength": 3.2, "borderaxespad": 0.2}
    numbers = [str(number) for number in range(len(names))]
    columns = _legend_columns(names, width)
    legend = figure.legend(handles, numbers, loc="outside lower center", ncols=columns, **style)
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


def _ink_on(colour: str | tuple[float, ...]) -> str:
    """Choose black or white, whichever is easier to read on a colour."""
    from matplotlib.colors import to_rgb

    return "black" if np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.55 else "white"
