"""Logits of class-token transformers divided among patches: against a slow transcription, and over many architectures."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomise
from torch import nn

from softcam_hub.explainers.patch_shares import PatchShares, patch_shares

CLASSES = torch.tensor([[0, 3], [4, 1]])


def make(name, **options):
    torch.manual_seed(0)
    return randomise(timm.create_model(name, num_classes=5, **options)).eval()


def propagate(block, tokens, known):
    """Pass tokens (L, D) through a block whose attention, scales and gates are those of the known tokens (L, D)."""

    def norm(layer, values, of):
        scale = 1 / math.sqrt(((of - of.mean()) ** 2).mean() + layer.eps)
        return (values - values.mean()) * scale * layer.weight + layer.bias

    def both(layer):
        return (
            torch.stack([norm(layer, t, k) for t, k in zip(x, of, strict=True)])
            for x, of in ((tokens, known), (known, known))
        )

    values, known_values = both(block.norm1)
    attn = block.attn
    heads, width = attn.num_heads, attn.head_dim
    qkv, known_qkv = (attn.qkv(v).view(-1, 3, heads, width) for v in (values, known_values))
    mixed, known_mixed = [], []
    for head in range(heads):
        query, key = known_qkv[:, 0, head], known_qkv[:, 1, head]
        weights = (query @ key.T / math.sqrt(width)).softmax(dim=1)
        mixed.append(weights @ qkv[:, 2, head])
        known_mixed.append(weights @ known_qkv[:, 2, head])
    scale_one, scale_two = (layer.gamma if hasattr(layer, "gamma") else 1 for layer in (block.ls1, block.ls2))
    tokens = tokens + scale_one * attn.proj(torch.cat(mixed, dim=1))
    known = known + scale_one * attn.proj(torch.cat(known_mixed, dim=1))
    values, known_values = (
        torch.stack([norm(block.norm2, t, k) for t, k in zip(x, known, strict=True)]) for x in (tokens, known)
    )
    hidden, known_hidden = block.mlp.fc1(values), block.mlp.fc1(known_values)
    gate = (1 + torch.erf(known_hidden / math.sqrt(2))) / 2
    tokens = tokens + scale_two * block.mlp.fc2(hidden * gate)
    known = known + scale_two * block.mlp.fc2(known_hidden * gate)
    return tokens, known


@torch.no_grad()
def transcribe(model, image, first):
    """Divide the logits (C) of one image: shares (C, L) of the tokens before block `first`, and the constant (C)."""
    tokens = model._pos_embed(model.patch_embed(image[None]))
    for block in model.blocks[:first]:
        tokens = block(tokens)

    def run(tokens, known):
        for block in model.blocks[first:]:
            tokens, known = propagate(block, tokens, known)
        of = known[0]
        scale = 1 / math.sqrt(((of - of.mean()) ** 2).mean() + model.norm.eps)
        read = (tokens[0] - tokens[0].mean()) * scale * model.norm.weight + model.norm.bias
        return model.head(read)

    known = tokens[0].double()
    constant = run(torch.zeros_like(known), known)
    shares = []
    for index in range(len(known)):
        alone = torch.zeros_like(known)
        alone[index] = known[index]
        shares.append(run(alone, known) - constant)
    return torch.stack(shares, dim=1), constant


@pytest.mark.parametrize("first", [1, 4])
def test_shares_are_those_of_a_slow_transcription(first):
    model = make("test_vit", img_size=64).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    parts = patch_shares(model, images, CLASSES, layer=f"blocks.{first - 1}")
    for index, image in enumerate(images):
        shares, constant = transcribe(model, image, first)
        for rank, label in enumerate(CLASSES[index]):
            assert torch.allclose(parts.maps[index, rank].flatten(), shares[label, 1:], atol=1e-9)
            assert torch.allclose(parts.rest[index, rank], shares[label, 0] + constant[label], atol=1e-9)
    assert torch.allclose(parts.logits, model(images).gather(1, CLASSES))


def test_positions_and_class_token_belong_to_the_rest():
    model = make("test_vit", img_size=64)
    images = torch.randn(2, 3, 64, 64)
    before = patch_shares(model, images, CLASSES)
    assert before.maps.shape == (2, 2, 4, 4)
    with torch.no_grad():
        model.patch_embed.proj.weight.zero_()
        model.patch_embed.proj.bias.zero_()
    blind = patch_shares(model, images, CLASSES)
    assert not blind.maps.any()
    assert torch.allclose(blind.rest, blind.logits)
    assert torch.equal(blind.share_of_rest, torch.ones(2, 2))


ARCHITECTURES = {
    "test_vit": {},
    "test_vit3": {},  # attention pool
    "deit_tiny_distilled_patch16_224": {"depth": 2},  # two class tokens
    "deit3_small_patch16_224": {"depth": 2},  # layer scale
    "vit_small_patch14_reg4_dinov2": {"depth": 2, "img_size": 56},  # registers
    "vit_giant_patch14_reg4_dinov2": {"depth": 2, "img_size": 56, "embed_dim": 128, "num_heads": 2},  # SwiGLU, packed
    "eva02_tiny_patch14_224": {"depth": 2, "img_size": 56},  # SwiGLU, rotary positions
    "vit_small_patch16_dinov3": {"depth": 2, "img_size": 64},
    "vit_base_patch16_siglip_224": {"depth": 2, "embed_dim": 128, "num_heads": 2},
    "vit_base_patch16_clip_quickgelu_224": {"depth": 2, "embed_dim": 128, "num_heads": 2},
    "vit_relpos_base_patch16_cls_224": {"depth": 2, "embed_dim": 128, "num_heads": 2},  # attention with a bias
    "beit_base_patch16_224": {"depth": 2, "embed_dim": 128, "num_heads": 2},
    "cait_xxs24_224": {"depth": 2},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shares_and_rest_add_up_to_the_logits(name):
    model = make(name, **ARCHITECTURES[name])
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    parts = patch_shares(model, images, CLASSES)
    total = parts.maps.sum(dim=(2, 3)) + parts.rest
    with torch.no_grad():
        logits = model(images).gather(1, CLASSES)
    assert parts.maps.shape[2:] == model.patch_embed.grid_size
    assert parts.maps.any()
    assert (total - logits).abs().max() <= 1e-4 * logits.abs().max()


def test_the_predicted_class_is_explained_and_nothing_is_left_behind():
    model = make("test_vit", img_size=64)
    model.requires_grad_(False).train()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        parts = patch_shares(model, images)
    assert isinstance(parts, PatchShares)
    assert torch.equal(parts.classes[:, 0], model.eval()(images).argmax(dim=1))
    assert not parts.maps.requires_grad
    assert not [hook for module in model.modules() for hook in module._forward_hooks]


def with_activation(model, activation):
    model = copy.deepcopy(model)
    for block in model.blocks:
        block.mlp.act = activation
    return model


class Computed(nn.Module):
    """An activation as a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, hidden):
        return self.function(hidden)


