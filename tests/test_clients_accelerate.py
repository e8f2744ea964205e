"""Offloading by accelerate: a model whose weights lie on disk or in another memory answers like the plain model.

Accelerate loads the weights of a module when that module is called. The architectures differ in what a call must reach:
`test_resnet` has weights in its layers only, `test_vit` in the backbone itself (class token, positions), and
`test_convnext` in a norm between pool and classifier, which evidence maps apply at every location.
"""

import copy
import pickle

import pytest
import timm
import torch
from accelerate import cpu_offload, disk_offload, init_empty_weights, load_checkpoint_and_dispatch
from conftest import randomise, relative_error
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification

from softcam_hub import CAPEConfig, CAPEForImageClassification, SoftCAMConfig, SoftCAMForImageClassification

CPU = torch.device("cpu")
ARCHITECTURES = ["test_resnet", "test_vit", "test_convnext"]
PLACES = [{"backbone": "cpu", "head": "disk"}, {"backbone": "disk", "head": "cpu"}]

architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)
families = pytest.mark.parametrize("family", ["softcam", "cape"])
places = pytest.mark.parametrize("device_map", PLACES, ids=["head on disk", "backbone on disk"])


def timm_model(name):
    return (
        timm.create_model(name, num_classes=5, img_size=64) if "vit" in name else timm.create_model(name, num_classes=5)
    )


def make(family, architecture):
    config, kind = {
        "softcam": (SoftCAMConfig, SoftCAMForImageClassification),
        "cape": (CAPEConfig, CAPEForImageClassification),
    }[family]
    args = {"img_size": 64} if "vit" in architecture else {}
    return randomise(kind(config(architecture=f"{family}_{architecture}", num_labels=5, model_args=args))).eval()


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_answers(offloaded, plain):
    """Explain first, so that nothing which an earlier call left behind in memory helps."""
    x = images()
    explained, expected = offloaded.explain(x, top_k=5), plain.explain(x, top_k=5)
    assert torch.equal(explained.classes, expected.classes)
    assert relative_error(explained.maps, expected.maps) <= 1e-6
    if isinstance(plain, SoftCAMForImageClassification | CAPEForImageClassification):
        for output_maps in (True, False):
            found, wanted = offloaded(x, output_maps=output_maps), plain(x, output_maps=output_maps)
            assert relative_error(found.logits, wanted.logits) <= 1e-6
        assert relative_error(offloaded(x, output_maps=True).maps, plain(x, output_maps=True).maps) <= 1e-6
    else:
        assert relative_error(offloaded(x), plain(x)) <= 1e-6
    assert any(parameter.is_meta for parameter in offloaded.parameters()), "nothing was offloaded"


@families
@architectures
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_from_memory(where, architecture, family, tmp_path):
    plain = make(family, architecture)
    model = copy.deepcopy(plain)
    if where == "cpu":
        cpu_offload(model, execution_device=CPU)
    else:
        disk_offload(model, tmp_path, execution_device=CPU)
    assert_same_answers(model, plain)


@places
@architectures
def test_from_pretrained_with_a_device_map(architecture, device_map, tmp_path):
    plain = make("cape", architecture)
    plain.save_pretrained(tmp_path / "model")
    model = AutoModelForImageClassification.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    assert_same_answers(model, plain)


@places
@architectures
def test_load_checkpoint_and_dispatch(architecture, device_map, tmp_path):
    plain = randomise(timm_model(f"softcam_{architecture}")).eval()
    save_file(plain.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with init_empty_weights():
        empty = timm_model(f"softcam_{architecture}").eval()
    # without offload_buffers, accelerate leaves BatchNorm statistics of modules on disk at their initial values
    options = {"device_map": device_map, "offload_folder": tmp_path / "offloaded", "offload_buffers": True}
    model = load_checkpoint_and_dispatch(empty, str(tmp_path / "model.safetensors"), **options)
    assert_same_answers(model, plain)


@torch.no_grad()
def test_intermediate_features_of_an_offloaded_model():
    plain = make("softcam", "test_vit")
    model = cpu_offload(copy.deepcopy(plain), execution_device=CPU)
    found, expected = (m(images(), output_hidden_states=True).hidden_states for m in (model, plain))
    assert all(relative_error(a, b) <= 1e-6 for a, b in zip(found, expected, strict=True))


@architectures
@torch.no_grad()
def test_hooks_of_the_backbone_act_on_logits_and_maps(architecture):
    model, x = make("softcam", architecture), images()
    expected = model(-x)
    model.backbone.register_forward_pre_hook(lambda _, inputs: (-inputs[0],))
    found = model(x)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.maps, expected.maps)


@architectures
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_compute_with_their_own_weights(duplicate, architecture):
    model, x = make("softcam", architecture), images()
    copied = duplicate(model)
    expected = model(x).logits
    assert torch.equal(copied(x).logits, expected)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(copied(x).logits, expected)
