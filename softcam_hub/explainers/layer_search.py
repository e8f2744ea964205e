"""Find the layer to explain a network at, where the caller names none."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .hooks import first_tensor, hooked
from .layouts import Hints, find_layout

_READ_BY_CLASS_TOKENS = ("norm1", "layernorm_before", "layer_norm1")
"""Names that timm and transformers give to the norm before a transformer's attention."""

_SMALL_GRID = 4
"""Side of a grid of locations that the next stage of a network may reduce to one location."""


def get_layer(model: nn.Module, layer: str | nn.Module) -> nn.Module:
    """Return the layer that a caller names by its dotted path or passes as a module of the model."""
    modules = dict(model.named_modules())
    if isinstance(layer, str):
        if layer not in modules:
            top = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"{type(model).__name__} has no layer {layer!r}: expected a dotted path below {top}")
        return modules[layer]
    if not any(layer is module for module in modules.values()):
        raise ValueError("layer is no module of this model: pass its dotted path, such as 'layer3'")
    return layer


def find_last_map(model: nn.Module, run: Callable[[Tensor], Tensor], image: Tensor, hints: Hints) -> str:
    """Return the path of the last module whose output has locations.

    An image so small that the last features shrink to one location is refused: an earlier layer would pass
    for them.

    Args:
        model: Network.
        run: Function that runs the network.
        image: One image, (1, 3, H, W).
        hints: Knowledge about the layout of features.
    """
    name, side = _last_map(model, run, image, hints)
    if side > _SMALL_GRID:
        return name
    try:
        last, _ = _last_map(model, run, F.interpolate(image, scale_factor=2), hints)
    except Exception:  # a network of one input size may raise anything
        return name
    if last != name:
        size = f"{image.shape[2]}x{image.shape[3]}"
        raise ValueError(
            f"images of {size} pixels are too small: the last features, those of {last!r}, have one location "
            f"at this size; use larger images, or pass layer=..., such as {name!r}"
        )
    return name


@torch.no_grad()
def _last_map(model: nn.Module, run: Callable[[Tensor], Tensor], image: Tensor, hints: Hints) -> tuple[str, int]:
    """Return the path of the last module whose output has locations, and the shorter side of their grid."""
    names = {module: name for name, module in model.named_modules() if name}
    readings: list[tuple[str, int, ValueError | None]] = []

    def record(module: nn.Module, _: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is None or tensor.ndim not in (3, 4) or len(tensor) != len(image) or 1 in tensor.shape[1:]:
            return
        try:
            layout = find_layout(tensor, image.shape[-2:], hints.of_layer(module))
            readings.append((names[module], min(layout.to_maps(tensor).shape[2:]), None))
        except ValueError as error:
            readings.append((names[module], 0, error))

    with hooked(names, record):
        run(image)
    if not any(error is None for *_, error in readings):
        network = type(model).__name__
        raise ValueError(
            f"{network} has no spatial features to explain: pass layer=... and layout=..., or larger images"
        )
    name, side, error = readings[-1]
    if error is not None:
        raise ValueError(f"the last features are unclear, pass layer=...; at {name!r}: {error}") from error
    return name, side


def find_last_read_by_class_tokens(model: nn.Module) -> str:
    """Return the path of the norm before the last attention, where patches still reach the class tokens."""
    names = [name for name, _ in model.named_modules() if name.split(".")[-1] in _READ_BY_CLASS_TOKENS]
    if not names:
        raise ValueError(
            f"{type(model).__name__} classifies by its class tokens alone, which have no locations: "
            "pass layer=..., such as the norm before the last attention"
        )
    return names[-1]
