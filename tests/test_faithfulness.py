"""The scores must be the numbers one works out by hand, for each image by itself."""

import numpy as np
import pytest
import torch

from softcam_hub.explanation_scores.faithfulness import (
    adcc,
    average_drop,
    average_drop_in_deletion,
    borda_count,
    cancelled_share,
    coherency,
    completeness_error,
    complexity,
    gini_sparseness,
    increase_in_confidence,
    pearson,
    top_two_iou,
)


def slow_gini(values):
    """Mean absolute difference of all pairs, over twice the mean: the definition, not the sorted closed form."""
    values = [abs(value) for value in values]
    total, count = sum(values), len(values)
    return sum(abs(a - b) for a in values for b in values) / (2 * count * total) if total else 0.0


GINI = {
    "uniform": ([[3.0, 3.0], [3.0, 3.0]], 0.0),
    "one of four": ([[0.0, 0.0], [5.0, 0.0]], 3 / 4),
    "two of four": ([[1.0, 0.0], [1.0, 0.0]], 1 / 2),
    "one to four": ([[1.0, 2.0], [3.0, 4.0]], 1 / 4),
    "signs do not count": ([[-1.0, 2.0], [3.0, -4.0]], 1 / 4),
    "one row": ([[0.0, 0.0, 1.0]], 2 / 3),
    "one location": ([[7.0]], 0.0),
    "nothing": ([[0.0, 0.0], [0.0, 0.0]], 0.0),
    "faint": ([[0.0, 0.0], [1e-30, 0.0]], 3 / 4),
    "strong": ([[0.0, 0.0], [1e30, 0.0]], 3 / 4),
}


@pytest.mark.parametrize("name", GINI)
def test_gini_by_hand(name):
    rows, expected = GINI[name]
    assert gini_sparseness(torch.tensor([rows])).tolist() == pytest.approx([expected], abs=1e-6)


@pytest.mark.parametrize("shape", [(5, 7, 7), (3, 1, 6), (2, 16, 9), (4, 1, 1)])
@pytest.mark.parametrize("draw", [torch.rand, torch.randn])
def test_gini_is_the_mean_difference_of_all_pairs(shape, draw):
    maps = draw(shape)
    expected = [slow_gini(image.flatten().tolist()) for image in maps]
    assert gini_sparseness(maps).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_share_that_cancels_by_hand():
    maps = torch.tensor([[[1.0, 3.0]], [[-1.0, -3.0]], [[3.0, -1.0]], [[2.0, -2.0]], [[0.0, 0.0]]])
    assert cancelled_share(maps).tolist() == pytest.approx([0, 0, 0.5, 1, 0])
    assert torch.allclose(cancelled_share(-1e30 * maps), cancelled_share(maps))


def test_gini_ignores_scale_and_place():
    maps = torch.rand(3, 8, 8)
    moved = maps.flatten(1)[:, torch.randperm(64)].unflatten(1, (8, 8))
    for same in (100 * maps, -maps, moved):
        assert torch.allclose(gini_sparseness(same), gini_sparseness(maps), atol=1e-6)


def test_gini_grows_as_the_rest_fades():
    maps = torch.rand(1, 6, 6)
    assert gini_sparseness(maps.square()) > gini_sparseness(maps) > gini_sparseness(maps.sqrt())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gini_of_other_precisions(dtype):
    maps = (100 * torch.rand(2, 32, 32)).to(dtype)
    found = gini_sparseness(maps)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.allclose(found, gini_sparseness(maps.double()).to(found.dtype), atol=1e-5)


def test_gini_of_one_broken_map_leaves_the_others():
    maps = torch.rand(3, 4, 4)
    expected = gini_sparseness(maps)
    maps[1, 2, 3] = torch.nan
    found = gini_sparseness(maps)
    assert found[1].isnan()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_completeness_error_by_hand():
    composed = torch.tensor([0.5, 0.25, -1.0, 2.0])
    prediction = torch.tensor([0.5, 0.75, 1.0, 1.5])
    assert completeness_error(composed, prediction).tolist() == [0.0, 0.5, 2.0, 0.5]
    assert torch.equal(completeness_error(prediction, composed), completeness_error(composed, prediction))


CONFIDENCE = torch.tensor([0.8, 0.5, 0.5, 1.0, 0.0])
CHANGED = torch.tensor([0.2, 0.5, 0.9, 0.0, 0.3])


