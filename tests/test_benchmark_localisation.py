"""Localisation in a benchmark: values against the functions and by hand, and thresholds that other images choose."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from helpers.benchmark import DATA, prepare_split, save_models, vanilla_model

from softcam_hub.evaluation import BenchmarkConfig, benchmark
from softcam_hub.evaluation.batch import Batch
from softcam_hub.evaluation.comparison import compare
from softcam_hub.evaluation.localisation import suspected, touched_cells
from softcam_hub.evaluation.localisation_report import localisation_tables
from softcam_hub.evaluation.localisation_rows import summarise_localisation
from softcam_hub.evaluation.models import ClassifierWithExplainers
from softcam_hub.evaluation.report import table1
from softcam_hub.explanation_scores import boxes, calibration, localization, thresholds
from softcam_hub.explanation_scores.maps import heat
from softcam_hub.loading import load_classifier

OPTIONS = {**DATA, "aligned": False, "per_image": True, "measures": "localisation pxap boxes calibration"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_models(vanilla_model(), folder)
    return folder


@pytest.fixture(scope="module")
def validation(models, tmp_path_factory):
    """A finished benchmark on the validation images."""
    folder = tmp_path_factory.mktemp("validation")
    rows = benchmark(models / "cape", folder, split="validation", explainers="cape random", **OPTIONS)
    return folder, rows


@pytest.fixture(scope="module")
def tested(models, validation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("test")
    options = {"explainers": "cape random", "thresholds_from": validation[0], "shard_size": 4, "batch_size": 3}
    rows = benchmark(models / "cape", folder, **options, **OPTIONS)
    return folder, rows, [json.loads(line) for line in (folder / "values.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def explained(models):
    """Raw maps of CAPE for the class that is localised, probabilities, masks, and whether an image is annotated."""
    model = load_classifier(models / "cape").model
    samples = [prepare_split(model)[index] for index in range(10)]
    maps, probabilities = [], []
    for sample in samples:
        found = model.explain(sample["pixel_values"][None], classes=range(4))
        own = found.maps[0].sum(dim=(1, 2))  # the cells add up to the probability
        others = [c for c in own.argsort(descending=True).tolist() if c != int(sample["labels"])]
        label = int(sample["labels"]) if sample["mask"].any() else others[0]
        maps.append(found.maps[0, label].detach())
        probabilities.append(own[label].detach())
    masks = torch.stack([sample["mask"] for sample in samples])
    return torch.stack(maps), torch.stack(probabilities), masks, masks.flatten(1).any(dim=1)


def test_a_row_is_what_the_functions_say(tested, explained):
    row, (maps, _, masks, annotated) = tested[1][0], explained
    heats, some = heat(maps[annotated], 64), masks[annotated]
    assert row["hit_rate"] == pytest.approx(100 * float(localization.hit_rate(heats, some).mean()))
    assert row["iou_otsu"] == pytest.approx(100 * float(thresholds.iou_otsu(heats, some).mean()), abs=1e-3)
    assert np.allclose(row["iou_curve"], 100 * thresholds.iou_at(heats, some).mean(dim=0), atol=1e-3)
    histograms = thresholds.pixel_histograms(heats, some).sum(dim=0)
    assert row["pxap"] == pytest.approx(100 * float(thresholds.pixel_average_precision(histograms)), abs=1e-3)
    hits = boxes.box_hits(boxes.box_ious(heats, boxes.annotation_boxes(some))).sum(dim=0)
    accuracies = 100 * boxes.max_box_accuracies(hits)
    assert np.allclose(row["max_box_accuracies"], accuracies, atol=1e-3)
    assert row["max_box_accuracy"] == pytest.approx(float(accuracies.mean()), abs=1e-3)
    assert len({round(value, 3) for value in row["iou_curve"]}) > 1


def test_evidence_of_images_with_and_without_an_annotation(tested, explained):
    row, (maps, _, _, annotated) = tested[1][0], explained
    assert 2 < annotated.sum() < 9
    for group, images in (("annotated", annotated), ("unannotated", ~annotated)):
        found = row["evidence"][group]
        assert found["images"] == images.sum()
        assert found["mean"] == pytest.approx(float(maps[images].mean()), rel=1e-4)
        assert found["largest"] == pytest.approx(float(maps[images].amax(dim=(1, 2)).mean()), rel=1e-4)
    largest = maps.amax(dim=(1, 2))
    limit = np.median(largest[annotated])
    assert row["false_alarms"] == pytest.approx(100 * float((largest[~annotated] > limit).float().mean()))


def test_reliability_is_the_definition(tested, explained):
    row, (maps, _, masks, _) = tested[1][0], explained
    side = 64 // maps.shape[-1]
    cells = {}
    for image, mask in zip(maps, masks, strict=True):
        for y in range(image.shape[0]):
            for x in range(image.shape[1]):
                hit = bool(mask[y * side : (y + 1) * side, x * side : (x + 1) * side].any())
                place = sum(float(image[y, x]) > border for border in calibration.MASS_BORDERS)
                cells.setdefault(place, []).append((hit, float(image[y, x])))
    found = row["reliability"]
    assert found["cells"] == [len(cells.get(place, [])) for place in range(9)]
    assert sum(count > 0 for count in found["cells"]) > 1
    for place, members in cells.items():
        assert found["annotated"][place] == pytest.approx(100 * np.mean([hit for hit, _ in members]))
        assert found["mass"][place] == pytest.approx(np.mean([mass for _, mass in members]), rel=1e-4)
    assert all(found["mass"][place] is None for place in range(9) if place not in cells)


def test_scores_by_size(tested, explained):
    row, (_, _, masks, annotated) = tested[1][0], explained
    lines = [line for line in tested[2] if line["explainer"] == "cape"]
    areas = masks.flatten(1).float().mean(dim=1)
    assert [line["annotated_area"] for line in lines] == [
        pytest.approx(float(area)) if area else None for area in areas
    ]
    limits = np.quantile(areas[annotated].double(), [1 / 3, 2 / 3])
    assert row["by_size"]["limits"] == pytest.approx(list(100 * limits))
    groups = {
        "small": lambda area: area <= limits[0],
        "medium": lambda area: limits[0] < area <= limits[1],
        "large": lambda area: area > limits[1],
    }
    for size, belongs in groups.items():
        some = [line for line in lines if line["annotated"] and belongs(line["annotated_area"])]
        assert row["by_size"][size]["images"] == len(some) > 0
        for name in ("hit_rate", "iou_otsu", "iou_tuned", "activation_precision"):
            assert row["by_size"][size][name] == pytest.approx(100 * np.mean([line[name] for line in some]))


def test_equal_areas_are_in_one_group():
    lines = [{"annotated": True, "annotated_area": area, "hit_rate": 1.0} for area in (0.1, 0.1, 0.1, 0.1, 0.3)]
    found = summarise_localisation(lines)["by_size"]
    assert [found[size]["images"] for size in ("small", "medium", "large")] == [4, 0, 1]
    assert found["medium"] == {"images": 0}
    assert summarise_localisation([{"annotated": False, "annotated_area": None}]) == {}
    one = summarise_localisation([{"annotated": True, "annotated_area": 0.2, "hit_rate": 0.0}])["by_size"]
    assert (one["small"]["images"], one["small"]["hit_rate"]) == (1, 0)


def test_the_threshold_is_that_of_the_validation_images(tested, validation):
    _, rows, lines = tested
    for row, before in zip(rows, validation[1], strict=True):
        best = int(np.argmax(before["iou_curve"]))
        assert row["iou_threshold"] == best / 20
        assert row["iou_tuned"] == pytest.approx(row["iou_curve"][best])
        assert "iou_tuned" not in before
        own = [line for line in lines if line["explainer"] == row["explainer"]]
        assert all(line["iou_tuned"] == (line["iou_curve"] or [None] * 20)[best] for line in own)
    assert rows[0]["thresholds_from"] == str(validation[0])
    assert "IoU, tuned" in table1(rows)


def test_thresholds_are_chosen_after_all_shards_without_computing_these_again(tested, validation, models, tmp_path):
    copied = shutil.copytree(tested[0], tmp_path / "out")
    options = {"explainers": "cape random", "shard_size": 4, "batch_size": 3}
    rows = benchmark(models / "cape", copied, **options, **OPTIONS)
    assert "iou_tuned" not in rows[0]
    assert benchmark(models / "cape", copied, thresholds_from=validation[0], **options, **OPTIONS) == tested[1]


def test_a_comparison_knows_the_thresholds_of_the_last_benchmark(tested, validation, models, tmp_path):
    options = {"explainers": "cape random", "thresholds_from": validation[0], "shard_size": 4, "batch_size": 3}
    without_values = tmp_path / "without values"
    benchmark(models / "cape", without_values, **options, **{**OPTIONS, "per_image": False})
    assert not (without_values / "values.jsonl").exists()
    expected = compare([tested[0]], "cape", "random")
    assert "iou_tuned" in [row["measure"] for row in expected]
    assert compare([without_values], "cape", "random") == expected
    stale = shutil.copytree(tested[0], tmp_path / "stale")
    benchmark(models / "cape", stale, **{**options, "thresholds_from": ""}, **{**OPTIONS, "per_image": False})
    assert "iou_tuned" not in [row["measure"] for row in compare([stale], "cape", "random")]


def test_thresholds_of_other_images_models_or_explainers_are_refused(models, validation, tested, tmp_path):
    def run(folder, model=models / "cape", **options):
        options = {"explainers": "cape", **options}
        return benchmark(model, tmp_path / "out", thresholds_from=folder, **{**OPTIONS, **options})

    with pytest.raises(ValueError, match=r"was measured on the images that are to be scored \(test\): expected valid"):
        run(tested[0])
    with pytest.raises(ValueError, match="was measured on the images that are to be scored"):
        run(validation[0], split="validation")
    with pytest.raises(ValueError, match="was measured with aligned=False, but now it is True"):
        run(validation[0], aligned=True)
    changed = copy.deepcopy(load_classifier(models / "cape").model)
    changed.head.bias.data += 1
    with pytest.raises(ValueError, match="was measured with weights="):
        run(validation[0], model=changed)
    with pytest.raises(ValueError, match=r"has no curve of centre \(model\): measure the localisation of the same"):
        run(validation[0], explainers="cape centre")
    with pytest.raises(ValueError, match="holds no finished benchmark"):
        run(tmp_path)
    with pytest.raises(ValueError, match="thresholds_from chooses a threshold for localisation, which is not in meas"):
        run(validation[0], measures="table")
    assert not (tmp_path / "out" / "settings.json").exists()


def test_tables(tested):
    folder, rows, _ = tested
    text = (folder / "localisation.md").read_text()
    assert text == localisation_tables(rows)
    assert "| hit rate: small |" in text
    assert "IoU, tuned: large" in text
    assert f"Small annotations cover up to {rows[0]['by_size']['limits'][0]:.2g} % of an image" in text
    assert "| mean, annotated | mean, not annotated | largest, annotated |" in text
    assert "| 0 to 0.0001 | 0.0001 to 0.0003 |" in text
    assert localisation_tables([{"explainer": "cape", "explains": "model"}]) == ""
    printed = table1(rows)
    for heading in ("hit rate ↑", "IoU, Otsu ↑", "PxAP ↑", "MaxBoxAccV2 ↑", "false alarms ↓"):
        assert heading in printed
    assert "50 is chance" in printed


def test_shards_of_another_release_are_not_mixed_with_new_ones(tested, models, tmp_path):
    copied = shutil.copytree(tested[0], tmp_path / "out")
    file = copied / "shards" / "00001.json"
    lines = [line for line in json.loads(file.read_text()) if "index" in line]
    file.write_text(json.dumps([{k: v for k, v in line.items() if k != "hit_rate"} for line in lines]))
    options = {"explainers": "cape random", "shard_size": 4, "batch_size": 3}
    with pytest.raises(ValueError, match="has other measures than the shards before it, as another release"):
        benchmark(models / "cape", copied, **options, **OPTIONS)


def batch_of(labels, multi_label=False, names=("cam",), masks=None):
    explained = ClassifierWithExplainers("vanilla", load_classifier(vanilla_model()), names, multi_label)
    images = torch.randn(len(labels), 3, 64, 64, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(len(labels), 64, 64, dtype=torch.bool) if masks is None else masks
    return Batch(explained, images, labels, masks)


def test_a_healthy_image_is_suspected_of_the_most_probable_class_that_it_has_not():
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    masks[3, 5:9, 5:9] = True
    first = batch_of(torch.zeros(4, dtype=torch.long))
    labels = first.top[:, 0].clone()  # all are predicted right
    labels[1] = first.top[1, 1]  # the second one is taken for another class
    batch = batch_of(labels, masks=masks)
    place, known = suspected(batch)
    chosen = batch.classes.gather(1, place[:, None])[:, 0]
    assert chosen.tolist() == [int(batch.top[0, 1]), int(batch.top[1, 0]), int(batch.top[2, 1]), int(labels[3])]
    assert known.all()
    assert place[3] == 2


def test_images_with_several_labels():
    first = batch_of(torch.zeros(3, 4), multi_label=True)
    labels = torch.zeros(3, 4)
    labels[0, first.top[0, 0]] = 1  # suspected of the second class
    labels[1, first.top[1]] = 1  # has both, and is suspected of none
    place, known = suspected(batch_of(labels, multi_label=True))
    assert place[[0, 2]].tolist() == [1, 0]
    assert known.tolist() == [True, False, True]
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[1:, 5:9, 5:9] = True
    place, known = suspected(batch_of(labels, multi_label=True, masks=masks))
    assert place.tolist() == [1, 0, 0]  # an annotated image has the map of the predicted class
    assert known.all()


def test_cells_that_touch_the_annotation():
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 15:17, 40] = True
    found = touched_cells(batch_of(torch.zeros(2, dtype=torch.long), masks=masks), "cam", (8, 8))
    assert found.nonzero().tolist() == [[0, 1, 5], [0, 2, 5]]


def test_measures_of_regions_need_annotations():
    config = BenchmarkConfig("x", measures="pxap")
    with pytest.raises(ValueError, match="pxap needs annotations"):
        config.chosen_measures(annotated=False)
