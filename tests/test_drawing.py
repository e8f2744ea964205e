"""Parts of pictures: colours keep their order, texts and frames keep to their cells, panels keep their places."""

import numpy as np
import pytest
import torch
from helpers.pictures import GREY, record_texts
from PIL import Image

from softcam_hub.figures import Scale, captioned_row, outline, overlay
from softcam_hub.figures.drawing import cells, frame_cells, write_numbers
from softcam_hub.figures.layout import (
    CAPTION_LINE,
    CAPTION_SIZE,
    GAP,
    NOTE_SIZE,
    LegendEntry,
    colour_bar,
    legend,
    note,
)
from softcam_hub.figures.numbers import DOT, format_cells, format_percent
from softcam_hub.models.alignment import Alignment, Grid
from softcam_hub.models.overlays import DIVERGING, SEQUENTIAL, apply_colours, opacities, tint
from softcam_hub.models.text import format_share


@pytest.fixture
def written(monkeypatch):
    """Every text that is drawn, in its order."""
    return record_texts(monkeypatch)


def squares(*cells):
    """Cells that fill the image."""
    return Grid(cells, cells)


def luminance(pixels):
    return pixels @ np.array([0.299, 0.587, 0.114])


def test_sequential_scale_brightens_all_the_way():
    steps = luminance(apply_colours(np.linspace(0, 1, 101)[None]))[0]
    assert (np.diff(steps) > 0).all()
    assert apply_colours(np.zeros((1, 1)))[0, 0].tolist() == list(SEQUENTIAL[0])


def test_diverging_scale_is_palest_at_zero():
    steps = luminance(apply_colours(np.linspace(0, 1, 101)[None], DIVERGING))[0]
    assert steps.argmax() == 50
    assert (np.diff(steps[:51]) > 0).all()
    assert (np.diff(steps[50:]) < 0).all()


@pytest.mark.parametrize(
    ("values", "options", "labels"),
    [
        ([-1.0, 0.25], {"diverging": True}, ["-1", "0", "+1"]),
        ([0.5, 4.0], {"diverging": True}, ["-4", "0", "+4"]),
        ([-3.0, 2.0], {}, ["0", "1", "2"]),
        ([0.0, 0.123], {"percent": True}, ["0%", "6.15%", "12.3%"]),
        ([-0.02, 0.01], {"diverging": True, "percent": True}, ["-2%", "0%", "+2%"]),
        ([0.0, 0.0], {"diverging": True}, ["0", "0", "0"]),
        ([-1.0, -2.0], {}, ["0", "0", "0"]),
    ],
)
def test_a_scale_holds_its_values_and_prints_its_limits(values, options, labels):
    scale = Scale.of(torch.tensor(values), **options)
    assert scale.labels() == labels
    strengths = scale.strengths(torch.tensor(values))
    assert np.abs(strengths).max() in (0, 1)
    if options.get("diverging"):
        assert (np.sign(strengths) == np.sign(values)).all()


def test_a_colour_bar_shows_both_limits_and_the_middle(written):
    bar = np.asarray(colour_bar(Scale(2.5, diverging=True), 400))
    assert written == ["-2.5", "0", "+2.5"]
    strip = bar[10, 12 : 12 + 300].astype(int)
    for place, stop in ((1, 0), (150, 2), (298, 4)):
        assert np.abs(strip[place] - DIVERGING[stop]).max() <= 8


def test_overlay_leaves_places_without_heat_in_grey():
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    heat = torch.zeros(8, 8)
    heat[:4] = 1
    pixels = np.asarray(overlay(image, heat))
    grey = np.asarray(image.convert("L"))[0, 0]
    assert (pixels[4:] == grey).all()
    assert np.abs(pixels[:4].astype(float) - (0.25 * grey + 0.75 * np.array(SEQUENTIAL[-1]))).max() <= 1


