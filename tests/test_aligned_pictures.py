"""Every picture of a map shows a cell where the network looks: one hot cell is searched in what is drawn."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.demo import draw_picture, text_of
from PIL import Image
from transformers import pipeline

import softcam_hub
from softcam_hub import CAPE_LESIONS, Explanation
from softcam_hub.cli import main
from softcam_hub.data.lesions import draw
from softcam_hub.demo import views
from softcam_hub.demo.models import DemoModel, ExplainedImage
from softcam_hub.figures import comparison, per_class, single, top_two
from softcam_hub.figures.difference import FRAMES
from softcam_hub.figures.drawing import write_numbers
from softcam_hub.figures.layout import CAPTION_LINE, GAP
from softcam_hub.models.alignment import Alignment, Grid
from softcam_hub.models.overlays import spread
from tools.draw_alignment import PICTURE, draw_alignment

KNOWN = Alignment((0.6, 1.28), (8.0, 8.0), (128, 128))
ROW, COLUMN = 5, 9
LOOKS, SQUARE = (0.6 + 8 * ROW, 1.28 + 8 * COLUMN), (4.0 + 8 * ROW, 4.0 + 8 * COLUMN)
"""Place of the hot cell in pixels: where the network looks, and the middle of its square."""

ALIGNED = pytest.mark.parametrize(("aligned", "place"), [(True, LOOKS), (False, SQUARE)])


def hot_cell(aligned=True, side=128):
    """Explain a grey picture by two `cape` maps, of which the first has one hot cell."""
    maps = torch.zeros(1, 2, 16, 16)
    maps[0, 0, ROW, COLUMN], maps[0, 1, 12, 3] = 0.6, 0.3
    grid = Grid((side, side), (16, 16), Alignment(KNOWN.start, KNOWN.step, (side, side)) if aligned else None)
    pixels = torch.full((1, 3, side, side), 90, dtype=torch.uint8)
    return Explanation(maps, torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.3]]), "cape", ["a", "b"], pixels, grid)


def centre_of(weights, side=128):
    """Place of the middle of what stands out, in pixels of a picture of 128."""
    weights = np.asarray(weights, dtype=float)
    places = (np.arange(len(weights)) + 0.5) * side / len(weights)
    return (weights.sum(axis=1) @ places / weights.sum(), weights.sum(axis=0) @ places / weights.sum())


def colour_in(picture):
    """How far the pixels of a picture are from grey."""
    pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture[..., :3]).astype(float)
    return np.ptp(pixels, axis=2)


@ALIGNED
def test_overlay(aligned, place):
    assert centre_of(colour_in(hot_cell().overlay(aligned=aligned))) == pytest.approx(place, abs=0.5)
    assert hot_cell(aligned).overlay().tobytes() == hot_cell().overlay(aligned=aligned).tobytes()


@ALIGNED
def test_matplotlib_panels(aligned, place, tmp_path):
    for figure in (hot_cell().plot(aligned), hot_cell(aligned).plot()):
        panel = figure.axes[1].images[0].get_array()
        assert centre_of(colour_in(np.asarray(panel))) == pytest.approx(place, abs=0.5)
    hot_cell().save(tmp_path / "one.png", aligned)
    hot_cell(aligned).save(tmp_path / "other.png")
    assert np.array_equal(Image.open(tmp_path / "one.png"), Image.open(tmp_path / "other.png"))


@ALIGNED
def test_figures(aligned, place):
    explanation, grey = hot_cell(aligned), Image.new("RGB", (128, 128), (90, 90, 90))
    top = GAP + 2 * CAPTION_LINE + 8
    for numbers in (False, True):
        panel = single(grey, explanation, ["a", "b"], numbers=numbers, side=256).crop((GAP, top, GAP + 256, top + 256))
        assert centre_of(colour_in(panel)) == pytest.approx(place, abs=0.5)
    left = 2 * GAP + 256
    panel = per_class(grey, explanation, ["a", "b"], side=256).crop((left, top, left + 256, top + 256))
    assert centre_of(colour_in(panel)) == pytest.approx(place, abs=0.5)


@ALIGNED
def test_methods_side_by_side(aligned, place):
    explanation = replace(hot_cell(aligned), maps=hot_cell().maps[:, :1])
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[int(place[0]) - 4 : int(place[0]) + 4, int(place[1]) - 4 : int(place[1]) + 4] = True
    grey = Image.new("RGB", (128, 128), (90, 90, 90))
    sheet = comparison([grey], {"cape": explanation}, side=256)
    left, top = 2 * GAP + 256, GAP + CAPTION_LINE + 8
    assert centre_of(colour_in(sheet.crop((left, top, left + 256, top + 256)))) == pytest.approx(place, abs=0.5)
    squares = comparison([grey], {"cape": explanation.maps}, side=256)
    assert (squares.tobytes() == sheet.tobytes()) == (not aligned)


def test_frames_and_blocks_of_a_difference_lie_around_the_place():
    grey = Image.new("RGB", (128, 128), (90, 90, 90))
    picture = top_two(grey, hot_cell(), ["a", "b"], side=256)
    top, left = GAP + 2 * CAPTION_LINE + 8, 256 + 2 * GAP
    panel = np.asarray(picture)[top : top + 256, left : left + 256]
    frame = (panel == FRAMES[1, "top 5"][0]).all(axis=2)
    rows, columns = frame.any(axis=1).nonzero()[0], frame.any(axis=0).nonzero()[0]
    expected = [round(2 * (place + half)) for place in LOOKS for half in (-4, 4)]
    assert [rows[0], rows[-1] + 1, columns[0], columns[-1] + 1] == expected
    block = spread(hot_cell().maps[0, 0], grey.resize((256, 256)), hot_cell().layout(), smooth=False) > 0
    inside = np.zeros((256, 256), dtype=bool)
    inside[expected[0] : expected[1], expected[2] : expected[3]] = True
    assert np.array_equal(block.numpy(), inside)


def test_a_cell_that_the_image_cuts_has_no_room_for_its_number(monkeypatch):
    written, grid = [], Grid((128, 128), (16, 16), KNOWN)
    monkeypatch.setattr(
        "PIL.ImageDraw.ImageDraw.text", lambda self, place, text, *args, **options: written.append(text)
    )
    texts = [["12" if row in (0, 5) else "" for _ in range(16)] for row in range(16)]
    write_numbers(Image.new("RGB", (448, 448)), texts, grid)
    assert len(written) == 15  # those of the first row, and the first column of row 5, are cut
    write_numbers(Image.new("RGB", (448, 448)), texts, Grid((128, 128), (16, 16)))
    assert len(written) == 15 + 32


@ALIGNED
def test_views_of_the_page(aligned, place):
    explanation = hot_cell(aligned)
    explained = ExplainedImage(
        "model", "eye.png", ["a", "b"], torch.zeros(1, 3, 128, 128), torch.tensor([0.6, 0.3]), {"cape": explanation}
    )
    regions, canvas = explanation.regions(0.05), explanation.image.resize((360, 360))
    bright = np.asarray(views._highlight(canvas, regions, 0, explanation.layout()).convert("L")) == 90
    assert centre_of(bright) == pytest.approx(place, abs=0.3)
    assert (bright.sum() / 360**2) == pytest.approx(1 / 256, rel=0.1)
    tiles = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "render_tiles", lambda given: tiles.extend(given) or "")
        patch.setattr(views, "_render_beside", lambda tile, _: tiles.append(tile) or "")
        shown = views.render_maps(explained)
        views.render_difference(explained)
        views.render_post_hoc(explained, {"grad-cam": explanation}, {}, is_vanilla=True)
    for tile in (tiles[0], tiles[3], tiles[4]):
        assert centre_of(np.asarray(tile.layer)[..., 3]) == pytest.approx(place, abs=0.5)
    difference = np.asarray(tiles[2].layer)
    warm = difference[..., 3] * (difference[..., 0] > difference[..., 2])
    assert centre_of(warm) == pytest.approx(place, abs=0.5)
    sentence = "Cells are drawn where the network looks: 0.42 cells up and 0.34 cells left of their square."
    assert (sentence in text_of(shown)) == aligned
    assert views.describe(explained)["map_offset"] == (pytest.approx((-0.425, -0.34)) if aligned else None)


def test_the_sentence_names_measured_axes_only():
    one = Grid((128, 128), (16, 16), Alignment((None, 5.0), (8.0, 8.0), (128, 128)))
    assert views.describe_offset(one) == "Cells are drawn where the network looks: 0.12 cells right of their square."
    assert views.describe_offset(Grid((128, 128), (16, 16))) == ""


def test_post_hoc_maps_of_the_page_move_with_the_model():
    demo = DemoModel(CAPE_LESIONS)
    explained = demo.explain(draw(3, "test", 128).image)
    explanations, _ = demo.post_hoc(explained)
    assert "grad-cam" in explanations
    for explanation in (explained.explanation, *explanations.values()):
        assert explanation.layout().offset == demo.model.map_offset() is not None


def test_heat_maps_of_the_pipeline():
    explain = pipeline("image-explanation", model=str(CAPE_LESIONS))
    picture = draw(3, "test", 128).image
    explanation = explain.model.explain(picture)
    found = explain([picture, picture], batch_size=2)[1][0]["heatmap"]
    assert found.tobytes() == explanation.overlay().tobytes() != explanation.overlay(aligned=False).tobytes()


@pytest.mark.parametrize("options", [[], ["--explainer", "grad-cam"], ["--explainer", "guided-backprop"]])
def test_pictures_of_the_command(options, tmp_path):
    picture = draw_picture(tmp_path)
    model = softcam_hub.CAPEForImageClassification.from_pretrained(CAPE_LESIONS)
    call = ["explain", str(picture), *options, "--output"]
    found = {}
    for name, switch in {"aligned": [], "squares": ["--no-aligned"]}.items():
        assert main([*call, str(tmp_path / name), *switch]) == 0
        line = json.loads((tmp_path / name / "predictions.jsonl").read_text())
        found[name] = line["map_offset"], (tmp_path / name / line["picture"]).read_bytes()
    assert found["squares"][0] is None
    if "guided-backprop" in options:
        assert found["aligned"] == found["squares"]
        return
    assert found["aligned"][0] == pytest.approx(model.map_offset())
    assert found["aligned"][1] != found["squares"][1]
    if not options:
        explanation = model.explain(Image.open(picture).convert("RGB"), top_k=2)
        expected = per_class(explanation.image, explanation, model.labels, most=39)
        assert np.array_equal(Image.open(io.BytesIO(found["aligned"][1])), expected)


def test_the_picture_of_the_documentation_is_drawn_by_its_command():
    drawn, kept = draw_alignment(), Image.open(PICTURE).convert("RGB")
    assert drawn.size == kept.size
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(kept)).mean() < 1
    assert PICTURE.stat().st_size < 200_000
