"""Helpers for tests of pushes: a Hub on the loopback device that the real client talks to, and a folder to push."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

import softcam_hub
from helpers.hub_server import HubServer

REPO = "tester/tiny"
CODE = {file.name for file in (Path(softcam_hub.__file__).parent / "models").glob("*.py")} - {"__init__.py"}
"""Names of the files of code that every model repository holds."""


@contextmanager
def loopback_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Run a Hub on the loopback device, and let the client of this process talk to it."""
    with HubServer() as server:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


def shipped_model(tmp_path: Path) -> Path:
    """Copy the model that comes with the package; like the original, the copy has no code beside it."""
    return Path(shutil.copytree(softcam_hub.CAPE_LESIONS, tmp_path / "model"))


def writes(hub: HubServer) -> list[str]:
    """List the paths of the requests that changed something, or would have."""
    return [path for method, path in hub.requests if method != "GET"]
