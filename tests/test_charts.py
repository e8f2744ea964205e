"""Charts show every line, bar and name they are given, keep them apart, and survive odd input."""

import json
import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageColor

from benchmarks.reproduction import explanations
from softcam_hub.evaluation import report
from softcam_hub.figures.charts import (
    COLOURS,
    HATCHES,
    LINE_STYLES,
    curves,
    matrix,
    plot_curves,
    plot_matrix,
    plot_stacked_bars,
    stacked_bars,
)

WIDTH, HEIGHT = 400, 300
RISING = [(0, 0.0), (1, 1.0)]
MANY = len(COLOURS) * len(LINE_STYLES)


def figure_of(*panels, columns=2, shared=False):
    return plot_curves(panels, "epoch", columns, WIDTH, HEIGHT, shared)


def axes_of(lines, title="title"):
    return figure_of((title, lines)).axes[0]


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def looks_of(axes):
    return [(line.get_color(), line.get_linestyle()) for line in axes.lines]


def has_colour(picture, colour):
    return (np.asarray(picture) == ImageColor.getrgb(colour)).all(axis=2).any()


# --- curves ----------------------------------------------------------------------------------------------------------


def test_a_chart_has_the_points_and_names_of_its_lines():
    lines = {"training": [(1, 0.5), (2, 0.75), (3, 0.8)], "validation": [(1, 0.4), (3, 0.7)]}
    axes = axes_of(lines, "accuracy")
    assert axes.get_title() == "accuracy"
    assert axes.get_xlabel() == "epoch"
    assert legend_of(axes.figure) == list(lines)
    assert [[*zip(*line.get_data(), strict=True)] for line in axes.lines] == list(lines.values())


def test_points_that_are_not_finite_are_left_out():
    odd = {"one": [(0, 0.0), (1, math.nan), (2, 0.5), (3, math.inf), (10, 1.0)], "two": [(0, math.nan)]}
    axes = axes_of(odd)
    first, second = (line.get_xdata() for line in axes.lines)
    assert list(first) == [0, 2, 10]
    assert list(second) == []
    assert legend_of(axes.figure) == ["one", "two"]


def test_every_line_has_a_pair_of_colour_and_style_of_its_own():
    axes = axes_of({str(number): RISING for number in range(MANY)})
    looks = looks_of(axes)
    assert len(set(looks)) == MANY
    assert len({colour for colour, _ in looks[: len(COLOURS)]}) == len(COLOURS)
    assert all(one[0] != other[0] and one[1] != other[1] for one, other in pairwise(looks))
    assert [(line.get_color(), line.get_linestyle()) for line in axes.figure.legends[0].get_lines()] == looks


def test_a_page_has_one_legend_and_one_look_per_name():
    figure = figure_of(("a", {"cam": RISING, "cape": RISING}), ("b", {"fd-cam": RISING, "cape": RISING}), ("c", {}))
    assert legend_of(figure) == ["cam", "cape", "fd-cam"]
    first, second, _ = figure.axes
    assert looks_of(first)[1] == looks_of(second)[1]
    assert len({*looks_of(first), *looks_of(second)}) == 3
    assert all(axes.get_legend() is None for axes in figure.axes)


def test_every_chart_has_its_title_and_every_column_its_axis_label():
    figure = figure_of(*((title, {"one": RISING}) for title in "abc"))
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "epoch", "epoch"]


def test_a_single_point_is_seen():
    axes = axes_of({"one": [(3, 0.7)], "two": RISING})
    assert [line.get_marker() for line in axes.lines] == ["o", "None"]
    assert has_colour(curves([("title", {"one": [(3, 0.7)]})], "epoch"), COLOURS[0])


def test_epochs_are_labelled_with_whole_numbers():
    assert all(tick.is_integer() for tick in axes_of({"one": [(1, 0.1), (2, 0.4), (3, 0.2)]}).get_xticks())


@pytest.mark.parametrize(
    "panels", [[], [("title", {})], [("title", {"one": []})], [("title", {"one": [(0, math.nan)]})]]
)
def test_a_chart_without_points_says_so(panels):
    (axes,) = figure_of(*panels).axes
    assert [text.get_text() for text in axes.texts] == ["nothing to show"]
    picture = np.asarray(curves(panels, "epoch"))
    assert (picture != 255).any()
    assert (picture.max(axis=2) == picture.min(axis=2)).all(), "no colour but the grey of letters"


