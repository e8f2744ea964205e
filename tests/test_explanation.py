"""Explanations worked out by hand: heat maps, differences and regions."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from softcam_hub import Explanation
from softcam_hub.models.heads import SoftCAMHead

MAPS = torch.tensor([[[[0.4, 0.1], [0.0, 0.1]], [[0.0, 0.1], [0.2, 0.1]]]])


def by_hand(kind="cape"):
    return Explanation(MAPS, torch.tensor([[7, 3]]), MAPS.sum(dim=(2, 3)), kind)


def test_difference_is_signed_and_sums_to_the_difference_of_probabilities():
    difference = by_hand().difference(7, 3)
    assert torch.allclose(difference, torch.tensor([[[0.4, 0.0], [-0.2, 0.0]]]))
    assert difference.sum() == pytest.approx(0.6 - 0.4)
    assert torch.equal(by_hand().difference(3, 7), -difference)
    assert torch.equal(by_hand().difference(), difference)


def test_difference_finds_a_class_at_another_rank_in_every_image():
    maps = torch.rand(2, 2, 3, 3)
    explanation = Explanation(maps, torch.tensor([[1, 0], [0, 1]]), maps.sum(dim=(2, 3)), "cape")
    expected = torch.stack([maps[0, 1] - maps[0, 0], maps[1, 0] - maps[1, 1]])
    assert torch.equal(explanation.difference(0, 1), expected)


def test_difference_of_a_class_that_was_not_explained():
    expected = (
        r"^class 5 is not explained for image 0, which has classes \[7, 3\]: name it in explain\(..., classes=...\)$"
    )
    with pytest.raises(ValueError, match=expected):
        by_hand().difference(7, 5)
    single = Explanation(MAPS[:, :1], torch.tensor([[7]]), torch.tensor([[0.6]]), "cape")
    with pytest.raises(ValueError, match=r"^difference\(\) needs two explained classes: call explain\(..., top_k=2\)"):
        single.difference()


def test_difference_to_a_class_takes_the_other_one_by_default():
    explanation = by_hand()
    assert torch.equal(explanation.difference(3), explanation.difference(3, 7))
    assert torch.equal(explanation.difference(b=7), explanation.difference(3, 7))
    assert torch.equal(explanation.difference(7), explanation.difference(b=3))
    maps = torch.rand(2, 2, 3, 3)
    several = Explanation(maps, torch.tensor([[1, 0], [0, 1]]), maps.sum(dim=(2, 3)), "cape")
    assert torch.equal(several.difference(1), several.difference(1, 0))
    with pytest.raises(
        ValueError, match=r"^difference\(\) takes two classes, got class 7 twice: its map less itself is 0"
    ):
        explanation.difference(7, 7)


def test_regions_carry_their_share():
    regions = by_hand().regions(0.3)
    assert regions.mask[0].tolist() == [[[True, False], [False, False]], [[False, True], [True, True]]]
    assert regions.share[0].tolist() == pytest.approx([0.4 / 0.6, 1.0])
    assert regions.describe(rank=0) == "1 of 4 locations carry 66.7% of this class's 60.0%"
    assert by_hand().regions(0.0).share[0].tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_regions_want_a_fraction(threshold):
    with pytest.raises(ValueError, match=r"^threshold must be a fraction of the maximum in \[0, 1\), got"):
        by_hand().regions(threshold)


def test_heatmaps_are_upsampled_positive_and_fill_zero_to_one():
    maps = torch.tensor([[[[-3.0, 0.0], [1.0, 5.0]], [[2.0, 2.0], [2.0, 2.0]]]])
    heat = Explanation(maps, torch.tensor([[0, 1]]), torch.zeros(1, 2), "softcam").heatmaps((4, 6))
    assert heat.shape == (1, 2, 4, 6)
    assert heat[0, 0].min() == 0
    assert heat[0, 0].max() == 1
    assert heat[0, 0, 3, 5] == 1
    assert heat[0, 0, 0, 0] == 0
    assert (heat[0, 1] == 0).all()
    assert by_hand().heatmaps(8).shape == (1, 2, 8, 8)


@pytest.mark.parametrize("stride", [8, 32])
def test_guarantees_of_cape_on_a_network(stride):
    model = timm.create_model("cape_test_resnet", num_classes=6, output_stride=stride)
    explanation = model.explain(torch.randn(3, 3, 96, 64), top_k=6)
    assert torch.allclose(explanation.maps.sum(dim=(2, 3)), explanation.probabilities, atol=1e-6)
    gap = explanation.probabilities[:, 0] - explanation.probabilities[:, 1]
    assert torch.allclose(explanation.difference().sum(dim=(1, 2)), gap, atol=1e-6)
    regions = explanation.regions(0.5)
    carried = (explanation.maps * regions.mask).sum(dim=(2, 3))
    assert torch.allclose(regions.share * explanation.probabilities, carried, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["softcam", "cam"])
def test_softcam_maps_of_some_classes_are_those_of_all_and_cost_no_more_than_their_own_products(kind):
    torch.manual_seed(0)
    classes, size = 5000, 64
    model = timm.create_model("softcam_test_resnet", num_classes=classes).eval()
    torch.nn.init.normal_(model.head.bias)
    images = torch.randn(2, 3, size, size)
    features = model.forward_features(images)
    logits, maps = model.head(features, kind=kind)

    with FlopCounterMode(display=False) as explained:
        explanation = model.explain(images, top_k=3, kind=kind)
    with FlopCounterMode(display=False) as predicted:
        model(images)

    assert torch.equal(explanation.classes, logits.topk(3, dim=1).indices)
    index = explanation.classes[..., None, None].expand_as(explanation.maps)
    assert torch.allclose(explanation.maps, maps.gather(1, index), atol=1e-5)
    assert torch.allclose(explanation.probabilities, logits.softmax(dim=1).topk(3, dim=1).values)
    own = 2 * 3 * features.numel()
    assert explained.get_total_flops() - predicted.get_total_flops() <= own


def test_a_head_that_inherits_from_softcam_draws_its_own_maps():
    class Halved(SoftCAMHead):
        def draw(self, evidence, kind):
            return super().draw(evidence, kind) / 2

    assert SoftCAMHead.draws_single_classes
    assert not Halved.draws_single_classes  # explain() draws all maps, and selects
