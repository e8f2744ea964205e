"""A pushed model or Space loads in processes that see nothing but the Hub."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers.pushing import REPO

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


def fresh(hub, home, script, *arguments):
    environment = {**os.environ, **hub.env(home)}
    line = [sys.executable, "-c", script, *arguments]
    home.mkdir(exist_ok=True)
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "revision"), [({}, "main"), ({"revision": "v2", "private": True}, "v2"), (None, "refs/pr/1")]
)
def test_a_pushed_model_loads_through_every_door(options, revision, hub, folder, tmp_path):
    if options is None:
        hub.add_repo(REPO, {})
        options = {"create_pr": True}
    assert isinstance(push(folder, REPO, **options), PushResult)
    logits = json.loads(fresh(hub, tmp_path / "home", LOAD, REPO, revision).splitlines()[-1])
    assert logits.keys() == {"auto", "timm", "ours", "pipeline"}
    expected = torch.tensor(logits["ours"])
    for door, found in logits.items():
        assert torch.allclose(torch.tensor(found), expected, atol=1e-5), door


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
    told = fresh(hub, tmp_path / "home", SCORE)
    assert "'average_drop': 25.0" in told
    assert "'miou': 100.0" in told
    assert ("GET", "/spaces/tester/explanation_scores/resolve/main/faithfulness.py") in hub.requests
