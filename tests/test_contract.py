"""The timm protocol, held by every head on every kind of backbone: a drop-in wherever timm goes."""

import copy

import pytest
import timm
import torch
from conftest import randomise, relative_error
from helpers.random_weights import SMALL_CLIP
from timm.models import group_parameters, load_checkpoint, save_for_hf
from timm.optim import param_groups_layer_decay

import softcam_hub
from softcam_hub.models.anatomy import examine
from softcam_hub.models.backbone import grid_height

SMALL_SWIN = {
    "embed_dim": 24,
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 2, 4, 8),
    "img_size": 64,
    "window_size": 4,
    "drop_path_rate": 0.0,
}
BACKBONES = {
    "resnet": ("test_resnet", {}),
    "efficientnet": ("test_efficientnet", {}),
    "convnext": ("test_convnext", {}),
    "mambaout": ("test_mambaout", {}),  # with hidden layers between pool and classifier
    "swin": ("swin_tiny_patch4_window7_224", SMALL_SWIN),
    "swinv2": ("swinv2_tiny_window8_256", SMALL_SWIN),
    "gap-vit": ("test_vit2", {"img_size": 64}),
    "class-token-vit": ("test_vit", {"img_size": 64}),
    "clip-resnet": ("resnet50_clip", SMALL_CLIP),  # with an attention pool
}
FAMILIES = ("softcam", "cape")
STRIDED = ("resnet", "efficientnet", "convnext")
FREE_SIZE = ("resnet", "efficientnet", "convnext", "mambaout")
EXACT = tuple(name for name in BACKBONES if name != "class-token-vit")
RESIZED = ("swin", "swinv2", "gap-vit")
"""Backbones whose positions timm resizes when it loads them; CLIP's are resized when they are added."""

pytestmark = pytest.mark.filterwarnings("ignore:.*has no pretrained head")


def make(family, backbone, **options):
    architecture, args = BACKBONES[backbone]
    return timm.create_model(f"{family}_{architecture}", **{"num_classes": 5, **args, **options})


def make_vanilla(backbone, **options):
    architecture, args = BACKBONES[backbone]
    return randomise(timm.create_model(architecture, **{"num_classes": 5, **args, **options})).eval()


def images(batch=2, channels=3, height=64, width=64):
    return torch.randn(batch, channels, height, width)


every_model = pytest.mark.parametrize(("family", "backbone"), [(f, b) for f in FAMILIES for b in BACKBONES])
every_model_traced = pytest.mark.parametrize(  # the heads alone differ: one of them on every backbone is enough
    ("family", "backbone"),
    [
        pytest.param(f, b, marks=[pytest.mark.slow] * (b == "clip-resnet"))
        for f in FAMILIES
        for b in BACKBONES
        if f == "cape" or b == "resnet"
    ],
)
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


@every_model
def test_forward_backward_and_parts(family, backbone):
    model, x = make(family, backbone), images()
    features = model.forward_features(x)
    assert features.shape[:2] == (2, model.num_features)
    assert features.ndim == 4
    logits = model(x)
    assert logits.shape == (2, 5)
    assert torch.equal(model.eval().forward_head(model.forward_features(x)), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    logits.logsumexp(dim=1).sum().backward() if family == "softcam" else logits[:, 0].sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


@every_model
def test_drop_rate_drops_channels_in_training_only(family, backbone):
    model, x = make(family, backbone, drop_rate=0.9), images(batch=4)
    features = model.eval().forward_features(x)
    assert torch.equal(model.forward_head(features), model.forward_head(features))
    model.train()
    pooled = model.forward_head(features, pre_logits=True)
    assert (pooled == 0).float().mean() > 0.5
    kept = pooled != 0
    assert relative_error(pooled[kept] * 0.1, features.mean(dim=(2, 3))[kept]) < 1e-5


@every_model
def test_num_classes_and_reset_classifier(family, backbone):
    model, x = make(family, backbone, num_classes=0).eval(), images()
    assert relative_error(model(x), model.forward_features(x).mean(dim=(2, 3))) < 1e-6
    model.reset_classifier(9)
    assert model(x).shape == (2, 9)
    assert model.get_classifier().weight.shape == (9, model.num_features)
    assert model.num_classes == 9
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)


@every_model
def test_in_chans(family, backbone):
    assert make(family, backbone, in_chans=4)(images(channels=4)).shape == (2, 5)


