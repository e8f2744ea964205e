"""The Python blocks of the committed cards run as a reader runs them, against a Hub on the loopback device."""

import re
from pathlib import Path

import pytest
import timm
from helpers.hub_server import HubServer
from helpers.warm import WarmPython
from safetensors.torch import save

import softcam_hub
from softcam_hub.hub.cards import read_rows
from softcam_hub.hub.publishing import model_files

ROOT = Path(__file__).parents[1]
FAMILIES = {row["model"]: row for row in read_rows(ROOT / "benchmarks" / "results" / "families.jsonl")}
CARDS = {file.stem: file.read_text() for file in (ROOT / "model_cards").glob("*.md")}


def blocks(card):
    return re.findall(r"^```python\n(.*?)^```", card, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="module")
def run(hub, tmp_path_factory):
    """Return a function that runs a script in a folder, in a process of its own, and returns what it printed."""

    def run_script(script, folder):
        (folder / "card.py").write_text(script)
        done = python.run("card.py", cwd=folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with WarmPython(**hub.env(tmp_path_factory.mktemp("home"))) as python:
        yield run_script


ABSENT = "import sys\nsys.modules['softcam_hub'] = None\n"


def all_blocks(cards):
    """Return all blocks as one script."""
    return "\n".join(block for card in cards for block in blocks(card))


def block_without_us(card):
    """Return the block of a card that needs nothing of ours, as a script without our package."""
    return ABSENT + [block for block in blocks(card) if "trust_remote_code" in block][-1]


@pytest.mark.slow
def test_the_blocks_of_the_shipped_models_card_run(hub, run, tmp_path):
    files = model_files(Path(softcam_hub.CAPE_LESIONS), "tester/tiny")
    content = {name: made if isinstance(made, bytes) else made.read_bytes() for name, made in files.items()}
    hub.add_repo("tester/tiny", content)
    card = content["README.md"].decode()
    told, alone = run(all_blocks([card]), tmp_path), run(block_without_us(card), tmp_path)
    assert told.count("microaneurysm") >= 1
    assert "torch.Size([1, 4]) torch.Size([1, 4, 16, 16])" in alone


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "families"), [("resnet50", ["softcam", "cape"]), ("swinv2_b", ["cape"])])
def test_the_blocks_of_the_families_cards_run(backbone, families, hub, run, tmp_path):
    row = FAMILIES[f"cape_{backbone}"]
    weights = timm.create_model(row["base_model"].removeprefix("timm/")).state_dict()
    content = save({key: value.contiguous() for key, value in weights.items()})
    hub.add_repo(row["base_model"], {"model.safetensors": content})
    cards = [CARDS[f"{family}_{backbone}"] for family in families]
    told = run(all_blocks(cards), tmp_path)
    alone = run(block_without_us(cards[-1]), tmp_path) if backbone == "resnet50" else None
    maps = f"torch.Size([1, 2, {row['map_size'][0]}, {row['map_size'][1]}])"
    assert told.count(f"{maps}\ntensor") == len(families)  # of timm's weights
    assert told.count(f"torch.Size([1, 2]) {maps}") == len(families)  # of the Auto classes
    assert alone is None or f"torch.Size([1, 2]) {maps}" in alone
