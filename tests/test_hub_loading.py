"""A pushed model or Space loads in processes that see nothing but the Hub."""

import json

import pytest
import torch
from helpers.pushing import REPO
from helpers.warm import WarmPython

from softcam_hub.hub import PushResult, push

LOAD = """
import json, sys
import torch
import yaml
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from PIL import Image
repo, revision = sys.argv[1:]
picture = Image.linear_gradient("L").convert("RGB")
trust = {"trust_remote_code": True, "revision": revision}
inputs = AutoImageProcessor.from_pretrained(repo, **trust)(picture, return_tensors="pt")
logits = {"auto": AutoModelForImageClassification.from_pretrained(repo, **trust).eval()(**inputs).logits}
assert not any(name.partition(".")[0] == "softcam_hub" for name in sys.modules)
import softcam_hub, timm
logits["timm"] = timm.create_model(f"hf-hub:{repo}@{revision}", pretrained=True).eval()(inputs["pixel_values"])
logits["ours"] = softcam_hub.CAPEForImageClassification.from_pretrained(repo, revision=revision)(**inputs).logits
found = pipeline("image-explanation", model=repo, revision=revision)(picture, classes=list(range(4)))
logits["pipeline"] = torch.tensor([[row["score"] for row in found]]).log()
print(json.dumps({name: value.tolist() for name, value in logits.items()}))
"""


def load_and_print(python, home, script, *arguments):
    """Run a program in a process of its own, and return what it printed."""
    home.mkdir(exist_ok=True)
    done = python.run("-c", script, *arguments, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout


PUSHED = {
    "main": {},
    "v2": {"revision": "v2", "private": True},
    "refs/pr/1": {"create_pr": True},
}
"""Revision -> how a model is pushed there."""


@pytest.mark.slow
def test_a_pushed_model_loads_through_every_door(hub, folder, tmp_path):
    with WarmPython(**hub.env(tmp_path / "home")) as python:
        for number, (revision, options) in enumerate(PUSHED.items()):
            repo = f"{REPO}-{number}"
            if "create_pr" in options:
                hub.add_repo(repo, {})
            assert isinstance(push(folder, repo, **options), PushResult)
            logits = json.loads(load_and_print(python, tmp_path / "home", LOAD, repo, revision).splitlines()[-1])
            assert logits.keys() == {"auto", "timm", "ours", "pipeline"}
            expected = torch.tensor(logits["ours"])
            for door, found in logits.items():
                assert torch.allclose(torch.tensor(found), expected, atol=1e-5), (revision, door)


SCORE = """
import sys
sys.modules["softcam_hub"] = None
import evaluate, torch
metric = evaluate.load("tester/explanation_scores", module_type="metric")
maps = torch.rand(2, 16, 16)
print(metric.compute(maps=maps, kept_maps=maps, second_maps=maps, masks=maps > 0.5, confidence=[1, 1], kept=[1, 0.5]))
"""


@pytest.mark.slow
def test_evaluate_loads_the_pushed_scores(hub, tmp_path):
    push("scores", "tester/explanation_scores", repo_type="space")
    with WarmPython(**hub.env(tmp_path / "home")) as python:
        told = load_and_print(python, tmp_path / "home", SCORE)
    assert "'average_drop': 25.0" in told
    assert "'miou': 100.0" in told
    assert ("GET", "/spaces/tester/explanation_scores/resolve/main/faithfulness.py") in hub.requests
