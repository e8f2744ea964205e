"""Every door into a saved folder gives the same model, in fresh processes, and what is broken is refused at the door.

- A client is a process of its own: it opens all folders one after another and writes what it saw to one file.
- Parameters and statistics are random, so that a tensor which was drawn again, or a buffer left empty, shows.
"""

import inspect
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import timm
import torch
from conftest import randomise, relative_error
from helpers.hub_server import HubServer
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from transformers import AutoModel, AutoModelForImageClassification

from softcam_hub import CAPEConfig, CAPEForImageClassification, SoftCAMConfig, SoftCAMForImageClassification

CLASSES = {"softcam": SoftCAMForImageClassification, "cape": CAPEForImageClassification}
NAMES = ["asp", "bat", "cod", "doe", "eel"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
TINY_VIT = {"img_size": 64, "depth": 1, "embed_dim": 48, "num_heads": 2}
SMALL_SWIN = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "img_size": 64, "window_size": 4}
MODELS = {
    "resnet": ("cape", "test_resnet", {}),
    "convnext": ("softcam", "test_convnext", {"output_stride": 8}),
    "swinv2": ("cape", "swinv2_tiny_window8_256", SMALL_SWIN),
    "gap-vit": ("softcam", "test_vit2", {"img_size": 64}),
    "class-token-vit": ("cape", "test_vit", {"img_size": 64}),
    "efficientnet": ("softcam", "test_efficientnet", {}),
    "vgg": ("cape", "vgg11", {"mlp_ratio": 1 / 64}),
}
OTHER_HEAD = {
    f"{name}-other-head": ("cape" if family == "softcam" else "softcam", architecture, args)
    for name, (family, architecture, args) in MODELS.items()
    if name != "vgg"
}
UNSAVED_BUFFERS = {
    "coatnet": ("softcam", "test_coatnet", {"img_size": 64}),
    "maxvit": ("cape", "test_maxvit", {"img_size": 64}),
    "eva02": ("softcam", "eva02_tiny_patch14_224", {"img_size": 56, "depth": 1}),
    "beit": ("cape", "beit_base_patch16_224", TINY_VIT),
    "levit": ("softcam", "levit_128s", {}),
    "rope-vit": ("softcam", "vit_base_patch16_rope_224", TINY_VIT),
    "dinov3": ("cape", "vit_small_patch16_dinov3", TINY_VIT),
    "blurred-resnet": ("softcam", "resnetblur18", {}),
}
ALL = {**MODELS, **OTHER_HEAD, **UNSAVED_BUFFERS}
EXACT = [name for name in {**MODELS, **UNSAVED_BUFFERS} if name not in ("vgg", "class-token-vit", "rope-vit")]

pytestmark = pytest.mark.filterwarnings("ignore:.*has no pretrained head", "ignore:.*_checkpointing:FutureWarning")


def slow_beside_main(names):
    return [name if name in MODELS else pytest.param(name, marks=pytest.mark.slow) for name in names]


every_model = pytest.mark.parametrize("name", slow_beside_main(ALL))
main_models = pytest.mark.parametrize("name", MODELS)


def images(model):
    side = model.input_size if model.pretrained_cfg.get("fixed_input_size") else (3, 64, 64)
    return torch.randn(2, *side, generator=torch.Generator().manual_seed(3))


def picture():
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 70, 3), dtype=np.uint8))


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


def make(name, **options):
    family, architecture, args = ALL[name]
    return randomise(timm.create_model(f"{family}_{architecture}", num_classes=5, **args, **options)).eval()


class Saved:
    """Each model twice on disk, by our own `save_pretrained` and by timm's export; made when first asked for."""

    def __init__(self, root):
        self.root = root
        self.models, self.places, self.answers = {}, {}, {}

    def model(self, name):
        if name not in self.models:
            self.models[name] = make(name)
        return self.models[name]

    def place(self, name):
        if name not in self.places:
            model, folder = self.model(name), self.root / name
            save_for_hf(model, folder / "timm", model_config={"label_names": NAMES}, safe_serialization=True)
            CLASSES[model.family].from_timm(model, **LABELS).save_pretrained(folder / "ours")
            saved = {"ours": str(folder / "ours"), "timm": str(folder / "timm")}
            self.places[name] = {**saved, "scheme": "local-dir:", "family": model.family}
        return self.places[name]

    def ours(self, name):
        return self.place(name)["ours"]

    def answer(self, name):
        """What every door must give, computed by the timm model and timm's preprocessing."""
        if name not in self.answers:
            self.answers[name] = expected_of(self.model(name))
        return self.answers[name]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return Saved(tmp_path_factory.mktemp("saved"))