@pytest.mark.parametrize("backbone", EXACT)
def test_pretrained_colour_weights_serve_grey_images(backbone):
    source = {"state_dict": make_vanilla(backbone).state_dict(), "num_classes": 5}
    grey = make("softcam", backbone, pretrained=True, in_chans=1, pretrained_cfg_overlay=source).eval()
    architecture, args = BACKBONES[backbone]
    args = {**args, "num_classes": 5, "in_chans": 1, "pretrained": True, "pretrained_cfg_overlay": source}
    vanilla = timm.create_model(architecture, **args).eval()
    x = images(channels=1)
    assert relative_error(grey(x), vanilla(x)) < 1e-5


@pytest.mark.parametrize("backbone", RESIZED)
def test_img_size_resizes_pretrained_positions(backbone):
    source = {"state_dict": make_vanilla(backbone).state_dict(), "num_classes": 5}
    args = {"img_size": 96, "pretrained": True, "num_classes": 5, "pretrained_cfg_overlay": source}
    ours = make("softcam", backbone, **args).eval()
    vanilla = timm.create_model(BACKBONES[backbone][0], **{**BACKBONES[backbone][1], **args}).eval()
    x = images(height=96, width=96)
    assert relative_error(ours(x), vanilla(x)) < 1e-5


@pytest.mark.parametrize("backbone", RESIZED)
def test_img_size_resizes_positions_of_our_own_folders(backbone, tmp_path):
    model, x = randomise(make("softcam", backbone)).eval(), images(height=96, width=96)
    save_for_hf(model, tmp_path, safe_serialization=True)
    larger = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=96).eval()
    vanilla = softcam_hub.to_vanilla(model)
    save_for_hf(vanilla, tmp_path / "vanilla", safe_serialization=True)
    expected = timm.create_model(f"local-dir:{tmp_path / 'vanilla'}", pretrained=True, img_size=96).eval()
    assert relative_error(larger(x), expected(x)) < 1e-5


def test_a_state_dict_of_another_size_is_refused():
    with pytest.raises(RuntimeError, match=r"size mismatch for backbone\.pos_embed"):
        make("softcam", "gap-vit", img_size=96).load_state_dict(make("softcam", "gap-vit").state_dict())


@pytest.mark.parametrize("backbone", ["swin", "gap-vit", "class-token-vit"])
def test_set_input_size(backbone, tmp_path):
    model, x = make("softcam", backbone).eval(), images(height=96, width=96)
    model.set_input_size(96)
    logits = model(x)
    assert model.input_size == (3, 96, 96)
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), logits)
    assert not hasattr(make("softcam", "resnet"), "set_input_size")


@pytest.mark.parametrize(("architecture", "rate"), [("rexnet_100", 0.2), ("resnet18", 0.0)])
def test_default_dropout_is_timms(architecture, rate):
    assert timm.create_model(f"softcam_{architecture}", num_classes=2).drop_rate == rate
    assert timm.create_model(f"softcam_{architecture}", num_classes=2, drop_rate=0.4).drop_rate == 0.4


@pytest.mark.parametrize("backbone", STRIDED)
@pytest.mark.parametrize("family", FAMILIES)
def test_output_stride(family, backbone):
    model = make(family, backbone, output_stride=8)
    assert model.forward_features(images(height=128, width=96)).shape[2:] == (16, 12)
    assert model.explain(images(height=128, width=96)).maps.shape == (2, 1, 16, 12)


@every_backbone
def test_maps_lie_where_the_image_does(backbone):
    """The last intermediate features, which timm itself lays out as (B, K, H, W), before any norm of the head."""
    model = make("softcam", backbone).eval()
    size = {"height": 96, "width": 64} if backbone in FREE_SIZE else {}
    x = images(**size)
    raw, intermediates = model.backbone.forward_intermediates(x, indices=1, norm=True)
    laid_out = model.anatomy.to_maps(raw, x.shape[-2:])
    expected = intermediates[-1]
    if laid_out.shape == expected.shape:
        correlation = torch.corrcoef(torch.stack([laid_out.flatten(), expected.flatten()]))[0, 1]
        assert correlation > 0.5
    else:  # EfficientNet and ResNetV2 end in a layer behind their last intermediate features
        assert laid_out.shape[2:] == expected.shape[2:]