def test_charts_stand_in_rows_on_a_page_of_900_pixels():
    one, both = {"one": RISING}, {"one": RISING, "two": RISING}
    picture = np.asarray(curves([("a", one), ("b", both), ("c", one)], "epoch"))
    assert picture.shape[1] == 900
    assert 2 * 290 + 20 <= picture.shape[0] < 2 * 290 + 60, "the legend fits in one line"
    charts = picture[: 2 * 280]
    assert not has_colour(charts[:, :450], COLOURS[1])
    assert has_colour(charts[:, 450:], COLOURS[1])


@pytest.mark.parametrize("shared", [False, True])
def test_charts_of_a_column_can_share_their_axis(shared):
    low, high = {"one": RISING}, {"one": [(0, 0.0), (1, 10.0)]}
    first, other, below, _ = figure_of(("a", low), ("b", low), ("a", high), ("b", low), shared=shared).axes
    assert (first.get_ylim() == below.get_ylim()) == shared
    assert first.get_ylim() != other.get_ylim() or not shared
    assert all(axes.yaxis.get_tick_params()["labelleft"] for axes in (first, other, below))


# --- stacked bars ----------------------------------------------------------------------------------------------------


def bars_of(bars, width=500):
    return plot_stacked_bars("title", bars, width).axes[0]


