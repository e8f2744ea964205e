"""The scores must be the numbers one works out by hand, for each image by itself."""

import pytest
import torch

from softcam_hub.explanation_scores.faithfulness import completeness_error, gini_sparseness


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
