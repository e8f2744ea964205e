"""The model that comes with the package is small, loads through every door, and is as good as its row says."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import softcam_hub
from softcam_hub.data.lesions import VARIANTS, draw
from softcam_hub.training import parse
from tools import ship_model

ROWS = Path(__file__).parents[1] / "benchmarks" / "results" / "lesions.jsonl"
COUNT = 120


@pytest.fixture(scope="module")
def lesioned():
    return [draw(index, "test") for index in range(COUNT)]


@pytest.fixture(scope="module")
def pixels(lesioned):
    processor = AutoImageProcessor.from_pretrained(softcam_hub.CAPE_LESIONS)
    return processor([made.image for made in lesioned], return_tensors="pt")["pixel_values"]


def test_the_model_is_small():
    assert sum(file.stat().st_size for file in Path(softcam_hub.CAPE_LESIONS).iterdir()) < 8e6
    assert {file.name for file in Path(softcam_hub.CAPE_LESIONS).iterdir()} >= {"model.safetensors", "recipe.yaml"}


def test_the_scores_of_the_model_are_those_of_the_committed_row():
    rows = {row["recipe"]: row for row in map(json.loads, ROWS.read_text().splitlines()) if row["seed"] == 0}
    metrics = json.loads((Path(softcam_hub.CAPE_LESIONS) / "metrics.json").read_text())
    assert metrics.items() <= rows["lesions-cape"].items()
    assert metrics["test_accuracy"] > rows["mean colour"]["test_accuracy"] + 0.4


def test_the_recipe_of_the_model_comes_with_the_package():
    theirs = parse(["--recipe", str(Path(softcam_hub.CAPE_LESIONS) / "recipe.yaml"), "--output", "x"]).flat()
    ours = parse(["--recipe", "lesions-cape", "--output", "x"]).flat()
    assert {**theirs, "overwrite": False} == ours


@torch.no_grad()
def test_timm_and_transformers_agree_and_reach_the_stated_accuracy(lesioned, pixels):
    model = AutoModelForImageClassification.from_pretrained(softcam_hub.CAPE_LESIONS).eval()
    logits = model(pixels).logits
    plain = timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True).eval()
    assert torch.allclose(plain(pixels), logits, atol=1e-5)
    assert list(model.config.id2label.values()) == list(VARIANTS["lesions"])
    accuracy = (logits.argmax(dim=1) == torch.tensor([made.label for made in lesioned])).float().mean()
    stated = json.loads((Path(softcam_hub.CAPE_LESIONS) / "metrics.json").read_text())["test_accuracy"]
    assert abs(accuracy - stated) < 4 * (stated * (1 - stated) / COUNT) ** 0.5 + 1 / COUNT


def test_the_maps_add_up_and_the_pipeline_names_the_lesion(lesioned):
    explain = pipeline("image-explanation", model=str(softcam_hub.CAPE_LESIONS))
    rows = explain([made.image for made in lesioned[:8]], top_k=4)
    for row in rows:
        assert sum(float(one["map"].sum()) for one in row) == pytest.approx(1, abs=1e-4)
        assert float(row[0]["map"].sum()) == pytest.approx(row[0]["score"], abs=1e-5)
    hits = [row[0]["label"] == VARIANTS["lesions"][made.label] for row, made in zip(rows, lesioned, strict=False)]
    assert sum(hits) >= 6


def test_the_alignment_in_the_folder_is_the_one_that_is_measured(tmp_path, capsys):
    folder = Path(shutil.copytree(softcam_hub.CAPE_LESIONS, tmp_path / "model"))
    committed = json.loads((folder / "config.json").read_text())
    without = {name: value for name, value in committed["model_args"].items() if name not in ("alignment", "format")}
    (folder / "config.json").write_text(json.dumps({**committed, "model_args": without}))
    ship_model.measure(folder)
    assert capsys.readouterr().out.startswith("cells look -0.4")
    measured = json.loads((folder / "config.json").read_text())
    for name in ("start", "step"):
        expected = committed["model_args"]["alignment"][name]
        assert measured["model_args"]["alignment"][name] == pytest.approx(expected, abs=0.1)  # pixels
    measured["model_args"]["alignment"] = committed["model_args"]["alignment"]
    assert measured == committed