def test_a_signed_overlay_is_grey_at_zero_and_as_strong_on_both_sides():
    pixels = np.asarray(tint(GREY.crop((0, 0, 3, 1)), torch.tensor([[-1.0, 0.0, 1.0]]), Scale(1.0, diverging=True)))
    below, zero, above = pixels[0].astype(float)
    assert zero.max() == zero.min() > 150
    for found, stop in ((below, 0), (above, 4)):
        assert np.abs(found - (0.25 * zero + 0.75 * np.array(DIVERGING[stop]))).max() <= 2


def test_a_value_is_as_opaque_as_it_stands_out():
    for signs in (1, -1):
        flat, peak = signs * np.full((2, 2), 0.81), signs * np.array([[0.0, 0.25], [0.0, 1.0]])
        assert opacities(flat) == pytest.approx(np.full((2, 2), 0.4 * 0.9))
        assert opacities(peak) == pytest.approx(np.array([[0.0, 0.5], [0.0, 1.0]]))
    assert opacities(np.array([[0.5, 1.0]])) == pytest.approx(np.array([[0.4 * 0.5**0.5, 0.4 + 0.6 * 0.5]]))
    assert opacities(np.array([[-0.25, 1.0]])) == pytest.approx(np.array([[0.5, 1.0]]))


def test_an_outline_lies_just_outside_and_follows_the_size_of_the_image():
    mask = torch.zeros(16, 16)
    mask[4:8, 4:8] = 1
    line = (np.asarray(outline(GREY, mask, colour=(1, 2, 3), width=2)) == (1, 2, 3)).all(axis=2)
    expected = np.zeros((64, 64), dtype=bool)
    expected[14:34, 14:34] = True
    expected[16:32, 16:32] = False
    assert (line == expected).all()


@pytest.mark.parametrize("alignment", [None, Alignment((-3.0, 17.0), (10.0, 20.0), (70, 60))])
def test_cells_tile_the_image(alignment):
    grid = Grid((70, 60), (7, 3), alignment)
    count = np.zeros((50, 70), dtype=int)
    for _, _, (left, top, right, bottom) in cells(Image.new("RGB", (70, 50)), grid):
        count[top:bottom, left:right] += 1
    assert (count == 1).all()
    assert len(list(cells(Image.new("RGB", (4, 4)), squares(9, 9)))) == 81


def test_frames_are_drawn_in_the_chosen_cells_only():
    chosen = torch.tensor([[True, False], [False, False]])
    pixels = np.asarray(frame_cells(GREY, chosen, squares(2, 2), (1, 2, 3), 3))
    assert (pixels[:3, :32] == (1, 2, 3)).all()
    assert (pixels[3, 4:28] == 255).all()
    assert (pixels[4:28, 4:28] == 90).all()
    assert (pixels[32:] == 90).all()
    assert (pixels[:, 32:] == 90).all()


def test_numbers_are_black_on_light_and_white_on_dark_and_dots_where_there_is_no_room(written):
    image = Image.new("RGB", (80, 80), "white")
    image.paste("black", (40, 0, 80, 80))
    pixels = np.asarray(write_numbers(image, [["12", "3.4"], ["", DOT]], squares(2, 2)))
    assert written == ["12", "3.4"]
    assert pixels[:40, :40].min() < 60
    assert pixels[:40, 40:].max() > 200
    assert (pixels[40:, :40] == 255).all()
    assert 1 <= (pixels[40:, 40:].max(axis=2) > 0).sum() <= 9
    write_numbers(image, [["12"] * 8] * 8, squares(8, 8))
    assert written == ["12", "3.4"], "a cell of 10 pixels has no room for two digits"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "100"), (0.0996, "10"), (0.0994, "9.9"), (0.0123, "1.2"), (0.00996, "1.0"), (0.0034, "0.34"), (5e-5, "0.01")],
)
def test_percentages_have_two_or_three_digits(value, text):
    assert format_percent(value) == text


def test_a_percentage_that_would_round_to_zero_is_a_dot():
    assert format_percent(4e-5) == format_percent(0) == DOT


