"""The notebooks of the documentation: what is committed has run, and they run as they stand."""

import re

import nbformat
import pytest
from helpers.hub_server import HubServer

from tools.notebooks import NOTEBOOKS, execute

PRIVATE = re.compile(r"/(home|tmp|root|work|Users)/")
"""Paths of the machine on which a notebook ran."""


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
    folder = tmp_path / "empty"
    folder.mkdir()
    with HubServer() as hub:
        execute(NOTEBOOKS[name], folder, hub.env(tmp_path / "home"))
