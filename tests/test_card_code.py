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
    """Run all blocks in one process."""
    return run("\n".join(block for card in cards for block in blocks(card)), hub, home)


def run_without_us(card, hub, home):
    """Run the block of a card that needs nothing of ours, without our package."""
    return run(ABSENT + [block for block in blocks(card) if "trust_remote_code" in block][-1], hub, home)


@pytest.mark.slow
def test_the_blocks_of_the_shipped_models_card_run(tmp_path):
    with HubServer() as hub:
        files = model_files(Path(softcam_hub.CAPE_LESIONS), "tester/tiny")
        content = {name: made if isinstance(made, bytes) else made.read_bytes() for name, made in files.items()}
        hub.add_repo("tester/tiny", content)
        card = content["README.md"].decode()
        told, alone = run_blocks([card], hub, tmp_path / "home"), run_without_us(card, hub, tmp_path / "home")
    assert told.count("microaneurysm") >= 1
    assert "torch.Size([1, 4]) torch.Size([1, 4, 16, 16])" in alone


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "families"), [("resnet50", ["softcam", "cape"]), ("swinv2_b", ["cape"])])
def test_the_blocks_of_the_families_cards_run(backbone, families, tmp_path):
    row = FAMILIES[f"cape_{backbone}"]
    weights = timm.create_model(row["base_model"].removeprefix("timm/")).state_dict()
    with HubServer() as hub:
        content = save({key: value.contiguous() for key, value in weights.items()})
        hub.add_repo(row["base_model"], {"model.safetensors": content})
        cards = [CARDS[f"{family}_{backbone}"] for family in families]
        told = run_blocks(cards, hub, tmp_path / "home")
        alone = run_without_us(cards[-1], hub, tmp_path / "home") if backbone == "resnet50" else None
    maps = f"torch.Size([1, 2, {row['map_size'][0]}, {row['map_size'][1]}])"
    assert told.count(f"{maps}\ntensor") == len(families)  # of timm's weights
    assert told.count(f"torch.Size([1, 2]) {maps}") == len(families)  # of the Auto classes
    assert alone is None or f"torch.Size([1, 2]) {maps}" in alone