def test_percentages_in_sentences_never_round_to_zero():
    assert [format_share(value) for value in (0.5, 0.0004, 0.000012, 0.0)] == ["50.0%", "0.04%", "0.001%", "0.0%"]
    assert [format_share(value, "+", 2) for value in (0.019, -0.5, -1e-6)] == ["+1.90%", "-50.00%", "-0.0001%"]
    assert [format_share(value) for value in (8e-7, -8e-7)] == ["<0.0001%", ">-0.0001%"]


def test_cells_at_the_threshold_or_below_carry_no_number():
    assert format_cells(torch.tensor([[0.40, 0.02], [0.021, 0.0]])) == [["40", ""], ["2.1", ""]]
    assert format_cells(torch.tensor([[0.40, -0.02]]), threshold=0) == [["40", "2.0"]]
    assert format_cells(torch.zeros(1, 2)) == [["", ""]]


def test_row_places_panels_side_by_side():
    sheet = captioned_row(
        [("one", Image.new("RGB", (4, 4), "red")), ("two\nlines", Image.new("RGB", (9, 9), "blue"))], side=32, gap=4
    )
    pixels = np.asarray(sheet)
    bottom = pixels[-8]
    assert bottom[4 + 16].tolist() == [255, 0, 0]
    assert bottom[4 + 32 + 4 + 16].tolist() == [0, 0, 255]
    assert bottom[0].tolist() == [255, 255, 255]
    assert (pixels[:20] < 128).any(), "the captions are missing"


def test_row_keeps_proportions_and_its_captions_stay_within_their_panels():
    long = "a class with a name that goes on and on " * 5
    sheet = captioned_row([(long, Image.new("RGB", (100, 50), "red")), ("", GREY)], side=64)
    assert sheet.size == (128 + 64 + 3 * GAP, 64 + 2 * CAPTION_LINE + 8 + 2 * GAP)
    captions = np.asarray(sheet)[: GAP + 2 * CAPTION_LINE + 8]
    assert (captions[:, 12 : 12 + 130] < 128).any()
    assert (captions[:, 12 + 128 + 6 :] == 255).all()
    assert (np.asarray(sheet)[-40, 12 + 128 + 12 :][:64] == 90).all()
    assert captioned_row([("", GREY)], side=64).size == (88, 88)


def test_a_row_and_a_colour_bar_with_larger_letters_have_more_room_for_them():
    sheets = [
        captioned_row([("one\ntwo", GREY)], side=64, letter_size=size) for size in (CAPTION_SIZE, 2 * CAPTION_SIZE)
    ]
    captions = [np.asarray(sheet.crop((0, GAP, 88, sheet.height - 64 - GAP))) < 128 for sheet in sheets]
    assert len(captions[1]) - 8 == 2 * (len(captions[0]) - 8) == 4 * CAPTION_LINE
    assert captions[1][2 * CAPTION_LINE : -1].any(), "the second line is not below the first"
    assert not captions[1][-1].any(), "the second line reaches into the picture"

    bars = [colour_bar(Scale(1.0), 200, letter_size=size) for size in (NOTE_SIZE, 2 * NOTE_SIZE)]
    assert bars[0].tobytes() == colour_bar(Scale(1.0), 200).tobytes()
    large = np.asarray(bars[1]) < 128
    assert large[bars[0].height - 4 : -2].any(), "the labels are not larger"
    assert not large[-1].any(), "the labels reach the border of the sheet"


def test_notes_and_legends_break_where_the_sheet_ends(written):
    sheet = note("many words " * 20, 200)
    assert sheet.width == 200
    assert len(written) > 5
    entries = [LegendEntry(f"entry {number}", (0, 0, 0), 2) for number in range(6)]
    wide, narrow = legend("title", entries, 900), legend("title", entries, 200)
    assert narrow.height > 2 * wide.height
    assert [text for text in written if text.startswith("entry")] == 2 * [entry.text for entry in entries]
