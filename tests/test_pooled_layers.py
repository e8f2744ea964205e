"""Layers between pool and classifier, at every location: the mean of their maps is what they make of the pooled vector."""

import copy

import pytest
import timm
import torch
from conftest import randomise, relative_error
from helpers.random_weights import SMALL_CLIP, check_dependence, make_vanilla
from safetensors.torch import save_file
from timm.layers import (
    GELU,
    AttentionPool2d,
    BatchNormAct2d,
    FrozenBatchNormAct2d,
    GELUTanh,
    LayerNorm2d,
    QuickGELU,
    convert_sync_batchnorm,
)
from timm.models.hgnet import LearnableAffineBlock
from timm.models.metaformer import SquaredReLU
from torch import nn

import softcam_hub
from softcam_hub.models.pooled_layers import attention_parts, everywhere, gate_of

ACTIVATIONS = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky": nn.LeakyReLU(0.1),
    "squared-relu": SquaredReLU(),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "gelu": nn.GELU(),
    "timm-gelu": GELU(),
    "gelu-tanh": nn.GELU(approximate="tanh"),
    "timm-gelu-tanh": GELUTanh(),
    "quick-gelu": QuickGELU(),
    "tanh": nn.Tanh(),
}
CHANNELS = 6
LAYERS = {
    "linear": nn.Linear(CHANNELS, 4),
    "linear-without-bias": nn.Linear(CHANNELS, 4, bias=False),
    "convolution": nn.Conv2d(CHANNELS, 4, 1),
    "layer-norm": nn.LayerNorm(CHANNELS),
    "layer-norm-2d": LayerNorm2d(CHANNELS),
    "rms-norm": nn.RMSNorm(CHANNELS, eps=1e-5),
    "batch-norm": nn.BatchNorm1d(CHANNELS),
    "batch-norm-act": BatchNormAct2d(CHANNELS, act_layer=nn.Hardswish),
    "affine": LearnableAffineBlock(1.5, -0.5),
    **ACTIVATIONS,
}
TAKES_MAPS = ("convolution", "layer-norm-2d", "batch-norm-act")


def pooled_output(name, layer, maps):
    """What a layer makes of the pooled vector, by its own forward."""
    pooled = maps.mean(dim=(2, 3))
    return layer(pooled[:, :, None, None])[:, :, 0, 0] if name in TAKES_MAPS else layer(pooled)


