"""Rows of a benchmark against a slow computation, and shards that are computed in any order and number."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.benchmark import CLASSES, DATA, prepare_split, read_split, run_benchmark, save_models, vanilla_model
from helpers.processes import finish, start

from softcam_hub import create_explainer, to_vanilla
from softcam_hub.cli import main
from softcam_hub.evaluation import BenchmarkConfig, benchmark
from softcam_hub.evaluation.models import DEFAULT_POST_HOC
from softcam_hub.evaluation.report import table1
from softcam_hub.evaluation.statistics import bootstrap_means, bootstrap_of_sums
from softcam_hub.explanation_scores.faithfulness import gini_sparseness
from softcam_hub.explanation_scores.perturbation import deletion_auc, single_deletion
from softcam_hub.loading import load_classifier
from softcam_hub.training.objective import VanillaForTraining

OPTIONS = {**DATA, "aligned": False}
"""The slow computations draw cells as squares that fill the image; test_benchmark_alignment.py has the others."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_models(vanilla_model(), folder)
    return folder


@pytest.fixture(scope="module")
def table(models, tmp_path_factory):
    """The folder and the rows of a whole benchmark of CAPE beside its vanilla classifier."""
    folder = tmp_path_factory.mktemp("benchmark")
    rows = benchmark(models / "cape", folder, models / "vanilla", per_image=True, batch_size=4, shard_size=6, **OPTIONS)
    return folder, rows


def phi(maps, size):
    """φ of one map (h, w), step by step."""
    large = F.interpolate(maps.clamp_min(0)[None, None].float(), size=size, mode="bilinear", align_corners=False)[0, 0]
    low, high = large.min(), large.max()
    return torch.zeros_like(large) if high == low else (large - low) / (high - low)


def slow_row(model, name, samples):
    """One image and one question at a time, by the formulas of the papers."""
    explainer, sums = create_explainer(name, model, signed=True), []
    for sample in (samples[index] for index in range(len(samples))):
        x, mask = sample["pixel_values"][None], sample["mask"].numpy()
        confidences = model(x).softmax(dim=1)[0]
        first, second = confidences.topk(2).indices.tolist()
        E, E2, L = (phi(explainer(x, c)[0, 0], x.shape[-2:]) for c in (first, second, int(sample["labels"])))
        y, o, d = (float(model(z).softmax(dim=1)[0, first]) for z in (x, E * x, (1 - E) * x))
        again = phi(explainer(E * x, first)[0, 0], x.shape[-2:])
        rho = np.corrcoef(E.flatten(), again.flatten())[0, 1] if E.std() > 0 and again.std() > 0 else -1.0
        coh, com, ad = (1 + rho) / 2, float(E.mean()), max(y - o, 0) / y
        adcc = 3 / (1 / coh + 1 / (1 - com) + 1 / (1 - ad)) if coh > 0 and ad < 1 else 0.0
        one, two = (e > 0.2 * e.max() for e in (E, E2))
        iou = float((one & two).sum() / (one | two).sum()) if (one | two).any() else 1.0
        row = {"average_drop": ad, "increase_in_confidence": float(y < o)}
        row |= {"average_drop_in_deletion": max(y - d, 0) / y, "adcc": adcc, "miou": iou, "confidence": y}
        if mask.any():
            L = L.double().numpy()
            inside = L[mask].sum()
            ys, xs = np.nonzero(mask)
            box = L[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].sum()
            row |= {"activation_precision": inside / max(L.sum(), 1e-30), "energy_pointing": box / max(L.sum(), 1e-30)}
            row["activation_sensitivity"] = inside / mask.sum()
            row |= slow_patches(model, x, E, L, mask, first, y)
        sums.append(row)
    means = {name: [row[name] for row in sums if name in row] for name in {key for row in sums for key in row}}
    return {name: 100 * np.mean(values, axis=0) for name, values in means.items()}


