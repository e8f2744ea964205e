"""A map that holds NaN or infinity never gets a number: each score of its image is NaN, and other images keep theirs."""

import pytest
import torch
from conftest import randomise

import softcam_hub
from softcam_hub import CAPEForImageClassification
from softcam_hub.explanation_scores import (
    boxes,
    calibration,
    faithfulness,
    idsds,
    localization,
    perturbation,
    randomisation,
    road,
    thresholds,
)
from softcam_hub.explanation_scores.maps import heat, patch_means

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MASKS = torch.zeros(3, 16, 16, dtype=torch.bool)
MASKS[:, 4:9, 4:9] = True
BOXES = torch.tensor([[4, 4, 9, 9]] * 3)
MAPS = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
OTHERS = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(2))
CLASSES = torch.tensor([0, 1, 0])
NUMBERS = torch.tensor([0.2, 0.5, 0.7])


def predict(images):
    """Probabilities that hide NaN, as networks with comparisons do."""
    return images.nan_to_num(0.5).mean(dim=(2, 3)).softmax(dim=1)


def explainer(maps):
    """The same maps for any images."""
    return lambda images, classes: maps[: len(images)]


class Changing:
    """An explainer whose maps differ from call to call."""

    def __init__(self, maps):
        self.maps, self.calls = maps, 0

    def __call__(self, images, classes):
        self.calls += 1
        return self.maps if self.calls == 1 else self.maps.roll(1, dims=2)


def first_step(maps):
    model = torch.nn.Linear(2, 2)
    return randomisation.randomisation_check(model, Changing(maps), IMAGES, CLASSES)[0]


SCORES = {
    "completeness_error": lambda maps: faithfulness.completeness_error(maps.sum(dim=(1, 2)), NUMBERS),
    "gini_sparseness": faithfulness.gini_sparseness,
    "cancelled_share": faithfulness.cancelled_share,
    "coherency": lambda maps: faithfulness.coherency(maps, OTHERS),
    "coherency of the second": lambda maps: faithfulness.coherency(OTHERS, maps),
    "complexity": faithfulness.complexity,
    "top_two_iou": lambda maps: faithfulness.top_two_iou(maps, OTHERS),
    "top_two_iou of the second": lambda maps: faithfulness.top_two_iou(OTHERS, maps),
    "adcc": lambda maps: faithfulness.adcc(NUMBERS, faithfulness.complexity(maps), NUMBERS),
    "pearson": lambda maps: faithfulness.pearson(maps.flatten(1), OTHERS.flatten(1)),
    "localization_precision": lambda maps: localization.localization_precision(maps, MASKS, k=5),
    "activation_precision": lambda maps: localization.activation_precision(maps, MASKS),
    "activation_sensitivity": lambda maps: localization.activation_sensitivity(maps, MASKS),
    "evidence_precision": lambda maps: localization.evidence_precision(maps, MASKS, threshold=0.5),
    "share_of_positive": localization.share_of_positive,
    "hit_rate": lambda maps: localization.hit_rate(maps, MASKS),
    "iou_at": lambda maps: thresholds.iou_at(maps, MASKS),
    "iou_otsu": lambda maps: thresholds.iou_otsu(maps, MASKS),
    "pixel_histograms": lambda maps: thresholds.pixel_histograms(maps, MASKS),
    "box_ious": lambda maps: boxes.box_ious(maps, BOXES[:, None]),
    "box_hits": lambda maps: boxes.box_hits(boxes.box_ious(maps, BOXES[:, None])),
    "cell_masses": lambda maps: calibration.cell_masses(maps, NUMBERS),
    "mass_histograms": lambda maps: calibration.mass_histograms(maps, MASKS),
    "mean_evidence": calibration.mean_evidence,
    "largest_evidence": calibration.largest_evidence,
    "energy_pointing_game": lambda maps: localization.energy_pointing_game(maps, BOXES),
    "grid_pointing_game": lambda maps: localization.grid_pointing_game(maps[:, None].expand(-1, 4, -1, -1)),
    "kept": lambda maps: perturbation.faithfulness_parts(predict, IMAGES, maps)["kept"],
    "removed": lambda maps: perturbation.faithfulness_parts(predict, IMAGES, maps)["removed"],
    "parts' complexity": lambda maps: perturbation.faithfulness_parts(predict, IMAGES, maps)["complexity"],
    "parts' coherency": lambda maps: perturbation.faithfulness_parts(predict, IMAGES, maps, explainer(OTHERS), batch=3)[
        "coherency"
    ],
    "parts' second map": lambda maps: perturbation.faithfulness_parts(
        predict, IMAGES, OTHERS, explainer(maps), batch=3
    )["coherency"],
    "topk_sensitivity": lambda maps: perturbation.topk_sensitivity(predict, IMAGES, maps, k=4),
    "deletion_auc": lambda maps: perturbation.deletion_auc(predict, IMAGES, maps, steps=4),
    "insertion_auc": lambda maps: perturbation.insertion_auc(predict, IMAGES, maps, steps=4),
    "single_deletion": lambda maps: perturbation.single_deletion(predict, IMAGES, maps),
    "idsds": lambda maps: idsds.idsds(predict, IMAGES, maps),
    "cell_means": idsds.cell_means,
    "max_sensitivity": lambda maps: perturbation.max_sensitivity(explainer(maps), IMAGES, CLASSES, samples=2),
    "max_sensitivity of the moved": lambda maps: perturbation.max_sensitivity(
        Changing(maps), IMAGES, CLASSES, samples=2
    ),
    "road": lambda maps: road.road(predict, IMAGES, maps, fractions=(0.3, 0.6)),
    "road_curve": lambda maps: road.road_curve(predict, IMAGES, maps, fractions=(0.3, 0.6)),
    "rank correlation": lambda maps: first_step(maps).rank_correlation,
    "ssim": lambda maps: first_step(maps).ssim,
    "spearman": lambda maps: perturbation.spearman(maps.flatten(1), OTHERS.flatten(1)),
    "heat": lambda maps: heat(maps, 16),
    "patch_means": lambda maps: patch_means(maps, 4),
}
"""Score -> what it gives for maps (3, 16, 16)."""

