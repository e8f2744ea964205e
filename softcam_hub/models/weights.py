"""Weights of a vanilla timm classifier, as ours and back; timm's own filters and resizing run first.

- An exact head takes the vanilla linear layer as it is; several layers that amount to one are folded into one.
- What the vanilla model has no place for (the head of a class-token ViT, VGG's 1x1 layers) stays fresh, and says so.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg, load_state_dict
from torch import Tensor, nn

from .anatomy import weights_of
from .backbone import Anatomy, TimmModule
from .self_explaining import SelfExplaining

SOURCES = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_model_args"),
    *("checkpoint_path", "cache_dir", "device", "dtype"),
)
"""Arguments of `timm.create_model` that say where weights come from or go to, and nothing about the network."""


class OffTheShelfWarning(UserWarning):
    """A head predicts with the weights of a vanilla classifier, and predicts something else."""


def warn_off_the_shelf(model: SelfExplaining) -> None:
    """Warn of a head that holds the vanilla classifier without giving its logits, and say what helps."""
    if model.num_classes and model.head.is_off_the_shelf:
        warnings.warn(
            f"{model.timm_name} holds the weights of the vanilla classifier as they are: off the shelf, it is another "
            "classifier, and a less accurate one. softcam_hub.post_fit(model, images) fits it to the vanilla one, and "
            "needs no labels",
            OffTheShelfWarning,
            stacklevel=3,
        )


@contextmanager
def off_the_shelf_is_intended() -> Iterator[None]:
    """Give no `OffTheShelfWarning` inside the `with`, where a head is made to be trained or compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OffTheShelfWarning)
        yield


def describe_file(file: Path, architecture: str) -> dict[str, Any]:
    """Describe the weights in a local file for timm, as a `pretrained_cfg_overlay`.

    Only tensors are read from the file: a pickled file that asks for more is refused.

    Args:
        file: State dict of a vanilla timm model or of a model of this package, as .safetensors or as torch.save wrote
            it.
        architecture: timm name of the network, which may have a tag.
    """
    try:
        state_dict = load_state_dict(str(file), weights_only=True)
        shapes = {name: tensor.shape for name, tensor in state_dict.items()}
    except Exception as error:  # torch, pickle and safetensors raise many types
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise ValueError(
            f"{file} holds no weights that can be read: {reason}; expected a state dict as .safetensors, or as "
            "torch.save writes it"
        ) from error
    theirs = get_pretrained_cfg(architecture) or PretrainedCfg()
    classifier = "head" if is_ours(shapes) else theirs.classifier
    classes = _length(state_dict, classifier, 0)
    counted = {} if classes is None else {"num_classes": classes, "label_offset": None}
    return {"file": str(file), "url": None, "hf_hub_id": None, "source": None, "custom_load": False, **counted}


def is_ours(names: Iterable[str]) -> bool:
    """Tell whether all names are those of weights of a self-explaining model, not of a vanilla one."""
    return all(name.startswith(("backbone.", "head.", "teacher.")) for name in names)


def derive_cfg(cfg: PretrainedCfg | None, architecture: str | None = None) -> PretrainedCfg:
    """Describe pretrained weights of timm for a self-explaining model that adopts them.

    Args:
        cfg: timm's description of the weights.
        architecture: Name of the self-explaining model.
    """
    cfg = cfg or PretrainedCfg()
    return replace(
        cfg,
        architecture=architecture,
        url=None if cfg.custom_load else cfg.url,
        first_conv=below_backbone(cfg.first_conv),
        classifier="head",
        label_offset=None,
        custom_load=False,
    )


def below_backbone(layers: Any) -> Any:
    """Return timm's name or names of layers as they are in a self-explaining model."""
    return f"backbone.{layers}" if isinstance(layers, str) else layers and tuple(f"backbone.{n}" for n in layers)


def restore_cfg(model: SelfExplaining) -> PretrainedCfg:
    """Describe the vanilla model, with the preprocessing of a self-explaining one; the inverse of `derive_cfg`."""
    timms = _timm_cfg(model)
    changed = {name: value for name, value in model.pretrained_cfg.items() if name not in ("first_conv", "classifier")}
    return replace(timms, **{**changed, "state_dict": None, "architecture": model.architecture})


