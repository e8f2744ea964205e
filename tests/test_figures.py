"""The papers' figures: what is written in them is what the maps say, and odd input is drawn or named."""

import numpy as np
import pytest
import torch
from helpers.pictures import GREY, NAMES, explained, probabilities, record_texts
from PIL import Image

from softcam_hub import Explanation
from softcam_hub.explanation_scores.localization import activation_precision, activation_sensitivity
from softcam_hub.figures import comparison, per_class, single, top_two
from softcam_hub.figures.difference import FRAMES, tiers
from softcam_hub.figures.layout import CAPTION_LINE, GAP
from softcam_hub.figures.numbers import DOT, format_cells


@pytest.fixture
def written(monkeypatch):
    """Every text that is drawn, in its order."""
    return record_texts(monkeypatch)


def test_tiers_by_hand():
    difference = torch.tensor([[8.0, 7, 6, 5, 4, 3, 2], [1.0, 0.1, 0.0, -0.5, -3, -1, -0.01]]) / 100
    top, following, others = tiers(difference, 1)
    assert (top.title, following.title, others.title) == ("top 5", "next 5", "others")
    assert top.cells[0].tolist() == [True] * 5 + [False] * 2
    assert following.cells.nonzero().tolist() == [[0, 5], [0, 6], [1, 0]]
    assert others.cells.nonzero().tolist() == [[1, 1]], "0.1 is below 5 % of 8"
    assert [round(tier.total, 6) for tier in (top, following, others)] == [0.3, 0.06, 0.001]
    top, others = tiers(difference, -1)
    assert top.cells.nonzero().tolist() == [[1, 3], [1, 4], [1, 5]]
    assert (round(top.total, 6), round(others.total, 6)) == (-0.045, -0.0001)
    assert top.describe() == "top 5 (3 cells): -4.50%"
    assert others.describe() == "others (1 cell): -0.01%"
    assert tiers(torch.zeros(3, 3), 1) == tiers(torch.ones(1, 1), -1) == []


@pytest.mark.parametrize("threshold", [0, 0.05, 0.9])
def test_tiers_add_up_to_the_difference_of_the_probabilities(threshold):
    found = explained("cape_test_resnet", output_stride=8)
    for difference, (p, q, _) in zip(found.difference(), found.probabilities, strict=True):
        total = sum(tier.total for sign in (1, -1) for tier in tiers(difference, sign, threshold=threshold))
        assert total == pytest.approx(float(p - q), abs=1e-6)


def test_single_says_class_probability_and_scale(written):
    explanation = probabilities(0.7, 0.3)
    picture = single(GREY, explanation, NAMES, rank=1, side=128)
    high = f"{100 * float(explanation.maps[0, 1].max()):.3g}%"
    assert written[:2] == ["microaneurysm", "30.0%"]
    assert high in written
    assert f"Values from 0% to {high}." in " ".join(written), "the least value is too small for the colours"
    assert picture.width == 128 + 24
    assert (np.asarray(picture)[60:180] == 90).any(), "the silent places of the image are there"
    written.clear()
    single(GREY, explanation, NAMES, numbers=True)
    expected = [text for line in format_cells(explanation.maps[0, 0]) for text in line if text not in ("", DOT)]
    assert written[: len(expected)] == expected


def test_top_two_writes_what_the_maps_say(written):
    explanation = probabilities(0.6, 0.3)
    first, second = explanation.maps[0]
    picture = top_two(GREY, explanation, NAMES, side=448)
    assert picture.width == 2 * 448 + 3 * 12
    for values in (first, second, first - second):
        expected = [text for line in format_cells(values) for text in line if text not in ("", DOT)]
        start = next(i for i in range(len(written)) if written[i : i + len(expected)] == expected)
        del written[start : start + len(expected)]
    gap, high = float((first - second).abs().max()), float(explanation.maps.max())
    limits = [f"{-100 * gap:.3g}%", "0%", f"{100 * gap:+.3g}%", "0%", f"{50 * high:.3g}%", f"{100 * high:.3g}%"]
    assert [text for text in written if text in limits] == limits
    regions = explanation.regions()
    for rank, (name, given) in enumerate([("healthy", "60.0%"), ("microaneurysm", "30.0%")]):
        count, carried = int(regions.mask[0, rank].sum()), float(regions.share[0, rank])
        place = written.index(given)
        assert written[place - 1] == name
        assert written[place + 1] == f"{count} of 64 cells carry {carried:.1%} of it"
    assert "+30.00% = difference of the probabilities" in written
    positive = float((first - second).relu().sum())
    assert f"{positive:+.2%} for healthy" in written
    assert f"{0.3 - positive:+.2%} for microaneurysm" in written
    strongest = (first - second).flatten().sort(descending=True).values[:5].sum()
    assert f"top 5 (5 cells): {float(strongest):+.2%}" in written


