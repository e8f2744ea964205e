"""Every Python block of README runs as it stands, in a fresh process in an empty folder, against a loopback Hub."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from helpers.hub_server import HubServer
from safetensors.torch import save

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def hub():
    torch.manual_seed(0)
    weights = {key: value.contiguous() for key, value in timm.create_model("resnet50").state_dict().items()}
    with HubServer() as hub:
        hub.add_repo("timm/resnet50.a1_in1k", {"model.safetensors": save(weights)})
        yield hub


def test_readme_has_blocks():
    assert len(BLOCKS) >= 5


def test_the_blocks_run_one_after_another(hub, tmp_path):
    (tmp_path / "readme.py").write_text("\n".join(BLOCKS))
    environment = {**os.environ, **hub.env(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "readme.py"], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ of 49 locations carry [\d.]+% of this class's [\d.]+%", done.stdout)


def test_links_and_tree_name_files_that_exist():
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (root / target).exists(), f"README links to {target}, which does not exist"
    tree = README.split("## The tree")[1].split("```")[1]
    folder = root
    for line in tree.strip().splitlines():
        name = line.strip().split()[0]
        place = root / name if not line.startswith(" ") else None
        if place and name.endswith("/"):
            folder = place
        if line.startswith("    "):
            place = folder / "models" / name
        elif line.startswith("  "):
            place = folder / name
        assert place.exists(), f"README's tree names {name}, which does not exist"
