"""Shards of a benchmark: which of them a continued benchmark keeps, and mosaics that do not depend on shards."""

import json
import logging
import shutil

import pytest
import timm
import torch
from datasets import Dataset, DatasetDict
from helpers.benchmark import DATA, vanilla_model, write_lesions
from PIL import Image

from softcam_hub.data.lesions import load_lesions
from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.grid_pointing import choose_quartets
from softcam_hub.evaluation.models import fingerprint
from softcam_hub.loading import load_classifier
from softcam_hub.models.conversion import convert

TABLE = {"explainers": "cam", "measures": "table"}


@pytest.fixture
def folder(tmp_path):
    return write_lesions(tmp_path / "images")


def test_other_images_or_more_of_them_are_refused(folder, tmp_path):
    options = {**TABLE, "data": folder}
    before = benchmark(vanilla_model(), tmp_path / "out", **options)
    assert benchmark(vanilla_model(), tmp_path / "out", **options) == before
    assert not {"pairs", "weights"} & before[0].keys()
    image = next((folder / "test").rglob("*.png"))
    content = image.read_bytes()
    image.write_bytes(next((folder / "train").rglob("*.png")).read_bytes())
    with pytest.raises(ValueError, match=r"holds a benchmark with images=.*'count': 8.*--overwrite"):
        benchmark(vanilla_model(), tmp_path / "out", **options)
    image.with_name("more.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"but now it is .*'count': 9"):
        benchmark(vanilla_model(), tmp_path / "out", **options)


@pytest.mark.parametrize("kind", ["mask", "boxes"])
def test_another_ground_truth_is_refused(kind, tmp_path):
    def save(boxes):
        masks = [Image.new("L", (64, 64)) for _ in boxes]
        for mask, box in zip(masks, boxes, strict=True):
            mask.paste(255, tuple(box))
        truth = masks if kind == "mask" else [[box] for box in boxes]
        made = [{**row, kind: given} for row, given in zip(load_lesions("test", 4, 64), truth, strict=True)]
        columns = {name: [row[name] for row in made] for name in ("image", "label", kind)}
        data = Dataset.from_dict(columns)
        DatasetDict(train=data, test=data).save_to_disk(tmp_path / "data")

    options = {"explainers": "cam", "measures": "localisation", "data": tmp_path / "data"}
    save([[0, 0, 9, 9], [5, 5, 20, 20], [1, 2, 3, 4], [6, 6, 30, 30]])
    before = benchmark(vanilla_model(), tmp_path / "out", **options)
    assert benchmark(vanilla_model(), tmp_path / "out", **options) == before
    shutil.rmtree(tmp_path / "data")
    save([[0, 0, 9, 9], [5, 5, 20, 20], [1, 2, 3, 5], [6, 6, 30, 30]])
    with pytest.raises(ValueError, match="holds a benchmark with images="):
        benchmark(vanilla_model(), tmp_path / "out", **options)


def test_the_same_weights_in_another_network_are_refused(tmp_path):
    model = vanilla_model()
    benchmark(model, tmp_path, **TABLE, limit=2, **DATA)
    coarse = timm.create_model("test_resnet", num_classes=4)
    coarse.load_state_dict(model.state_dict())
    coarse.pretrained_cfg.update(input_size=(3, 64, 64), crop_pct=1.0)
    with pytest.raises(ValueError, match="weights="):
        benchmark(coarse, tmp_path, **TABLE, limit=2, **DATA)
    model.pretrained_cfg["mean"] = (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="weights="):
        benchmark(model, tmp_path, **TABLE, limit=2, **DATA)
    exchanged = vanilla_model()
    exchanged.maxpool = torch.nn.AvgPool2d(2)
    assert fingerprint(load_classifier(exchanged)) != fingerprint(load_classifier(vanilla_model()))
    cape = convert(vanilla_model(), "cape")
    before = fingerprint(load_classifier(cape))
    cape.head.naive = True
    assert fingerprint(load_classifier(cape)) != before


def test_the_fingerprint_of_a_loaded_model_is_always_the_same(tmp_path):
    timm.models.save_for_hf(vanilla_model(), tmp_path, safe_serialization=True)
    assert fingerprint(load_classifier(tmp_path)) == fingerprint(load_classifier(tmp_path))


def test_a_shard_of_other_images_is_named(tmp_path):
    options = {**TABLE, "limit": 4, "shard_size": 2, **DATA}
    benchmark(vanilla_model(), tmp_path, **options)
    shards = tmp_path / "shards"
    (shards / "00001.json").write_text((shards / "00000.json").read_text())
    with pytest.raises(ValueError, match=r"00001.json is not of images 2 to 3 and the explainers of this"):
        benchmark(vanilla_model(), tmp_path, **options)


CHANGES = {
    "a line twice": lambda lines: [*lines, lines[0]],
    "a line less": lambda lines: lines[1:],
    "another explainer": lambda lines: [{**line, "explainer": "grad-cam"} for line in lines],
    "one more explainer": lambda lines: [*lines, {**lines[0], "explainer": "grad-cam"}],
    "another role": lambda lines: [{**line, "explains": "nobody"} for line in lines],
    "another label": lambda lines: [{**line, "label": 3 - line["label"]} for line in lines],
}


def test_a_shard_written_by_hand_or_by_another_benchmark_is_named(tmp_path):
    options = {**TABLE, "limit": 2, **DATA}
    rows = benchmark(vanilla_model(), tmp_path, **options)
    shard = tmp_path / "shards" / "00000.json"
    lines = json.loads(shard.read_text())[:-1]
    for change in CHANGES.values():
        shard.write_text(json.dumps(change(lines)))
        with pytest.raises(ValueError, match="00000.json is not of images 0 to 1 and the explainers of this"):
            benchmark(vanilla_model(), tmp_path, **options)
    shard.write_text(json.dumps(lines))  # without a digest, as earlier releases wrote it
    assert benchmark(vanilla_model(), tmp_path, **options) == rows


def test_mosaics_are_the_same_in_shards_of_any_size(tmp_path):
    options = {"explainers": "grad-cam", "measures": "grid_pointing", "per_image": True, **DATA}
    rows = [benchmark(vanilla_model(), tmp_path / str(size), shard_size=size, **options)[0] for size in (2, 32)]
    assert abs(rows[0]["grid_pointing"] - rows[1]["grid_pointing"]) < 1e-3
    lines = [json.loads(line) for line in (tmp_path / "2" / "values.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines if line.get("grid_pointing") is not None] == [0, 4]


def test_mosaics_of_images_in_the_order_of_their_classes(folder, tmp_path, caplog):
    options = {"explainers": "centre", "measures": "grid_pointing", "shard_size": 2, "data": str(folder)}
    row = benchmark(vanilla_model(), tmp_path / "out", **options)[0]
    assert abs(row["grid_pointing"] - 25) < 1
    with caplog.at_level(logging.WARNING):
        row = benchmark(vanilla_model(), tmp_path / "few", limit=3, **options)[0]
    assert "grid_pointing" not in row
    assert "no value of grid_pointing: none of the 3 images has a place in a mosaic of four classes" in caplog.text


def test_quartets_are_as_many_as_there_can_be():
    assert choose_quartets([0, 0, 1, 2, 3, 1, 2, 3, 0]) == [[0, 2, 3, 4], [1, 5, 6, 7]]
    assert choose_quartets([0] * 3 + [1] * 3 + [2] * 3 + [3] * 2 + [4]) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert choose_quartets([0, 1, 2, 2, 0]) == []


def test_images_without_an_annotation_leave_a_warning(tmp_path, caplog):
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING):
        row = benchmark(vanilla_model(), tmp_path, explainers="cam", measures="localisation", limit=1, **DATA)[0]
    assert row["annotated"] == 0  # the first image is of the healthy class
    assert "no value of localisation: none of the 1 images has an annotation" in caplog.text