@torch.no_grad()
def expected_of(model):
    x = images(model)
    data = resolve_data_config({}, pretrained_cfg={**model.pretrained_cfg, "input_size": model.input_size})
    prepared = create_transform(**data, is_training=False)(picture())[None]
    logits, maps = model(x), model.explain(x, classes=[[3, 1]]).maps
    doors = dict.fromkeys(("auto", "timm", "exported", "features logits"), logits)
    doors |= dict.fromkeys(("auto maps", "timm maps", "exported maps"), maps)
    doors |= {"features": model.forward_features(x), "processor": prepared}
    return {**doors, "scores": model(prepared)[0].softmax(dim=0)}


def check_doors(name, seen, saved, doors):
    errors = {door: relative_error(seen[f"{name}/{door}"], saved.answer(name)[door]) for door in doors}
    assert max(errors.values()) < 1e-5, errors


HERE = ("auto", "auto maps", "features", "features logits", "timm", "timm maps", "scores", "processor")
HERE += ("exported", "exported maps")
ELSEWHERE = ("auto", "auto maps", "features", "scores")


@pytest.fixture(scope="module")
def seen_on_disk(saved, tmp_path_factory):
    return read(READ, {name: saved.place(name) for name in ALL}, tmp_path_factory.mktemp("client"))


@pytest.mark.slow
@every_model
def test_every_door_from_disk(name, seen_on_disk, saved):
    check_doors(name, seen_on_disk, saved, HERE)


