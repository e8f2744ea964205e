"""Which way a layer's output lies: channels first, channels last, or tokens with class tokens before them.

- Read off the shape: the locations fill a grid in the shape of the image, with one stride for both sides. Where two
  readings fit, or none, nothing is guessed: the error names the option that settles it.
- Class tokens and registers are no locations: they are left out of the maps and stay as they are when maps change.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..models.backbone import grid_height

LAYOUTS = ("NCHW", "NHWC", "NLC")
_MOST_PREFIX_TOKENS = 8

_REGISTRATION = threading.Lock()
"""Held while hooks come and go: torch numbers them without a lock, and of two hooks with one number one is lost."""


@dataclass(frozen=True)
class Layout:
    """How to read a layer's output as maps, and how to write maps back.

    Args:
        name: `NCHW`, `NHWC` or `NLC` (tokens).
        prefix_tokens: class tokens and registers before the locations; `NLC` only.
        grid: height and width of the token grid; `NLC` only.
    """

    name: str
    prefix_tokens: int = 0
    grid: tuple[int, int] = (0, 0)

    def to_maps(self, raw: Tensor) -> Tensor:
        """(B, K, H, W) of a layer's output."""
        if self.name == "NHWC":
            return raw.permute(0, 3, 1, 2)
        if self.name == "NLC":
            return raw[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, self.grid)
        return raw

    def from_maps(self, maps: Tensor, raw: Tensor) -> Tensor:
        """`maps` (N, K, H, W) as an output of the layer, with the type and the class tokens of `raw` (1 or N, ...)."""
        maps = maps.to(raw.dtype)
        if self.name == "NHWC":
            return maps.permute(0, 2, 3, 1)
        if self.name == "NLC":
            prefix = raw[:, : self.prefix_tokens].expand(len(maps), -1, -1)
            return torch.cat([prefix, maps.flatten(2).transpose(1, 2)], dim=1)
        return maps


@dataclass(frozen=True)
class Hints:
    """What is known beside the shape.

    Args:
        layout: one of `LAYOUTS`, given by the caller.
        prefix_tokens: how many tokens to leave out, given by the caller.
        expected_layout: what features of this model or layer are when several readings fit.
        expected_prefix: how many class tokens the model itself counts.
    """

    layout: str | None = None
    prefix_tokens: int | None = None
    expected_layout: str | None = None
    expected_prefix: int | None = None

    def __post_init__(self) -> None:
        if self.layout not in (None, *LAYOUTS):
            raise ValueError(f"unknown layout {self.layout!r}: expected one of {', '.join(LAYOUTS)}")

    def of_layer(self, layer: nn.Module) -> "Hints":
        """The same, where the type of `layer` itself says what its output is."""
        channels_first = isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d | nn.AvgPool2d)
        return replace(self, expected_layout="NCHW") if channels_first else self


def hints_of(model: nn.Module, layout: str | None = None, prefix_tokens: int | None = None) -> Hints:
    """What is known of the features of timm and transformers models, beside what the caller says."""
    inner = getattr(model, "backbone", model)
    if not hasattr(inner, "forward_features"):
        config = getattr(model, "config", None)
        config = getattr(config, "vision_config", config)  # CLIP and its like keep it there
        return Hints(layout, prefix_tokens, "NLC" if hasattr(config, "patch_size") else None)
    expected = getattr(inner, "output_fmt", None)
    return Hints(layout, prefix_tokens, getattr(expected, "value", expected), getattr(inner, "num_prefix_tokens", None))


def find_layout(raw: Tensor, image_size: tuple[int, int], hints: Hints) -> Layout:
    """How to read `raw`, a layer's output for images of `image_size`, or a `ValueError` that says what is unclear."""
    if raw.ndim not in (3, 4):
        raise ValueError(
            f"shape {tuple(raw.shape)} has no locations: expected (B, K, H, W), (B, H, W, K) or tokens (B, L, K)"
        )
    if hints.layout is not None and len(hints.layout) != raw.ndim:
        raise ValueError(f"layout={hints.layout!r} does not fit shape {tuple(raw.shape)}")
    return _find_tokens(raw, image_size, hints) if raw.ndim == 3 else Layout(_find_maps(raw, image_size, hints))


