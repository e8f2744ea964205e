"""The scores' folder as a Space: a copy of it works without our package, and its page scores a CSV."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import softcam_hub.explanation_scores

FOLDER = Path(softcam_hub.explanation_scores.__file__).parent


@pytest.fixture
def elsewhere(tmp_path):
    """A copy of the folder, in another place and under the name that a Space gives it, and caches of its own."""
    copy = shutil.copytree(FOLDER, tmp_path / "space" / FOLDER.name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy, {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}


ALONE = """
import sys
sys.modules["softcam_hub"] = None
import evaluate, torch
metric = evaluate.load(sys.argv[1])
maps = torch.rand(2, 16, 16)
print(metric.compute(maps=maps, kept_maps=maps, second_maps=maps, masks=maps > 0.5, confidence=[1, 1], kept=[1, 0.5]))
"""


@pytest.mark.slow
def test_a_copy_works_without_our_package(elsewhere, tmp_path):
    copy, environment = elsewhere
    command = [sys.executable, "-I", "-c", ALONE, str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'average_drop': 25.0" in done.stdout
    assert "'miou': 100.0" in done.stdout
    assert "'pxap': " in done.stdout
    assert "'max_box_accuracy': 100.0" in done.stdout
    assert "'pointing_game': 100.0" in done.stdout


@pytest.mark.slow
def test_the_page_scores_a_csv(elsewhere):
    copy, environment = elsewhere
    port = free_port()
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    page = subprocess.Popen([sys.executable, "app.py"], cwd=copy, env={**environment, **settings})
    try:
        wait_for(f"http://127.0.0.1:{port}/config", page)
        rows = "confidence,kept\n0.8,0.4\n0.5,0.6\n"
        assert ask(port, rows) == [["average_drop", 25.0], ["increase_in_confidence", 50.0]]
        assert ask(port, "hit_rate,iou_otsu\n1,0.25\n0,0.5\n") == [["hit_rate", 50.0], ["iou_otsu", 37.5]]
        causal = "causal_rank,largest_evidence,annotated\n0.5,3,1\n-0.25,4,0\n"
        assert ask(port, causal) == [["causal_rank", 0.12], ["false_alarms", 100.0]]
        assert "row 1, column kept: 'x' is not a number" in str(ask(port, "confidence,kept\n0.8,x\n"))
        assert "unknown input 'y'" in str(ask(port, "y\n0.8\n"))
    finally:
        page.terminate()
        page.wait(timeout=30)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(url, process, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"{url} did not answer")


def ask(port, text):
    """Rows of the page's answer, or its error."""
    base = f"http://127.0.0.1:{port}/gradio_api/call/score"
    request = urllib.request.Request(base, json.dumps({"data": [text]}).encode(), {"Content-Type": "application/json"})
    event = json.load(urllib.request.urlopen(request, timeout=60))["event_id"]
    answer = urllib.request.urlopen(f"{base}/{event}", timeout=120).read().decode()
    kind, data = re.search(r"event: (complete|error)\ndata: (.*)", answer).groups()
    return json.loads(data)[0]["data"] if kind == "complete" else data
