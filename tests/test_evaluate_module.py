"""The folder as an `evaluate` module: from numbers and from arrays, and in two processes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from softcam_hub.explanation_scores import (
    boxes,
    calibration,
    causal,
    faithfulness,
    load_scores,
    localization as places,
    thresholds,
)

FOLDER = Path(faithfulness.__file__).parent
FAITHFUL = {
    "confidence": [0.8, 0.5, 1.0],
    "kept": [0.4, 0.6, 0.75],
    "removed": [0.2, 0.5, 0.5],
    "coherency": [0.5, 1.0, 0.8],
    "complexity": [0.5, 0.2, 0.4],
}
BY_HAND = {
    "average_drop": 100 * (0.5 + 0 + 0.25) / 3,
    "increase_in_confidence": 100 / 3,
    "average_drop_in_deletion": 100 * (0.75 + 0 + 0.5) / 3,
    "coherency": 230 / 3,
    "complexity": 110 / 3,
    "adcc": 100 * (0.5 + 3 / (1 + 1 / 0.8 + 1) + 3 / (1 / 0.8 + 1 / 0.6 + 1 / 0.75)) / 3,
    "adcc_of_means": 300 / (3 / 2.3 + 3 / 1.9 + 3 / 2.25),
}


@pytest.fixture(scope="module")
def metric():
    return load_scores()


def close(expected):
    return {name: pytest.approx(value, abs=1e-4) for name, value in expected.items()}


def arrays(count=5, size=32):
    torch.manual_seed(1)
    maps, kept, second = torch.rand(3, count, size, size)
    masks = kept > 0.98
    masks[:, size // 2 :] = False
    masks[:, :, size // 3 :] = False
    masks[:, size // 4 : size // 2, size // 3 : size // 2] = True
    return {"maps": maps, "kept_maps": maps + kept, "second_maps": second, "masks": masks}


def scored(maps, kept_maps, second_maps, masks):
    """What the functions say of the same arrays."""
    per_image = {
        "coherency": faithfulness.coherency(maps, kept_maps),
        "complexity": faithfulness.complexity(maps),
        "miou": faithfulness.top_two_iou(maps, second_maps),
        "localization_precision": places.localization_precision(maps, masks).mean(dim=1),
        "activation_precision": places.activation_precision(maps, masks),
        "activation_sensitivity": places.activation_sensitivity(maps, masks),
        "pointing_game": places.pointing_game(maps, masks),
        "hit_rate": places.hit_rate(maps, masks),
        "iou_otsu": thresholds.iou_otsu(maps, masks),
    }
    means = {name: 100 * float(values.mean()) for name, values in per_image.items()}
    histograms = thresholds.pixel_histograms(maps, masks).sum(dim=0)
    hits = boxes.box_hits(boxes.box_ious(maps, boxes.annotation_boxes(masks))).sum(dim=0)
    accuracy = float(boxes.max_box_accuracies(hits).mean())
    return means | {
        "pxap": 100 * float(thresholds.pixel_average_precision(histograms)),
        "max_box_accuracy": 100 * accuracy,
    }


def test_percent_by_hand(metric):
    assert metric.compute(**FAITHFUL) == close(BY_HAND)


def test_a_score_needs_all_its_inputs_and_is_left_out_without(metric):
    def found(*names):
        return set(metric.compute(**{name: FAITHFUL[name] for name in names}))

    assert found("confidence", "kept") == {"average_drop", "increase_in_confidence"}
    assert found("confidence", "removed") == {"average_drop_in_deletion"}
    assert found("coherency") == {"coherency"}
    assert "adcc" not in found("confidence", "kept", "coherency")
    assert metric.compute(iou=[0.5, 0.25], activation_precision=[1, 0]) == {"miou": 37.5, "activation_precision": 50.0}


@pytest.mark.parametrize("kind", [torch.tensor, np.array, tuple, lambda values: [torch.tensor(v) for v in values]])
def test_batches_of_any_kind_add_up(metric, kind):
    for part in (slice(0, 2), slice(2, 3)):
        metric.add_batch(**{name: kind(values[part]) for name, values in FAITHFUL.items()})
    assert metric.compute() == close(BY_HAND)


def test_one_image_at_a_time(metric):
    for index in range(3):
        metric.add(**{name: values[index] for name, values in FAITHFUL.items()})
    assert metric.compute() == close(BY_HAND)
    given = arrays()
    for index in range(5):
        metric.add(**{name: values[index].numpy() for name, values in given.items()})
    assert metric.compute() == close(scored(**given))


@pytest.mark.parametrize(("count", "size"), [(5, 32), (9, 224), (3, 9)])
def test_arrays_score_as_the_functions_do(metric, count, size):
    given = arrays(count, size)
    assert metric.compute(**given) == close(scored(**given))


def test_arrays_and_numbers_together(metric):
    given = {name: values[:3] for name, values in arrays().items()}
    confidences = {name: FAITHFUL[name] for name in ("confidence", "kept", "removed")}
    found = metric.compute(**given, **confidences)
    columns = [faithfulness.coherency(given["maps"], given["kept_maps"]), faithfulness.complexity(given["maps"])]
    adcc = faithfulness.adcc(
        *columns, faithfulness.average_drop(torch.tensor([0.8, 0.5, 1.0]), torch.tensor([0.4, 0.6, 0.75]))
    )
    assert found["adcc"] == pytest.approx(100 * float(adcc.mean()), abs=1e-4)
    assert found["average_drop_in_deletion"] == pytest.approx(BY_HAND["average_drop_in_deletion"], abs=1e-4)


def test_images_without_annotation_count_where_they_can(metric):
    given = arrays()
    metric.add_batch(maps=given["maps"][:3], masks=given["masks"][:3])
    metric.add_batch(maps=given["maps"][3:])
    found = metric.compute()
    precision = places.activation_precision(given["maps"][:3], given["masks"][:3]).mean()
    assert found["activation_precision"] == pytest.approx(100 * float(precision), abs=1e-4)
    assert found["complexity"] == pytest.approx(100 * float(given["maps"].mean()), abs=1e-4)
    annotated = {name: values[:3] for name, values in given.items()}
    expected = scored(**annotated)
    for name in ("hit_rate", "iou_otsu", "pxap", "max_box_accuracy"):
        assert found[name] == pytest.approx(expected[name], abs=1e-4), "the others have no part in it"


def test_scores_of_the_data_set_are_no_means_of_images(metric):
    maps = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[0.0, 0.5], [1.0, 1.0]]])
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 0], [0, 0]]])
    found = metric.compute(maps=maps, masks=masks)
    # from the top: 1 of 3 pixels of value 1, none of 2 of 0.5, and 1 of the last 3
    assert found["pxap"] == pytest.approx(100 * (1 / 2 * 1 / 3 + 1 / 2 * 2 / 8), abs=1e-4)
    # the parts of the first image have a box of 1 pixel, which is found; those of the second one never have
    assert found["max_box_accuracy"] == pytest.approx(50)
    assert found["iou_otsu"] == pytest.approx(100 * (1 / 2 + 0 / 3) / 2)  # the lower class is what is 0


# two images of 2x2 pixels with three parts and a pixel of none; nothing speaks for the class of the third
PARTS = {
    "maps": torch.tensor([[[0.4, 0.3], [0.2, 0.1]], [[0.0, 0.5], [0.5, 0.0]], [[1.0, 0.0], [0.0, 0.0]]]),
    "regions": torch.tensor([[[0, 1], [2, -1]]]).expand(3, 2, 2),
    "effects": torch.tensor([[3.0, 0.05, 0.5], [-1.0, 2.0, 2.0], [0.05, -2.0, -1.0]]),
}


def test_causal_scores_by_hand(metric):
    found = metric.compute(**PARTS)
    ranked = (0.5 + 1) / 2  # of 3, 0, 0.5 beside 0.4, 0.3, 0.2: ranks 3, 1, 2 and 3, 2, 1; the second is exact
    assert found["causal_rank"] == pytest.approx(ranked)
    shares, effects = np.array([0.4, 0.3, 0.2]), np.array([3, 0, 0.5])
    assert found["causal_linear"] == pytest.approx((np.corrcoef(shares, effects)[0, 1] + 1) / 2)
    assert found["idle_share"] == pytest.approx(100 * (0.3 + 1.0) / 2)  # the second image has no idle part
    assert metric.compute(causal_rank=[-0.5, 1.0], idle_share=[0.2, 0.4]) == close(
        {"causal_rank": 0.25, "idle_share": 30.0}
    )


CELLS = {
    "cells": torch.tensor([[[3.0, 1.0], [-2.0, 0.0]], [[1.0, 1.0], [0.0, 2.0]], [[4.0, 0.0], [0.0, 0.0]]]),
    "touched": torch.tensor([[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 0], [0, 0]]]),
    "cell_probability": [0.8, 0.04, 0.2],
}


def test_scores_of_cells_by_hand(metric):
    found = metric.compute(**CELLS)
    # masses 0.6 and 0.2; 0.01, 0.01 and 0.02; 0.2: the bins end at 0.0001, ..., 0.01, 0.03, 0.1, 0.3, 1
    assert found["reliability"][4:] == pytest.approx([0.0, 100.0, np.nan, 0.0, 100.0], nan_ok=True)
    assert found["false_alarms"] == 100.0  # the healthy image has 4, the others 3 and 2
    assert set(found) == {"reliability", "false_alarms"}
    one_by_one = (
        {name: values[:1] for name, values in CELLS.items()},
        {name: values[1:] for name, values in CELLS.items()},
    )
    for part in one_by_one:
        metric.add_batch(**part)
    assert metric.compute() == {"reliability": pytest.approx(found["reliability"], nan_ok=True), "false_alarms": 100.0}
    assert metric.compute(largest_evidence=[4.0, 3.0, 1.0], annotated=[1, 1, 0]) == {"false_alarms": 0.0}
    masses = calibration.cell_masses(CELLS["cells"], torch.tensor(CELLS["cell_probability"]))
    sums = calibration.mass_histograms(masses, CELLS["touched"].bool()).sum(dim=0)
    assert found["reliability"] == pytest.approx((100 * calibration.reliability(sums)).tolist(), nan_ok=True)


def test_causal_scores_of_a_benchmark_are_those_of_the_functions(metric):
    torch.manual_seed(0)
    maps, regions, effects = torch.rand(4, 16, 16), torch.randint(-1, 5, (4, 16, 16)), torch.randn(4, 6)
    effects[:, 5] = torch.nan
    found = metric.compute(maps=maps, regions=regions, effects=effects)
    shares = causal.share_of_map(maps, regions, 6)
    counted = effects.double().masked_fill(causal.idle_parts(effects), 0)
    expected = causal.rank_agreement(shares, counted)[causal.speaks_for_class(effects)]
    assert found["causal_rank"] == pytest.approx(float(expected.nanmean()), abs=1e-6)


@pytest.mark.parametrize("name", ["maps", "kept_maps", "second_maps"])
def test_a_broken_map_is_refused(name, metric):
    given = {name: values.clone() for name, values in arrays().items()}
    given[name][1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=rf"^{name} of images \[1\] hold NaN or infinity, which has no score: leave"):
        metric.compute(**given)


def test_half_precision_and_gradients(metric):
    kept = torch.tensor(FAITHFUL["kept"], requires_grad=True)
    found = metric.compute(confidence=torch.tensor(FAITHFUL["confidence"], dtype=torch.bfloat16), kept=kept)
    assert found["average_drop"] == pytest.approx(BY_HAND["average_drop"], abs=0.5)


def test_the_cache_holds_numbers_only(metric):
    assert {getattr(feature, "feature", feature).dtype for feature in metric.features.values()} == {"float32"}
    lengths = {name: feature.length for name, feature in metric.features.items() if hasattr(feature, "length")}
    assert lengths == {"pixel_histogram": 202, "box_ious": 20, "mass_histogram": 27}


def test_in_memory_and_again():
    metric = load_scores(keep_in_memory=True)
    for _ in range(2):
        assert metric.compute(**FAITHFUL) == close(BY_HAND)


MAP, MASK = torch.rand(2, 8, 8), torch.ones(2, 8, 8, dtype=torch.bool)
ERRORS = {
    "nothing": ({}, r"^nothing to score: give some of confidence, kept, removed"),
    "habit": ({"predictions": [1], "references": [1]}, r"^unknown input 'predictions': expected some of confidence"),
    "lengths": ({"confidence": [0.5, 0.5], "kept": [0.5]}, r"of the same images, got {'confidence': 2, 'kept': 1}$"),
    "percent": (
        {"confidence": [0.5, 90.0], "kept": [0.5, 0.5]},
        r"^confidence must lie in \[0, 1\], but number 1 is 90: give",
    ),
    "NaN": ({"confidence": [0.5], "kept": [float("nan")]}, r"^kept must lie in \[0, 1\], but number 0 is nan"),
    "negative": ({"complexity": [-0.5]}, r"^complexity must lie in \[0, 1\], but number 0 is -0.5"),
    "a number": ({"confidence": 0.5}, r"^expected confidence as a list or array, got 0.5$"),
    "no images": ({"confidence": []}, r"^expected confidence as one number per image, got shape \(0,\)$"),
    "maps of one image": ({"maps": MAP[0]}, r"^expected maps as arrays \(H, W\), one per image, got shape \(8, 8\)$"),
    "maps of two sizes": (
        {"maps": [MAP[0], MAP[0, :4]]},
        r"^all of maps must have one size, got \[\(4, 8\), \(8, 8\)\]",
    ),
    "masks alone": ({"masks": MASK}, r"^masks can only be scored against maps: give maps too$"),
    "mask of another size": (
        {"maps": MAP, "masks": MASK[:, :4]},
        r"got \(2, 8, 8\) and \(2, 4, 8\): resize one of them$",
    ),
    "empty mask": (
        {"maps": MAP, "masks": MASK & (torch.arange(2) == 0)[:, None, None]},
        r"^the masks of images \[1\] are empty",
    ),
    "raw maps": ({"maps": 5 * MAP}, r"^expected maps in \[0, 1\], got"),
    "twice": ({"maps": MAP, "complexity": [0.5, 0.5]}, r"^complexity would come from the arrays too: give either"),
    "regions alone": ({"maps": MAP, "regions": MASK.long()}, r"^regions and effects belong together: give both$"),
    "one effect": (
        {"maps": MAP, "regions": MASK.long(), "effects": [0.5, 1.0]},
        r"^expected effects as a row of numbers per image, got shape \(2,\)$",
    ),
    "few effects": (
        {"maps": MAP, "regions": 3 * MASK.long(), "effects": torch.rand(2, 2)},
        r"^there are 2 parts, numbered from 0, but regions hold 3$",
    ),
    "cells alone": (
        {"cells": MAP, "touched": MASK},
        r"^cells, touched, cell_probability belong together: give cell_probability too$",
    ),
    "broken cells": (
        {"cells": MAP / MAP.new_tensor([1, 0])[:, None, None], "touched": MASK, "cell_probability": [1, 1]},
        r"^cells of images \[1\] hold NaN or infinity",
    ),
    "correlation in percent": (
        {"causal_rank": [60.0]},
        r"^causal_rank must lie in \[-1, 1\], but number 0 is 60: leave out images without one$",
    ),
    "useless": ({"kept": [0.5]}, r"^no score has all of its inputs: average drop, for one, needs confidence and kept$"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_and_leaves_no_trace(metric, name):
    inputs, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        metric.compute(**inputs)
    assert metric.compute(**FAITHFUL) == close(BY_HAND)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ImportError, match=r"^load_scores\(\) needs the evaluate package: pip install evaluate \("):
        load_scores()


def test_the_card_names_every_score(metric):
    card = (FOLDER / "README.md").read_text()
    found = metric.compute(**FAITHFUL) | metric.compute(**arrays()) | metric.compute(**PARTS) | metric.compute(**CELLS)
    named = set(re.findall(r"^\| `(\w+)` \|", card, flags=re.MULTILINE))
    assert named == set(found)
    assert set(found) <= set(re.findall(r"\w+", metric.inputs_description))


PROCESS = """
import sys, json, evaluate
process, count, folder, cache, values = int(sys.argv[1]), 2, *sys.argv[2:4], json.loads(sys.argv[4])
metric = evaluate.load(folder, num_process=count, process_id=process, experiment_id="both", cache_dir=cache)
if values:
    metric.add_batch(**values)
print(json.dumps(metric.compute()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("split", [1, 3], ids=["one image and two", "three and none"])
def test_two_processes_give_the_result_of_one(tmp_path, split):
    parts = [{name: values[place] for name, values in FAITHFUL.items()} for place in (slice(split), slice(split, None))]
    parts = [part if part["kept"] else {} for part in parts]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(index), str(FOLDER), str(tmp_path), json.dumps(part)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, part in enumerate(parts)
    ]
    outputs = [process.communicate(timeout=150) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in outputs)
    assert first == close(BY_HAND)
    assert second is None
