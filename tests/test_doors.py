"""Every door into a saved folder gives the same model, in fresh processes.

- A client is a process of its own: it opens all folders one after another and writes what it saw to one file.
- Parameters and statistics are random, so that a tensor which was drawn again, or a buffer left empty, shows.
"""

import json

import pytest
import timm
import torch
from conftest import randomise, relative_error
from helpers.door_scripts import FROM_TIMM, PUSH, READ, READ_WITHOUT_US, read, run
from helpers.hub_server import HubServer
from helpers.saved_models import ALL, CLASSES, EXACT, LABELS, MODELS, ON_HUB, Saved, edit_config, images
from safetensors.torch import load_file, save
from transformers import AutoModel, AutoModelForImageClassification

from softcam_hub import CAPEForImageClassification

pytestmark = pytest.mark.filterwarnings("ignore:.*has no pretrained head", "ignore:.*_checkpointing:FutureWarning")


def slow_beside_main(names):
    return [name if name in MODELS else pytest.param(name, marks=pytest.mark.slow) for name in names]


every_model = pytest.mark.parametrize("name", slow_beside_main(ALL))
main_models = pytest.mark.parametrize("name", MODELS)
models_on_hub = pytest.mark.parametrize("name", ON_HUB)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return Saved(tmp_path_factory.mktemp("saved"))


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


@pytest.mark.slow
@main_models
def test_a_folder_loads_where_softcam_hub_is_not_installed(name, seen_without_us, saved):
    check_doors(name, seen_without_us, saved, ELSEWHERE)


@pytest.mark.slow
def test_what_was_saved_there_loads_once_more(seen_without_us, elsewhere, saved, tmp_path):
    again = {name: elsewhere / f"again-{name}" for name in ON_HUB}
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
        run(PUSH, folder, json.dumps({name: saved.place(name) for name in ON_HUB}), **hub.env(folder / "home"))
        yield hub


def repos():
    place = {"scheme": "hf-hub:"}
    return {n: {**place, "ours": f"tester/{n}", "timm": f"tester/{n}-timm", "family": MODELS[n][0]} for n in ON_HUB}


@pytest.fixture(scope="module")
def seen_on_hub(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("puller")
    return read(READ, repos(), folder, **hub.env(folder / "home"))


@pytest.mark.slow
@models_on_hub
def test_every_door_through_the_hub(name, seen_on_hub, saved):
    check_doors(name, seen_on_hub, saved, HERE)


@pytest.fixture(scope="module")
def seen_on_hub_without_us(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger")
    return read(READ_WITHOUT_US, repos(), folder, **hub.env(folder / "home"))


@pytest.mark.slow
@models_on_hub
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