def prepare(name):
    torch.manual_seed(0)
    return randomise(copy.deepcopy(LAYERS[name])).double(), torch.randn(5, CHANNELS, 3, 4, dtype=torch.float64) * 3


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_gate_times_its_input_is_the_activation_and_so_is_its_gradient(name):
    values = torch.linspace(-8, 8, 4001, dtype=torch.float64)[1:-1]  # with 0, and numbers near it
    values = torch.cat([values, torch.tensor([1e-12, -1e-12, 1e-3, -1e-3, 9.99e-3, 1.01e-2])])
    gate = gate_of(ACTIVATIONS[name])
    assert gate(values).isfinite().all()
    own, theirs = (values.clone().requires_grad_() for _ in range(2))
    result, expected = own * gate(own), ACTIVATIONS[name](theirs.clone())
    assert torch.allclose(result, expected, rtol=1e-9, atol=1e-12)
    result.sum().backward()
    expected.sum().backward()
    smooth = (values != 0) & (values.abs() != 6)  # where a corner is, autograd may choose
    assert torch.allclose(own.grad[smooth], theirs.grad[smooth], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_the_mean_over_locations_is_the_layer_of_the_pooled_vector(name):
    layer, maps = prepare(name)
    layer.eval()
    applied = everywhere(layer)(layer, maps)
    assert applied.shape[2:] == maps.shape[2:]
    assert relative_error(applied.mean(dim=(2, 3)), pooled_output(name, layer, maps)) < 1e-9
    assert applied.std(dim=(2, 3)).max() > 1e-3, "locations differ"


@pytest.mark.parametrize("name", ["batch-norm", "batch-norm-act"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_batch_norm_in_training_takes_the_statistics_of_the_pooled_vectors(name, momentum):
    layer, maps = prepare(name)
    layer.momentum = momentum
    own, theirs = copy.deepcopy(layer).train(), layer.train()
    for batch in (maps, 2 * maps + 1):
        applied, expected = everywhere(own)(own, batch), pooled_output(name, theirs, batch)
        assert relative_error(applied.mean(dim=(2, 3)), expected) < 1e-9
    for statistic, wanted in zip(own.buffers(), theirs.buffers(), strict=True):
        assert torch.allclose(statistic, wanted)


def test_hidden_dropout_drops_whole_channels():
    drop, maps = nn.Dropout(0.5), torch.ones(4, 100, 2, 2)
    torch.manual_seed(0)
    applied = everywhere(drop)(drop.train(), maps)
    assert set(applied.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(applied.amin(dim=(2, 3)), applied.amax(dim=(2, 3)))
    assert torch.equal(everywhere(drop)(drop.eval(), maps), maps)


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("size", [(3, 3), (2, 5)])
def test_the_attention_pool_of_clip_is_divided_among_the_locations(separate, size):
    torch.manual_seed(0)
    pool = AttentionPool2d(8, feat_size=3, out_features=0, embed_dim=12, num_heads=2, qkv_separate=separate)
    pool = randomise(pool).double().eval()
    maps = torch.randn(2, 8, *size, dtype=torch.float64)
    applied = everywhere(pool)(pool, maps)
    assert applied.shape == (2, 12, *size)
    assert relative_error(applied.mean(dim=(2, 3)), pool(maps)) < 1e-9
    pool.pos_embed.data[1:, :] = 0.0
    pool.pos_embed.data[0] = 5.0
    from_features, from_positions = attention_parts(pool, maps)
    weight, bias = (pool.v.weight, pool.v.bias) if separate else (pool.qkv.weight[24:], pool.qkv.bias[24:])
    one_place = from_positions[:, :, 0, 0]  # a_0·V·p_0, the same at every location
    assert torch.allclose(from_positions, one_place[:, :, None, None].expand_as(from_positions), atol=1e-12)
    ratio = one_place / (weight @ pool.pos_embed[0])
    assert torch.allclose(ratio[:, :6], ratio[:, :1].expand(-1, 6)), "one weight of the attention for each head"
    assert relative_error((from_features + from_positions).mean(dim=(2, 3)), pool(maps)) < 1e-9
    alone = attention_parts(pool, torch.zeros_like(maps))[0].mean(dim=(2, 3))
    assert torch.allclose(alone, bias.expand_as(alone)), "a black image has nothing but the bias"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Softmax(dim=1),
        nn.Conv2d(3, 3, 3),
        nn.PReLU(),
        nn.Mish(),
        nn.GroupNorm(1, 3),
        AttentionPool2d(64, class_token=True),
    ],
)
def test_layers_of_an_unknown_kind_are_refused(layer):
    assert everywhere(layer) is None


@pytest.mark.parametrize(
    ("architecture", "arguments", "width"),
    [
        ("mobilenetv3_small_050", {}, 64),
        ("test_mambaout", {}, 64),
        ("efficientvit_b0", {}, 64),
        ("resnet50_clip", SMALL_CLIP, 64),
        ("resnet50_clip", SMALL_CLIP, 96),  # positions are resampled
    ],
)
def test_gradients_are_those_of_the_vanilla_model(architecture, arguments, width):
    vanilla, _ = make_vanilla(architecture, classes=4, drop_rate=0.0, **arguments)
    model = softcam_hub.convert(vanilla.double(), "softcam").double().eval()
    assert model.anatomy.head_type == "gated"
    images = torch.randn(2, 3, 64, width, dtype=torch.float64, requires_grad=True)
    own_images = images.detach().clone().requires_grad_()
    expected, evidence = vanilla(images), model.head(model.forward_features(own_images), kind="softcam")[1]
    assert relative_error(evidence.mean(dim=(2, 3)), expected) < 1e-9
    assert relative_error(model(own_images), expected) < 1e-9
    check_dependence(expected, evidence)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (evidence.mean(dim=(2, 3)) * weights).sum().backward()
    linear = model.anatomy.linear
    own = {f"{linear}.weight": model.head.weight.grad, f"{linear}.bias": model.head.bias.grad}
    own |= {name.removeprefix("backbone."): weight.grad for name, weight in model.named_parameters()}
    rounding = 1e-12 * max(weight.grad.abs().max() for weight in vanilla.parameters())
    for name, weight in vanilla.named_parameters():
        largest = weight.grad.abs().max()  # 0 for biases of keys, which move every score of the attention alike
        assert (own[name].flatten() - weight.grad.flatten()).abs().max() < 1e-6 * largest + rounding, name
    assert relative_error(own_images.grad, images.grad) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_batch_norm_of_half_precision_trains(dtype):
    layer, maps = prepare("batch-norm-act")
    own, theirs = (copy.deepcopy(layer).to(dtype).train() for _ in range(2))
    applied = everywhere(own)(own, maps.to(dtype))
    assert applied.dtype == dtype
    expected = pooled_output("batch-norm-act", theirs, maps.to(dtype))
    assert relative_error(applied.float().mean(dim=(2, 3)), expected.float()) < 0.03
    for statistic, wanted in zip(own.buffers(), theirs.buffers(), strict=True):
        assert torch.allclose(statistic, wanted, rtol=0.01)


def test_a_batch_norm_of_half_precision_rounds_no_scale():
    layer, maps = prepare("batch-norm")
    half = copy.deepcopy(layer).to(torch.bfloat16).eval()
    exact = copy.deepcopy(half).float()
    maps = maps.to(torch.bfloat16)
    assert torch.equal(everywhere(half)(half, maps), everywhere(exact)(exact, maps.float()).to(torch.bfloat16))


@pytest.fixture(scope="module")
def with_hidden_batch_norm():
    vanilla = randomise(timm.create_model("mobilenetv4_conv_small_035", num_classes=4)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        return softcam_hub.convert(vanilla, "softcam").eval(), images, vanilla(images)


@torch.no_grad()
def test_layers_that_timm_freezes_are_applied_everywhere_still(with_hidden_batch_norm):
    model, images, expected = with_hidden_batch_norm
    model = copy.deepcopy(model)
    timm.utils.freeze(model)
    assert isinstance(model.backbone.norm_head, FrozenBatchNormAct2d)
    assert relative_error(model(images), expected) < 1e-4
    frozen = copy.deepcopy(model.backbone.norm_head).train()
    maps = torch.randn(3, 1280, 2, 2)
    assert torch.equal(everywhere(frozen)(frozen, maps), everywhere(frozen)(frozen.eval(), maps))
    timm.utils.unfreeze(model)
    model.eval()  # its new layers train
    assert isinstance(model.backbone.norm_head, BatchNormAct2d)
    assert relative_error(model(images), expected) < 1e-4


@torch.no_grad()
def test_a_layer_inside_a_wrapper_is_called_through_it(with_hidden_batch_norm):
    model, images, expected = with_hidden_batch_norm
    model = copy.deepcopy(model)
    calls = []
    model.backbone.norm_head = nn.Sequential(model.backbone.norm_head)
    model.backbone.norm_head.register_forward_hook(lambda *_: calls.append(1))
    assert relative_error(model(images), expected) < 1e-4
    assert calls


@torch.no_grad()
def test_a_layer_exchanged_for_an_unknown_one_is_refused(with_hidden_batch_norm):
    model, images, _ = with_hidden_batch_norm
    model = convert_sync_batchnorm(copy.deepcopy(model))
    with pytest.raises(ValueError, match="norm_head stands between .* was exchanged for a SyncBatchNormAct.*put the"):
        model(images)


@pytest.mark.slow
@pytest.mark.parametrize("extension", [".safetensors", ".pth"])
def test_a_file_of_a_network_for_a_head_tells_the_number_of_its_classes(extension, tmp_path):
    vanilla = randomise(timm.create_model("caformer_s18", num_classes=5)).eval()
    file = tmp_path / f"weights{extension}"
    if extension == ".pth":
        torch.save(vanilla.state_dict(), file)
    else:
        save_file(vanilla.state_dict(), file)
    model = timm.create_model("softcam_caformer_s18", num_classes=5, checkpoint_path=str(file)).eval()
    assert model.anatomy.hidden == ("head.norm", "head.drop", "head.fc.fc1", "head.fc.act", "head.fc.norm")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(model(images), vanilla(images)) < 1e-5
        back = softcam_hub.to_vanilla(model)
        assert torch.equal(back(images), vanilla(images))
    overlay = {"state_dict": vanilla.state_dict(), "num_classes": 5}
    other = timm.create_model("softcam_caformer_s18", pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay)
    assert other.head.weight.shape[0] == 3
    assert torch.equal(other.backbone.head.fc.fc1.weight, vanilla.head.fc.fc1.weight), "hidden layers are kept"
