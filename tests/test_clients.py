"""Libraries that people use with timm and transformers models, used with ours: what they promise holds here too.

The models are tiny and have random weights that hide nothing. Offloading is in `test_clients_accelerate.py`, timm's own
training tools are in `test_clients_timm.py`.
"""

import copy
import warnings

import pytest
import timm
import torch
import torchcam.methods
import torchvision
from captum.attr import IntegratedGradients, LayerGradCam
from conftest import randomise, relative_error
from peft import LoraConfig, PeftModel, get_peft_model
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

import softcam_hub
from softcam_hub import CAPEConfig, CAPEForImageClassification, SoftCAMConfig, SoftCAMForImageClassification

HUGGING_FACE = {
    "softcam": (SoftCAMConfig, SoftCAMForImageClassification),
    "cape": (CAPEConfig, CAPEForImageClassification),
}
TARGETS = torch.tensor([1, 3])

families = pytest.mark.parametrize("family", HUGGING_FACE)


def timm_model(name, **options):
    return randomise(timm.create_model(name, num_classes=5, **options)).eval()


def hugging_face_model(family):
    config, model = HUGGING_FACE[family]
    return model(config(architecture=f"{family}_test_vit", num_labels=5, model_args={"img_size": 64}))


def images(count=2, size=64):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def sum_of_maps(explanation, logits, family):
    """What the maps of every class compose, and what the model says of these classes."""
    if family == "cape":
        return explanation.maps.sum(dim=(2, 3)), logits.softmax(dim=1).gather(1, explanation.classes)
    return explanation.maps.mean(dim=(2, 3)), logits.gather(1, explanation.classes)


# --- PEFT ------------------------------------------------------------------------------------------------------------


def with_adapters(model, **options):
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", **options))


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@families
def test_all_linear_adapts_the_backbone_and_leaves_the_head(family):
    model = with_adapters(hugging_face_model(family))
    assert trained(model)
    assert all("backbone" in name and "lora" in name for name in trained(model))


@pytest.mark.parametrize(("options", "adapted"), [({}, True), ({"exclude_modules": ["teacher"]}, False)])
def test_a_teacher_is_adapted_unless_it_is_excluded(options, adapted):
    config = CAPEConfig(architecture="cape_test_vit", num_labels=5, mode="from-scratch", model_args={"img_size": 64})
    model = with_adapters(CAPEForImageClassification(config), **options)
    assert any("teacher" in name for name in trained(model)) == adapted


@families
def test_modules_to_save_trains_the_whole_head(family):
    model = with_adapters(hugging_face_model(family), modules_to_save=["head"])
    head = {name.rpartition(".")[2] for name in trained(model) if ".head." in name}
    assert head == {name for name, _ in hugging_face_model(family).head.named_parameters()}


@families
def test_an_adapter_learns_and_loads_again(family, tmp_path):
    start = randomise(hugging_face_model(family))
    model = with_adapters(copy.deepcopy(start), modules_to_save=["head"])
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    losses = []
    for _ in range(8):
        loss = model(images(), labels=TARGETS).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(value, frozen[name]) for name, value in model.named_parameters() if name in frozen)

    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(start), tmp_path).eval()
    merged = copy.deepcopy(loaded).merge_and_unload()
    with torch.no_grad():
        expected = model(images(), output_maps=True)
        for found in (loaded(images(), output_maps=True), merged(images(), output_maps=True)):
            assert relative_error(found.logits, expected.logits) <= 1e-5
            assert relative_error(found.maps, expected.maps) <= 1e-5
        assert relative_error(start.eval()(images()).logits, expected.logits) > 0.01
        assert relative_error(loaded.explain(images()).maps, merged.explain(images()).maps) <= 1e-5


# --- explanations of other libraries ---------------------------------------------------------------------------------


