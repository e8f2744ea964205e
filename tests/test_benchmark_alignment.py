"""Maps of a benchmark lie where the network looks: values by hand, whose alignment is whose, and settings that tell."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

import softcam_hub
from softcam_hub import create_explainer, to_vanilla
from softcam_hub.data.config import DataConfig
from softcam_hub.data.lesions import draw
from softcam_hub.data.samples import ImageDataset
from softcam_hub.data.splits import load_splits
from softcam_hub.data.transforms import make_transforms, mask_transform
from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.batch import Batch
from softcam_hub.evaluation.config import BenchmarkConfig
from softcam_hub.evaluation.grid_pointing import grid_pointing
from softcam_hub.evaluation.measure import measure
from softcam_hub.evaluation.models import ClassifierWithExplainers
from softcam_hub.explanation_scores.maps import heat
from softcam_hub.loading import load_classifier
from softcam_hub.models.alignment import Alignment

DATA = {"data": "lesions", "data_size": 128, "train_count": 4, "eval_count": 40}
SMALL = {**DATA, "limit": 4, "batch_size": 4, "explainers": "cape random", "measures": "localisation"}
MOVING, STILL = ("cape", "mu-cape", "cam", "grad-cam", "layer-cam"), ("guided-backprop", "random", "centre")
SHARED = ("index", "explainer", "explains", "label", "predicted", "annotated", "confidence")


@pytest.fixture(scope="module")
def model():
    model = timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True).eval()
    softcam_hub.measure_alignment(model, [draw(index, "validation", 128).image for index in range(32)])
    return model


@pytest.fixture(scope="module")
def samples(model):
    config = load_classifier(model).preprocessing
    data = load_splits(DataConfig(**DATA)).test
    return ImageDataset(data, make_transforms(config)[1], masks=mask_transform(config))


@pytest.fixture(scope="module")
def tables(model, tmp_path_factory):
    """Rows and values per image of one benchmark, aligned and not."""
    found = {}
    for aligned in (True, False):
        folder = tmp_path_factory.mktemp("tables")
        options = {**DATA, "limit": 6, "batch_size": 6, "per_image": True, "measures": "table localisation evidence"}
        rows = benchmark(model, folder, to_vanilla(model), explainers=[*MOVING, *STILL], aligned=aligned, **options)
        values = [json.loads(line) for line in (folder / "values.jsonl").read_text().splitlines()]
        found[aligned] = rows, {(line["explainer"], line["index"]): line for line in values}
    return found


def unmeasured(model):
    model = copy.deepcopy(model)
    model.alignment = None
    return model


def draw_slowly(maps, starts, step=8, side=128):
    """φ of one map (h, w) whose cell (i, j) looks at the pixel starts + step·(i, j)."""
    maps, large = np.maximum(maps, 0), np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            y, x = (min(max((p + 0.5 - s) / step, 0), 15) for p, s in zip((row, column), starts, strict=True))
            top, left = min(int(y), 14), min(int(x), 14)
            down, right = y - top, x - left
            large[row, column] = (
                maps[top, left] * (1 - down) * (1 - right)
                + maps[top, left + 1] * (1 - down) * right
                + maps[top + 1, left] * down * (1 - right)
                + maps[top + 1, left + 1] * down * right
            )
    return (large - large.min()) / (large.max() - large.min())


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("name", ["cape", "layer-cam"])
def test_values_of_an_image_by_hand(name, aligned, model, samples, tables):
    explained = model if name == "cape" else to_vanilla(model)
    x, mask, label = (samples[1][key] for key in ("pixel_values", "mask", "labels"))
    starts = model.alignment.start if aligned else (4, 4)
    explainer, line = create_explainer(name, explained, signed=True), tables[aligned][1][name, 1]

    def drawn(image, index):
        return draw_slowly(explainer(image[None], int(index))[0, 0].double().numpy(), starts)

    of_label, inside = drawn(x, label), mask.numpy()
    assert line["activation_precision"] == pytest.approx(of_label[inside].sum() / of_label.sum(), abs=1e-4)
    assert line["activation_sensitivity"] == pytest.approx(of_label[inside].mean(), abs=1e-4)
    assert line["pointing_game"] in inside[of_label > 1 - 1e-6]  # the highest pixels of a sparse map differ by rounding
    shares = of_label.reshape(16, 8, 16, 8).mean(axis=(1, 3)).flatten()
    touched = inside.reshape(16, 8, 16, 8).any(axis=(1, 3)).flatten()[np.argsort(-shares)[:30]]
    assert line["localization_precision"] == pytest.approx(touched.cumsum() / np.arange(1, 31), abs=1e-6)

    with torch.no_grad():
        predicted = explained(x[None]).argmax()
        hot = torch.as_tensor(drawn(x, predicted), dtype=torch.float32)
        kept, removed = (explained((x * part)[None]).softmax(dim=1)[0, predicted] for part in (hot, 1 - hot))
    assert line["kept"] == pytest.approx(float(kept), abs=1e-4)
    assert line["removed"] == pytest.approx(float(removed), abs=1e-4)
    again = drawn(x * hot, predicted)
    correlation = np.corrcoef(hot.double().numpy().flatten(), again.flatten())[0, 1]
    assert line["coherency"] == pytest.approx((1 + correlation) / 2, abs=1e-4)


def test_maps_of_features_move_and_no_others(model, tables):
    offset = pytest.approx(model.map_offset(), abs=1e-4)
    for name in (*MOVING, *STILL):
        moved, still = (
            next(row for row in tables[aligned][0] if row["explainer"] == name) for aligned in (True, False)
        )
        assert (moved["aligned"], still["aligned"], still["map_offset"]) == (True, False, None)
        assert moved["map_offset"] == (offset if name in MOVING else None)
        measured = {name for name in moved if name not in ("aligned", "map_offset", "explains")}
        assert ({key: moved[key] for key in measured} == {key: still[key] for key in measured}) == (name in STILL)
    for key, line in tables[True][1].items():
        other = tables[False][1][key]
        assert all(line[name] == other[name] for name in SHARED)
        if key[0] in MOVING and line["annotated"]:
            assert line["activation_precision"] != other["activation_precision"]
            assert line["kept"] != other["kept"]


@pytest.mark.slow
def test_unaligned_maps_are_drawn_as_before_bit_for_bit(model, samples):
    names = [*MOVING[2:], "random"]
    some = [samples[index] for index in range(2)]
    pixels, labels, masks = (torch.stack([one[name] for one in some]) for name in ("pixel_values", "labels", "mask"))
    vanilla, config = load_classifier(to_vanilla(model).eval()), BenchmarkConfig("x")
    batches = {
        aligned: Batch(
            ClassifierWithExplainers("vanilla", vanilla, names, False, aligned=aligned), pixels, labels, masks
        )
        for aligned in (True, False)
    }
    for name in names:
        maps = batches[False].maps[name]
        assert torch.equal(batches[False].heats[name], heat(maps, 128))
        enlarged = F.interpolate(maps, size=128, mode="bilinear", align_corners=False)
        assert torch.equal(batches[False].enlarge(name, maps), enlarged)
        assert torch.equal(batches[True].maps[name], maps)
        assert torch.equal(batches[True].heats[name], batches[False].heats[name]) == (name == "random")
    rare = ("evidence", "single_deletion", "max_sensitivity", "insertion", "deletion")
    with torch.enable_grad():
        moved, still = (measure(batches[aligned], rare, config) for aligned in (True, False))
    for name in names:
        for column in set(moved[name]) - {"confidence", "share_of_positive_annotated", "share_of_positive_unannotated"}:
            same = torch.equal(moved[name][column].nan_to_num(-1), still[name][column].nan_to_num(-1))
            assert same == (name == "random"), (name, column)


def test_mosaics_are_drawn_where_the_network_looks(model, samples):
    pixels = torch.stack([samples[index]["pixel_values"] for index in range(4)])
    classifier = ClassifierWithExplainers("model", load_classifier(model), ["cape"], False)
    found = grid_pointing(classifier, pixels, torch.arange(4))["cape"]["grid_pointing"]
    rows = [torch.cat([pixels[row], pixels[row + 1]], dim=2) for row in (0, 2)]
    small = F.avg_pool2d(torch.cat(rows, dim=1), 2)
    shares = []
    for place, maps in enumerate(model.explain(small, [[0, 1, 2, 3]]).maps[0].double()):
        drawn, top, left = draw_slowly(maps.numpy(), model.alignment.start), place // 2 * 64, place % 2 * 64
        shares.append(drawn[top : top + 64, left : left + 64].sum() / drawn.sum())
    assert found.tolist() == pytest.approx([np.mean(shares)], abs=1e-5)


@pytest.mark.slow
def test_a_model_without_alignment_is_measured_on_the_first_images_of_the_split(model, samples, tmp_path):
    pixels = torch.stack([samples[index]["pixel_values"] for index in range(32)])
    expected = softcam_hub.measure_alignment(unmeasured(model), pixels).alignment
    fresh, weights = unmeasured(model), copy.deepcopy(model.state_dict())
    fresh.measures_on_first_use = True
    rows = benchmark(fresh, tmp_path / "out", **SMALL)
    assert fresh.alignment == expected
    assert expected.is_known
    assert not fresh.measures_on_first_use
    assert all(torch.equal(value, weights[name]) for name, value in fresh.state_dict().items())
    assert rows[0]["map_offset"] == pytest.approx(fresh.map_offset(), abs=1e-4)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["alignment"] == {"model": expected.as_dict()}
    assert "alignment" not in rows[0]
    before = (tmp_path / "out" / "shards" / "00000.json").stat().st_mtime_ns
    assert benchmark(unmeasured(model), tmp_path / "out", **SMALL) == rows  # a second start measures the same
    assert (tmp_path / "out" / "shards" / "00000.json").stat().st_mtime_ns == before
    for options in ({"aligned": False}, {"explainers": "random centre"}):
        fresh = unmeasured(model)
        benchmark(fresh, tmp_path / str(options), **{**SMALL, **options})
        assert fresh.alignment is None  # nobody asked


def test_a_vanilla_classifier_with_the_same_backbone_has_the_alignment_of_the_model(model, tmp_path):
    vanilla = to_vanilla(model)
    vanilla.alignment = None
    vanilla.get_classifier().weight.data.mul_(2)
    rows = benchmark(model, tmp_path, vanilla, **{**SMALL, "explainers": "cam"})
    assert vanilla.alignment == model.alignment
    assert rows[0]["map_offset"] == pytest.approx(model.map_offset(), abs=1e-4)


def test_another_vanilla_classifier_is_measured_as_the_softcam_model_of_its_weights(model, samples, tmp_path):
    vanilla = to_vanilla(model).eval()
    vanilla.alignment = None
    with torch.no_grad():
        vanilla.layer4[0].conv1.weight[0] += 1e-3
    assert not torch.equal(vanilla.layer4[0].conv1.weight, model.backbone.layer4[0].conv1.weight)
    pixels = torch.stack([samples[index]["pixel_values"] for index in range(32)])
    expected = softcam_hub.measure_alignment(softcam_hub.convert(vanilla), pixels).alignment
    state = torch.get_rng_state()
    benchmark(model, tmp_path, vanilla, **{**SMALL, "explainers": "cam"})
    assert torch.equal(torch.get_rng_state(), state)
    assert vanilla.alignment == expected != model.alignment
    assert expected.is_known


def test_a_vanilla_classifier_without_a_softcam_model_is_drawn_as_before(tmp_path, caplog):
    vanilla = timm.create_model("test_vit", num_classes=4)  # it reads a class token
    data = {**SMALL, "data_size": 160, "explainers": "grad-cam"}
    rows = benchmark(vanilla, tmp_path, **data)
    assert rows[0]["map_offset"] is None
    assert rows[0]["aligned"]
    assert "the places of the vanilla's maps cannot be measured" in caplog.text


def test_another_alignment_is_refused_and_earlier_folders_go_on_without(model, tmp_path):
    rows = benchmark(model, tmp_path, **SMALL)
    moved = copy.deepcopy(model)
    moved.alignment = Alignment((1.0, 1.0), (8.0, 8.0), (128, 128))
    with pytest.raises(ValueError, match=r"holds a benchmark with alignment=.*--overwrite"):
        benchmark(moved, tmp_path, **SMALL)
    with pytest.raises(ValueError, match="holds a benchmark with aligned=True, but now it is False"):
        benchmark(model, tmp_path, **SMALL, aligned=False)
    assert benchmark(model, tmp_path, **SMALL) == rows

    benchmark(model, tmp_path, **SMALL, aligned=False, overwrite=True)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert (settings.pop("aligned"), settings.pop("alignment")) == (False, {})
    (tmp_path / "settings.json").write_text(json.dumps(settings))  # as releases without alignment wrote them
    with pytest.raises(ValueError, match="holds a benchmark with aligned=False, but now it is True"):
        benchmark(model, tmp_path, **SMALL)
    benchmark(model, tmp_path, **SMALL, aligned=False)


def test_the_command_has_the_option(model, tmp_path):
    from softcam_hub.cli import main

    words = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = ["benchmark", "--model", str(softcam_hub.CAPE_LESIONS), *words]
    for option, aligned in (("--aligned", True), ("--no-aligned", False)):
        assert main([*command, "--output", str(tmp_path / option), option]) == 0
        rows = [json.loads(line) for line in (tmp_path / option / "rows.jsonl").read_text().splitlines()]
        assert [row["aligned"] for row in rows] == [aligned] * len(rows)