def test_average_drop_by_hand():
    assert average_drop(CONFIDENCE, CHANGED).tolist() == pytest.approx([0.75, 0, 0, 1, 0])
    assert average_drop_in_deletion(CONFIDENCE, CHANGED).tolist() == pytest.approx([0.75, 0, 0, 1, 0])


def test_increase_in_confidence_is_strict():
    assert increase_in_confidence(CONFIDENCE, CHANGED).tolist() == [0, 0, 1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_drops_of_half_precision_are_float32s(dtype):
    confidence, kept = CONFIDENCE.to(dtype), CHANGED.to(dtype)
    for measure in (average_drop, increase_in_confidence):
        assert torch.equal(measure(confidence, kept), measure(confidence.float(), kept.float()))


def test_coherency_is_half_of_one_plus_numpys_correlation():
    maps, kept = torch.rand(6, 9, 7), torch.rand(6, 9, 7)
    kept[3:] += 2 * maps[3:]
    expected = [(1 + np.corrcoef(a.flatten(), b.flatten())[0, 1]) / 2 for a, b in zip(maps, kept, strict=True)]
    assert coherency(maps, kept).tolist() == pytest.approx(expected, abs=1e-5)


def test_coherency_reaches_its_bounds():
    maps = torch.rand(3, 8, 8)
    assert coherency(maps, 0.5 * maps + 0.1).tolist() == pytest.approx([1, 1, 1])
    assert coherency(maps, 1 - maps).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert (coherency(maps, maps) <= 1).all()


def test_coherency_of_maps_without_contrast_is_zero():
    maps = torch.rand(3, 13, 17)
    kept = maps.clone()
    kept[0], kept[1] = 0, 0.1
    assert coherency(maps, kept).tolist() == pytest.approx([0, 0, 1])
    assert coherency(kept, maps).tolist() == pytest.approx([0, 0, 1])


def test_pearson_does_not_underflow():
    rows = torch.rand(2, 50)
    for scale in (1e-30, 1e30):
        assert torch.allclose(pearson(scale * rows, rows), torch.ones(2), atol=1e-5)


def test_complexity_is_the_mean():
    maps = torch.tensor([[[0.0, 1.0], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert complexity(maps).tolist() == [0.5, 0, 1]


def test_adcc_by_hand():
    found = adcc(torch.tensor([0.5, 1.0, 0.9]), torch.tensor([0.5, 0.0, 0.4]), torch.tensor([0.5, 0.0, 0.25]))
    assert found.tolist() == pytest.approx([0.5, 1.0, 3 / (1 / 0.9 + 1 / 0.6 + 1 / 0.75)])


@pytest.mark.parametrize("terms", [(0, 0.5, 0.5), (0.5, 1, 0.5), (0.5, 0.5, 1), (0, 1, 1), (1e-30, 0.5, 0.5)])
def test_adcc_is_zero_where_a_term_is(terms):
    assert adcc(*torch.tensor(terms, dtype=torch.float32)[:, None]).tolist() == pytest.approx([0])


def test_top_two_iou_by_hand():
    maps = torch.tensor([[[1.0, 0.5], [0.21, 0.2]]])
    second = torch.tensor([[[0.0, 2.0], [0.5, 0.4]]])
    assert top_two_iou(maps, second).tolist() == pytest.approx([2 / 3])  # {1, 2, 3} and {2, 3}: 0.2 is not above 0.2
    assert top_two_iou(maps, second, threshold=0.22).tolist() == pytest.approx([1 / 3])  # {1, 2} and {2, 3}
    assert top_two_iou(maps, maps).tolist() == [1]


def test_top_two_iou_of_maps_that_show_nothing():
    zero, one = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    pairs = [(zero, zero), (zero, one), (one, one.flip(1))]
    assert [top_two_iou(*pair).item() for pair in pairs] == [1, 0, 0]


DATASETS = ("CUB", "ImageNet", "CMML")
MEASURES = (False, True, True, True, False)  # AD, IC, ADD, ADCC, mIoU: whether higher is better
TABLE_1 = {
    "CAM": "21.2 27.9 67.4 78.8 75.9 0 12.6 41.9 49.2 73.4 84.4 2 17.4 36.0 54.8 73.6 0.1 7",
    "Grad-CAM": "21.6 27.5 66.8 77.3 100.0 0 12.7 41.4 48.7 72.9 100.0 0 18.2 35.3 54.0 70.6 100.0 0",
    "Grad-CAM++": "20.3 28.7 68.9 77.4 100.0 0 13.1 39.6 47.8 72.4 100.0 0 20.1 37.7 52.5 68.4 100.0 0",
    "SG-CAM++": "23.7 24.0 64.7 74.2 99.8 0 15.0 35.2 46.2 70.5 99.8 0 31.8 31.5 47.0 70.2 99.7 0",
    "Layer-CAM": "20.1 28.7 69.9 77.3 100.0 0 13.1 39.2 48.4 71.4 100.0 0 21.6 37.1 51.8 65.9 100.0 0",
    "FD-CAM": "20.5 27.9 70.9 78.1 96.7 1 15.8 38.3 49.5 72.5 100.0 0 17.8 38.9 54.3 71.9 99.7 2",
    "LIFT-CAM": "20.9 25.6 64.5 74.6 83.3 0 12.7 41.1 49.3 72.3 89.8 0 16.4 37.8 54.0 72.5 0.1 6",
    "Score-CAM": "16.3 33.0 73.1 80.2 81.9 6 8.5 46.9 52.6 72.9 80.2 5 17.0 40.3 48.3 67.7 77.0 1",
    "CAPE (PF)": "22.2 26.5 68.7 73.7 13.4 3 17.5 45.2 59.7 69.1 11.0 7 27.9 35.0 39.9 67.9 4.9 0",
    "CAPE (TS)": "27.1 31.6 59.1 77.5 28.5 3 34.7 34.2 41.3 69.9 56.8 2 29.9 27.4 36.3 72.0 0.8 1",
    "mu-CAPE (PF)": "15.9 30.9 69.6 83.0 66.6 5 12.7 43.9 55.9 74.3 70.3 5 16.5 43.6 45.5 78.2 0.6 7",
    "mu-CAPE (TS)": "10.3 48.5 74.2 84.4 80.9 12 10.7 58.3 58.7 73.5 89.0 9 14.1 48.0 50.1 78.4 5.3 9",
}
"""The CAPE paper's: AD, IC, ADD, ADCC, mIoU and Borda count, on three datasets."""


def test_borda_reproduces_table_1_but_for_one_cell():
    table = torch.tensor([[float(cell) for cell in row.split()] for row in TABLE_1.values()]).view(-1, 3, 6)
    differing = {}
    for index, dataset in enumerate(DATASETS):
        found = borda_count(table[:, index, :5], MEASURES)
        for method, ours, printed in zip(TABLE_1, found.tolist(), table[:, index, 5].tolist(), strict=True):
            if ours != printed:
                differing[method, dataset] = (ours, printed)
    assert differing == {("Grad-CAM", "CMML"): (1, 0)}


def test_borda_ranks_ties_densely():
    scores = torch.tensor([[9.0], [9.0], [8.0], [7.0], [6.0], [torch.nan]])
    assert borda_count(scores, [True]).tolist() == [3, 3, 2, 1, 0, 0]
    assert borda_count(scores, [False]).tolist() == [0, 0, 1, 2, 3, 0]
    assert borda_count(torch.tensor([[1.0, 5.0], [2.0, 5.0]]), [True, False]).tolist() == [5, 6]


def test_borda_gives_nothing_for_what_was_not_measured():
    assert borda_count(torch.tensor([[torch.nan, 1.0], [1.0, torch.nan]]), [False, True]).tolist() == [3, 3]


ERRORS = {
    "maps without batch": (
        complexity,
        (torch.rand(4, 4),),
        r"^expected maps as floating-point numbers \(B, H, W\), got",
    ),
    "integers": (complexity, (torch.ones(1, 4, 4, dtype=torch.long),), r"got torch.int64 of shape \(1, 4, 4\)$"),
    "raw evidence": (complexity, (torch.full((1, 4, 4), 3.0),), r"in \[0, 1\], got 3 to 3: use heat\(maps, size\)$"),
    "negative": (complexity, (torch.full((1, 4, 4), -0.5),), r"in \[0, 1\], got -0.5 to -0.5"),
    "two sizes": (coherency, (torch.rand(1, 4, 4), torch.rand(1, 4, 5)), r"got \(1, 4, 4\) and \(1, 4, 5\)"),
    "two batches": (top_two_iou, (torch.rand(1, 4, 4), torch.rand(2, 4, 4)), r"got \(1, 4, 4\) and \(2, 4, 4\)"),
    "threshold": (top_two_iou, (torch.rand(1, 4, 4), torch.rand(1, 4, 4), 1.0), r"^threshold must be a fraction"),
    "directions": (borda_count, (torch.rand(3, 2), [True]), r"one direction per measure, got \(3, 2\) and 1$"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name):
    measure, arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        measure(*arguments)
