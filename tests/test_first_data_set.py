"""The commands of docs/first_data_set.md run as they stand, on generated images in the form of NEU-DET."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hub_server import HubServer
from helpers.steel import CLASSES, make_photographs
from helpers.warm import WarmPython
from PIL import Image

from benchmarks.imagenet_weights import imagenet_folder
from softcam_hub.data.config import DataConfig
from softcam_hub.data.splits import load_splits

PAGE = Path(__file__).parents[1] / "docs" / "first_data_set.md"


def find_blocks(language):
    """Return the code blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands():
    """Return the commands of the page, as lists of words."""
    lines = "\n".join(find_blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line]


def make_clone(folder, count):
    """Write generated images of every class with their boxes, in the folders and forms of the public repository."""
    make_photographs(folder, {"some": count})
    (folder / "IMAGES").mkdir()
    (folder / "ANNOTATIONS").mkdir()
    for row in csv.DictReader((folder / "manifest.csv").read_text(encoding="utf-8").splitlines()):
        name = f"{row['label']}_{Path(row['image']).stem.rsplit('_', 1)[1]}"
        Image.open(folder / row["image"]).save(folder / "IMAGES" / f"{name}.jpg", quality=95)
        corners = [zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True) for box in json.loads(row["boxes"])]
        objects = (
            f"<object><name>{row['label']}</name><bndbox>{''.join(f'<{side}>{at}</{side}>' for side, at in box)}</bndbox>"
            "</object>"
            for box in corners
        )
        text = f"<annotation><filename>{name}.jpg</filename>{''.join(objects)}</annotation>"
        (folder / "ANNOTATIONS" / f"{name}.xml").write_text(text, encoding="utf-8")
    shutil.rmtree(folder / "images")
    return (folder / "manifest.csv").rename(folder.parent / "expected.csv")


def test_the_page_makes_the_manifest_from_boxes_of_pascal_voc(tmp_path, monkeypatch):
    expected = make_clone(tmp_path / "neu-det", 10)
    monkeypatch.chdir(tmp_path)
    (script,) = find_blocks("python")
    exec(compile(script, str(PAGE), "exec"), {})
    splits = load_splits(DataConfig("neu-det/manifest.csv"))
    assert splits.classes == CLASSES
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [36, 12, 12]
    rows = csv.DictReader((tmp_path / "neu-det" / "manifest.csv").read_text(encoding="utf-8").splitlines())
    found = {f"{row['label']} {Path(row['image']).stem.rsplit('_', 1)[1]}": row["boxes"] for row in rows}
    theirs = csv.DictReader(expected.read_text(encoding="utf-8").splitlines())
    assert found == {f"{row['label']} {Path(row['image']).stem.rsplit('_', 1)[1]}": row["boxes"] for row in theirs}


@pytest.mark.slow
def test_the_page_leads_from_a_manifest_to_a_card(tmp_path):
    make_clone(tmp_path / "neu-det", 10)
    subprocess.run([sys.executable, "-c", *find_blocks("python")], check=True, cwd=tmp_path)
    weights = (imagenet_folder() / "model.safetensors").read_bytes()
    shorter = {"train": ["--epochs", "2"], "benchmark": ["--limit", "2"]}
    with HubServer() as hub, WarmPython(**hub.env(tmp_path / "home")) as python:
        hub.add_repo("timm/tf_efficientnet_lite0.in1k", {"model.safetensors": weights})
        for program, command, *options in commands():
            assert program == "softcam-hub"
            done = python.run("-m", "softcam_hub", command, *options, *shorter.get(command, []), cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            if command == "train":
                assert "timm's weights tf_efficientnet_lite0.in1k" in done.stdout + done.stderr
    run = tmp_path / "runs" / "steel"
    assert len(list((run / "explained").glob("*.png"))) == 60
    assert {
        row["explainer"] for row in map(json.loads, (run / "benchmark" / "rows.jsonl").read_text().splitlines())
    } == {*("softcam", "cam", "layer-cam", "lift-cam", "random")}
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "cc-by-nc-4.0" in card
    assert "scratches" in card
