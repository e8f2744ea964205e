"""Programs of clients that open saved models in a process of their own, and write what they saw to one file."""

import inspect
import json
import os
import subprocess
import sys

from safetensors.torch import load_file

from helpers.saved_models import images, picture

IMPORTS = """
import json, sys
import numpy as np
import timm, torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

job, out, seen = json.loads(sys.argv[1]), sys.argv[2], {}

"""
SHARED = inspect.getsource(images) + inspect.getsource(picture)
LOOK = """
def scores(model, **trust):
    found = pipeline("image-classification", model=model, **trust)(picture(), top_k=5)
    by_label = {row["label"]: row["score"] for row in found}
    return torch.tensor([by_label[name] for name in ("asp", "bat", "cod", "doe", "eel")])

def look(name, door, model, x):
    seen[f"{name}/{door}"] = model(x).logits
    seen[f"{name}/{door} maps"] = model.explain(x, classes=[[3, 1]]).maps
"""
READ = (
    IMPORTS
    + SHARED
    + LOOK
    + """
import softcam_hub
classes = {"softcam": softcam_hub.SoftCAMForImageClassification, "cape": softcam_hub.CAPEForImageClassification}
with torch.no_grad():
    for name, place in job.items():
        repo = place["ours"]
        model = AutoModelForImageClassification.from_pretrained(repo)
        x = images(model)
        look(name, "auto", model, x)
        features, *rest = AutoModel.from_pretrained(repo)(x, return_dict=False)
        seen |= {f"{name}/features": features, f"{name}/features logits": rest[0]}
        through_timm = timm.create_model(place["scheme"] + repo, pretrained=True).eval()
        seen[f"{name}/timm"] = through_timm(x)
        seen[f"{name}/timm maps"] = through_timm.explain(x, classes=[[3, 1]]).maps
        seen[f"{name}/scores"] = scores(repo)
        prepared = AutoImageProcessor.from_pretrained(repo)(picture(), return_tensors="pt")
        seen[f"{name}/processor"] = prepared["pixel_values"]
        exported = classes[place["family"]].from_pretrained(place["timm"])
        assert exported.config.id2label == model.config.id2label, exported.config
        look(name, "exported", exported, x)
save_file({key: value.contiguous() for key, value in seen.items()}, out)
"""
)
NOT_INSTALLED = """
import importlib.abc, sys
class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "softcam_hub":
            raise ModuleNotFoundError("No module named 'softcam_hub'")
sys.meta_path.insert(0, NotInstalled())
try:
    import softcam_hub
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("softcam_hub can be imported, so this shows nothing")
"""
READ_WITHOUT_US = (
    NOT_INSTALLED
    + IMPORTS
    + SHARED
    + LOOK
    + """
trust = {"trust_remote_code": True}
with torch.no_grad():
    for name, place in job.items():
        repo = place["ours"]
        config = AutoConfig.from_pretrained(repo, **trust)
        assert list(config.label2id) == ["asp", "bat", "cod", "doe", "eel"], config
        model = AutoModelForImageClassification.from_pretrained(repo, **trust)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        x = images(model)
        look(name, "auto", model, x)
        seen[f"{name}/features"] = AutoModel.from_pretrained(repo, **trust)(x)[0]
        seen[f"{name}/scores"] = scores(repo, **trust)
        model.save_pretrained(f"again-{name}")
assert not any(module.partition(".")[0] == "softcam_hub" for module in sys.modules)
save_file({key: value.contiguous() for key, value in seen.items()}, out)
"""
)
PUSH = """
import json, sys
import timm
from timm.models import push_to_hf_hub
from transformers import AutoModelForImageClassification
import softcam_hub

for name, place in json.loads(sys.argv[1]).items():
    model = AutoModelForImageClassification.from_pretrained(place["ours"])
    model.push_to_hub(f"tester/{name}")
    exported = timm.create_model("local-dir:" + place["timm"], pretrained=True)
    labels = {"label_names": [model.config.id2label[index] for index in range(5)]}
    push_to_hf_hub(exported, f"tester/{name}-timm", model_config=labels, safe_serialization=True)
    if name == "resnet":
        model.save_pretrained("at-save", push_to_hub=True, repo_id="tester/at-save")
"""
FROM_TIMM = """
import sys
from safetensors.torch import save_file
from softcam_hub import CAPEForImageClassification, SoftCAMForImageClassification
vanilla = SoftCAMForImageClassification.from_timm("softcam_test_resnet.r160_in1k")
assert vanilla.config.num_labels == 1000 and vanilla.config.id2label[1].startswith("goldfish"), vanilla.config
few = CAPEForImageClassification.from_timm("cape_test_resnet", num_labels=4)
assert few.head.weight.shape[0] == few.config.num_labels == 4
weights = {f"vanilla/{key}": value for key, value in vanilla.state_dict().items()}
save_file({**weights, **{f"few/{key}": value for key, value in few.state_dict().items()}}, sys.argv[1])
"""


def run(script, folder, *arguments, **environment):
    command = [sys.executable, "-c", script, *arguments]
    alone = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    env = {**os.environ, **alone, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr


def read(script, places, folder, **environment):
    """What a client saw: `name/door` -> tensor."""
    run(script, folder, json.dumps(places), str(folder / "seen.safetensors"), **environment)
    return load_file(folder / "seen.safetensors")
