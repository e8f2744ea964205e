"""Agreement of explainers: rank correlations against scipy, pairs without a value, and the files of the benchmark."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from helpers.benchmark import CLASSES, DATA, prepare_split, run_benchmark, save_models, vanilla_model
from helpers.outputs import content
from helpers.processes import finish, start
from PIL import Image
from scipy.stats import spearmanr

from softcam_hub import create_explainer
from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.agreement import rank_pixels
from softcam_hub.explanation_scores.maps import heat
from softcam_hub.loading import load_classifier
from softcam_hub.training.objective import VanillaForTraining

NAMES = ["cape", "mu-cape", "cam", "guided-backprop", "random"]
OPTIONS = {
    **DATA,
    "explainers": NAMES,
    "measures": "agreement",
    "aligned": False,
    "per_image": True,
    "batch_size": 2,
    "shard_size": 3,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, vanilla = tmp_path_factory.mktemp("models"), vanilla_model()
    pixels = torch.stack([prepare_split(vanilla)[index]["pixel_values"] for index in range(DATA["eval_count"])])
    save_models(vanilla, folder)
    with torch.no_grad():  # CAPE predicts class 0 for all images, and the vanilla classifier for half of them
        logits = vanilla(pixels)
        vanilla.get_classifier().bias[1] += (logits[:, 0] - logits[:, 1]).quantile(0.5)
    VanillaForTraining(vanilla, False, CLASSES).save_pretrained(folder / "vanilla")
    return folder


@pytest.fixture(scope="module")
def compared(models, tmp_path_factory):
    """The folder of a benchmark of CAPE beside its vanilla classifier."""
    folder = tmp_path_factory.mktemp("compared")
    benchmark(models / "cape", folder, models / "vanilla", **OPTIONS)
    return folder


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def slow_maps(models):
    """Heat maps (H·W) of every explainer but `random`, which draws maps of its own, and predictions, per image."""
    images = []
    loaded = {name: load_classifier(models / name).model for name in ("cape", "vanilla")}
    for index in range(DATA["eval_count"]):
        maps, predicted = {}, {}
        for name in NAMES[:-1]:
            role = "cape" if name.endswith("cape") else "vanilla"
            pixels = prepare_split(loaded[role])[index]["pixel_values"][None]
            predicted[name] = int(loaded[role](pixels).argmax())
            raw = create_explainer(name, loaded[role], signed=True)(pixels, predicted[name])[:, 0].detach()
            maps[name] = heat(raw, 64).flatten().numpy()
        images.append((maps, predicted))
    return images


@pytest.mark.slow
def test_correlations_are_scipys_and_means_are_over_images_of_one_class(models, compared):
    values = {(line["explainer"], line["index"]): line["agreement"] for line in read_lines(compared / "values.jsonl")}
    rows = {row["explainer"]: row for row in read_lines(compared / "agreement.jsonl")}
    assert list(rows) == NAMES
    assert [row["explains"] for row in rows.values()] == ["model", "model", "vanilla", "vanilla", "vanilla"]
    images = slow_maps(models)
    for first in NAMES[:-1]:
        for second in NAMES[:-1]:
            expected = []
            for index, (maps, predicted) in enumerate(images):
                found = values[first, index][NAMES.index(second)]
                uniform = min(np.ptp(maps[name]) for name in (first, second)) == 0
                if predicted[first] != predicted[second] or uniform:
                    assert found is None
                    continue
                expected.append(spearmanr(maps[first], maps[second])[0])
                assert found == pytest.approx(expected[-1], abs=2e-3)  # noise decides ranks of pixels that nearly tie
            assert rows[first]["compared_images"][second] == len(expected)
            assert rows[first]["correlation"][second] == pytest.approx(np.mean(expected), abs=2e-3)
    same = [predicted["cape"] == predicted["cam"] for _, predicted in images]
    assert 0 < sum(same) < len(images), "the model and the vanilla classifier predict one class for some images only"


def test_the_matrix_is_symmetric_and_one_on_its_diagonal(compared):
    rows = read_lines(compared / "agreement.jsonl")
    matrix = np.array([[row["correlation"][name] for name in NAMES] for row in rows])
    assert np.allclose(matrix, matrix.T)
    assert np.allclose(np.diag(matrix), 1)
    assert (np.abs(matrix - np.eye(5)) < 0.9999).all(), "different explainers differ"
    assert {"data", "split", "seed", "torch", "model", "vanilla"} <= rows[0].keys()
    assert Image.open(compared / "agreement.png").width >= 560


def test_an_interrupted_benchmark_ends_with_the_same_files(models, compared, tmp_path):
    shutil.copytree(compared, tmp_path / "half")
    for name in ("shards/00001.json", "agreement.jsonl", "agreement.png", "rows.jsonl"):
        (tmp_path / "half" / name).unlink()
    benchmark(models / "cape", tmp_path / "half", models / "vanilla", **OPTIONS)
    assert content(tmp_path / "half") == content(compared)


def test_batches_and_shards_make_no_difference_and_overwriting_deletes(models, compared, tmp_path):
    shutil.copytree(compared, tmp_path / "out")
    options = {**OPTIONS, "batch_size": 5, "shard_size": 10}
    benchmark(models / "cape", tmp_path / "out", models / "vanilla", **options, overwrite=True)
    pairs = zip(read_lines(compared / "agreement.jsonl"), read_lines(tmp_path / "out" / "agreement.jsonl"), strict=True)
    for before, after in pairs:
        assert after["correlation"] == pytest.approx(before["correlation"], abs=2e-3)
        assert after["compared_images"] == before["compared_images"]
    options = {**options, "measures": "gini", "limit": 2}
    benchmark(models / "cape", tmp_path / "out", models / "vanilla", **options, overwrite=True)
    assert not list((tmp_path / "out").glob("agreement*"))


def test_images_of_another_crop_are_not_compared(models, tmp_path, caplog):
    vanilla = load_classifier(models / "vanilla").model
    vanilla.pretrained_cfg["crop_pct"] = 0.875
    with caplog.at_level(logging.WARNING):
        benchmark(models / "cape", tmp_path, vanilla, **{**OPTIONS, "limit": 3})
    assert sum("another size or crop" in line.getMessage() for line in caplog.records) == 1
    row = read_lines(tmp_path / "agreement.jsonl")[0]
    assert row["compared_images"] == {"cape": 3, "mu-cape": 3, "cam": 0, "guided-backprop": 0, "random": 0}
    assert row["correlation"]["cam"] is None


def test_one_explainer_has_nothing_to_agree_with(models, tmp_path):
    with pytest.raises(ValueError, match="agreement compares explainers, but there is only cape: name more"):
        benchmark(models / "cape", tmp_path / "out", models / "vanilla", **{**OPTIONS, "explainers": "cape"})
    assert not (tmp_path / "out").exists()


def test_a_uniform_map_has_no_ranks():
    heats = torch.stack([torch.zeros(3, 4), torch.ones(3, 4), torch.arange(12.0).view(3, 4)])
    ranked = rank_pixels(heats)
    assert ranked.isnan().all(dim=1).tolist() == [True, True, False]
    assert float(ranked[2] @ ranked[2]) == pytest.approx(1)
    (large,) = rank_pixels(torch.rand(1, 224, 224, generator=torch.Generator().manual_seed(0))).double()
    assert float(large @ large) == pytest.approx(1, abs=1e-7)


@pytest.mark.slow
def test_two_processes_find_the_agreement_of_one(models, tmp_path):
    arguments = models / "cape", models / "vanilla"
    finish(start(run_benchmark, *arguments, tmp_path / "one", OPTIONS))
    finish(start(run_benchmark, *arguments, tmp_path / "two", OPTIONS, 2, processes=2))
    one, two = (content(tmp_path / name) for name in ("one", "two"))
    assert {"agreement.jsonl", "agreement.png"} <= one.keys()
    assert one == two