def _find_maps(raw: Tensor, image_size: tuple[int, int], hints: Hints) -> str:
    if hints.layout is not None:
        return hints.layout
    sides = {"NCHW": raw.shape[2:], "NHWC": raw.shape[1:3]}
    fitting = [name for name, grid in sides.items() if _has_shape_of(image_size, tuple(grid))]
    if len(fitting) == 2 and hints.expected_layout in fitting:
        return hints.expected_layout
    if len(fitting) != 1:
        many = "can be read as NCHW and as NHWC" if fitting else "is in the shape of the image neither as NCHW nor NHWC"
        raise ValueError(f"{tuple(raw.shape)} {many}: pass layout='NCHW' or layout='NHWC'")
    return fitting[0]


def _has_shape_of(image_size: tuple[int, int], grid: tuple[int, int]) -> bool:
    """Whether a grid has the proportions of the image; those of a square one exactly, as padding leaves it square."""
    (height, width), (rows, columns) = image_size, grid
    if height == width or rows > height or columns > width:
        return rows == columns <= height
    return abs(rows - columns * height / width) <= 1 and abs(columns - rows * width / height) <= 1


def _find_tokens(raw: Tensor, image_size: tuple[int, int], hints: Hints) -> Layout:
    length, channels = raw.shape[1:]
    given = hints.prefix_tokens
    if given is not None:
        return Layout("NLC", given, _grid_of(length - given, image_size))
    grids = _token_grids(length, image_size)
    if not grids and length <= _MOST_PREFIX_TOKENS:
        raise ValueError(
            f"its {length} tokens can only be class tokens, which have no locations: name an earlier layer"
        )
    if hints.expected_prefix in grids:
        return Layout("NLC", hints.expected_prefix, grids[hints.expected_prefix])
    if len(grids) != 1:
        many = f"{' or '.join(map(str, grids))} of them" if grids else f"no number up to {_MOST_PREFIX_TOKENS} of them"
        raise ValueError(
            f"{length} tokens fill a grid in the shape of the image if {many} are class tokens: pass prefix_tokens=..."
        )
    known = hints.layout or hints.expected_layout == "NLC" or hints.expected_prefix is not None
    if not known and _token_grids(channels, image_size):
        raise ValueError(f"{tuple(raw.shape)} can be read as tokens (B, L, K) and as (B, K, L): pass layout='NLC'")
    return Layout("NLC", *next(iter(grids.items())))


def _grid_of(length: int, image_size: tuple[int, int]) -> tuple[int, int]:
    if length < 1:
        raise ValueError(f"prefix_tokens leaves {length} locations: pass the number of class tokens and registers")
    height = grid_height(length, *image_size)
    return height, length // height


def _token_grids(length: int, image_size: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """Number of prefix tokens -> the grid that the others fill with one whole stride; padded sides only if need be."""
    for padded in (False, True):
        found: dict[int, tuple[int, int]] = {}
        for stride in range(1, max(image_size)):
            if not padded and any(side % stride for side in image_size):
                continue
            grid = (-(-image_size[0] // stride), -(-image_size[1] // stride))
            prefix = length - grid[0] * grid[1]
            if 0 <= prefix <= _MOST_PREFIX_TOKENS and grid[0] * grid[1] > 1:
                found[prefix] = grid
        if found:
            return found
    return {}


def first_tensor(output: Any) -> Tensor | None:
    """The tensor that a module gives, alone or first in a tuple."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """`output`, with its first tensor replaced."""
    return tensor if isinstance(output, Tensor) else type(output)((tensor, *output[1:]))


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Run `hook` after the forward of each of `modules`, inside the `with` and in this thread only."""
    owner = threading.get_ident()

    def of_this_thread(*call: Any) -> Any:
        return hook(*call) if threading.get_ident() == owner else None  # another thread may run the same model

    with _REGISTRATION:
        handles = [module.register_forward_hook(of_this_thread) for module in modules]
    try:
        yield
    finally:
        with _REGISTRATION:
            for handle in handles:
                handle.remove()
