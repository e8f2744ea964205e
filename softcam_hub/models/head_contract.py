"""Check that a class is a whole head before it is registered, with its mathematics on a few random numbers."""

import inspect
import re
from typing import Any

import torch

from .heads import HEADS, EvidenceHead
from .map_kind import MapKind

_FAMILY = re.compile("[a-z][a-z0-9]*")

_TAKEN = {
    *("drop_block_rate", "drop_path_rate", "drop_rate", "dynamic_img_size", "features_only", "format", "global_pool"),
    *("head", "head_options", "img_size", "in_chans", "kind", "multi_label", "out_indices", "output_stride"),
    *("patch_size", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "scales", "scriptable"),
    "window_size",
}
"""Names of arguments that make a model. A head cannot have options of these names."""

_TOLERANCE = 1e-4
"""Largest difference between what the maps of a head make up and its prediction, relative to the largest value."""


def check_head(head: type[EvidenceHead]) -> None:
    """Raise TypeError or ValueError, in a sentence that names the missing part, unless a class is a whole head.

    Args:
        head: Class that is to be registered.
    """
    if not isinstance(head, type) or not issubclass(head, EvidenceHead):
        raise TypeError(f"register_head() takes a class derived from softcam_hub.EvidenceHead, got {head!r}")
    for name, example in {"family": "'lse'", "title": "'Log-sum-exp'", "map_kinds": "(MapKind('lse'),)"}.items():
        if not hasattr(head, name):
            raise TypeError(f"{head.__name__} has no {name}: add a class attribute, such as {name} = {example}")
    if inspect.isabstract(head):
        missing = ", ".join(sorted(head.__abstractmethods__))
        raise TypeError(f"{head.__name__} has no {missing}(): define it, as EvidenceHead only declares it")
    _check_family(head)
    _check_kinds(head)
    _check_options(head)
    _check_numbers(head)


def _check_family(head: type[EvidenceHead]) -> None:
    if not isinstance(head.family, str) or not _FAMILY.fullmatch(head.family):
        raise ValueError(
            f"family {head.family!r} of {head.__name__} must be lower-case letters and digits, without an underscore: "
            "a model is called <family>_<timm name>"
        )
    other = HEADS.get(head.family)
    if other is not None and _path(other) != _path(head):
        raise ValueError(f"the family {head.family!r} is taken by {_path(other)}: give {head.__name__} another name")


def _check_kinds(head: type[EvidenceHead]) -> None:
    kinds = head.map_kinds
    if not isinstance(kinds, tuple) or not kinds or not all(isinstance(kind, MapKind) for kind in kinds):
        raise TypeError(f"map_kinds of {head.__name__} must be a tuple of MapKind, got {kinds!r}")
    if len(set(head.kinds)) < len(kinds):
        raise ValueError(f"map_kinds of {head.__name__} must have different names, got {', '.join(head.kinds)}")
    for other in HEADS.values():
        taken = {kind.name: kind for kind in other.map_kinds if _path(other) != _path(head)}
        for kind in kinds:
            if taken.get(kind.name, kind) != kind:
                raise ValueError(
                    f"{other.title} has other {kind.name!r} maps: give the map kind of {head.__name__} another name"
                )


def _check_options(head: type[EvidenceHead]) -> None:
    """Refuse options that would keep an argument from the backbone."""
    taken = sorted(_TAKEN & set(head.options()))
    if taken:
        raise ValueError(
            f"{head.__name__} has an option {taken[0]!r}, which is an argument of timm's models: give it another name"
        )


@torch.no_grad()
def _check_numbers(head: type[EvidenceHead]) -> None:
    """Make a small head, and compare its maps with what their description says of them."""
    batch, channels, classes, side = 2, 8, 3, 4
    features = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):  # the caller's random state is left alone
        try:
            made = head(channels, classes)
        except TypeError as error:
            raise TypeError(
                f"{head.__name__}(in_features, num_classes) cannot be made: {error}; options of its own need defaults"
            ) from error
    logits = made(features)
    _check_tensor(f"logits of {head.__name__}", logits, (batch, classes), "(B, C)")
    if not isinstance(made.weight, torch.nn.Parameter) or made.weight.shape != (classes, channels):
        raise ValueError(f"{head.__name__} must keep the weight (C, K) and bias (C) of the vanilla classifier")
    for kind in head.map_kinds:
        maps = made.maps(features, kind=kind.name)
        _check_tensor(f"{kind.name!r} maps of {head.__name__}", maps, (batch, classes, side, side), "(B, C, H, W)")
        if not kind.signed and (maps < 0).any():
            raise ValueError(f"{kind.name!r} maps of {head.__name__} have negative values: say signed=True of the kind")
        if kind.composition is not None:
            predicted = kind.target(logits, logits.softmax(dim=1))
            distance = float((kind.compose(maps) - predicted).abs().max())
            if not distance <= _TOLERANCE * predicted.abs().max():
                meaning = "sum to the probability" if kind.sums_to_probability else "average to the logit"
                raise ValueError(
                    f"{kind.name!r} maps of {head.__name__} do not {meaning}: they are {distance:.1e} away"
                )


def _check_tensor(what: str, values: Any, shape: tuple[int, ...], dimensions: str) -> None:
    """Raise ValueError unless `values` is a finite tensor of the shape that `dimensions` describes."""
    if not isinstance(values, torch.Tensor) or values.shape != shape:
        found = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise ValueError(f"{what} must be a tensor {dimensions}: got {found}")
    if not values.isfinite().all():
        raise ValueError(f"{what} are not finite for random features: check the computation")


def _path(head: type[EvidenceHead]) -> str:
    return f"{head.__module__}.{head.__qualname__}"