GELUS = {
    "by tanh": lambda h: 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))),
    "products": lambda h: 0.5 * h * (1 + torch.tanh(h * 0.7978845608 * (1 + 0.044715 * h * h))),
    "named": lambda h: F.gelu(input=h, approximate="tanh"),
    "the gate first": lambda h: (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))).clone() * h * 0.5,
}


@pytest.mark.parametrize("spelling", GELUS)
def test_shares_do_not_depend_on_how_an_activation_is_written(spelling):
    model = make("test_vit", img_size=64)
    images = torch.randn(2, 3, 64, 64)
    expected = patch_shares(with_activation(model, nn.GELU("tanh")), images, CLASSES)
    found = patch_shares(with_activation(model, Computed(GELUS[spelling])), images, CLASSES)
    assert (found.maps - expected.maps).abs().max() < 1e-4 * expected.maps.abs().max()


GATED_UNITS = {
    "gate first": lambda a, g: F.silu(g) * a,
    "gate last": lambda a, g: a * F.silu(g),
    "copied": lambda a, g: a * F.silu(g).clone(),
    "scaled": lambda a, g: a * (1.0 * F.silu(g))[:, :],
    "in place": lambda a, g: a.mul_(F.silu(g)),
}


@pytest.mark.parametrize("spelling", GATED_UNITS)
def test_the_gate_of_a_gated_unit_is_held_wherever_it_stands(spelling):
    model = make("test_vit", img_size=64)
    images = torch.randn(2, 3, 64, 64)

    def unit(function):
        return with_activation(model, Computed(lambda h: function(h, h.flip(-1))))

    first = patch_shares(unit(GATED_UNITS["gate first"]), images, CLASSES)
    found = patch_shares(unit(GATED_UNITS[spelling]), images, CLASSES)
    assert torch.allclose(found.maps, first.maps, atol=1e-6)


