"""Checkpoints must be whole, images take the dtype of the model, and hidden states are those that were asked for."""

import pytest
import timm
import torch
from conftest import randomise, relative_error
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from softcam_hub import CAPEConfig, CAPEForImageClassification, SoftCAMConfig, SoftCAMForImageClassification

CLASSES = {"softcam": SoftCAMForImageClassification, "cape": CAPEForImageClassification}
CONFIGS = {"softcam": SoftCAMConfig, "cape": CAPEConfig}
HEADS = [
    *(("softcam", name) for name in ("head.weight", "head.bias")),
    *(("cape", name) for name in ("head.weight", "head.bias", "head.log_temperature")),
]

families = pytest.mark.parametrize("family", CLASSES)
every_weight = pytest.mark.parametrize(("family", "name"), HEADS)


def make(family, **settings):
    config = CONFIGS[family](architecture=f"{family}_test_resnet", num_labels=3, **settings)
    return randomise(CLASSES[family](config)).eval()


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def save_without(model, names, folder):
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    save_file({n: w for n, w in weights.items() if n not in names}, folder / "model.safetensors", {"format": "pt"})
    return folder


def load_with_config(folder):
    return AutoModelForImageClassification.from_pretrained(folder, config=AutoConfig.from_pretrained(folder))


@every_weight
@pytest.mark.parametrize(
    "load", [AutoModelForImageClassification.from_pretrained, AutoModel.from_pretrained, load_with_config]
)
def test_a_checkpoint_without_a_weight_of_the_head_is_refused(load, family, name, tmp_path):
    folder = save_without(make(family), [name], tmp_path)
    with pytest.raises(ValueError, match=rf"this checkpoint is not whole: it lacks {name}\."):
        load(folder)
    with pytest.raises(ValueError, match=rf"it lacks {name}\."):
        CLASSES[family].from_pretrained(folder, num_labels=3)  # the saved number asks for nothing new
    with pytest.raises(RuntimeError, match=name):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


@families
def test_weights_of_a_state_dict_must_be_whole(family):
    model = make(family)
    weights = {name: weight for name, weight in model.state_dict().items() if name != "head.bias"}
    with pytest.raises(ValueError, match=r"it lacks head\.bias"):
        CLASSES[family].from_pretrained(None, config=model.config, state_dict=weights)


@families
@pytest.mark.parametrize("load", [AutoModelForImageClassification.from_pretrained, AutoModel.from_pretrained])
def test_a_checkpoint_without_head_serves_other_classes(load, family, tmp_path):
    model = make(family)
    names = [name for name in model.state_dict() if name.startswith("head.")]
    loaded = load(save_without(model, names, tmp_path), num_labels=7)
    assert loaded.head.weight.shape == (7, model.head.in_features)
    assert relative_error(loaded.eval().forward_features(images()), model.forward_features(images())) < 1e-6


@families
def test_other_classes_replace_a_saved_head(family, tmp_path):
    make(family).save_pretrained(tmp_path)
    loaded = CLASSES[family].from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert loaded.head.weight.shape[0] == loaded.config.num_labels == 7
    assert not loaded.head.bias.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@families
@torch.no_grad()
def test_images_take_the_dtype_of_a_timm_model(family, dtype):
    model = randomise(timm.create_model(f"{family}_test_resnet", num_classes=3)).eval()
    x = images().to(dtype)
    assert torch.equal(model(x), model(x.float()))
    assert torch.equal(model.explain(x).maps, model.explain(x.float()).maps)
    for found, expected in zip(
        model.forward_intermediates(x, intermediates_only=True),
        model.forward_intermediates(x.float(), intermediates_only=True),
        strict=True,
    ):
        assert torch.equal(found, expected)
    doubled = model.double()
    assert torch.equal(doubled(images()), doubled(images().double()))


@families
@torch.no_grad()
def test_images_in_half_precision_under_autocast(family):
    model = randomise(timm.create_model(f"{family}_test_resnet", num_classes=3)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = model(images().bfloat16()), model(images().bfloat16().float())
    assert torch.equal(found, expected)


@families
@torch.no_grad()
def test_images_in_half_precision_compile_and_export_whole(family):
    model = randomise(timm.create_model(f"{family}_test_resnet", num_classes=3)).eval()
    x, expected = images().half(), model(images().half().float())
    torch._dynamo.reset()
    assert relative_error(torch.compile(model, fullgraph=True, backend="eager")(x), expected) < 1e-6
    assert relative_error(torch.export.export(model, (x,)).module()(x), expected) < 1e-6


@pytest.mark.parametrize("loader", [SoftCAMForImageClassification, AutoModel])
@torch.no_grad()
def test_hidden_states_that_were_asked_for(loader, tmp_path):
    make("softcam").save_pretrained(tmp_path)
    model = loader.from_pretrained(tmp_path)
    every = model(images(), output_hidden_states=True).hidden_states
    for chosen in ([-2, -1], (1, 3), [0]):
        found = model(images(), output_hidden_states=chosen).hidden_states
        assert len(found) == len(chosen)
        assert all(torch.equal(state, every[index]) for state, index in zip(found, chosen, strict=True))
    assert model(images(), output_hidden_states=False).hidden_states is None


def test_transformers_is_told_of_gradient_checkpointing():
    model = make("softcam")
    assert not model.is_activation_checkpointing
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    assert model.backbone.grad_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing
    assert not model.backbone.grad_checkpointing


def test_an_architecture_without_gradient_checkpointing_says_so():
    config = SoftCAMConfig(architecture="softcam_vgg11", model_args={"mlp_ratio": 1 / 64})
    model = SoftCAMForImageClassification(config)
    assert not model.supports_gradient_checkpointing
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        model.activation_checkpointing_enable()