@pytest.fixture(scope="module")
def elsewhere(saved, tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def seen_without_us(saved, elsewhere):
    return read(READ_WITHOUT_US, {name: saved.place(name) for name in MODELS}, elsewhere)


@main_models
def test_a_folder_loads_where_softcam_hub_is_not_installed(name, seen_without_us, saved):
    check_doors(name, seen_without_us, saved, ELSEWHERE)


@pytest.mark.slow
def test_what_was_saved_there_loads_once_more(seen_without_us, elsewhere, saved, tmp_path):
    again = {name: elsewhere / f"again-{name}" for name in MODELS}
    seen = read(READ_WITHOUT_US, {name: {"ours": str(folder)} for name, folder in again.items()}, tmp_path)
    for name, folder in again.items():
        check_doors(name, seen, saved, ELSEWHERE)
        model = AutoModelForImageClassification.from_pretrained(folder)
        through_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        x = images(model)
        assert relative_error(model(x).logits, saved.answer(name)["auto"]) < 1e-5
        assert relative_error(through_timm(x), saved.answer(name)["auto"]) < 1e-5


@pytest.fixture(scope="module")
def hub(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pusher")
    with HubServer() as hub:
        run(PUSH, folder, json.dumps({name: saved.place(name) for name in MODELS}), **hub.env(folder / "home"))
        yield hub


def repos():
    place = {"scheme": "hf-hub:"}
    return {n: {**place, "ours": f"tester/{n}", "timm": f"tester/{n}-timm", "family": MODELS[n][0]} for n in MODELS}


@pytest.fixture(scope="module")
def seen_on_hub(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("puller")
    return read(READ, repos(), folder, **hub.env(folder / "home"))


@pytest.mark.slow
@main_models
def test_every_door_through_the_hub(name, seen_on_hub, saved):
    check_doors(name, seen_on_hub, saved, HERE)


@pytest.fixture(scope="module")
def seen_on_hub_without_us(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger")
    return read(READ_WITHOUT_US, repos(), folder, **hub.env(folder / "home"))


@pytest.mark.slow
@main_models
def test_a_repo_loads_where_softcam_hub_is_not_installed(name, seen_on_hub_without_us, saved):
    check_doors(name, seen_on_hub_without_us, saved, ELSEWHERE)


@pytest.mark.slow
@pytest.mark.parametrize("repo", ["resnet", "at-save"])
def test_a_repo_holds_the_code_that_its_auto_map_names(repo, hub):
    files = hub.files(f"tester/{repo}")
    named = {path.split(".")[0] + ".py" for path in json.loads(files["config.json"])["auto_map"].values()}
    assert named <= set(files)


# What was trained is never drawn again.


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("name", slow_beside_main(EXACT))
def test_from_timm_keeps_the_weights_of_a_vanilla_model(name, family):
    _, architecture, args = ALL[name]
    vanilla = randomise(timm.create_model(architecture, num_classes=5, **args)).eval()
    model = CLASSES[family].from_timm(vanilla)
    kept = {key.removeprefix("backbone."): value for key, value in model.state_dict().items()}
    x = images(model)
    features = model.forward_features(x).mean(dim=(2, 3))
    assert relative_error(features @ model.head.weight.T + model.head.bias, vanilla(x)) < 1e-5
    shared = [key for key in vanilla.state_dict() if key in kept]
    assert len(shared) >= 0.9 * len(vanilla.state_dict())
    assert all(torch.equal(kept[key], vanilla.state_dict()[key]) for key in shared)


@pytest.mark.slow
def test_from_timm_keeps_downloaded_weights(tmp_path):
    vanilla = randomise(timm.create_model("test_resnet"))
    weights = {key: value.contiguous() for key, value in vanilla.state_dict().items()}
    with HubServer() as hub:
        hub.add_repo("timm/test_resnet.r160_in1k", {"model.safetensors": save(weights)})
        run(FROM_TIMM, tmp_path, str(tmp_path / "out.safetensors"), **hub.env(tmp_path / "home"))
    found = load_file(tmp_path / "out.safetensors")
    backbone = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    for model in ("vanilla", "few"):
        assert all(torch.equal(found[f"{model}/backbone.{key}"], value) for key, value in backbone.items())
    assert torch.equal(found["vanilla/head.weight"], weights["fc.weight"])
    assert torch.equal(found["vanilla/head.bias"], weights["fc.bias"])


@every_model
def test_other_classes_keep_the_backbone_bit_for_bit(name, saved):
    model = AutoModelForImageClassification.from_pretrained(
        saved.ours(name), num_labels=7, ignore_mismatched_sizes=True
    )
    before = {**saved.model(name).backbone.state_dict(), **dict(saved.model(name).backbone.named_buffers())}
    after = {**model.backbone.state_dict(), **dict(model.backbone.named_buffers())}
    assert before.keys() == after.keys()
    assert not [key for key, value in before.items() if not torch.equal(after[key], value)]
    assert model.head.weight.shape == (7, model.head.in_features)
    assert 0.015 < model.head.weight.std() < 0.025
    assert not model.head.bias.any()
    assert model(images(model)).logits.shape == (2, model.config.num_labels) == (2, 7)


@every_model
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_half_precision(name, dtype, tolerance, saved):
    model = AutoModelForImageClassification.from_pretrained(saved.ours(name), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    output = model(images(model))
    assert output.logits.dtype == torch.float32
    assert torch.isfinite(output.maps).all()
    assert (output.logits.softmax(dim=1) - saved.answer(name)["auto"].softmax(dim=1)).abs().max() < tolerance


@main_models
def test_device_map(name, saved):
    model = AutoModelForImageClassification.from_pretrained(saved.ours(name), device_map="cpu")
    assert relative_error(model(images(model)).logits, saved.answer(name)["auto"]) < 1e-5


def gradients(model):
    """Of the loss, with how often a module ran: once more for each that is computed again."""
    runs, count = [], lambda *_: runs.append(1)
    handles = [module.register_forward_hook(count) for module in model.backbone.modules()]
    model.zero_grad()
    model(images(model), labels=torch.tensor([0, 2])).loss.backward()
    for handle in handles:
        handle.remove()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, len(runs)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "vgg"])  # timm's VGG has no checkpointing
def test_gradient_checkpointing_gives_the_same_gradients(name, saved):
    model = AutoModelForImageClassification.from_pretrained(saved.ours(name))  # eval: batch norm stays put
    plain, once = gradients(model)
    model.gradient_checkpointing_enable()
    again, more = gradients(model)
    model.gradient_checkpointing_disable()
    assert gradients(model)[1] == once < more
    assert plain.keys() == again.keys()
    assert all(torch.allclose(again[key], value, atol=1e-6) for key, value in plain.items())


# The teacher travels with the training, not with the model.


@pytest.fixture
def training_folder(tmp_path):
    vanilla = randomise(timm.create_model("test_resnet", num_classes=5)).eval()
    model = CAPEForImageClassification.from_timm(vanilla, mode="post-fit", **LABELS)
    model.save_pretrained(tmp_path / "training")
    return tmp_path / "training"


def test_a_training_checkpoint_serves_inference_without_its_teacher(training_folder, tmp_path):
    keys = load_file(training_folder / "model.safetensors").keys()
    assert {"teacher.weight", "teacher.bias"} <= keys
    training = AutoModelForImageClassification.from_pretrained(training_folder)
    direct = AutoModelForImageClassification.from_pretrained(training_folder, mode="direct")
    through_timm = timm.create_model(f"local-dir:{training_folder}", pretrained=True).eval()
    x = images(training)
    for logits in (direct(x).logits, through_timm(x), AutoModel.from_pretrained(training_folder)(x).logits):
        assert torch.equal(logits, training(x).logits)
    assert training.teacher is not None
    assert direct.teacher is None
    direct.save_pretrained(tmp_path / "direct")
    assert load_file(tmp_path / "direct" / "model.safetensors").keys() == keys - {"teacher.weight", "teacher.bias"}
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "direct").config.mode == "direct"


def test_features_saved_from_a_training_checkpoint_load_as_a_classifier(training_folder, tmp_path):
    AutoModel.from_pretrained(training_folder).save_pretrained(tmp_path / "features")
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "features").config.mode == "direct"


def test_direct_mode_leaves_the_weights_of_the_loss_behind(training_folder):
    edit_config(training_folder, beta=0.5)
    assert AutoModelForImageClassification.from_pretrained(training_folder, mode="direct").config.beta is None


# Bad input.


@pytest.fixture
def folder(saved, tmp_path):
    """A folder of our own to break, of SoftCAM on a ResNet."""
    return shutil.copytree(saved.ours("resnet-other-head"), tmp_path / "folder")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_config(folder, drop=(), **changes):
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    config = {key: value for key, value in config.items() if key not in drop}
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, **changes):
    weights = {**load_file(folder / "model.safetensors"), **changes}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