def test_values_that_depend_on_no_token_are_left_as_they_are():
    options = {"rel_pos_type": "mlp-swin", "depth": 2, "embed_dim": 128, "num_heads": 4}
    model = make("vit_relpos_base_patch16_cls_224", **options)  # four heads, as many as inputs and zeros
    images = torch.randn(2, 3, 224, 224)
    parts = patch_shares(model, images, CLASSES)
    logits = model(images).gather(1, CLASSES)
    assert torch.allclose(parts.logits, logits, atol=1e-5)
    assert torch.allclose(parts.maps.sum(dim=(2, 3)) + parts.rest, logits, atol=1e-4)


def test_half_precision():
    model, images = make("test_vit", img_size=64), torch.randn(2, 3, 64, 64)
    exact = patch_shares(model, images, CLASSES)
    half = patch_shares(model.bfloat16(), images.bfloat16(), CLASSES)
    assert (half.maps - exact.maps).abs().max() < 0.05 * exact.maps.abs().max()


REFUSED = {
    "softplus": (nn.Softplus(), "nobody has said how softplus is linear"),
    "selu": (nn.SELU(), "nobody has said how selu is linear"),
    "square": (Computed(lambda h: h * h), "it multiplies two functions of its tokens"),
    "by name": (Computed(lambda h: torch.mul(input=h, other=h + 1)), "it multiplies two functions of its tokens"),
    "sigmoid": (nn.Sigmoid(), "mixes values that are held fixed with others"),
    "softmax": (nn.Softmax(dim=-1), "mixes values that are held fixed with others"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_is_not_linear_in_its_tokens_is_refused(name, dtype):
    activation, reason = REFUSED[name]
    model = with_activation(make("test_vit", img_size=64), activation).to(dtype)
    with pytest.raises(ValueError, match=f"^patch shares are not defined for this model: .*{reason}"):
        patch_shares(model, torch.randn(1, 3, 64, 64, dtype=dtype))


def test_a_change_of_the_network_that_nobody_sees_is_found_by_the_sum():
    model = make("test_vit", img_size=64)
    model.norm.register_forward_hook(lambda module, inputs, output: output.abs())
    with pytest.raises(ValueError, match="they miss its logits by"):
        patch_shares(model, torch.randn(1, 3, 64, 64))


def test_models_that_need_no_shares_or_have_no_classes_are_refused():
    with pytest.raises(TypeError, match="the maps of softcam_test_vit add up to its prediction already"):
        patch_shares(timm.create_model("softcam_test_vit", num_classes=3), torch.randn(1, 3, 160, 160))
    with pytest.raises(ValueError, match="num_classes=0"):
        patch_shares(timm.create_model("test_vit", num_classes=0), torch.randn(1, 3, 160, 160))


def test_layers_without_patches_are_refused():
    with pytest.raises(ValueError, match="no patch has a share: name an earlier layer, such as 'patch_embed'"):
        patch_shares(make("test_vit", img_size=64), torch.randn(1, 3, 64, 64), layer="norm")
    with pytest.raises(ValueError, match="patch_embed"):
        patch_shares(timm.create_model("test_resnet"), torch.randn(1, 3, 64, 64))