LEFT_AS_THEY_ARE = {"completeness_error": torch.inf}
"""A sum of the map is infinite where the map is, and so is its error."""


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", SCORES)
def test_a_broken_map_has_no_score_and_leaves_the_others_theirs(name, whole, value):
    maps = MAPS.clone()
    if whole:
        maps[1] = value
    else:
        maps[1, 3, 5] = value
    found, expected = SCORES[name](maps), SCORES[name](MAPS)
    assert not found[1].isfinite().any()
    if name not in LEFT_AS_THEY_ARE:
        assert found[1].isnan().all()
    for index in (0, 2):
        assert torch.equal(found[index], expected[index])
        assert found[index].isfinite().all()


CONFIDENCES = {
    "average_drop": faithfulness.average_drop,
    "increase_in_confidence": faithfulness.increase_in_confidence,
    "average_drop_in_deletion": faithfulness.average_drop_in_deletion,
    "adcc": lambda first, second: faithfulness.adcc(first, second, NUMBERS),
    "completeness_error": faithfulness.completeness_error,
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", CONFIDENCES)
def test_a_missing_confidence_has_no_score(name, place):
    pair = [NUMBERS.clone(), NUMBERS.flip(0).clone()]
    pair[place][1] = torch.nan
    found = CONFIDENCES[name](*pair)
    assert found.isnan().tolist() == [False, True, False]


def test_borda_takes_nan_for_not_measured():
    assert faithfulness.borda_count(torch.tensor([[torch.nan], [1.0]]), [True]).tolist() == [0, 3]


MODELS = {
    "cape": lambda: softcam_hub.build("cape_test_resnet", num_classes=3),
    "softcam": lambda: softcam_hub.build("softcam_test_resnet", num_classes=3),
    "transformers": lambda: CAPEForImageClassification.from_timm("cape_test_resnet", pretrained=False, num_labels=3),
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", [None, "cam"])
@pytest.mark.parametrize("name", MODELS)
def test_broken_weights_explain_nothing(name, kind, value):
    model = randomise(MODELS[name]()).train()
    model.head.weight.data[1, 2] = value
    with pytest.raises(ValueError, match=r"^explain\(\) got NaN or infinite evidence for finite images: the model's"):
        model.explain(torch.randn(1, 3, 32, 32), classes=0, kind=kind)
    assert model.training