def test_bars_are_divided_by_their_shares_in_the_order_of_the_parts():
    axes = bars_of({"a": {"x": 0.25, "y": 0.75}, "b": {"y": 0.6, "x": 0.4}, "c": {}})
    x, y = axes.containers
    assert [bar.get_width() for bar in x] == [0.25, 0.4, 0.0]
    assert [(bar.get_x(), bar.get_width()) for bar in y] == [(0.25, 0.75), (0.4, 0.6), (0.0, 0.0)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first bar is at the top"
    assert legend_of(axes.figure) == ["x", "y"]


def test_a_share_is_written_where_its_part_has_room():
    axes = bars_of({"a": {"x": 0.02, "y": 0.98}, "b": {"x": 0.5, "y": 0.5}})
    shown = [text.get_text() for text in axes.texts if text.get_visible()]
    assert sorted(shown) == ["50.0%", "50.0%", "98.0%"]


def test_many_parts_are_told_apart_by_colour_and_hatch():
    count = len(COLOURS) * len(HATCHES)
    axes = bars_of({"a": {f"part {number}": 1 / count for number in range(count)}})
    looks = {(part[0].get_facecolor(), part[0].get_hatch()) for part in axes.containers}
    assert len(looks) == count


def test_a_long_name_leaves_most_of_the_width_to_the_bars():
    axes = bars_of({"a very long name " * 9: {"x": 1.0}, "b": {}}, width=600)
    assert axes.get_window_extent().width > 350
    assert stacked_bars("empty", {}).width == 720


# --- matrices --------------------------------------------------------------------------------------------------------


def cells_of(names, values):
    """Return the axes of a matrix, and its texts in rows."""
    axes = plot_matrix("title", names, values, 560).axes[0]
    texts = [text.get_text() for text in axes.texts]
    return axes, [texts[first : first + len(names)] for first in range(0, len(texts), len(names))]


def test_a_matrix_has_the_names_numbers_and_colours_of_its_cells():
    axes, texts = cells_of(["cape", "cam"], [[1.0, -0.456], [-0.001, None]])
    assert texts == [["1.00", "-0.46"], ["0.00", "-"]]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["cape", "cam"]
    high, low, zero, missing = axes.images[0].get_array().reshape(4, 3)
    assert high[0] > high[2]
    assert low[2] > low[0]
    assert (zero > 0.97).all()
    assert (missing == 0.88).all()


@pytest.mark.parametrize("count", [2, 5, 25])
def test_numbers_and_names_of_a_matrix_have_room(count):
    names = [f"smooth-grad-cam++ {number}" for number in range(count)]
    figure = plot_matrix("a title that is so long that it takes two lines " * 3, names, [[-0.99] * count] * count, 560)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    side = axes.get_window_extent().width / count
    assert side > 35
    boxes = [text.get_window_extent() for text in (figure._suptitle, *axes.texts)]
    boxes += [label.get_window_extent() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    for index, box in enumerate(boxes):
        assert all(figure.bbox.contains(*corner) for corner in (box.min, box.max))
        assert not box.count_overlaps(boxes[:index])
    assert all(text.get_window_extent().width < side for text in axes.texts)
    picture = np.asarray(matrix("title", names, [[0.5] * count] * count))
    assert (picture[:2] == 255).all()
    assert (picture[:, -2:] == 255).all()


# --- both ------------------------------------------------------------------------------------------------------------


def test_names_that_mean_something_to_matplotlib_are_shown_as_they_are():
    names = ["_hidden", "$x^2$", "costs 3 $ or 4 $", "µ-CAPE façade ±"]
    axes = axes_of(dict.fromkeys(names, RISING), names[1])
    assert legend_of(axes.figure) == names
    assert not any(text.get_parse_math() for text in (*axes.figure.legends[0].get_texts(), axes.title))
    axes = bars_of({name: {name: 1.0} for name in names})
    assert legend_of(axes.figure) == [label.get_text() for label in axes.get_yticklabels()] == names


def test_long_names_end_before_the_edge():
    long = "a very long name " * 20
    for picture in (stacked_bars(long, {"a": {long: 1.0}}), curves([(long, {long: RISING})], "epoch")):
        pixels = np.asarray(picture)
        assert (pixels[:, :2] == 255).all()
        assert (pixels[:, -2:] == 255).all()


def test_texts_do_not_overlap():
    names = [f"a line with a long name, number {number}" for number in range(8)]
    figures = [
        figure_of(("a title that is so long that it takes two lines", dict.fromkeys(names, RISING))),
        plot_stacked_bars("a title", {name: {name: 0.5, "rest": 0.5} for name in names}, 600),
    ]
    for figure in figures:
        figure.draw_without_rendering()
        (axes,) = figure.axes
        low, high = sorted(axes.get_ylim())
        ticks = [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
        texts = [axes.title, axes.xaxis.label, *ticks, *figure.legends[0].get_texts(), *axes.texts]
        boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
        assert len(boxes) > 12
        for index, box in enumerate(boxes):
            assert figure.bbox.containsx(box.x0)
            assert figure.bbox.containsx(box.x1)
            assert not box.count_overlaps(boxes[:index])


def test_a_chart_is_the_same_every_time():
    panels = [("title", {"one": RISING, "two": [(0, 0.3), (1, 0.1)]})]
    assert curves(panels, "epoch").tobytes() == curves(panels, "epoch").tobytes()
    bars = {"a": {"x": 0.25, "y": 0.75}}
    assert stacked_bars("title", bars).tobytes() == stacked_bars("title", bars).tobytes()


@pytest.mark.slow
def test_matplotlib_is_imported_when_a_chart_is_drawn():
    code = (
        "import sys, softcam_hub, softcam_hub.figures.charts as charts\n"
        "assert 'matplotlib' not in sys.modules\n"
        "charts.curves([('title', {'one': [(0, 0.0), (1, 1.0)]})], 'epoch')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_lines_of_the_chart_in_the_documentation_say_which_model_they_explain(monkeypatch, tmp_path):
    drawn = []

    def spy(panels, *arguments, **options):
        drawn.extend(panels)
        return curves(panels, *arguments, **options)

    monkeypatch.setattr(report, "curves", spy)
    rows = [json.loads(line) for line in explanations.ROWS.read_text().splitlines()]
    explanations.draw(rows, tmp_path / "curves.png")
    lines = [set(lines) for _, lines in drawn]
    always = {"softcam (lesions-softcam)", "cape (lesions-cape-pf)", "cape (lesions-cape)", "random (lesions-vanilla)"}
    assert all(always < names for names in lines)
    assert len(set().union(*lines)) <= len(COLOURS), "every method of the page has a colour of its own"
    post_hoc = {f"{row['explainer']} (lesions-vanilla)" for row in rows if row["explains"] == "lesions-vanilla"}
    assert post_hoc <= set().union(*lines)
    assert np.asarray(Image.open(tmp_path / "curves.png")).shape[1] == 900
