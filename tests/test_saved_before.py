"""Folders and an interrupted run that release 0.1.0 wrote, before config.json carried a format number."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState
from helpers.training import largest_difference
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from timm.models import save_for_hf
from transformers import AutoConfig, AutoModelForImageClassification

from softcam_hub import CAPEForImageClassification
from softcam_hub.evaluation.models import fingerprint
from softcam_hub.loading import load_classifier
from softcam_hub.models.saved_format import FORMAT, FORMAT_OF_ONE_SCALE
from softcam_hub.training import make_config, run

ARCHIVE = Path(__file__).parent / "fixtures" / "saved_by_0.1.0.zip"
RUN = {
    "model": "cape_test_resnet",
    "model_args": "channels=[4,4,8,8]",
    "mode": "from-scratch",
    "data": "lesions",
    "data_size": 32,
    "image_size": 32,
    "train_count": 32,
    "eval_count": 8,
    "batch_size": 8,
    "workers": 0,
    "epochs": 3,
    "output": "interrupted",
}
"""Settings of the run that was killed after its first epoch."""

DOORS = {
    "timm": lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
    "transformers": lambda folder: AutoModelForImageClassification.from_pretrained(folder).eval(),
    "any source": lambda folder: load_classifier(folder).model,
}

OWN_COPY = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

for folder in map(Path, sys.argv[1:]):
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
    output = model(load_file(folder / "expected.safetensors")["images"])
    save_file({"logits": output.logits.detach(), "maps": output.maps.detach()}, folder / "copy.safetensors")
    assert Path(sys.modules[type(model).__module__].__file__).read_text() == (folder / "modeling.py").read_text()
assert "softcam_hub" not in sys.modules
"""

families = pytest.mark.parametrize("family", ["softcam", "cape"])
doors = pytest.mark.parametrize("door", DOORS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    zipfile.ZipFile(ARCHIVE).extractall(root)
    return root


def check_answers(found, expected):
    for name in ("logits", "maps"):
        assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5), name


@doors
@families
def test_a_folder_gives_the_logits_and_maps_of_then(family, door, saved):
    expected = load_file(saved / family / "expected.safetensors")
    model = DOORS[door](saved / family)
    with torch.no_grad():
        logits, maps = model.head(model.forward_features(expected["images"]), kind=family)
    check_answers({"logits": logits, "maps": maps}, expected)


@families
def test_a_folder_that_is_saved_again_has_todays_format(family, saved, tmp_path):
    assert "format" not in json.loads((saved / family / "config.json").read_text())["model_args"]
    AutoModelForImageClassification.from_pretrained(saved / family).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_args"] == {"channels": [4, 4, 8, 8], "format": FORMAT_OF_ONE_SCALE, "stem_width": 4}
    before, after = load_classifier(saved / family), load_classifier(tmp_path)
    assert fingerprint(before) == fingerprint(after)  # benchmark folders of the model go on


@pytest.mark.slow
def test_the_copies_of_the_code_in_the_folders_still_work(saved, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(OWN_COPY)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    folders = [str(saved / family) for family in ("softcam", "cape")]
    done = subprocess.run(
        [sys.executable, script, *folders], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    for folder in map(Path, folders):
        check_answers(load_file(folder / "copy.safetensors"), load_file(folder / "expected.safetensors"))


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_and_reaches_the_same_weights(saved, monkeypatch):
    monkeypatch.chdir(saved)  # the run was given a relative output folder
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(make_config(**RUN, resume=True))
    finally:
        torch.set_num_threads(threads)
    found = load_file("interrupted/model/model.safetensors")
    assert largest_difference(found, load_file("finished/model.safetensors")) < 1e-4


# Formats and options that this release does not know.

REFUSED = {
    "a newer format": (
        {"format": FORMAT + 1},
        f"has format {FORMAT + 1}, and this release of softcam_hub reads formats up to {FORMAT}: update softcam_hub",
    ),
    "no number": ({"format": "two"}, f"format in model_args must be a whole number from 1 to {FORMAT}, got 'two'"),
    "zero": ({"format": 0}, f"format in model_args must be a whole number from 1 to {FORMAT}, got 0"),
    "an unknown option": (
        {"format": FORMAT, "head_options": {"gates": 3}},
        "was saved with the head option 'gates', which {title} does not have in this release",
    ),
    "an option of another type": (
        {"format": FORMAT, "head_options": {"naive": "false"}},
        "naive of CAPE must be true or false, got 'false'|'naive', which SoftCAM does not have",
    ),
    "an option that is said twice": (
        {"format": FORMAT, "head_options": {"naive": True}, "naive": False},
        "naive=False contradicts head_options, which say naive=True: give naive once|'naive', which SoftCAM does not have",
    ),
    "options without names": ({"head_options": ["gates"]}, r"head_options in model_args must map names to values"),
}


def change(folder, target, **model_args):
    """Copy a folder, with other `model_args` in its config.json."""
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        (target / name).write_bytes((folder / name).read_bytes())
    config = json.loads((target / "config.json").read_text())
    config["model_args"] |= model_args
    (target / "config.json").write_text(json.dumps(config))
    return target


@doors
@pytest.mark.parametrize("case", REFUSED)
@families
def test_what_this_release_does_not_know_is_refused_with_a_sentence(family, case, door, saved, tmp_path):
    model_args, message = REFUSED[case]
    folder = change(saved / family, tmp_path / "changed", **model_args)
    message = message.format(title={"softcam": "SoftCAM", "cape": "CAPE"}[family])
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        DOORS[door](folder)


def test_the_configuration_alone_refuses_a_newer_format(saved, tmp_path):
    folder = change(saved / "cape", tmp_path / "changed", format=FORMAT + 1)
    with pytest.raises((ValueError, StrictDataclassError), match="update softcam_hub"):
        AutoConfig.from_pretrained(folder)


SAVES = {
    "timm": lambda model, folder: save_for_hf(model, folder, safe_serialization=True),
    "transformers": lambda model, folder: CAPEForImageClassification.from_timm(model).save_pretrained(folder),
}


@pytest.mark.parametrize("save", SAVES)
def test_options_of_the_head_travel(save, tmp_path):
    SAVES[save](timm.create_model("cape_test_resnet", num_classes=3, naive=True), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["head_options"] == {"naive": True}
    for load in (DOORS["timm"], DOORS["any source"], CAPEForImageClassification.from_pretrained):
        assert load(tmp_path).head.naive