def slow_patches(model, x, E, L, mask, first, y):
    """Curves over the 30 highest of 16x16 patches, 4 pixels wide at 64."""

    def order(values):
        means = np.asarray(values).reshape(16, 4, 16, 4).mean(axis=(1, 3)).flatten()
        return np.argsort(-means.astype(np.float32), kind="stable")

    touched = mask.reshape(16, 4, 16, 4).any(axis=(1, 3)).flatten()[order(L)[:30]]
    hidden, ratios = x.clone(), []
    for place in order(E)[:30]:
        row, column = 4 * (place // 16), 4 * (place % 16)
        hidden[..., row : row + 4, column : column + 4] = 0
        ratios.append(float(model(hidden).softmax(dim=1)[0, first]) / y)
    contrast = L.max() > L.min()
    precision = contrast * touched.cumsum() / np.arange(1, 31)
    return {"localization_precision_curve": precision, "topk_sensitivity_curve": np.array(ratios)}


@pytest.mark.parametrize("name", ["cape", "grad-cam", "layer-cam", "fd-cam", "lift-cam"])
def test_a_row_equals_a_slow_computation(name, models, table):
    row = next(row for row in table[1] if row["explainer"] == name)
    model = load_classifier(models / ("cape" if name == "cape" else "vanilla")).model
    with torch.no_grad():
        expected = slow_row(model, name, prepare_split(model))
    assert row["explains"] == ("model" if name == "cape" else "vanilla")
    for score, value in expected.items():
        assert np.allclose(row[score], value, atol=2e-2), score
    for curve in ("localization_precision", "topk_sensitivity"):
        assert np.isclose(row[curve], np.mean(row[f"{curve}_curve"]))


def test_rows_say_what_was_measured_and_how(table):
    folder, rows = table
    assert [row["explainer"] for row in rows] == ["cape", "mu-cape", *DEFAULT_POST_HOC, "random", "centre"]
    assert rows == [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        assert (row["images"], row["data"], row["split"], row["seed"]) == (10, "lesions", "test", 0)
        assert 0 < row["annotated"] < 10
        assert {"torch", "timm", "softcam_hub", "device", "model", "vanilla"} <= row.keys()
    assert rows[0]["completeness_error"] < 1e-6
    assert "completeness_error" not in rows[1]
    values = [json.loads(line) for line in (folder / "values.jsonl").read_text().splitlines()]
    assert len(values) == 10 * len(rows)
    mean = np.mean([max(v["confidence"] - v["kept"], 0) / v["confidence"] for v in values if v["explainer"] == "cam"])
    assert np.isclose(100 * mean, rows[2]["average_drop"])
    assert all((value["localization_precision"] is None) == (value["label"] == 0) for value in values)


def test_rows_have_the_interval_of_every_mean_and_the_table_shows_it(table):
    folder, rows = table
    values = [json.loads(line) for line in (folder / "values.jsonl").read_text().splitlines()]
    for row in rows:
        own = [value for value in values if value["explainer"] == row["explainer"]]
        drops = [100 * max(value["confidence"] - value["kept"], 0) / value["confidence"] for value in own]
        precisions = [np.nan if value["pointing_game"] is None else 100 * value["pointing_game"] for value in own]
        low, high = bootstrap_means([np.array([drops, precisions])]).interval()
        assert np.allclose(row["average_drop_interval"], [low[0], high[0]])
        if low[1] < high[1]:
            assert np.allclose(row["pointing_game_interval"], [low[1], high[1]])
        else:
            assert "pointing_game_interval" not in row, "the same value in all images says nothing about others"
        assert not {"borda_interval", "images_interval"} & row.keys()
        parts = np.array(
            [[value["coherency"], value["complexity"], drop / 100] for value, drop in zip(own, drops, strict=True)]
        )
        low, high = bootstrap_of_sums(
            [parts], lambda sums: 300 / (1 / (sums / 10 * [1, -1, -1] + [0, 1, 1])).sum(axis=1)
        ).interval()
        assert np.allclose(row["adcc_of_means_interval"], [low, high])
    assert rows[0]["completeness_error_interval"][1] < 1e-6
    low, high = rows[0]["average_drop_interval"]
    assert low < rows[0]["average_drop"] < high
    lines = [line for line in (folder / "table1.md").read_text().splitlines() if line.startswith("| cape | model |")]
    assert lines[1].startswith(f"| cape | model | [{low:.1f}, {high:.1f}] |")


def test_two_explainers_are_compared_by_the_command(table, capsys):
    folder, rows = table
    assert main(["compare", str(folder), "cape", "cam", "--json"]) == 0
    found = {row["measure"]: row for row in json.loads(capsys.readouterr().out)}
    by_name = {row["explainer"]: row for row in rows}
    for name in ("average_drop", "adcc", "miou", "topk_sensitivity", "localization_precision"):
        expected = by_name["cape"][name] - by_name["cam"][name]
        assert np.isclose(found[name]["difference"], expected, atol=2e-2), name
        assert found[name]["low"] <= found[name]["difference"] <= found[name]["high"]
        assert found[name]["p"] <= found[name]["p_holm"]
    assert found["average_drop"]["images"] == 10
    assert found["localization_precision"]["images"] == rows[0]["annotated"]
    assert "completeness_error" not in found, "cam has none"


def test_explainers_measured_alone_get_the_same_values(models, table, tmp_path):
    alone = benchmark(
        models / "cape", tmp_path, models / "vanilla", explainers="cam", batch_size=4, shard_size=6, **OPTIONS
    )
    beside = next(row for row in table[1] if row["explainer"] == "cam")
    for name in ("average_drop", "adcc", "miou", "topk_sensitivity", "activation_precision"):
        assert np.isclose(alone[0][name], beside[name], atol=1e-3), name


def test_values_do_not_depend_on_the_size_of_shards_and_batches(models, table, tmp_path):
    rows = benchmark(
        models / "cape",
        tmp_path,
        models / "vanilla",
        explainers=["random", "cape"],
        batch_size=3,
        shard_size=4,
        **OPTIONS,
    )
    for row in rows:
        before = next(other for other in table[1] if other["explainer"] == row["explainer"])
        for name in ("average_drop", "adcc", "miou", "topk_sensitivity", "localization_precision"):
            assert np.isclose(row[name], before[name], atol=1e-3), name


def test_only_missing_shards_are_computed(models, table, tmp_path, monkeypatch):
    folder, rows = table
    shutil.copytree(folder, tmp_path / "half")
    (tmp_path / "half" / "shards" / "00001.json").unlink()
    (tmp_path / "half" / "rows.jsonl").unlink()
    (tmp_path / "half" / "shards" / "00000.json").touch()
    written = (tmp_path / "half" / "shards" / "00000.json").stat().st_mtime_ns
    again = benchmark(models / "cape", tmp_path / "half", models / "vanilla", batch_size=4, shard_size=6, **OPTIONS)
    assert again == rows
    assert (tmp_path / "half" / "shards" / "00000.json").stat().st_mtime_ns == written


def test_other_settings_or_weights_are_refused_and_overwritten(models, tmp_path):
    options = {"explainers": "cape", "measures": "table", "limit": 2, **OPTIONS}
    benchmark(models / "cape", tmp_path, **options)
    with pytest.raises(ValueError, match="seed=0, but now it is 1.*--overwrite"):
        benchmark(models / "cape", tmp_path, **options, seed=1)
    with pytest.raises(ValueError, match="holds a benchmark with model="):
        benchmark(models / "softcam", tmp_path, **{**options, "explainers": "softcam"})
    changed = load_classifier(models / "cape").model
    before = json.loads((tmp_path / "settings.json").read_text())
    changed.head.bias.data += 1
    (tmp_path / "settings.json").write_text(json.dumps({**before, "model": "cape_test_resnet"}))
    with pytest.raises(ValueError, match="weights="):
        benchmark(changed, tmp_path, **options)
    rows = benchmark(changed, tmp_path, **options, overwrite=True)
    assert rows[0]["images"] == 2
    assert rows[0]["annotated"] == 0
    assert "localization_precision" not in rows[0]


@pytest.mark.slow
def test_every_explainer(models, tmp_path):
    rows = benchmark(models / "softcam", tmp_path, explainers="all", measures="table", limit=2, **OPTIONS)
    names = [row["explainer"] for row in rows]
    assert {"softcam", *DEFAULT_POST_HOC, "score-cam", "integrated-gradients", "random", "centre"} <= set(names)
    vanilla = to_vanilla(load_classifier(models / "softcam").model)
    samples = prepare_split(vanilla)
    with torch.no_grad():
        expected = slow_row(vanilla, "integrated-gradients", [samples[0], samples[1]])
    row = rows[names.index("integrated-gradients")]
    for name in ("average_drop", "average_drop_in_deletion", "adcc", "miou"):
        assert np.isclose(row[name], expected[name], atol=1e-2), name


@pytest.mark.slow
def test_single_deletion_ranks_signed_maps_against_the_drop_of_the_logit(tmp_path):
    model = vanilla_model()
    options = {"explainers": "guided-backprop", "measures": "single_deletion", "limit": 4, **OPTIONS}
    row = benchmark(model, tmp_path, **options)[0]
    pixels = torch.stack([prepare_split(model)[index]["pixel_values"] for index in range(4)])
    maps = create_explainer("guided-backprop", model, signed=True)(pixels)
    assert (maps < 0).any()
    signed = F.interpolate(maps, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    expected = float(single_deletion(lambda images: model(images).detach(), pixels, signed).mean())
    assert np.isclose(row["single_deletion"], expected, atol=1e-5)
    assert row["annotated"] == 0  # no measure asked for annotations


@pytest.mark.slow
def test_every_measure(models, tmp_path):
    dear = ("gini", "insertion", "deletion", "road", "single_deletion", "idsds", "max_sensitivity", "grid_pointing")
    options = {**OPTIONS, "eval_count": 4}
    softcam, centre = benchmark(models / "softcam", tmp_path, explainers="softcam centre", measures=dear, **options)
    assert set(dear) <= softcam.keys()
    assert "average_drop" not in softcam
    assert abs(centre["grid_pointing"] - 25) < 1  # it says the same of every cell
    assert centre["max_sensitivity"] == 0
    model = load_classifier(models / "softcam").model
    pixels = torch.stack([sample["pixel_values"] for sample in map(prepare_split(model).__getitem__, range(4))])
    heats = model.explain(pixels).heatmaps(64, aligned=False)[:, 0]
    found = deletion_auc(lambda images: model(images).detach().softmax(1), pixels, heats)
    assert np.isclose(softcam["deletion"], 100 * float(found.mean()), atol=1e-3)
    raw = model.explain(pixels).maps[:, 0].relu()
    assert np.isclose(softcam["gini"], float(gini_sparseness(raw).mean()), atol=1e-5)


def test_evidence_of_signed_maps_is_measured_in_its_unit(models, tmp_path):
    names, options = "softcam cam grad-cam", {"measures": "evidence", "per_image": True, "batch_size": 4, **OPTIONS}
    rows = benchmark(models / "softcam", tmp_path, explainers=names, **options)
    softcam, cam, other = rows
    assert not {"evidence_precision", "share_of_positive_annotated"} & other.keys()  # its unit is no logit
    model, samples = load_classifier(models / "softcam").model, read_split()
    prepared, columns = prepare_split(model), {"inside": [], "annotated": [], "unannotated": []}
    for index in range(len(samples)):
        sample = prepared[index]
        maps = model.explain(sample["pixel_values"][None], classes=int(sample["labels"])).maps[0].detach()
        share = sum(float(value) > 0 for value in maps.flatten()) / maps.numel()
        columns["annotated" if sample["mask"].any() else "unannotated"].append(share)
        large = F.interpolate(maps[None], size=(64, 64), mode="bilinear", align_corners=False)[0, 0]
        patches = [(slice(top, top + 4), slice(left, left + 4)) for top in range(0, 64, 4) for left in range(0, 64, 4)]
        hits = [bool(sample["mask"][patch].any()) for patch in patches if float(large[patch].mean()) > 1]
        if sample["mask"].any() and hits:
            columns["inside"].append(sum(hits) / len(hits))
    assert np.isclose(softcam["evidence_precision"], 100 * np.mean(columns["inside"]), atol=1e-3)
    assert softcam["evidence_precision_images"] == len(columns["inside"]) > 0
    for name in ("annotated", "unannotated"):
        assert len(columns[name]) > 1
        assert np.isclose(softcam[f"share_of_positive_{name}"], 100 * np.mean(columns[name]), atol=1e-3)
    assert cam["share_of_positive_annotated"] != softcam["share_of_positive_annotated"]  # it has no bias
    printed = table1(rows)
    assert "positive cells, not annotated" in printed
    assert "**" not in printed


def test_own_maps_are_measured_on_the_model_and_the_others_on_the_vanilla_classifier(models, table):
    ours, vanilla = load_classifier(models / "cape").model, load_classifier(models / "vanilla").model
    samples = prepare_split(ours)
    pixels = torch.stack([samples[index]["pixel_values"] for index in range(10)])
    with torch.no_grad():
        expected = {
            role: 100 * float(m(pixels).softmax(1).amax(1).mean())
            for role, m in (("model", ours), ("vanilla", vanilla))
        }
    assert abs(expected["model"] - expected["vanilla"]) > 0.1  # or this would show nothing
    for row in table[1]:
        assert np.isclose(row["confidence"], expected[row["explains"]], atol=1e-3)


def test_data_without_masks_give_the_table_alone(models, tmp_path):
    from softcam_hub.data.lesions import load_lesions

    for split in ("train", "test"):
        for index, row in enumerate(load_lesions(split, 8, 64)):
            folder = tmp_path / "images" / split / CLASSES[row["label"]]
            folder.mkdir(parents=True, exist_ok=True)
            row["image"].save(folder / f"{index}.png")
    model = load_classifier(models / "cape").model
    model.pretrained_cfg["label_names"] = sorted(CLASSES)  # folders come in the order of their names
    data = {"data": str(tmp_path / "images"), "explainers": "cape random"}
    rows = benchmark(model, tmp_path / "out", **data)
    assert "average_drop" in rows[0]
    assert not {"localization_precision", "topk_sensitivity"} & rows[0].keys()
    with pytest.raises(ValueError, match="neither masks nor boxes"):
        benchmark(model, tmp_path / "other", measures="localisation", **data)
    with pytest.raises(ValueError, match="evidence needs annotations"):
        benchmark(model, tmp_path / "other", measures="evidence", **data)
    asked = benchmark(model, tmp_path / "asked", measures="sensitivity", **data)
    assert len(asked[0]["topk_sensitivity_curve"]) == 30
    model.pretrained_cfg["label_names"] = CLASSES
    with pytest.raises(ValueError, match=r"the model was trained on the classes \['healthy'"):
        benchmark(model, tmp_path / "third", **data)


def test_bad_settings_and_folders_are_refused_with_a_sentence(models, tmp_path):
    with pytest.raises(ValueError, match="did you mean grad-cam"):
        benchmark(models / "cape", tmp_path, explainers="gradcam")
    with pytest.raises(ValueError, match="unknown setting 'explainer'"):
        benchmark(models / "cape", tmp_path, explainer="cam")
    with pytest.raises(ValueError, match="unknown measure 'accuracy'"):
        BenchmarkConfig("x", measures="accuracy")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        BenchmarkConfig("x", batch_size=0)
    with pytest.raises(ValueError, match="output is missing"):
        BenchmarkConfig()
    (tmp_path / "run" / "model").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"did you mean .*model"):
        load_classifier(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="there is no model 'restnet18': did you mean"):
        load_classifier("restnet18")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written"):
        benchmark(models / "cape", tmp_path / "file" / "below", explainers="cape", **OPTIONS)
    VanillaForTraining(vanilla_model(3), False, CLASSES[:3]).save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="the vanilla has 3 classes, but the data has 4"):
        benchmark(models / "cape", tmp_path / "out", tmp_path / "three", **OPTIONS)


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(models, table, tmp_path):
    options = {"batch_size": 4, "shard_size": 3, "explainers": ["cape", "cam", "random"], **OPTIONS}
    finish(start(run_benchmark, models / "cape", models / "vanilla", tmp_path / "one", options))
    finish(start(run_benchmark, models / "cape", models / "vanilla", tmp_path / "two", options, 2, processes=2))
    one, two = ((tmp_path / name / "rows.jsonl").read_text() for name in ("one", "two"))
    assert one == two
    assert json.loads(one.splitlines()[0])["images"] == 10


def test_the_folder_has_both_tables_and_the_curves(table):
    folder, _ = table
    text = (folder / "table1.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 * (2 + 11), "the table, and the table of intervals below it"
    for table_lines in (lines[:13], lines[13:]):
        assert {line.count("|") for line in table_lines} == {table_lines[0].count("|")}
    assert (folder / "curves.png").stat().st_size > 10_000
