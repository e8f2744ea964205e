"""The blocks, links and tree of README and of the pages in `docs/`.

The Python blocks of a page run as they stand, one after another, in a process and an empty folder of their own,
against a Hub on this machine. A new page needs no line here.
"""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
import yaml
from helpers.hub_server import HubServer
from helpers.warm import WarmPython
from PIL import Image
from safetensors.torch import save

from softcam_hub.cli import COMMANDS, make_parser

ROOT = Path(__file__).parents[1]
FILES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in FILES}


def find_blocks(language):
    block = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return {name: block.findall(text) for name, text in PAGES.items()}


PYTHON, SHELL = find_blocks("python"), find_blocks("bash")
TESTED_ELSEWHERE = ("README.md", "docs/first_data_set.md")  # below, and in test_first_data_set.py
LONG_PAGES = [name for name, blocks in PYTHON.items() if blocks and name not in TESTED_ELSEWHERE]
INSTALLERS = ("pip", "git", "pre-commit", "cd")


@pytest.fixture(scope="module")
def hub():
    """A Hub that has timm's ResNet-50 with random weights."""
    torch.manual_seed(0)
    weights = {key: value.contiguous() for key, value in timm.create_model("resnet50").state_dict().items()}
    with HubServer() as hub:
        hub.add_repo("timm/resnet50.a1_in1k", {"model.safetensors": save(weights)})
        yield hub


@pytest.fixture(scope="module")
def python(hub, tmp_path_factory):
    """A Python that has imported the packages of others, with the Hub of this file."""
    with WarmPython(**hub.env(tmp_path_factory.mktemp("home"))) as python:
        yield python


def write_blocks(page, folder):
    (folder / "page.py").write_text("\n".join(PYTHON[page]))


@pytest.mark.slow
def test_the_snippet_of_readme_runs(hub, tmp_path):
    Image.new("RGB", (320, 240), "orange").save(tmp_path / "photo.jpg")
    write_blocks("README.md", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **hub.env(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "page.py"], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "Explanation(cape maps 7x7: " in done.stdout
    assert (tmp_path / "why.png").exists()
    assert re.search(r"\d+ of 49 locations carry [\d.]+% of this class's [\d.]+%", done.stdout)


def test_pages_have_blocks():
    assert {"docs/models.md", "docs/huggingface.md", "docs/scores.md", "docs/clients.md"} <= set(LONG_PAGES)


@pytest.mark.slow
@pytest.mark.parametrize("page", LONG_PAGES)
def test_the_blocks_of_a_page_run_one_after_another(page, python, tmp_path):
    write_blocks(page, tmp_path)
    done = python.run("page.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 180


@pytest.mark.parametrize("page", PAGES)
def test_links_name_files_and_sections_that_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in target:
            continue
        name, _, section = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), f"{page} links to {target}, which does not exist"
        if section:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert section in slugs, f"{page} links to {target}, which has no such section"


def test_the_tree_of_readme_names_files_that_exist():
    folder = ROOT
    for line in PAGES["README.md"].split("## The tree")[1].split("```")[1].strip().splitlines():
        name = line.split()[0]
        indented = line.startswith("  ")
        file = folder / name if indented else ROOT / name
        assert file.exists(), f"the tree names {name}, which does not exist"
        if not indented and name.endswith("/"):
            folder = file


def test_the_site_shows_every_page():
    class Loader(yaml.SafeLoader):
        """YAML whose tags, such as those of Material for MkDocs, are of no interest here."""

    Loader.add_multi_constructor("", lambda loader, suffix, node: None)
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]
    shown = set(re.findall(r"[\w/-]+\.(?:md|ipynb)", str(nav)))
    pages = {name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")}
    notebooks = {f"notebooks/{path.name}" for path in (ROOT / "docs" / "notebooks").iterdir()}
    assert shown == pages | notebooks


def command_lines():
    for page, blocks in SHELL.items():
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            for command in re.split(r"&&", line):
                words = shlex.split(command, comments=True)
                words = words[next((i for i, word in enumerate(words) if "=" not in word), 0) :]
                if words:
                    yield pytest.param(words, id=f"{page}: {' '.join(words)}")


@pytest.mark.parametrize("words", list(command_lines()))
def test_commands_in_shell_blocks_exist(words, capsys):
    if words[0] == "softcam-hub":
        assert words[1] in COMMANDS
        if "--help" not in words:
            make_parser(words[1]).parse_args(words[2:])  # exits where an option does not exist
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words[1:])
    elif words[0] != "cd" and "softcam_hub" in words:  # of `accelerate launch -m` and `torchrun -m`
        command, *options = words[words.index("softcam_hub") + 1 :]
        make_parser(command).parse_args(options)
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2])
    elif words[:2] == ["python", "-c"]:
        compile(words[2], "<command>", "exec")
    elif words[0] == "export":
        assert all("=" in word for word in words[1:])
    elif words[0] == "python":
        assert (ROOT / words[1]).exists()
    else:
        assert words[0] in INSTALLERS