DOORS = {
    "auto": AutoModelForImageClassification.from_pretrained,
    "features": AutoModel.from_pretrained,
    "class": SoftCAMForImageClassification.from_pretrained,
    "timm": lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
}
every_door = pytest.mark.parametrize("door", DOORS)


@every_door
@pytest.mark.parametrize("length", [0, 5, 1000, -1])
def test_truncated_weights(door, length, folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:length])
    with pytest.raises(SafetensorError):
        DOORS[door](folder)


@every_door
def test_wrong_shapes(door, folder):
    edit_weights(folder, **{"head.weight": torch.zeros(7, 96)})
    with pytest.raises(RuntimeError, match="mismatch"):
        DOORS[door](folder)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def replace_by_pickle(folder, **more):
    weights = load_file(folder / "model.safetensors")
    torch.save({**weights, **more}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("door", [door for door in DOORS if door != "timm"])  # timm raises of its own accord
def test_missing_weights(door, folder):
    weights = load_file(folder / "model.safetensors")
    del weights["backbone.conv1.0.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of the backbone, among them backbone\.conv1\.0\.weight$"):
        DOORS[door](folder)


@every_door
def test_a_pickle_runs_nothing(door, folder, tmp_path):
    replace_by_pickle(folder, evil=Evil(tmp_path / "was-run"))
    with pytest.raises((OSError, RuntimeError, ValueError, pickle.UnpicklingError)):
        DOORS[door](folder)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("door", [door for door in DOORS if door != "timm"])  # timm's own code opens that one
def test_a_pickle_is_refused(door, folder):
    replace_by_pickle(folder)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        DOORS[door](folder)


BAD_CONFIGS = {
    "unknown architecture": ({"architecture": "softcam_resnet5O"}, ValueError, "did you mean softcam_resnet50"),
    "vanilla architecture": ({"architecture": "test_resnet"}, ValueError, "did you mean softcam_test_resnet"),
    "other family": ({"architecture": "cape_test_resnet"}, ValueError, "use softcam_test_resnet"),
    "architecture type": ({"architecture": 3}, StrictDataclassError, "'architecture' expected str, got int"),
    "architecture null": ({"architecture": None}, StrictDataclassError, "'architecture' expected str"),
    "model_args type": ({"model_args": [1]}, StrictDataclassError, "'model_args'"),
    "unknown model_args": ({"model_args": {"depht": 1}}, TypeError, "depht"),
    "pretrained_cfg type": ({"pretrained_cfg": "imagenet"}, StrictDataclassError, "'pretrained_cfg'"),
    "unknown pretrained_cfg": ({"pretrained_cfg": {"colour": 1}}, TypeError, "colour"),
    "penalty type": ({"l1": "much"}, StrictDataclassError, "'l1' expected float, got str"),
    "penalty negative": ({"l2": -0.5}, ValueError, "l2 weighs a penalty and must be at least 0"),
    "penalty nan": ({"l1": float("nan")}, ValueError, "l1 weighs a penalty"),
    "flag type": ({"output_maps": "no"}, StrictDataclassError, "'output_maps' expected bool"),
    "fewer names": (
        {"id2label": {"0": "asp", "1": "bee"}, "drop": ["label2id", "num_classes", "label_names"]},
        RuntimeError,
        "mismatch",
    ),
    "one class": (
        {"id2label": {"0": "asp"}, "drop": ["label2id", "num_classes"]},
        ValueError,
        "name two classes, or for SoftCAM set problem_type='multi_label_classification'",
    ),
    "penalty infinite": ({"l1": float("inf")}, ValueError, "l1"),
    "problem type": ({"problem_type": "many"}, ValueError, "many"),
    "label numbers with a gap": ({"id2label": dict(zip("01239", NAMES, strict=True))}, ValueError, "id2label"),
    "two numbers of classes": ({"num_classes": 4}, ValueError, "num_classes"),
    "label list": ({"id2label": NAMES}, ValueError, "id2label"),
    "architecture missing": ({"drop": ["architecture"]}, ValueError, "architecture"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_bad_config_is_refused(case, folder):
    changes, error, message = BAD_CONFIGS[case]
    edit_config(folder, **changes)
    before = content(folder)
    with pytest.raises(error, match=message):
        AutoModelForImageClassification.from_pretrained(folder)
    assert content(folder) == before


def test_a_missing_config_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match=r"config\.json"):
        SoftCAMForImageClassification.from_pretrained(folder)


def test_whole_numbers_are_numbers():
    assert SoftCAMConfig(l1=1).l1 == 1
    assert CAPEConfig(temperature=3, mode="post-fit", alpha=0, beta=1).bootstrap.temperature == 3


def test_broken_json(folder):
    (folder / "config.json").write_text("{")
    for door in ("auto", "features", "class"):
        with pytest.raises(OSError, match="not a valid JSON"):
            DOORS[door](folder)


def test_label_maps_come_from_the_names(folder):
    edit_config(folder, drop=["id2label", "label2id"])
    config = AutoModelForImageClassification.from_pretrained(folder).config
    assert (config.id2label, config.label2id) == (LABELS["id2label"], LABELS["label2id"])
    edit_config(folder, drop=["id2label", "label2id", "label_names"])
    assert AutoModelForImageClassification.from_pretrained(folder).config.num_labels == 5


def test_one_label_map_gives_the_other(folder):
    edit_config(folder, drop=["label2id"])
    assert AutoModelForImageClassification.from_pretrained(folder).config.label2id == LABELS["label2id"]


@pytest.mark.parametrize("mode", ["from-scratch", "post-fit"])
def test_a_mode_whose_teacher_is_not_in_the_folder_is_refused(mode, saved, tmp_path):
    folder = shutil.copytree(saved.ours("resnet"), tmp_path / "folder")
    edit_config(folder, mode=mode)
    for load in (AutoModelForImageClassification.from_pretrained, CAPEForImageClassification.from_pretrained):
        with pytest.raises(ValueError, match=f"mode '{mode}' learns from a teacher, but this checkpoint holds none"):
            load(folder)
    features = AutoModel.from_pretrained(folder)
    assert features(images(features)).logits.shape == (2, 5)


def test_saving_over_a_file_leaves_it_alone(folder, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(folder)
    (tmp_path / "target").write_text("mine")
    with pytest.raises(OSError, match="target"):
        model.save_pretrained(tmp_path / "target")
    assert (tmp_path / "target").read_text() == "mine"


@contextmanager
def full_disk(largest_file):
    """No file grows beyond `largest_file` bytes, for this process and as the system sees it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("begun", [False, True])
def test_a_save_that_fails_leaves_what_was_there(begun, folder, saved, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(saved.ours("convnext"))
    target = folder if begun else tmp_path / "new"
    before = content(target)
    with full_disk(200_000), pytest.raises(SafetensorError):
        model.save_pretrained(target)
    assert begun or not (target / "model.safetensors").exists()
    assert not begun or content(target) == before


@pytest.mark.parametrize(("size", "shards"), [("300KB", 4), ("5GB", 0)])
def test_a_second_save_replaces_the_first(size, shards, folder):
    model = AutoModelForImageClassification.from_pretrained(folder)
    model.save_pretrained(folder, max_shard_size="5GB" if shards else "300KB")
    torch.nn.init.ones_(model.head.bias)
    model.save_pretrained(folder, max_shard_size=size)
    assert torch.equal(AutoModelForImageClassification.from_pretrained(folder).head.bias, model.head.bias)
    assert len(list(folder.glob("model-*"))) == shards
