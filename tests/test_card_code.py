"""The Python blocks of the committed cards run as a reader runs them, against a Hub on the loopback device."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from helpers.hub_server import HubServer
from safetensors.torch import save

import softcam_hub
from softcam_hub.hub.cards import read_rows
from softcam_hub.hub.publishing import model_files

ROOT = Path(__file__).parents[1]
FAMILIES = {row["model"]: row for row in read_rows(ROOT / "benchmarks" / "results" / "families.jsonl")}
CARDS = {file.stem: file.read_text() for file in (ROOT / "model_cards").glob("*.md")}


def blocks(card):
    return re.findall(r"^```python\n(.*?)^```", card, flags=re.DOTALL | re.MULTILINE)


def run(script, hub, home):
    home.mkdir(exist_ok=True)
    (home / "card.py").write_text(script)
    environment = {**os.environ, **hub.env(home)}
    line = [sys.executable, "card.py"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout


ABSENT = "import sys\nsys.modules['softcam_hub'] = None\n"


def run_blocks(cards, hub, home):
    """All blocks in one process, and the last one that needs nothing of ours in another, without our package."""
    found = [block for card in cards for block in blocks(card)]
    told = run("\n".join(found), hub, home)
    return told, run(ABSENT + [block for block in found if "trust_remote_code" in block][-1], hub, home)


@pytest.mark.slow
def test_the_blocks_of_the_shipped_models_card_run(tmp_path):
    with HubServer() as hub:
        files = model_files(Path(softcam_hub.CAPE_LESIONS), "tester/tiny")
        content = {name: made if isinstance(made, bytes) else made.read_bytes() for name, made in files.items()}
        hub.add_repo("tester/tiny", content)
        told, alone = run_blocks([content["README.md"].decode()], hub, tmp_path / "home")
    assert told.count("microaneurysm") >= 1
    assert "torch.Size([1, 4]) torch.Size([1, 4, 16, 16])" in alone


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet50", "vgg16", "swinv2_b"])
def test_the_blocks_of_the_families_cards_run(backbone, tmp_path):
    row = FAMILIES[f"cape_{backbone}"]
    weights = timm.create_model(row["base_model"].removeprefix("timm/")).state_dict()
    with HubServer() as hub:
        content = save({key: value.contiguous() for key, value in weights.items()})
        hub.add_repo(row["base_model"], {"model.safetensors": content})
        cards = [CARDS[f"{family}_{backbone}"] for family in ("softcam", "cape")]
        told, alone = run_blocks(cards, hub, tmp_path / "home")
    maps = f"torch.Size([1, 2, {row['map_size'][0]}, {row['map_size'][1]}])"
    assert told.count(f"{maps}\ntensor") == 2  # of timm's weights
    assert told.count(f"torch.Size([1, 2]) {maps}") == 2  # of the Auto classes
    assert f"torch.Size([1, 2]) {maps}" in alone
