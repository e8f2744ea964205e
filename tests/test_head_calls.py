"""Maps pass through `Module.__call__` of the head, as logits do: what acts on the one acts on the other."""

import copy

import pytest
import timm
import torch
from accelerate import cpu_offload, disk_offload
from conftest import randomise, relative_error
from peft import LoraConfig, get_peft_model
from torch.nn.utils import parametrizations, prune, spectral_norm

import softcam_hub
from softcam_hub import CAPEConfig, CAPEForImageClassification, SoftCAMConfig, SoftCAMForImageClassification
from softcam_hub.export import _LogitsAndMaps

CLASSES = {"softcam": SoftCAMForImageClassification, "cape": CAPEForImageClassification}
CONFIGS = {"softcam": SoftCAMConfig, "cape": CAPEConfig}
LAST_CONVOLUTIONS = r".*layer4.*conv2"

families = pytest.mark.parametrize("family", CLASSES)


def make(family, **options):
    config = CONFIGS[family](architecture=f"{family}_test_resnet", num_labels=5, **options)
    return randomise(CLASSES[family](config)).eval()


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def with_pre_hook(model, folder):
    model.head.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    return model


def with_spectral_norm(model, folder):
    spectral_norm(model.head)
    return model


def with_spectral_parametrisation(model, folder):
    parametrizations.spectral_norm(model.head)
    return model


def with_pruning(model, folder):
    prune.random_unstructured(model.head, "weight", amount=0.5)
    with torch.no_grad():
        model.head.weight_orig.mul_(3)  # the pruned weight is formed anew as the head is called
    return model


def on_disk(model, folder):
    return disk_offload(model, folder, execution_device=torch.device("cpu"))


def on_cpu(model, folder):
    return cpu_offload(model, execution_device=torch.device("cpu"))


def loaded_with_device_map(model, folder):
    model.save_pretrained(folder / "model")
    device_map = {"backbone": "cpu", "head": "disk"}
    return type(model).from_pretrained(folder / "model", device_map=device_map, offload_folder=folder / "offloaded")


def with_adapters(model, **options):
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=LAST_CONVOLUTIONS, **options))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted.eval()


def with_a_saved_head(model, folder):
    return with_adapters(model, modules_to_save=["head"])


def with_an_adapted_weight(model, folder):
    return with_adapters(model, target_parameters=["head.weight"])


CHANGING = [
    with_pre_hook,
    with_spectral_norm,
    with_spectral_parametrisation,
    with_pruning,
    with_a_saved_head,
    with_an_adapted_weight,
]
KEEPING = [on_disk, on_cpu, loaded_with_device_map]


@families
@pytest.mark.parametrize("change", [*CHANGING, *KEEPING])
@torch.no_grad()
def test_logits_with_and_without_maps(change, family, tmp_path):
    original, x = make(family), images()
    before = original(x).logits
    model = change(copy.deepcopy(original), tmp_path)
    explained = model.explain(x, top_k=5)  # first, so that nothing which an earlier call left behind helps
    with_maps, alone = model(x, output_maps=True), model(x, output_maps=False)
    assert relative_error(with_maps.logits, alone.logits) <= 1e-6
    composed = with_maps.maps.sum(dim=(2, 3)).log() if family == "cape" else with_maps.maps.mean(dim=(2, 3))
    assert relative_error(composed, alone.logits) <= 1e-6
    expected = alone.logits.softmax(dim=1).gather(1, explained.classes)
    assert relative_error(explained.probabilities, expected) <= 1e-6
    changed = relative_error(alone.logits, before)
    assert changed > 1e-3 if change in CHANGING else changed <= 1e-6


@families
@pytest.mark.parametrize("change", [with_a_saved_head, with_an_adapted_weight])
@torch.no_grad()
def test_explaining_while_adapters_are_disabled(change, family, tmp_path):
    original, x = make(family), images()
    expected = original.explain(x, top_k=5, kind="cam")
    model = change(copy.deepcopy(original), tmp_path)
    with model.disable_adapter():
        found = model.explain(x, top_k=5, kind="cam")
    assert torch.equal(found.classes, expected.classes)
    assert relative_error(found.maps, expected.maps) <= 1e-6
    assert relative_error(model.explain(x, top_k=5, kind="cam").maps, expected.maps) > 1e-3


@families
def test_a_forward_hook_sees_a_pair_only_with_maps(family):
    model, x, seen = make(family), images(), []
    model.head.register_forward_hook(lambda _, __, output: seen.append(type(output)))
    model(x, output_maps=False)
    model(x, output_maps=True)
    model.explain(x)
    one_by_one = [torch.Tensor] if family == "softcam" else []  # logits first, then the maps of the classes alone
    assert seen == [torch.Tensor, tuple, *one_by_one, tuple]


@families
@torch.no_grad()
def test_hooks_of_a_timm_models_head_act_on_its_maps(family):
    model, x = randomise(timm.create_model(f"{family}_test_resnet", num_classes=5)).eval(), images()
    model.head.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    probabilities = model(x).softmax(dim=1)
    explained = model.explain(x, top_k=5)
    assert relative_error(explained.probabilities, probabilities.gather(1, explained.classes)) <= 1e-6
    exported_logits, exported_maps = _LogitsAndMaps(model)(x)
    assert relative_error(exported_logits, model(x)) <= 1e-6
    native = softcam_hub.create_explainer(family, model, signed=True)(x, explained.classes)
    index = explained.classes[..., None, None].expand_as(native)
    assert relative_error(native, explained.maps) <= 1e-6
    assert relative_error(native, exported_maps.gather(1, index)) <= 1e-6


def test_a_teacher_on_disk_answers_as_in_memory(tmp_path):
    model, x = make("cape", mode="from-scratch"), images()
    labels = torch.tensor([1, 3])
    expected = model(x, labels)
    model.save_pretrained(tmp_path / "model")
    device_map = {"backbone": "cpu", "head": "disk", "teacher": "disk"}
    moved = CAPEForImageClassification.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    found = moved(x, labels)
    assert relative_error(found.teacher_logits, expected.teacher_logits) <= 1e-6
    assert relative_error(found.loss, expected.loss) <= 1e-6


@torch.no_grad()
def test_fitting_a_temperature_heeds_hooks_of_the_head():
    model, x = make("cape"), torch.randn(8, 3, 64, 64)
    model.head.weight.mul_(40)
    labels = model(x).logits.argmax(dim=1)
    labels[:3] = (labels[:3] + 1) % 5  # a model that is right most of the time has a best temperature
    doubled = copy.deepcopy(model)
    doubled.head.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    doubled.head.bias.mul_(2)
    fitted = softcam_hub.fit_temperature(model, [(x, labels)])
    assert softcam_hub.fit_temperature(doubled, [(x, labels)]) == pytest.approx(2 * fitted, rel=0.02)