def test_top_two_frames_the_strongest_cell_of_either_class():
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, 0, 0], maps[0, 1, 3, 3] = 0.6, 0.4
    explanation = Explanation(maps, torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.4]]), "cape")
    top, left = GAP + 2 * CAPTION_LINE + 8, 256 + 2 * GAP
    panel = np.asarray(top_two(GREY, explanation, NAMES, side=256))[top : top + 256, left : left + 256]
    for sign, first in ((1, 0), (-1, 3 * 64)):
        shade, width = FRAMES[sign, "top 5"]
        frame = np.zeros((256, 256), dtype=bool)
        frame[first : first + 64, first : first + 64] = True
        frame[first + width : first + 64 - width, first + width : first + 64 - width] = False
        assert ((panel == shade).all(axis=2) == frame).all()
    blue, orange = panel[3 * 64 + 10, 3 * 64 + 10].astype(int), panel[10, 10].astype(int)
    assert blue[2] - blue[0] > 40 < orange[0] - orange[2]


def test_per_class_shares_one_scale_or_says_each_limit(written):
    explanation = probabilities(0.6, 0.3, 0.1)
    picture = per_class(GREY, explanation, NAMES, columns=4, side=64)
    assert picture.width == 4 * (64 + 12) + 12
    high = f"{100 * float(explanation.maps.max()):.3g}%"
    assert high in written
    assert f"All cape maps share one scale, with values from 0% to {high}." in " ".join(written)
    written.clear()
    per_class(GREY, explanation, NAMES, shared=False, side=300)
    for values in explanation.maps[0]:
        assert f"values from 0% to {100 * float(values.max()):.3g}%" in written
    assert any("own scale" in text for text in written)


def test_per_class_of_signed_maps_prints_logits_and_symmetric_limits(written):
    explanation = explained("softcam_test_resnet")
    per_class(GREY, explanation, NAMES, index=1)
    limit = float(explanation.maps[1].abs().max())
    assert {f"-{limit:.3g}", "0", f"+{limit:.3g}"} <= set(written)
    for index, probability, values in zip(
        explanation.classes[1].tolist(), explanation.probabilities[1], explanation.maps[1], strict=True
    ):
        assert (
            written[written.index(NAMES[index]) + 1] == f"{float(probability):.1%}, logit {float(values.mean()):+.2f}"
        )


def test_per_class_says_whose_scale_it_is_and_where_nothing_stands_out(written):
    maps = torch.stack([torch.rand(8, 8), torch.zeros(8, 8)])[None]
    explanation = Explanation(maps, torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.3]]), "grad-cam")
    per_class(GREY, explanation, NAMES, side=256)
    assert written.count("nothing stands out") == 1
    assert written[written.index("nothing stands out") - 1] == "30.0%"
    assert any("All grad-cam maps share one scale" in text for text in written)


def test_per_class_of_many_classes_shows_the_first_and_counts_the_rest(written):
    explanation = explained("cape_test_resnet", 1000, top_k=1000)
    names = [
        f"class {number} of a long list, with a name that nobody would want to read to its end"
        for number in range(1000)
    ]
    picture = per_class(GREY, explanation, names, most=7, columns=4, side=80)
    assert picture.width == 4 * (80 + 12) + 12
    assert picture.height < 500
    assert sum(text.startswith("class ") for text in written) == 7
    assert any("7 of 1000" in text for text in written)


def test_comparison_prints_the_scores_of_the_shown_maps(written):
    maps = {"one": torch.randn(2, 7, 7), "two": torch.rand(2, 1, 16, 16)}
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[:, 10:40, 20:50] = True
    picture = comparison([GREY, GREY], maps, masks, ["first", "second"], side=256)
    assert picture.width == 3 * (256 + 12) + 12
    assert written[:2] == ["first", "one"]
    heats = [
        Explanation(values.view(2, 1, *values.shape[-2:]), torch.zeros(2, 1), torch.ones(2, 1), "cam").heatmaps(64)[
            :, 0
        ]
        for values in maps.values()
    ]
    scored = [(activation_precision(heat, masks), activation_sensitivity(heat, masks)) for heat in heats]
    expected = [f"precision {p[i]:.2f}, sensitivity {s[i]:.2f}" for i in range(2) for p, s in scored]
    assert [text for text in written if text.startswith("precision")] == expected
    assert written.count("one") == 1, "methods are named once"


def test_comparison_names_methods_on_every_row_where_columns_do_not_align(written):
    wide = GREY.resize((2 * GREY.width, GREY.height))
    comparison([GREY, wide, GREY], {"one": torch.rand(3, 7, 7)})
    assert written.count("one") == 3


def test_comparison_says_where_nothing_stands_out(written):
    comparison([GREY, GREY], {"dead": torch.zeros(2, 3, 3)}, [None, torch.zeros(64, 64)])
    assert written.count("nothing stands out") == 2
    assert not any("outline" in text for text in written)


def test_comparison_without_titles_calls_the_image_an_image(written):
    comparison([GREY, GREY], {"one": torch.rand(2, 7, 7)})
    assert written[:2] == ["image", "one"]
    assert written.count("image") == 1


