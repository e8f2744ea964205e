"""Initial weights with other classes: the backbone is kept, the head is fresh, and both are said."""

import pytest
import timm
import torch
from helpers.shipped_model import load_shipped
from safetensors.torch import save_file
from timm.models import save_for_hf
from transformers import AutoModelForImageClassification

from softcam_hub import CAPE_LESIONS, CAPEForImageClassification
from softcam_hub.data.splits import Splits
from softcam_hub.loading import load_classifier
from softcam_hub.training.model import make_model
from softcam_hub.training.parsing import make_config
from softcam_hub.training.start import find_start

LESIONS = ["healthy", "microaneurysm", "haemorrhage", "exudate"]
DEFECTS = ["crack", "scratch", "stain"]
ARGS = "output_stride=8 avg_down=False"
MODELS = ("test_resnet", "softcam_test_resnet", "cape_test_resnet")


def make(classes, **settings):
    config = make_config(model_args=ARGS, image_size=64, **settings)
    start = find_start(config.model, classes)
    return make_model(config, Splits(None, None, None, classes, False), start), start


def backbone_of(model):
    weights = getattr(model, "vanilla", getattr(model, "backbone", None)).state_dict()
    return {key: value for key, value in weights.items() if not key.startswith("fc.")}


def head_of(model):
    head = model.vanilla.fc if hasattr(model, "vanilla") else model.head
    return head.weight.flatten(1)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same network as a folder of ours, as a folder of timm with and without names, and as a file."""
    root = tmp_path_factory.mktemp("sources")
    vanilla = timm.create_model("test_resnet", num_classes=4, output_stride=8, avg_down=False)
    ours = load_shipped()
    own = {key.removeprefix("backbone."): v for key, v in ours.state_dict().items() if key.startswith("backbone.")}
    vanilla.load_state_dict(own, strict=False)
    save_for_hf(vanilla, root / "timm", safe_serialization=True)
    save_for_hf(vanilla, root / "named", model_config={"label_names": LESIONS}, safe_serialization=True)
    save_file({key: value.contiguous() for key, value in vanilla.state_dict().items()}, root / "weights.safetensors")
    torch.save(vanilla.state_dict(), root / "weights.pth")
    return {
        "ours": CAPE_LESIONS,
        "timm": str(root / "timm"),
        "named": str(root / "named"),
        "safetensors": str(root / "weights.safetensors"),
        "pth": str(root / "weights.pth"),
        "expected": own,
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("source", ["ours", "timm", "named", "safetensors", "pth"])
def test_other_classes_keep_the_backbone_and_get_a_fresh_head(model, source, sources, tmp_path):
    made, start = make(DEFECTS, model=model, init=sources[source])
    assert str(start).endswith("with a fresh head")
    assert all(torch.equal(value, sources["expected"][key]) for key, value in backbone_of(made).items())
    assert head_of(made).shape == (3, 96)
    made.save_pretrained(tmp_path)
    assert load_classifier(tmp_path).labels == DEFECTS


def test_a_start_may_have_the_prefix_of_timm():
    made, start = make(LESIONS, model="cape_test_resnet", init=f"local-dir:{CAPE_LESIONS}")
    assert start.keeps_classifier
    assert torch.equal(head_of(made), head_of(make(LESIONS, model="cape_test_resnet", init=CAPE_LESIONS)[0]))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("source", ["ours", "named"])
def test_as_many_other_classes_get_a_fresh_head_too(model, source, sources):
    same, start = make(LESIONS, model=model, init=sources[source])
    assert str(start).endswith("with its classifier")
    other, start = make([*DEFECTS, "dent"], model=model, init=sources[source])
    assert str(start).endswith("(classes healthy, microaneurysm, haemorrhage, … (4 in all)) with a fresh head")
    assert head_of(same).shape == head_of(other).shape
    assert not torch.equal(head_of(same), head_of(other))
    assert head_of(other).abs().max() < 0.2  # fresh weights are small


def test_the_head_of_another_family_is_kept_for_the_same_classes(sources):
    same, _ = make(LESIONS, model="softcam_test_resnet", init=CAPE_LESIONS)
    expected = load_shipped().head.weight
    assert torch.equal(head_of(same), expected.flatten(1))


@pytest.mark.parametrize("source", ["ours", "named"])
def test_the_same_classes_in_another_order_are_refused(source, sources):
    with pytest.raises(ValueError, match="was trained on the classes .*'healthy'.* the same classes in another order"):
        make(LESIONS[::-1], model="cape_test_resnet", init=sources[source])


def test_post_fitting_needs_a_classifier_for_these_classes(sources):
    for source in ("ours", "timm", "safetensors"):
        with pytest.raises(ValueError, match="has none for the classes crack, scratch, stain: fine-tune the vanilla"):
            make(DEFECTS, model="cape_test_resnet", mode="post-fit", init=sources[source])


def test_a_teacher_is_made_for_the_classes_of_the_data(sources):
    made, _ = make(DEFECTS, model="cape_test_resnet", mode="from-scratch", init=CAPE_LESIONS)
    assert made.teacher.weight.shape == (3, 96)


MISSING = {
    "runs/nothing/model": "there is no model 'runs/nothing/model': there is no such folder",
    "/no/such/folder": "there is no such folder",
    "model.safetensors": "there is no file of weights model.safetensors",
    "runs/model.pth": "there is no file of weights runs/model.pth",
}


@pytest.mark.parametrize("init", MISSING)
def test_a_missing_start_is_called_missing(init, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=MISSING[init]):
        make(DEFECTS, model="cape_test_resnet", init=init)


def test_weights_of_another_architecture_get_one_line():
    weights = f"{CAPE_LESIONS}/model.safetensors"
    sentence = r"^model 'cape_resnet18' .*cannot be made from .*: size mismatch for .*, which --model names$"
    with pytest.raises(ValueError, match=sentence) as error:
        make(DEFECTS, model="cape_resnet18", init=weights)
    assert len(str(error.value).splitlines()) == 1


def test_other_starts_are_described():
    assert str(make(DEFECTS, model="cape_test_resnet")[1]) == "random weights"
    config = make_config(model="cape_resnet50", pretrained=True)
    assert str(find_start(config.model, DEFECTS)) == "timm's weights resnet50.a1_in1k with a fresh head"
    config = make_config(model="resnet50.tv_in1k", pretrained=True)
    assert str(find_start(config.model, ["x"] * 1000)) == "timm's weights resnet50.tv_in1k with its classifier"


# The same in Python.


def test_load_classifier_and_timm_give_a_fresh_head(tmp_path):
    original = load_shipped()
    CAPEForImageClassification.from_timm(original).save_pretrained(tmp_path)
    for source in (CAPE_LESIONS, str(tmp_path)):
        classifier = load_classifier(source, num_classes=7)
        assert classifier.model.head.weight.shape[0] == 7
        assert classifier.labels == [str(index) for index in range(7)]
        model = timm.create_model(f"local-dir:{source}", pretrained=True, num_classes=7)
        expected = original.state_dict()
        for made in (classifier.model, model):
            assert all(
                torch.equal(value, expected[key]) for key, value in made.state_dict().items() if "head" not in key
            )


def test_transformers_gives_a_fresh_head():
    model = AutoModelForImageClassification.from_pretrained(CAPE_LESIONS, num_labels=7, ignore_mismatched_sizes=True)
    expected = load_shipped().state_dict()
    assert model.head.weight.shape[0] == 7
    assert all(torch.equal(v, expected[key]) for key, v in model.state_dict().items() if "head" not in key)