def test_tokens_without_a_declared_class_token_in_an_oblong_image():
    model = timm.create_model("softcam_levit_128s", num_classes=3, img_size=(224, 320)).eval()
    assert model.exact
    assert model.anatomy.prefix_tokens == 0
    assert model.forward_features(torch.randn(1, 3, 224, 320)).shape[2:] == (4, 5)


@pytest.mark.parametrize(
    ("tokens", "height", "width", "rows"),
    [(98, 224, 100, 14), (64, 17, 500, 2), (26, 17, 200, 2), (196, 224, 224, 14), (24, 64, 96, 4), (1, 32, 32, 1)],
)
def test_the_grid_fills_its_tokens(tokens, height, width, rows):
    assert grid_height(tokens, height, width) == rows


def test_tokens_of_an_image_that_is_not_square():
    model = make("softcam", "class-token-vit", img_size=(64, 96)).eval()
    x = images(height=64, width=96)
    features = model.forward_features(x)
    assert features.shape[2:] == (4, 6)
    patches = model.backbone.forward_features(x)[:, model.anatomy.prefix_tokens :]
    assert torch.equal(features[:, :, 2, 5], patches[:, 2 * 6 + 5])


@every_model
def test_features_only(family, backbone):
    ours = make(family, backbone, features_only=True, out_indices=(-2, -1)).eval()
    vanilla = make_vanilla(backbone, features_only=True, out_indices=(-2, -1))
    vanilla.load_state_dict(ours.state_dict())
    x = images()
    for found, expected in zip(ours(x), vanilla(x), strict=True):
        assert torch.equal(found, expected)
    assert ours.feature_info.channels() == vanilla.feature_info.channels()


@every_model
def test_features_only_defaults_are_timms(family, backbone):
    ours, vanilla = make(family, backbone, features_only=True), make_vanilla(backbone, features_only=True)
    assert ours.feature_info.channels() == vanilla.feature_info.channels()
    assert ours.feature_info.reduction() == vanilla.feature_info.reduction()


@every_backbone
def test_pruned_layers(backbone):
    model, x = make("softcam", backbone).eval(), images()
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    model.prune_intermediate_layers([1], prune_norm=True)
    assert torch.equal(model.forward_intermediates(x, [1], intermediates_only=True)[0], expected[0])
    assert model(x).ndim == 2


def test_intermediates_as_a_dictionary():
    model, x = make("softcam", "gap-vit").eval(), images()
    found = model.forward_intermediates(x, 2, output_dict=True)
    assert torch.equal(found["image_features"], model.forward_features(x))
    assert len(found["image_intermediates"]) == 2


@every_model
def test_forward_intermediates(family, backbone):
    model, x = make(family, backbone).eval(), images()
    final, intermediates = model.forward_intermediates(x, indices=2)
    assert torch.equal(final, model.forward_features(x))
    assert len(intermediates) == 2
    only = model.forward_intermediates(x, indices=2, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(only, intermediates, strict=True))


@pytest.mark.parametrize("backbone", EXACT)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoint_path_takes_vanilla_files_and_ours(backbone, suffix, tmp_path):
    vanilla, x = make_vanilla(backbone), images()
    file = tmp_path / f"vanilla{suffix}"
    save(vanilla.state_dict(), file)
    ours = make("softcam", backbone, checkpoint_path=str(file)).eval()
    assert relative_error(ours(x), vanilla(x)) < 1e-5
    save(ours.state_dict(), file)
    again = make("softcam", backbone, checkpoint_path=str(file)).eval()
    assert torch.equal(again(x), ours(x))


def save(state_dict, file):
    if file.suffix == ".pth":
        torch.save({"state_dict": state_dict}, file)
    else:
        from safetensors.torch import save_file

        save_file({key: value.contiguous() for key, value in state_dict.items()}, file)


