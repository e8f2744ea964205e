"""The runner: numbers of a row against a slow computation, shards that divide and go on, tables, and bad input."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import PartialState
from conftest import randomise
from helpers.processes import finish, start

from softcam_hub import CAPEForImageClassification, SoftCAMForImageClassification, convert, create_explainer, to_vanilla
from softcam_hub.cli import main
from softcam_hub.data.config import DataConfig
from softcam_hub.data.samples import ImageDataset
from softcam_hub.data.splits import load_splits
from softcam_hub.data.transforms import make_transforms, mask_transform
from softcam_hub.evaluation import BenchmarkConfig, benchmark
from softcam_hub.evaluation.accuracy import rows_of_runs, rows_of_twin, table2
from softcam_hub.evaluation.measure import Batch, alike, around, measure
from softcam_hub.evaluation.models import DEFAULT_POST_HOC, Explained, divide, pair_up
from softcam_hub.evaluation.report import table1, with_borda
from softcam_hub.explanation_scores.faithfulness import gini_sparseness
from softcam_hub.explanation_scores.perturbation import deletion_auc, single_deletion
from softcam_hub.loading import load_classifier
from softcam_hub.training.objective import VanillaForTraining

CLASSES = ["healthy", "microaneurysm", "haemorrhage", "exudate"]
DATA = {"data": "lesions", "train_count": 8, "eval_count": 10, "data_size": 64}


def black_box(classes=4):
    torch.manual_seed(1)
    vanilla = randomise(timm.create_model("test_resnet", num_classes=classes, output_stride=8)).eval()
    vanilla.pretrained_cfg["input_size"] = (3, 64, 64)
    vanilla.pretrained_cfg["crop_pct"] = 1.0
    with torch.no_grad():
        vanilla.get_classifier().weight.mul_(8)  # decided enough for confidences to move
    return vanilla


def save(model, folder):
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    kinds = {"cape": CAPEForImageClassification, "softcam": SoftCAMForImageClassification}
    for kind, family in kinds.items():
        family.from_timm(model, **names).save_pretrained(folder / kind)
    VanillaForTraining(model, False, CLASSES).save_pretrained(folder / "twin")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save(black_box(), folder)
    return folder


@pytest.fixture(scope="module")
def table(models, tmp_path_factory):
    """A whole benchmark of CAPE beside its twin: its folder and rows."""
    folder = tmp_path_factory.mktemp("benchmark")
    rows = benchmark(models / "cape", folder, models / "twin", per_image=True, batch_size=4, shard_size=6, **DATA)
    return folder, rows


def test_splits():
    return load_splits(DataConfig(**DATA)).test


test_splits.__test__ = False


def samples_of(model):
    config = timm.data.resolve_data_config({}, pretrained_cfg=dict(model.pretrained_cfg))
    return ImageDataset(test_splits(), make_transforms(config)[1], masks=mask_transform(config))


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
    model = load_classifier(models / ("cape" if name == "cape" else "twin")).model
    with torch.no_grad():
        expected = slow_row(model, name, samples_of(model))
    assert row["explains"] == ("model" if name == "cape" else "twin")
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
        assert {"torch", "timm", "softcam_hub", "device", "model", "twin"} <= row.keys()
    assert rows[0]["completeness_error"] < 1e-6
    assert "completeness_error" not in rows[1]
    values = [json.loads(line) for line in (folder / "values.jsonl").read_text().splitlines()]
    assert len(values) == 10 * len(rows)
    mean = np.mean([max(v["confidence"] - v["kept"], 0) / v["confidence"] for v in values if v["explainer"] == "cam"])
    assert np.isclose(100 * mean, rows[2]["average_drop"])
    assert all((value["localization_precision"] is None) == (value["label"] == 0) for value in values)


def test_sharing_work_changes_nothing(models, table, tmp_path):
    alone = benchmark(models / "cape", tmp_path, models / "twin", explainers="cam", batch_size=4, shard_size=6, **DATA)
    beside = next(row for row in table[1] if row["explainer"] == "cam")
    for name in ("average_drop", "adcc", "miou", "topk_sensitivity", "activation_precision"):
        assert np.isclose(alone[0][name], beside[name], atol=1e-3), name


def test_size_of_shards_and_batches_changes_nothing_that_matters(models, table, tmp_path):
    rows = benchmark(
        models / "cape", tmp_path, models / "twin", explainers=["random", "cape"], batch_size=3, shard_size=4, **DATA
    )
    for row in rows:
        before = next(other for other in table[1] if other["explainer"] == row["explainer"])
        for name in ("average_drop", "adcc", "miou", "topk_sensitivity", "localization_precision"):
            assert np.isclose(row[name], before[name], atol=1e-3), name


def test_a_benchmark_goes_on_where_shards_are_missing(models, table, tmp_path, monkeypatch):
    folder, rows = table
    shutil.copytree(folder, tmp_path / "half")
    (tmp_path / "half" / "shards" / "00001.json").unlink()
    (tmp_path / "half" / "rows.jsonl").unlink()
    (tmp_path / "half" / "shards" / "00000.json").touch()
    written = (tmp_path / "half" / "shards" / "00000.json").stat().st_mtime_ns
    again = benchmark(models / "cape", tmp_path / "half", models / "twin", batch_size=4, shard_size=6, **DATA)
    assert again == rows
    assert (tmp_path / "half" / "shards" / "00000.json").stat().st_mtime_ns == written


def test_other_settings_or_weights_are_refused_and_overwritten(models, tmp_path):
    options = {"explainers": "cape", "measures": "table", "limit": 2, **DATA}
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


def test_a_damaged_shard_is_named(models, tmp_path):
    options = {"explainers": "cape", "measures": "table", "limit": 2, **DATA}
    benchmark(models / "cape", tmp_path, **options)
    (tmp_path / "shards" / "00000.json").write_text("[{")
    with pytest.raises(ValueError, match="00000.json is damaged"):
        benchmark(models / "cape", tmp_path, **options)


def test_softcam_is_its_own_twin_and_cape_has_none(models):
    softcam = pair_up(load_classifier(models / "softcam"), None)
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(softcam.twin.model(images), softcam.model.model(images), atol=1e-5)
    cape = pair_up(load_classifier(models / "cape"), None)
    parts, left_out = divide(None, cape)
    assert parts == {"model": ["cape", "mu-cape", "random", "centre"], "twin": []}
    assert set(left_out) == set(DEFAULT_POST_HOC)
    assert "name one with twin" in left_out["cam"]
    with pytest.raises(ValueError, match="'cam' is not possible here.*name one with twin"):
        divide(("cam",), cape)
    with pytest.raises(ValueError, match="need a softcam model"):
        divide(("softcam",), cape)
    black = pair_up(load_classifier(models / "twin"), None)
    assert divide(None, black)[0] == {"model": [], "twin": [*DEFAULT_POST_HOC, "random", "centre"]}
    with pytest.raises(ValueError, match="black box itself"):
        pair_up(black.twin, black.twin)
    with pytest.raises(ValueError, match="expected a vanilla timm model"):
        pair_up(cape.model, softcam.model)


def test_explainers_that_do_not_fit_are_left_out_with_their_reason():
    model = timm.create_model("test_convnext", num_classes=4).eval()  # no ReLU, and a norm after the pool
    classifier = load_classifier(model)
    explained = Explained("twin", classifier, ["cam", "grad-cam", "guided-backprop"], False)
    refused = explained.drop_refused(torch.randn(1, 3, 64, 64), strict=False)
    assert explained.names == ("grad-cam",)
    assert "linear in the average" in refused["cam"]
    assert "nn.ReLU" in refused["guided-backprop"]
    with pytest.raises(ValueError, match="explainer 'cam' is not possible here"):
        Explained("twin", classifier, ["cam"], False).drop_refused(torch.randn(1, 3, 64, 64), strict=True)


def test_every_explainer(models, tmp_path):
    rows = benchmark(models / "softcam", tmp_path, explainers="all", measures="table", limit=2, **DATA)
    names = [row["explainer"] for row in rows]
    assert {"softcam", *DEFAULT_POST_HOC, "score-cam", "integrated-gradients", "random", "centre"} <= set(names)
    twin = to_vanilla(load_classifier(models / "softcam").model)
    samples = samples_of(twin)
    with torch.no_grad():
        expected = slow_row(twin, "integrated-gradients", [samples[0], samples[1]])
    row = rows[names.index("integrated-gradients")]
    for name in ("average_drop", "average_drop_in_deletion", "adcc", "miou"):
        assert np.isclose(row[name], expected[name], atol=1e-2), name


def test_single_deletion_ranks_signed_maps_against_the_drop_of_the_logit(tmp_path):
    model = black_box()
    options = {"explainers": "guided-backprop", "measures": "single_deletion", "limit": 4, **DATA}
    row = benchmark(model, tmp_path, **options)[0]
    pixels = torch.stack([samples_of(model)[index]["pixel_values"] for index in range(4)])
    maps = create_explainer("guided-backprop", model, signed=True)(pixels)
    assert (maps < 0).any()
    signed = F.interpolate(maps, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    expected = float(single_deletion(lambda images: model(images).detach(), pixels, signed).mean())
    assert np.isclose(row["single_deletion"], expected, atol=1e-5)
    assert row["annotated"] == 0  # no measure asked for annotations


def test_every_measure(models, tmp_path):
    dear = ("gini", "insertion", "deletion", "road", "single_deletion", "max_sensitivity", "grid_pointing")
    options = {**DATA, "eval_count": 4}
    softcam, centre = benchmark(models / "softcam", tmp_path, explainers="softcam centre", measures=dear, **options)
    assert set(dear) <= softcam.keys()
    assert "average_drop" not in softcam
    assert abs(centre["grid_pointing"] - 25) < 1  # it says the same of every cell
    assert centre["max_sensitivity"] == 0
    model = load_classifier(models / "softcam").model
    pixels = torch.stack([sample["pixel_values"] for sample in map(samples_of(model).__getitem__, range(4))])
    heats = model.explain(pixels).heatmaps(64)[:, 0]
    found = deletion_auc(lambda images: model(images).detach().softmax(1), pixels, heats)
    assert np.isclose(softcam["deletion"], 100 * float(found.mean()), atol=1e-3)
    raw = model.explain(pixels).maps[:, 0].relu()
    assert np.isclose(softcam["gini"], float(gini_sparseness(raw).mean()), atol=1e-5)


def test_native_maps_are_measured_on_ours_and_the_others_on_the_twin(models, table):
    ours, twin = load_classifier(models / "cape").model, load_classifier(models / "twin").model
    samples = samples_of(ours)
    pixels = torch.stack([samples[index]["pixel_values"] for index in range(10)])
    with torch.no_grad():
        expected = {
            role: 100 * float(m(pixels).softmax(1).amax(1).mean()) for role, m in (("model", ours), ("twin", twin))
        }
    assert abs(expected["model"] - expected["twin"]) > 0.1  # or this would show nothing
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
    asked = benchmark(model, tmp_path / "asked", measures="sensitivity", **data)
    assert len(asked[0]["topk_sensitivity_curve"]) == 30
    model.pretrained_cfg["label_names"] = CLASSES
    with pytest.raises(ValueError, match=r"the model was trained on the classes \['healthy'"):
        benchmark(model, tmp_path / "third", **data)


def test_bad_input_gets_a_sentence(models, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'grad-cam'"):
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
        benchmark(models / "cape", tmp_path / "file" / "below", explainers="cape", **DATA)
    VanillaForTraining(black_box(3), False, CLASSES[:3]).save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="the twin has 3 classes, but the data has 4"):
        benchmark(models / "cape", tmp_path / "out", tmp_path / "three", **DATA)


def test_models_and_options_that_do_not_fit_get_a_sentence(models, tmp_path):
    several = {**DATA, "data": "labels"}
    with pytest.raises(ValueError, match="CAPE gives one label per image, and these data have several"):
        benchmark(timm.create_model("cape_test_resnet", num_classes=3), tmp_path / "several", **several)
    with pytest.raises(ValueError, match="patch must be at most 64, the side of the model's images, got 65"):
        benchmark(models / "cape", tmp_path / "patch", explainers="cape", patch=65, **DATA)
    assert not (tmp_path / "patch").exists()
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 64), torch.nn.Flatten())
    with pytest.raises(TypeError, match=r"a Sequential does not say how many classes .*num_classes"):
        benchmark(plain, tmp_path / "plain", **DATA)


def test_a_hugging_face_model_is_measured_as_its_timm_model(models, tmp_path):
    model = SoftCAMForImageClassification.from_pretrained(models / "softcam")
    options = {"explainers": "softcam cam", "measures": "table", "limit": 2, **DATA}
    expected = benchmark(models / "softcam", tmp_path / "folder", **options)
    rows = benchmark(model, tmp_path / "model", **options)
    for row, other in zip(rows, expected, strict=True):
        assert row["model"] == "softcam_test_resnet"
        assert row["average_drop"] == other["average_drop"]


def test_a_model_that_predicts_nan_is_named(models, tmp_path):
    model = load_classifier(models / "cape").model
    model.head.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="the model predicts NaN"):
        benchmark(model, tmp_path, explainers="cape", **DATA)


def test_a_missing_captum_is_a_hint(models, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    with pytest.raises(ImportError, match=r"softcam-hub\[baselines\]"):
        benchmark(models / "softcam", tmp_path, explainers="integrated-gradients", **DATA)


def test_the_model_is_left_as_it_was(models, tmp_path):
    model = black_box().train()
    model.layer4.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    benchmark(model, tmp_path, limit=3, **DATA)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_table_names_the_best_and_counts_points(table):
    folder, _ = table
    text = (folder / "table1.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 11
    assert lines[0].count("|") == lines[2].count("|")
    assert (folder / "curves.png").stat().st_size > 10_000
    common = {
        "images": 2,
        "annotated": 0,
        "data": "d",
        "split": "test",
        "seed": 0,
        "torch": "",
        "timm": "",
        "device": "",
    }
    scores = ("average_drop", "increase_in_confidence", "average_drop_in_deletion", "adcc", "miou")
    rows = [
        {"explainer": name, "explains": "twin", **dict(zip(scores, values, strict=True)), **common}
        for name, values in {
            "cam": (10, 40, 30, 50, 20),
            "fd-cam": (20, 50, 30, 60, 30),
            "random": (5, 0, 0, 0, 99),
        }.items()
    ]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table1(rows).splitlines()[:5]]
    assert cells[2] == ["cam", "twin", "10.0", "40.0", "**30.0**", "50.0", "**20.0**", "**13**"]  # 3 + 2 + 3 + 2 + 3
    assert cells[3] == ["fd-cam", "twin", "20.0", "**50.0**", "**30.0**", "**60.0**", "30.0", "**13**"]
    assert cells[4] == ["random", "twin", "**5.0**", "0.0", "0.0", "0.0", "99.0", "-"]


def test_methods_with_the_same_maps_share_their_points(tmp_path):
    model = black_box()
    model.pretrained_cfg["input_size"] = (3, 56, 56)  # a grid of 7x7, where weights / 49 round otherwise than weights
    names = ("cam", "grad-cam")
    rows = with_borda(benchmark(model, tmp_path, explainers=[*names, "layer-cam", "fd-cam"], measures="table", **DATA))
    points = {row["explainer"]: row["borda"] for row in rows}
    assert points["cam"] == points["grad-cam"]
    assert len(set(points.values())) > 1


def test_a_model_of_one_class():
    explained = Explained("twin", load_classifier(black_box(1)), ["cam"], False)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[:, :8, :8] = True
    batch = Batch(explained, torch.randn(2, 3, 64, 64), torch.zeros(2, dtype=torch.long), masks)
    values = measure(batch, ("table", "localisation"), BenchmarkConfig("x"))["cam"]
    assert "iou" not in values  # there is no second class to tell apart
    assert torch.equal(batch.of_label("cam"), batch.heats["cam"][:, 0])
    assert values["activation_precision"].shape == (2,)


def test_boxes_and_groups():
    masks = torch.zeros(2, 5, 7, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 4, 6] = True
    assert around(masks).tolist() == [[2, 1, 6, 3], [6, 4, 7, 5]]
    maps = torch.rand(2, 4, 4)
    assert alike({"a": maps, "b": maps + 1e-3, "c": maps + 1e-8}) == [["a", "c"], ["b"]]


def test_table_2_from_runs_and_from_the_twin(models, tmp_path):
    for run, (model, mode) in {"a": ("cape_test_resnet", "from-scratch"), "b": ("test_resnet", "direct")}.items():
        (tmp_path / run).mkdir()
        (tmp_path / run / "settings.yaml").write_text(f"model: {model}\nmode: {mode}\ndata: lesions\n")
        metrics = {"test_accuracy": 0.9, "test_confidence": 0.8}
        metrics |= {"test_disagreement": 0.05, "test_teacher_accuracy": 0.95} if run == "a" else {}
        (tmp_path / run / "metrics.json").write_text(json.dumps(metrics))
    twin = black_box()
    rows = rows_of_runs([str(tmp_path / "a")])
    rows += rows_of_twin(load_classifier(twin), test_splits(), "lesions", 4, torch.device("cpu"))
    samples = samples_of(twin)
    pixels = torch.stack([samples[index]["pixel_values"] for index in range(10)])
    labels = torch.stack([samples[index]["labels"] for index in range(10)])
    cape = convert(twin, "cape")
    with torch.no_grad():
        plain, shelf = twin(pixels), cape(pixels)
        naive = cape.head.evidence(cape.forward_features(pixels)).softmax(dim=1).mean(dim=(2, 3))  # eq. 4
    by_name = {row["variant"]: row for row in rows}
    for name, scores in (("vanilla", plain), ("off-the-shelf", shelf), ("naive", naive)):
        found = by_name[name]
        assert np.isclose(found["accuracy"], 100 * float((scores.argmax(1) == labels).float().mean()))
        if name != "vanilla":
            assert np.isclose(found["disagreement"], 100 * float((scores.argmax(1) != plain.argmax(1)).float().mean()))
    assert np.isclose(by_name["naive"]["confidence"], 100 * float(naive.amax(1).mean()), atol=1e-3)
    lines = table2(rows + rows_of_runs([str(tmp_path / "b")])).splitlines()
    assert [line.split("|")[1].split()[0] for line in lines[2:7]] == [
        "vanilla",
        "vanilla",
        "naive",
        "off-the-shelf",
        "from",
    ]
    assert "| 90.00 | 5.00 | 80.00 | 95.00 | - |" in lines[6]
    two = rows_of_twin(load_classifier(twin), test_splits(), "lesions", 4, torch.device("cpu"), limit=2)
    assert {row["images"] for row in two} == {2}
    assert np.isclose(two[0]["accuracy"], 100 * float((plain.argmax(1) == labels)[:2].float().mean()))
    with pytest.raises(FileNotFoundError, match="no finished run"):
        rows_of_runs([str(tmp_path)])


def test_accuracy_takes_the_limit_and_refuses_what_it_has_no_use_for(models, tmp_path, capsys):
    words = ["benchmark", "--accuracy", "--twin", str(models / "twin"), "--output", str(tmp_path), "--limit", "2"]
    words += [word for name, value in DATA.items() if name != "data" for word in (f"--{name}", str(value))]
    assert main([*words, "--measures", "table", "--seed", "1"]) == 1
    assert "leave out --measures, --seed" in capsys.readouterr().err
    assert main([*words, "--model", str(models / "cape")]) == 1
    assert "leave out --model" in capsys.readouterr().err
    assert main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "table2.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [2, 2, 2]


def work(model, twin, output, options, processes=1):
    benchmark(model, output, twin, **options)
    assert PartialState().num_processes == processes


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(models, table, tmp_path):
    options = {"batch_size": 4, "shard_size": 3, "explainers": ["cape", "cam", "random"], **DATA}
    finish(start(work, models / "cape", models / "twin", tmp_path / "one", options))
    finish(start(work, models / "cape", models / "twin", tmp_path / "two", options, 2, processes=2))
    one, two = ((tmp_path / name / "rows.jsonl").read_text() for name in ("one", "two"))
    assert one == two
    assert json.loads(one.splitlines()[0])["images"] == 10
