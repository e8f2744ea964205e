"""Helpers for tests of pushes to the Hub on the loopback device (the fixture `hub`)."""

from pathlib import Path

import softcam_hub
from helpers.hub_server import HubServer

REPO = "tester/tiny"
CODE = {file.name for file in (Path(softcam_hub.__file__).parent / "models").glob("*.py")} - {"__init__.py"}
"""Names of the files of code that every model repository holds."""


def writes(hub: HubServer) -> list[str]:
    """List the paths of the requests that changed something, or would have."""
    return [path for method, path in hub.requests if method != "GET"]