def _timm_cfg(model: SelfExplaining) -> PretrainedCfg:
    """Return timm's description of the weights that the model's tag names, or of its default weights."""
    tagged = f"{model.architecture}.{getattr(model, 'pretrained_cfg', {}).get('tag')}"
    known = tagged in get_arch_pretrained_cfgs(model.architecture)
    return get_pretrained_cfg(tagged if known else model.architecture) or PretrainedCfg()


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: SelfExplaining) -> dict[str, Tensor]:
    """Bring a checkpoint to the keys of a self-explaining model, and resize it to the model's image size.

    It has the name by which timm's own tools look for such a function in the module of a model.
    """
    weights = adopt(state_dict, model)
    fine = weights.get("head.fine_weight")
    if fine is not None and model.num_classes and len(fine) != model.num_classes:
        weights |= _without_finer(model)  # timm gives a model of other classes a fresh head
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    stem = {f"{name}.weight" for name in _names(model.pretrained_cfg.get("first_conv"))}  # timm adapts its channels
    backbone = {key: value for key, value in weights.items() if key.startswith("backbone.")}
    if any(value.shape != shapes.get(key, value.shape) for key, value in backbone.items() if key not in stem):
        plain = {key.removeprefix("backbone."): value for key, value in backbone.items()}
        resized = _load_vanilla(plain, model, num_classes=0).state_dict()
        weights |= {f"backbone.{key}": value for key, value in resized.items()}
    return weights


def adopt(state_dict: Mapping[str, Tensor], model: SelfExplaining) -> dict[str, Tensor]:
    """Bring a checkpoint to the keys of a self-explaining model; weights of a vanilla model are converted through timm.

    Args:
        state_dict: Weights of a self-explaining model, whose teacher is dropped, or of a vanilla timm model.
        model: Self-explaining model that is to load them.
    """
    if is_ours(state_dict):
        own = {key: value for key, value in state_dict.items() if not key.startswith("teacher.")}
        is_whole = "head.weight" in own and any(key.startswith("backbone.") for key in own)
        has_one_scale = is_whole and "head.fine_weight" not in own
        return own | (_without_finer(model) if has_one_scale else {})
    return converted_weights(_load_vanilla(state_dict, model), model)


def converted_weights(vanilla: TimmModule, model: SelfExplaining) -> dict[str, Tensor]:
    """Return the state dict of a self-explaining model with the weights of a vanilla one.

    Args:
        vanilla: timm classifier.
        model: Self-explaining model; weights for which the vanilla model has none stay as they are here.
    """
    weights = dict(model.state_dict())
    fresh = "pre_logits." if model.anatomy.head_type == "vgg" else None
    for key, value in vanilla.state_dict().items():
        if f"backbone.{key}" in weights and not (fresh and key.startswith(fresh)):
            weights[f"backbone.{key}"] = value
    if not model.num_classes:
        return weights
    if model.anatomy.exact and vanilla.num_classes:
        weights["head.weight"], weights["head.bias"] = (t.detach() for t in linear_classifier(vanilla, model.anatomy))
        return weights | _without_finer(model)
    warnings.warn(
        f"{model.family}_{model.architecture} has no pretrained head: its evidence layer is random and must be trained "
        "before its predictions or maps mean anything",
        stacklevel=2,
    )
    return weights


def _without_finer(model: SelfExplaining) -> dict[str, Tensor]:
    """Return the weights with which finer features have no say in a head, where it reads any: zeros."""
    reads_any = model.num_classes and model.anatomy.finer
    return {"head.fine_weight": torch.zeros_like(model.head.fine_weight)} if reads_any else {}