@pytest.mark.parametrize("backbone", EXACT)
def test_overlay_file(backbone, tmp_path):
    vanilla, x = make_vanilla(backbone), images()
    save(vanilla.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors"), "num_classes": 5}
    ours = make("softcam", backbone, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert relative_error(ours(x), vanilla(x)) < 1e-5
    more = make("cape", backbone, pretrained=True, num_classes=8, pretrained_cfg_overlay=overlay).eval()
    assert more(x).shape == (2, 8)
    assert torch.equal(more.forward_features(x), ours.forward_features(x))


def test_teacher_in_a_checkpoint_is_left_out(tmp_path):
    model = make("cape", "resnet")
    weights = {**model.state_dict(), "teacher.weight": torch.zeros(5, 1), "teacher.bias": torch.zeros(5)}
    torch.save(weights, tmp_path / "training.pth")
    assert not load_checkpoint(model, str(tmp_path / "training.pth")).unexpected_keys


@every_model
def test_grad_checkpointing_gives_the_same_gradients(family, backbone, monkeypatch):
    model, x = make(family, backbone).train(), images()
    recomputed = count_calls(monkeypatch, torch.utils.checkpoint, "checkpoint")
    model.apply(lambda m: m.eval() if isinstance(m, torch.nn.BatchNorm2d) else None)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        recomputed.clear()
        model(x)[:, 0].sum().backward()
        gradients.append([p.grad.clone() for p in model.backbone.parameters() if p.grad is not None])
        assert bool(recomputed) == enable
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
    assert len(gradients[0]) == len(gradients[1]) > 0


def count_calls(monkeypatch, module, name):
    """A list that grows by one at each call of a function, which still does its work."""
    calls, original = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.append(name) or original(*args, **kwargs))
    return calls


def test_no_layer_groups_where_timm_has_none():
    model = timm.create_model("softcam_poolformerv2_s12", num_classes=2)
    assert not hasattr(model, "group_matcher")
    assert param_groups_layer_decay(model, layer_decay=0.7)


@every_model
@pytest.mark.parametrize("coarse", [False, True])
def test_layer_groups_are_the_vanilla_ones(family, backbone, coarse):
    model, vanilla = make(family, backbone), make_vanilla(backbone)
    ours = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    theirs = group_parameters(vanilla, vanilla.group_matcher(coarse=coarse), reverse=True)
    below = {name.removeprefix("backbone."): layer for name, layer in ours.items() if name.startswith("backbone.")}
    assert {name: theirs[name] for name in below} == below
    assert ours["head.weight"] == max(ours.values())


@every_model
def test_layer_decay_spares_the_temperature(family, backbone):
    model = make(family, backbone)
    groups = param_groups_layer_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.7)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(model.head.weight)] == 0.05
    assert len(decay) == len(list(model.parameters()))
    if family == "cape":
        assert decay[id(model.head.log_temperature)] == 0


@every_model_traced
def test_compile_without_a_graph_break(family, backbone):
    model, x = make(family, backbone).eval(), images()
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert relative_error(compiled(x), model(x)) < 1e-5


@every_model_traced
def test_export_with_dynamic_batch(family, backbone):
    model, x = make(family, backbone).eval(), images()
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    other = images(batch=5)
    assert relative_error(program.module()(other), model(other)) < 1e-5


@every_model
def test_deepcopy_and_state_dict_round_trip(family, backbone):
    model, x = make(family, backbone).eval(), images()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        twin.head.bias += torch.arange(5.0)
        twin.backbone.get_parameter(next(iter(dict(twin.backbone.named_parameters())))).mul_(1.5)
    assert not torch.equal(twin(x), model(x))
    fresh = make(family, backbone).eval()
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(fresh(x), twin(x))
    keys = {key for key in model.state_dict() if not key.startswith("backbone.")}
    assert keys == {"head.weight", "head.bias"} | ({"head.log_temperature"} if family == "cape" else set())


@every_model
def test_explain_composes_the_prediction(family, backbone):
    model, x = randomise(make(family, backbone)), images()
    explanation = model.explain(x, top_k=5)
    logits = model.eval()(x)
    total = explanation.maps.sum(dim=(2, 3)) if family == "cape" else explanation.maps.mean(dim=(2, 3))
    expected = logits.softmax(dim=1) if family == "cape" else logits
    assert torch.allclose(total, expected.gather(1, explanation.classes), atol=1e-5)
    assert torch.allclose(explanation.probabilities, logits.softmax(dim=1).sort(descending=True).values, atol=1e-6)


@every_backbone
def test_examination_leaves_the_random_state_alone(backbone):
    architecture, args = BACKBONES[backbone]
    before = torch.get_rng_state()
    examine(architecture, **args)
    assert torch.equal(torch.get_rng_state(), before)