def photograph():
    """Make a picture with a structure that can be recognised under a map."""
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    return Image.fromarray((((x // 8 + y // 8) % 2) * 200 + 20).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("kind", ["cape", "softcam", "grad-cam"])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_unsure_model_shows_the_photograph_under_its_map_and_the_range_of_its_values(kind, sign, written):
    maps = 0.25 / 64 + 0.0002 * torch.rand(1, 2, 8, 8)
    maps = maps if kind != "softcam" else sign * maps
    explanation = Explanation(maps, torch.tensor([[0, 1]]), torch.tensor([[0.26, 0.25]]), kind)
    sheet = np.asarray(per_class(photograph(), explanation, NAMES, side=256).convert("L")).astype(float)
    top = GAP + 2 * CAPTION_LINE + 8
    image, *shown = (sheet[top : top + 256, left : left + 256] for left in (12, 280, 548))
    pale = 105 / 255 if kind == "softcam" else 1.0
    for panel in shown:
        assert np.corrcoef(panel.flatten(), image.flatten())[0, 1] > 0.9
        assert panel.std() > 0.5 * pale * image.std()
    factor, unit, plus = (100, "%", "") if kind == "cape" else (1, "", "+" if kind == "softcam" else "")
    low, high = (f"{factor * float(value):{plus}.3g}{unit}" for value in maps.aminmax())
    assert f"with values from {low} to {high}." in " ".join(written)


def test_comparison_is_hot_where_the_map_is():
    values = torch.zeros(1, 4, 4)
    values[0, 0, 3] = 1
    pixels = np.asarray(comparison([GREY], {"": values}, side=64)).astype(int)
    top = GAP + CAPTION_LINE + 8
    panel = pixels[top : top + 64, 88 : 88 + 64]
    warmth = panel[..., 0] - panel[..., 2]
    assert warmth[:16, 48:].mean() > 60 > warmth[32:, :32].mean()


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (1, 2, 40, 40), (1, 2, 3, 11)])
@pytest.mark.parametrize("size", [(64, 64), (96, 40)])
@pytest.mark.parametrize("fill", [torch.zeros, torch.rand], ids=["zero", "random"])
def test_odd_shapes_and_maps_of_zeros_are_drawn(shape, size, fill):
    image = Image.new("RGB", size)
    explanation = Explanation(fill(*shape) / 100, torch.tensor([[0, 1]]), torch.tensor([[0.2, 0.1]]), "cape")
    for figure in (top_two, per_class, single):
        assert figure(image, explanation, NAMES, mask=torch.ones(size[::-1])).height > size[1]


def test_maps_of_one_class_in_half_precision_and_with_gradients_are_drawn():
    explanation = explained("cape_test_resnet", 2, top_k=1)
    per_class(GREY, explanation, ["one", "other"])
    with pytest.raises(ValueError, match="top_k=2"):
        top_two(GREY, explanation, ["one", "other"])
    half = probabilities(0.6, 0.4)
    maps = half.maps.bfloat16().requires_grad_()
    top_two(GREY, Explanation(maps, half.classes, half.probabilities, "cape"), NAMES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: top_two(GREY, e, ["only one"]), "class 1 has no name among the 1"),
        (lambda e: per_class(GREY, e, {0: "zero"}), "class 1 has no name"),
        (lambda e: top_two(GREY, e, NAMES, index=3), "image 3 is not among the 1"),
        (lambda e: single(GREY, e, NAMES, rank=2), "rank 2 is not among the 2"),
        (lambda e: single(torch.rand(3, 8, 8), e, NAMES), "Pillow image"),
        (lambda e: single(GREY, e, NAMES, mask=torch.ones(30, 64)), "proportions of the image"),
        (lambda e: per_class(GREY, e, NAMES, mask=torch.ones(1, 64, 64)), "proportions of the image"),
        (lambda e: top_two(GREY, Explanation(e.maps, e.classes, e.probabilities, "softcam"), NAMES), "only 'cape'"),
        (
            lambda e: single(GREY, Explanation(e.maps, e.classes, e.probabilities, "mu-cape"), NAMES, numbers=True),
            "only 'cape'",
        ),
        (lambda e: per_class(GREY, Explanation(e.maps / 0, e.classes, e.probabilities, "cape"), NAMES), "infinity"),
        (lambda e: comparison([GREY], {"cam": torch.rand(2, 7, 7)}), r"cam: expected maps \(1, H, W\)"),
        (lambda e: comparison([GREY], {"cam": torch.rand(1, 2, 7, 7)}), "one class for each image"),
        (lambda e: comparison([GREY], {"cam": torch.rand(1, 7, 7)}, torch.ones(2, 64, 64)), "1 images and 2 masks"),
        (lambda e: comparison([GREY], {"cam": torch.rand(1, 7, 7)}, titles=[]), "1 images and 0 titles"),
        (lambda e: comparison([], {"cam": torch.rand(0, 7, 7)}), "at least one image"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, IndexError, TypeError), match=message):
        call(probabilities(0.6, 0.4))
