"""Run the notebooks in `docs/notebooks/`, and keep their outputs and the time that they take.

python -m tools.notebooks               # run all, one after another, and write outputs and rows
python -m tools.notebooks own_images    # run one

A notebook runs in an empty folder, so that it can rely on nothing that lies beside it, and with a Hub on this machine,
so that it sends nothing. The rows are
`benchmarks/results/notebooks.jsonl`; `benchmarks.tables` derives the table in `docs/speed.md` from them.
"""

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from benchmarks.timing import replace_rows
from softcam_hub.arguments import ArgumentParser

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))}
ROWS = ROOT / "benchmarks" / "results" / "notebooks.jsonl"
TIMEOUT = 3600
"""Seconds after which a cell is given up."""

NOISE = re.compile(r"\d%\||^W\d{4} .*_pytree\.py:|^\[IPKernelApp\]")
"""Progress bars, and warnings about types of other packages and about the connection, on which no reader can act."""


def execute(path: Path, folder: Path, hub: dict[str, str]) -> nbformat.NotebookNode:
    """Run a notebook from its first cell to its last, and return it with its outputs.

    Args:
        path: Notebook to run.
        folder: Working folder of the notebook.
        hub: Environment variables with the address of the Hub.
    """
    notebook = nbformat.read(path, as_version=4)
    scripts = Path(sys.executable).parent  # where `softcam-hub` lies, also in an environment that is not active
    environment = {
        **os.environ,
        **hub,
        "PATH": os.pathsep.join([str(scripts), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "TQDM_DISABLE": "1",  # progress bars would fill the page
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=TIMEOUT, resources=resources).execute(env=environment)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "softcam-hub: error" in output.get("text", ""):  # a command that fails does not stop a notebook
                raise RuntimeError(output.text)
    return notebook


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Remove warnings of libraries, progress bars, folders of this machine, and times of cells."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "text" in output:
                    lines = [line.rstrip() for line in output.text.replace(f"{ROOT}/", "").splitlines()]
                    output.text = "\n".join(line for line in lines if line and not NOISE.search(line)) + "\n"


def describe(name: str, notebook: nbformat.NotebookNode, seconds: float) -> dict[str, Any]:
    """Return the row of a notebook that has run."""
    import torch

    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    commands = sum(line.startswith("!") for source in code for line in source.splitlines())
    return {
        "notebook": name,
        "seconds": round(seconds),
        "cells": len(code),
        "commands": commands,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


def main() -> int:
    """Run the notebooks that are named, and write their outputs and rows."""
    parser = ArgumentParser(description="Run the notebooks of the documentation.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NOTEBOOKS))
    names = parser.parse_args().names or list(NOTEBOOKS)
    if unknown := set(names) - set(NOTEBOOKS):
        parser.error(f"there is no notebook {min(unknown)}: expected some of {', '.join(NOTEBOOKS)}")
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.hub_server import HubServer

    for name in names:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as home, HubServer() as hub:
            notebook = execute(NOTEBOOKS[name], Path(folder), hub.env(Path(home)))
        row = describe(name, notebook, time.monotonic() - started)
        tidy(notebook)
        nbformat.write(notebook, NOTEBOOKS[name])
        replace_rows([row], ROWS, ["notebook"])
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
