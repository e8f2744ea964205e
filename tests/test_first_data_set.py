"""The commands of docs/first_data_set.md run as they stand, on generated images in the form of NEU-DET."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hub_server import HubServer
from helpers.steel import make_photographs

from benchmarks.imagenet_weights import imagenet_folder

PAGE = Path(__file__).parents[1] / "docs" / "first_data_set.md"


def commands():
    """Return the commands of the page, as lists of words."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line]


@pytest.mark.slow
def test_the_page_leads_from_a_manifest_to_a_card(tmp_path):
    make_photographs(tmp_path / "neu-det", {"train": 6, "validation": 2, "test": 2})
    weights = (imagenet_folder() / "model.safetensors").read_bytes()
    shorter = {"train": ["--epochs", "2"], "benchmark": ["--limit", "6"]}
    with HubServer() as hub:
        hub.add_repo("timm/tf_efficientnet_lite0.in1k", {"model.safetensors": weights})
        environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[1]), **hub.env(tmp_path / "home")}
        for program, command, *options in commands():
            assert program == "softcam-hub"
            words = [sys.executable, "-m", "softcam_hub", command, *options, *shorter.get(command, [])]
            done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
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