def _load_vanilla(
    state_dict: Mapping[str, Tensor], model: SelfExplaining, num_classes: int | None = None
) -> TimmModule:
    """Make the vanilla timm model with the weights of a state dict, through timm's own filters and resizing."""
    cfg = _timm_cfg(model)
    classes = _length(state_dict, cfg.classifier, 0) if num_classes is None else num_classes
    stem = _length(model.state_dict(), cfg.first_conv and f"backbone.{_names(cfg.first_conv)[0]}", 1)
    channels = model.in_chans if stem and stem == _length(state_dict, cfg.first_conv, 1) else cfg.input_size[0]
    cfg = replace(
        cfg,
        num_classes=cfg.num_classes if classes is None else classes,
        input_size=(channels, *cfg.input_size[1:]),
        state_dict=dict(state_dict),
        custom_load=False,
        source=None,
    )
    args = {**model.backbone_args, "in_chans": channels, "num_classes": cfg.num_classes}
    source_args = getattr(model, "pretrained_model_args", {})
    return timm.create_model(
        model.architecture, pretrained=True, pretrained_cfg=cfg, pretrained_model_args=source_args, **args
    )


def _names(layers: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    """Return the layer names of a `pretrained_cfg`, which timm writes as one name, several or none."""
    return (layers,) if isinstance(layers, str) else tuple(layers or ())


def _length(state_dict: Mapping[str, Tensor], layers: Any, dim: int) -> int | None:
    """Return the length of a side of a layer's weight, of the first layer where timm names several.

    Where timm names a small network, such as CAFormer's, its last linear layer counts.
    """
    if not layers:
        return None
    name = _names(layers)[0]
    linear = [key for key in sorted(state_dict) if key.startswith(f"{name}.") and len(state_dict[key].shape) == 2]
    weight = state_dict.get(f"{name}.weight", state_dict[linear[-1]] if linear else None)
    return None if weight is None else weight.shape[dim]


def linear_classifier(vanilla: TimmModule, anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """Return the weight (C, K) and bias (C,) by which an exact timm model reads its features; layers are folded."""
    if anatomy.linear is not None:
        return weights_of(vanilla.get_submodule(anatomy.linear))
    probes = torch.zeros(anatomy.channels + 1, anatomy.channels, dtype=torch.float64)
    probes[1:].fill_diagonal_(1)
    with _head_in_double(vanilla):
        logits = vanilla.forward_head(_one_location(probes, anatomy))
    return (logits[1:] - logits[0]).T.contiguous(), logits[0].clone()


@contextmanager
def _head_in_double(vanilla: TimmModule) -> Iterator[None]:
    """Replace the top-level modules of the classifier by copies in double precision on the CPU, in eval mode."""
    names = {name.split(".")[0] for name in _names(vanilla.pretrained_cfg["classifier"])}
    originals = {name: vanilla.get_submodule(name) for name in names}
    training = vanilla.training
    try:
        for name, module in originals.items():
            setattr(vanilla, name, copy.deepcopy(module).to("cpu", torch.float64).eval())
        vanilla.training = False  # distilled heads are averaged in evaluation only
        with torch.no_grad():
            yield
    finally:
        vanilla.training = training
        for name, module in originals.items():
            setattr(vanilla, name, module)


def set_linear_classifier(vanilla: TimmModule, anatomy: Anatomy, weight: Tensor, bias: Tensor) -> None:
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


def _one_location(vectors: Tensor, anatomy: Anatomy) -> Tensor:
    """Turn pooled vectors (N, K) into raw features with a single location."""
    if anatomy.tokens:
        return vectors[:, None]
    return vectors[:, None, None] if anatomy.channels_last else vectors[:, :, None, None]


def _norms_before(vanilla: nn.Module, layers: list[TimmModule]) -> list[TimmModule]:
    """Return the batch norms that share a parent with one of the linear layers."""
    parents = [m for m in vanilla.modules() if any(child in layers for child in m.children())]
    return [child for m in parents if m is not vanilla for child in m.children() if isinstance(child, nn.BatchNorm1d)]


def _neutralise(norm: TimmModule) -> None:
    """Make a batch norm the identity in evaluation."""
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    norm.weight.data.fill_((1.0 + norm.eps) ** 0.5)
    norm.bias.data.zero_()