@families
def test_integrated_gradients_of_captum_are_complete(family):
    model, x = timm_model(f"{family}_test_vit", img_size=64), images()
    maps = IntegratedGradients(model).attribute(x, target=TARGETS, n_steps=100, internal_batch_size=20)
    with torch.no_grad():
        expected = (model(x) - model(torch.zeros_like(x))).gather(1, TARGETS[:, None])[:, 0]
    assert torch.allclose(maps.sum(dim=(1, 2, 3)), expected, rtol=0.01, atol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture(scope="module")
def twins():
    """A vanilla network and the SoftCAM model with its weights: post-hoc methods must not see a difference."""
    torch.manual_seed(0)
    vanilla = randomise(timm.create_model("resnet18", num_classes=5)).eval()
    return vanilla, softcam_hub.convert(vanilla, "softcam").eval()


def captum_grad_cam(model, layer, x):
    return LayerGradCam(model, layer).attribute(x, target=TARGETS).detach()


def grad_cam(model, layer, x):
    with GradCAM(model, [layer]) as cam:
        return torch.from_numpy(cam(x, [ClassifierOutputTarget(int(target)) for target in TARGETS]))


def torchcam_grad_cam(model, layer, x):
    with torchcam.methods.GradCAM(model, layer) as cam:
        return cam(TARGETS.tolist(), model(x))[0]


@pytest.mark.parametrize("method", [captum_grad_cam, grad_cam, torchcam_grad_cam])
@pytest.mark.parametrize("layer", ["layer3", "layer4"])
def test_grad_cam_of_other_libraries_is_that_of_the_vanilla_model(twins, method, layer):
    vanilla, ours = twins
    expected = method(vanilla, vanilla.get_submodule(layer), images())
    assert expected.abs().max() > 0
    assert relative_error(method(ours, ours.backbone.get_submodule(layer), images()), expected) < 1e-3


# --- torch.func, tracing, quantisation -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["softcam_test_vit", "cape_test_vit", "softcam_test_resnet", "cape_test_resnet"])
def test_gradients_of_single_samples_are_those_of_a_loop(name):
    model, x = timm_model(name, **({"img_size": 64} if "vit" in name else {})).double(), images().double()
    parameters = {key: value.detach() for key, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters, image, label):
        return cross_entropy(functional_call(model, (parameters, buffers), (image[None],)), label[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, TARGETS)
    for index in range(len(x)):
        model.zero_grad()
        cross_entropy(model(x[index : index + 1]), TARGETS[index : index + 1]).backward()
        for key, parameter in model.named_parameters():
            assert torch.allclose(found[key][index], parameter.grad, rtol=1e-8, atol=1e-12), key


@families
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@torch.no_grad()
def test_a_traced_model_answers_the_same(architecture, family):
    model = timm_model(f"{family}_{architecture}", **({"img_size": 64} if "vit" in architecture else {}))
    with warnings.catch_warnings(action="ignore", category=torch.jit.TracerWarning):
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(model, images())
    assert relative_error(traced(images(5)), model(images(5))) <= 1e-6


def outputs(model):
    with torch.no_grad():
        return model(images()), model.explain(images(), top_k=5)


@families
@pytest.mark.parametrize("config", [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig])
def test_torchao_quantises_the_backbone_and_maps_still_compose_the_prediction(config, family):
    model = timm_model(f"{family}_test_vit", img_size=64)
    expected, _ = outputs(model)
    quantize_(model, config(version=2))
    quantised = {name for name, value in model.named_parameters() if "Int8" in type(value.data).__name__}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert quantised == linear
    assert not any(name.startswith("head.") for name in quantised)
    logits, explanation = outputs(model)
    assert 0 < relative_error(logits, expected) < 0.1
    composed, said = sum_of_maps(explanation, logits, family)
    assert relative_error(composed, said) <= 1e-6


@families
def test_torchvision_transforms_feed_our_models(family):
    model, pixels = timm_model(f"{family}_test_resnet"), torch.randint(0, 256, (3, 80, 64), dtype=torch.uint8)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model), is_training=False)
    x = transform(torchvision.transforms.functional.to_pil_image(pixels))[None]
    logits = model(x)
    composed, said = sum_of_maps(model.explain(x, top_k=5), logits, family)
    assert relative_error(composed, said) <= 1e-6
