"""Charts: ticks are round and enclose, lines run where their points are, bars divide as told, odd input does no harm."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reproduction import explanations
from softcam_hub.figures.charts import BOTTOM, COLOURS, LEFT, RIGHT, TOP, curves, part_colour, stacked_bars, ticks

WIDTH, HEIGHT = 400, 300
ROOT = Path(__file__).parents[1]


def chart(lines, **options):
    return np.asarray(curves({"title": lines}, "epoch", width=WIDTH, height=HEIGHT, **options))


def near(pixels, x, y, colour, reach=2):
    """Whether a colour is within `reach` pixels of a place in the first chart, given as fractions of its axes."""
    column = round(LEFT + x * (WIDTH - LEFT - RIGHT))
    row = round(HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM))
    patch = pixels[row - reach : row + reach + 1, column - reach : column + reach + 1]
    return (patch == colour).all(axis=2).any()


@pytest.mark.parametrize(
    "values",
    [
        [0, 1],
        [0.123, 0.456],
        [-3, 17.5],
        [1e-7, 3e-7],
        [1e6, 2.34e6],
        [5, 5],
        [0, 0],
        [-2, -1],
        [1, 90],
        [0.3, 0.30001],
        [1e9, 1e9 + 1],
    ],
    ids=str,
)
def test_ticks_enclose_all_values_and_are_round(values):
    found = ticks(values)
    span = (max(values) - min(values)) or 1
    steps = [high - low for low, high in pairwise(found)]
    assert found[0] <= min(values) + 1e-9 * span
    assert found[-1] >= max(values) - 1e-9 * span
    assert len(found) <= 8
    assert max(steps) == pytest.approx(min(steps), rel=1e-4)
    lead = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-4)
    assert min(abs(lead - factor) for factor in (1, 2, 2.5, 5, 10)) < 1e-3
    if min(values) < max(values):
        assert found[0] > min(values) - 1.01 * steps[0]
        assert found[-1] < max(values) + 1.01 * steps[0]


def test_ticks_by_hand():
    assert ticks([0, 1]) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks([1, 30]) == [0, 10, 20, 30]
    assert ticks([0.7, 0.7]) == [0.2, 0.4, 0.6, 0.8, 1.0, 1.2]


def test_a_line_runs_through_its_points():
    pixels = chart({"one": [(0, 0.0), (5, 1.0), (10, 0.0)]})
    for x, y in ((0, 0), (0.25, 0.5), (0.5, 1), (0.75, 0.5), (1, 0)):
        assert near(pixels, x, y, COLOURS[0])
    for x, y in ((0.5, 0.5), (0.25, 0.9), (0.9, 0.9)):
        assert not near(pixels, x, y, COLOURS[0])


def test_every_line_has_a_colour_a_dash_and_a_place_in_the_legend():
    names = ["one", "two", "three"]
    pixels = chart({name: [(0, 0.2 * n), (10, 0.2 * n)] for n, name in enumerate(names)} | {"top": [(0, 1), (10, 1)]})
    assert pixels.shape == (HEIGHT + 22 * 4 + 12, WIDTH, 3)
    inks = []
    for number in range(3):
        row = HEIGHT - BOTTOM - round(0.2 * number * (HEIGHT - TOP - BOTTOM))
        strip = (pixels[row - 2 : row + 3, LEFT:-RIGHT] == COLOURS[number]).all(axis=2).any(axis=0)
        inks.append(strip.mean())
        legend = pixels[HEIGHT + 12 + 22 * number - 2 : HEIGHT + 12 + 22 * number + 3, LEFT : LEFT + 44]
        assert (legend == COLOURS[number]).all(axis=2).any()
    assert inks[0] > 0.98
    assert all(0.3 < ink < 0.9 for ink in inks[1:]), "dashed"


def test_points_that_are_not_finite_are_skipped():
    clean = chart({"one": [(0, 0.0), (2, 0.5), (10, 1.0)]})
    odd = chart({"one": [(0, 0.0), (1, math.nan), (2, 0.5), (3, math.inf), (10, 1.0)]})
    assert (clean == odd).all()


def test_one_point_is_a_dot():
    pixels = chart({"one": [(3, 0.7)]})
    assert near(pixels, 0.5, 0.5, COLOURS[0], reach=0)
    inside = (pixels[:HEIGHT] == COLOURS[0]).all(axis=2).sum()
    assert 20 < inside < 60


@pytest.mark.parametrize("lines", [{}, {"one": []}, {"one": [(0, math.nan)]}])
def test_nothing_to_show(lines):
    pixels = chart(lines)
    assert (pixels[:HEIGHT] != 255).any()
    assert (pixels.max(axis=2) == pixels.min(axis=2)).all(), "no colour but the grey of letters"


def test_charts_stand_beside_one_another():
    lines = {"one": [(0, 0.0), (1, 1.0)]}
    both = np.asarray(curves({"left": lines, "right": lines | {"two": [(0, 1.0), (1, 0.0)]}}, "epoch", WIDTH, HEIGHT))
    assert both.shape == (HEIGHT + 56, 2 * WIDTH, 3)
    assert not (both[:, :WIDTH] == COLOURS[1]).all(axis=2).any()
    assert (both[:, WIDTH:] == COLOURS[1]).all(axis=2).any()
    assert curves({}, "epoch").size == (560, 372)


def test_stacked_bars_divide_their_length_by_the_shares():
    pixels = np.asarray(stacked_bars("title", {"a": {"x": 0.25, "y": 0.75}, "b": {"x": 1.0, "y": 0.0}}, width=500))
    first, second = pixels[46], pixels[46 + 34]
    x, y = ((line == COLOURS[part]).all(axis=1).sum() for line, part in ((first, 0), (first, 1)))
    assert x / (x + y) == pytest.approx(0.25, abs=0.02)
    assert (second == COLOURS[0]).all(axis=1).sum() == pytest.approx(x + y, abs=4)
    assert np.flatnonzero((second == COLOURS[0]).all(axis=1)).max() == pytest.approx(500 - RIGHT, abs=4)
    assert not (pixels[44:110, -RIGHT + 1 :] != 255).any()
    assert not (second == COLOURS[1]).all(axis=1).any()
    legend = pixels[48 + 34 * 2 :]
    assert (legend == COLOURS[0]).all(axis=2).any()
    assert (legend == COLOURS[1]).all(axis=2).any()


def test_a_long_name_leaves_most_of_the_width_to_the_bars():
    pixels = np.asarray(stacked_bars("title " * 80, {"a very long name " * 9: {"x": 1.0}, "b": {}}, width=600))
    assert pixels.shape == (48 + 34 * 2 + 22 + 12, 600, 3)
    assert (pixels[46] == COLOURS[0]).all(axis=1).sum() > 350
    assert (pixels[:44, -12:] == 255).all()
    assert stacked_bars("empty", {}).size == (720, 60)


def test_many_parts_have_colours_of_their_own():
    assert [part_colour(index) for index in range(8)] == list(COLOURS)
    assert len({part_colour(index) for index in range(24)}) == 24
    pixels = np.asarray(stacked_bars("title", {"a": {f"part {n}": 1 / 12 for n in range(12)}}))
    assert all((pixels[46] == part_colour(n)).all(axis=1).any() for n in range(12))


def test_long_names_end_before_the_edge():
    long = "a very long name " * 20
    bars = np.asarray(stacked_bars("title", {"a": {long: 1.0}}))
    lines = np.asarray(curves({long: {long: [(0, 0.0), (1, 1.0)]}}, "epoch"))
    for pixels in (bars, lines):
        assert (pixels[:, -12:] == 255).all()


def test_charts_of_one_measure_share_their_axis():
    panels = {"low": {"one": [(0, 0.0), (1, 1.0)]}, "high": {"one": [(0, 0.0), (1, 10.0)]}}
    apart, shared = (np.asarray(curves(panels, "k", WIDTH, HEIGHT, shared=value)) for value in (False, True))
    top = [
        np.flatnonzero((pixels[:HEIGHT, :WIDTH] == COLOURS[0]).all(axis=2).any(axis=1)).min()
        for pixels in (apart, shared)
    ]
    assert top[0] < TOP + 5
    assert top[1] > HEIGHT / 2
    assert (apart[:, WIDTH:] == shared[:, WIDTH:]).all()


def test_the_lines_of_the_readmes_chart_say_which_model_they_explain(monkeypatch, tmp_path):
    drawn = []

    def spy(panels, *given, **options):
        drawn.append(panels)
        return curves(panels, *given, **options)

    monkeypatch.setattr(explanations, "curves", spy)
    rows = [json.loads(line) for line in explanations.ROWS.read_text().splitlines()]
    explanations.draw(rows, tmp_path / "curves.png")
    lines = [set(lines) for panels in drawn for lines in panels.values()]
    always = {"softcam (lesions-softcam)", "cape (lesions-cape-pf)", "cape (lesions-cape)", "random (lesions-vanilla)"}
    assert all(always < found for found in lines)
    assert all(len(found) <= len(COLOURS) for found in lines)
    post_hoc = {f"{row['explainer']} (lesions-vanilla)" for row in rows if row["explains"] == "lesions-vanilla"}
    assert post_hoc <= set().union(*lines)
