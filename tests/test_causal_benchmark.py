"""Causal scores in a benchmark, against a slow computation of every image and part."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.benchmark import DATA, run_benchmark, save_models, vanilla_model, write_lesions
from helpers.outputs import content
from helpers.processes import finish, start
from scipy.stats import pearsonr, spearmanr

from softcam_hub import create_explainer
from softcam_hub.data.lesions import draw
from softcam_hub.data.transforms import make_transforms
from softcam_hub.evaluation import benchmark
from softcam_hub.loading import load_classifier

NAN = float("nan")


def same(found, expected):
    return torch.allclose(found.double(), torch.tensor(expected).double(), equal_nan=True)


NAMES = ["cam", "grad-cam", "random"]
OPTIONS = {
    **DATA,
    "eval_count": 6,
    "explainers": NAMES,
    "measures": "causal",
    "aligned": False,
    "per_image": True,
    "batch_size": 4,
    "shard_size": 4,
    "seed": 3,
}


def sensitive_model(classes=4):
    """A vanilla classifier with random weights, whose predictions change where a part of an image is removed."""
    model = vanilla_model(classes)
    with torch.no_grad():
        model.get_classifier().weight.mul_(60)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_models(sensitive_model(), folder)
    return folder


@pytest.fixture(scope="module")
def measured(models, tmp_path_factory):
    """The folder and rows of a benchmark of a vanilla classifier."""
    folder = tmp_path_factory.mktemp("measured")
    return folder, benchmark(models / "vanilla", folder, **OPTIONS)


def read_lines(folder):
    return [json.loads(line) for line in (folder / "values.jsonl").read_text().splitlines()]


def slow_values(model, index, name):
    """Effects on log-odds, logit and probability, and evidence, of the parts of one image, one at a time."""
    prepare = make_transforms(timm.data.resolve_data_config({}, pretrained_cfg=dict(model.pretrained_cfg)))[1]
    whole = draw(index, "test", 64)
    pixels = prepare(whole.image)[None]
    logits = model(pixels).detach()
    chosen = int(logits.argmax())
    maps = create_explainer(name, model, signed=True)(pixels, chosen).detach()
    maps = maps if name == "cam" else maps.relu()
    large = F.interpolate(maps, size=(64, 64), mode="bilinear", align_corners=False)[0, 0].numpy()
    order = ["vessels", "disc", "drusen", "pigment"]
    parts = [*order, *(part for part in whole.part_masks if isinstance(part, int))]
    values = {}
    for number, part in enumerate(parts):
        later = [whole.part_masks[other] for other in parts[number + 1 :] if other in whole.part_masks]
        mask = whole.part_masks.get(part, np.zeros((64, 64), dtype=bool)) & ~np.logical_or.reduce(
            [whole.mask & False, *later]
        )
        if not mask.any():
            values[part] = [None] * 4
            continue
        without = model(prepare(draw(index, "test", 64, without=[part]).image)[None]).detach()
        drop = float(logits[0, chosen] - without[0, chosen])
        before, after = (float(each.softmax(dim=1)[0, chosen]) for each in (logits, without))
        rivals = [other for other in range(4) if other != chosen]
        odds = drop - float(logits[0, rivals].logsumexp(dim=0) - without[0, rivals].logsumexp(dim=0))
        held = large[mask].sum() / (large.size if name == "cam" else max(large.sum(), 1e-30))
        values[part] = [odds, drop, before - after, float(held)]
    columns = [list(column) for column in zip(*values.values(), strict=True)]
    return [column[:4] for column in columns], [column[4:] for column in columns]


def close(found, expected, tolerance=2e-4):
    return [None if value is None else pytest.approx(value, abs=tolerance) for value in expected] == found


@pytest.mark.parametrize("name", ["cam", "grad-cam"])
def test_values_of_a_benchmark_equal_a_slow_computation(name, models, measured):
    model = load_classifier(models / "vanilla").model
    lines = [line for line in read_lines(measured[0]) if line["explainer"] == name]
    row = next(row for row in measured[1] if row["explainer"] == name)
    assert [line["index"] for line in lines] == list(range(6))
    columns = ("part_effects", "part_effects_logit", "part_effects_probability", "part_evidence")
    counted, valued = [], 0
    for line in lines:
        for column, *expected in zip(columns, *slow_values(model, line["index"], name), strict=True):
            assert close(line[column][:4], expected[0])
            assert close(line[column][8:], expected[1])
            assert None not in line[column][4:8], "squares of background"
        odds, logit, _, evidence = (np.array([v for v in line[c] if v is not None]) for c in columns)
        idle = abs(odds) < 0.1
        counted.append([np.where(idle, 0, odds), np.where(idle, 0, logit), evidence])
        for ending, effects in {"": counted[-1][0], "_logit": counted[-1][1]}.items():
            ranks, linear = line["causal_rank" + ending], line["causal_linear" + ending]
            if (odds >= 0.1).any():
                assert ranks == pytest.approx(spearmanr(evidence, effects)[0], abs=1e-6)
                assert linear == pytest.approx(pearsonr(evidence, effects)[0], abs=1e-6)
            else:
                assert (ranks, linear) == (None, None)
        valued += line["causal_rank"] is not None
        if name == "grad-cam":
            squares = [False] * 4 + [True] * 4 + [False] * (len(line["part_effects"]) - 8)
            squares = np.array(squares)[[value is not None for value in line["part_effects"]]]
            still = idle & ~squares
            assert line["idle_share"] == (pytest.approx(evidence[still].sum(), abs=1e-6) if still.any() else None)
            assert line["background_share"] == pytest.approx(evidence[squares].sum(), abs=1e-6)
    odds, logit, evidence = (np.concatenate(column) for column in zip(*counted, strict=True))
    assert row["causal_rank_all"] == pytest.approx(spearmanr(evidence, odds)[0], abs=1e-6)
    assert row["causal_linear_all"] == pytest.approx(pearsonr(evidence, odds)[0], abs=1e-6)
    assert row["causal_rank_all_logit"] == pytest.approx(spearmanr(evidence, logit)[0], abs=1e-6)
    assert row["causal_linear_all_logit"] == pytest.approx(pearsonr(evidence, logit)[0], abs=1e-6)
    assert row["causal_rank_images"] == valued > 1
    for column in ("causal_rank", "causal_linear_all", "causal_rank_all"):
        low, high = row[f"{column}_interval"]
        assert -1 <= low < row[column] < high <= 1
    for column, scale in {"causal_rank": 1, "causal_linear": 1, "idle_share": 100, "background_share": 100}.items():
        present = [line[column] for line in lines if line[column] is not None]
        assert row[column] == pytest.approx(scale * np.mean(present), abs=1e-6)


def test_the_table_shows_the_causal_scores_and_effects_are_shared(measured):
    folder, rows = measured
    table = (folder / "table1.md").read_text()
    assert "| causal rank ↑ | causal linear ↑ | causal rank, all parts ↑ |" in table
    assert [row["explainer"] for row in rows] == NAMES
    by_image = {}
    for line in read_lines(folder):
        by_image.setdefault(line["index"], []).append((line["part_effects"], line["part_effects_probability"]))
        assert line["part_evidence"] is not None
    assert all(values == [values[0]] * 3 for values in by_image.values())


def test_an_interrupted_benchmark_and_other_batches_change_nothing(models, measured, tmp_path):
    shutil.copytree(measured[0], tmp_path / "half")
    for name in ("shards/00001.json", "rows.jsonl"):
        (tmp_path / "half" / name).unlink()
    assert benchmark(models / "vanilla", tmp_path / "half", **OPTIONS) == measured[1]
    assert content(tmp_path / "half") == content(measured[0])
    options = {**OPTIONS, "batch_size": 3, "shard_size": 5, "limit": 4}
    benchmark(models / "vanilla", tmp_path / "few", **options)
    before = {(line["explainer"], line["index"]): line for line in read_lines(measured[0])}
    lines = read_lines(tmp_path / "few")
    assert len(lines) == 3 * 4
    for line in lines:
        other = before[line["explainer"], line["index"]]
        for name in ("part_effects", "part_effects_probability", "part_evidence"):
            assert close(line[name], other[name], 1e-4)


def test_a_planted_cue_and_images_with_several_labels(models, tmp_path):
    options = {**OPTIONS, "explainers": "grad-cam", "limit": 4}
    (row,) = benchmark(sensitive_model(2), tmp_path / "cue", **{**options, "data": "cue"})
    assert [len(line["part_effects"]) for line in read_lines(tmp_path / "cue")] == [9, 10, 9, 10]
    assert -1 <= row["causal_rank_all"] <= 1
    (row,) = benchmark(sensitive_model(3), tmp_path / "labels", **{**options, "data": "labels"})
    assert row["images"] == 4
    for line in read_lines(tmp_path / "labels"):  # classes do not compete, so that logits are log-odds
        assert line["part_effects"] == line["part_effects_logit"]


def test_a_network_that_breaks_at_a_twin_is_an_error(tmp_path):
    model = sensitive_model()

    def break_twins(module, inputs, output):  # a trial takes four images; one image has at least six twins and squares
        return output * torch.nan if len(output) > 4 else output

    model.get_classifier().register_forward_hook(break_twins)
    with pytest.raises(ValueError, match="predicts NaN for an image without one of its parts"):
        benchmark(model, tmp_path / "out", **{**OPTIONS, "explainers": "grad-cam", "limit": 1, "batch_size": 16})


def test_a_patch_that_leaves_no_room_leaves_out_the_background(models, tmp_path):
    (row,) = benchmark(models / "vanilla", tmp_path, **{**OPTIONS, "explainers": "grad-cam", "patch": 64, "limit": 3})
    assert "background_share" not in row
    assert all(line["part_effects"][4:8] == [None] * 4 for line in read_lines(tmp_path))


def test_images_that_were_not_generated_are_refused_before_anything_is_loaded(tmp_path):
    folder = write_lesions(tmp_path / "images")
    with pytest.raises(ValueError, match="causal removes parts of generated images, and '.*images' is no generated"):
        benchmark("no such model", tmp_path / "out", data=folder, measures="table causal")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(models, tmp_path):
    arguments = models / "cape", models / "vanilla"
    options = {**OPTIONS, "explainers": ["cape", "cam"], "shard_size": 2}
    finish(start(run_benchmark, *arguments, tmp_path / "one", options))
    finish(start(run_benchmark, *arguments, tmp_path / "two", options, 2, processes=2))
    assert content(tmp_path / "one") == content(tmp_path / "two")
