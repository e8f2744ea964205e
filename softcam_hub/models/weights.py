"""Weights of a vanilla timm classifier, as ours and back; timm's own filters and resizing run first.

- An exact head takes the vanilla linear layer as it is; several layers that amount to one are folded into one.
- What the vanilla model has no place for (the head of a class-token ViT, VGG's 1x1 layers) stays fresh, and says so.
"""

import warnings
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import Tensor, nn

from .anatomy import weights_of
from .backbone import Anatomy


def derive_cfg(cfg: PretrainedCfg | None, architecture: str | None = None) -> PretrainedCfg:
    """timm's description of pretrained weights, for our `architecture` that adopts them."""
    cfg = cfg or PretrainedCfg()
    first = cfg.first_conv
    prefixed = f"backbone.{first}" if isinstance(first, str) else first and tuple(f"backbone.{name}" for name in first)
    return replace(
        cfg,
        architecture=architecture,
        url=None if cfg.custom_load else cfg.url,
        first_conv=prefixed,
        classifier="head",
        label_offset=None,
        custom_load=False,
    )


def adopt(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Bring a checkpoint to our keys: ours pass, less a teacher; a vanilla one goes through timm and is converted."""
    if any(key.startswith("backbone.") for key in state_dict):
        return {key: value for key, value in state_dict.items() if not key.startswith("teacher.")}
    return converted_weights(_load_vanilla(state_dict, model), model)


def converted_weights(vanilla: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """Our state dict with the weights of `vanilla`; what it has no place for stays fresh, as in `model`."""
    weights = dict(model.state_dict())
    fresh = "pre_logits." if model.anatomy.kind == "vgg" else None
    for key, value in vanilla.state_dict().items():
        if f"backbone.{key}" in weights and not (fresh and key.startswith(fresh)):
            weights[f"backbone.{key}"] = value
    if not model.exact:
        warnings.warn(
            f"{model.family}_{model.architecture} has no pretrained head: its evidence layer is random and "
            "must be trained before its predictions or maps mean anything",
            stacklevel=2,
        )
    elif model.num_classes:
        weights["head.weight"], weights["head.bias"] = (t.detach() for t in linear_classifier(vanilla, model.anatomy))
    return weights


def _load_vanilla(state_dict: dict[str, Tensor], model: nn.Module) -> nn.Module:
    """The vanilla timm model with the weights of `state_dict`, through timm's own filters and resizing."""
    tag = getattr(model, "pretrained_cfg", {}).get("tag")
    cfg = get_pretrained_cfg(f"{model.architecture}.{tag}" if tag else model.architecture) or PretrainedCfg()
    rows = _length(state_dict, cfg.classifier, 0)
    if rows is not None and rows != cfg.num_classes + (cfg.label_offset or 0):
        cfg = replace(cfg, num_classes=rows, label_offset=None)
    stem = _length(model.state_dict(), cfg.first_conv and f"backbone.{cfg.first_conv}", 1)
    if stem is not None and stem == _length(state_dict, cfg.first_conv, 1):
        cfg = replace(cfg, input_size=(model.in_chans, *cfg.input_size[1:]))
    cfg = replace(cfg, state_dict=state_dict, custom_load=False, source=None)
    args = {**model.backbone_args, "in_chans": cfg.input_size[0], "num_classes": cfg.num_classes}
    return timm.create_model(model.architecture, pretrained=True, pretrained_cfg=cfg, **args)


def _length(state_dict: dict[str, Tensor], layer: Any, dim: int) -> int | None:
    """Rows or columns of a layer's weight, of the first layer where timm names several."""
    layer = layer[0] if isinstance(layer, tuple | list) and layer else layer
    weight = state_dict.get(f"{layer}.weight") if isinstance(layer, str) else None
    return None if weight is None else weight.shape[dim]


def linear_classifier(vanilla: nn.Module, anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """The (C, K) weight and (C,) bias by which an exact timm model reads its features; an affine head is folded."""
    if anatomy.linear is not None:
        return weights_of(vanilla.get_submodule(anatomy.linear))
    like = next(vanilla.parameters())
    probes = torch.zeros(anatomy.channels + 1, anatomy.channels, dtype=like.dtype, device=like.device)
    probes[1:].fill_diagonal_(1)
    logits = _evaluated_head(vanilla, _one_location(probes, anatomy))
    return (logits[1:] - logits[0]).T.contiguous(), logits[0].clone()


def set_linear_classifier(vanilla: nn.Module, anatomy: Anatomy, weight: Tensor, bias: Tensor) -> None:
    """Write (C, K) weight and (C,) bias into the head of an exact timm model, the inverse of `linear_classifier`."""
    if anatomy.linear is not None:
        layers = [vanilla.get_submodule(anatomy.linear)]
    else:
        names = vanilla.pretrained_cfg["classifier"]
        layers = [vanilla.get_submodule(name) for name in ([names] if isinstance(names, str) else names)]
        for norm in _norms_before(vanilla, layers):
            _neutralise(norm)
    for layer in layers:
        layer.weight.data.copy_(weight.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.data.copy_(bias)


@torch.no_grad()
def _evaluated_head(vanilla: nn.Module, raw: Tensor) -> Tensor:
    training = vanilla.training
    try:
        return vanilla.eval().forward_head(raw)
    finally:
        vanilla.train(training)


def _one_location(vectors: Tensor, anatomy: Anatomy) -> Tensor:
    """(N, K) pooled vectors as raw features with a single location."""
    if anatomy.tokens:
        return vectors[:, None]
    return vectors[:, None, None] if anatomy.channels_last else vectors[:, :, None, None]


def _norms_before(vanilla: nn.Module, layers: list[nn.Module]) -> list[nn.BatchNorm1d]:
    """The batch norms that share a parent with one of the linear `layers`."""
    parents = [m for m in vanilla.modules() if any(child in layers for child in m.children())]
    return [child for m in parents if m is not vanilla for child in m.children() if isinstance(child, nn.BatchNorm1d)]


def _neutralise(norm: nn.BatchNorm1d) -> None:
    """Make a batch norm the identity in evaluation."""
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    norm.weight.data.fill_((1.0 + norm.eps) ** 0.5)
    norm.bias.data.zero_()
