"""The notebooks of the documentation: what is committed has run, and they run, here with fewer images."""

import re

import nbformat
import pytest
from helpers.hub_server import HubServer

from tools.notebooks import NOTEBOOKS, execute

PRIVATE = re.compile(r"/(home|tmp|root|work|Users)/")
"""Paths of the machine on which a notebook ran."""


SHORTER = {
    "own_images": {
        '{"train": 400, "test": 100}': '{"train": 100, "test": 20}',
        "--epochs 3": "--epochs 2",
        "--limit 60": "--limit 12",
    }
}
"""Notebook -> what the test replaces in it, as no number of its outputs is read."""


@pytest.fixture(params=NOTEBOOKS)
def name(request):
    return request.param


def test_there_are_two_tutorials():
    assert {"own_images", "from_grad_cam"} <= set(NOTEBOOKS)


def test_a_notebook_holds_the_outputs_of_one_run(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)  # a reader sees a picture without running
    assert not PRIVATE.search("".join(output.get("text", "") for output in outputs))


@pytest.mark.slow
def test_a_notebook_runs_from_its_first_cell_to_its_last(name, tmp_path):
    folder, shorter = tmp_path / "empty", tmp_path / f"{name}.ipynb"
    folder.mkdir()
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    for old, new in SHORTER.get(name, {}).items():
        (cell,) = (cell for cell in notebook.cells if old in cell.source and cell.cell_type == "code")
        cell.source = cell.source.replace(old, new)
    nbformat.write(notebook, shorter)
    with HubServer() as hub:
        execute(shorter, folder, hub.env(tmp_path / "home"))
