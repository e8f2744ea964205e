"""The layout of a layer's output: channels first, channels last, or tokens with class tokens before them.

- The layout is read off the shape: the locations fill a grid in the shape of the image, with one stride for
  both sides. Where two layouts fit, or none, nothing is guessed, and the error names the option that settles
  the question.
- Class tokens and registers have no location: maps leave them out, and they keep their values when maps
  change.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..models.backbone import grid_height

LayoutName = Literal["NCHW", "NHWC", "NLC"]
"""Order of dimensions: channels first, channels last, or tokens."""

LAYOUTS = get_args(LayoutName)
_MOST_PREFIX_TOKENS = 8


@dataclass(frozen=True)
class Layout:
    """A way to read a layer's output as maps, and to write maps back.

    Args:
        name: `NCHW`, `NHWC` or `NLC` (tokens).
        prefix_tokens: Number of class tokens and registers before the locations, for `NLC` only.
        grid: Height and width of the token grid, for `NLC` only.
    """

    name: LayoutName
    prefix_tokens: int = 0
    grid: tuple[int, int] = (0, 0)

    def to_maps(self, output: Tensor) -> Tensor:
        """Return a layer's output as maps (B, K, H, W)."""
        if self.name == "NHWC":
            return output.permute(0, 3, 1, 2)
        if self.name == "NLC":
            return output[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, self.grid)
        return output

    def from_maps(self, maps: Tensor, output: Tensor) -> Tensor:
        """Return maps as an output of the layer.

        Args:
            maps: Maps, (N, K, H, W).
            output: Output of the layer that gives dtype and class tokens, (1, ...) or (N, ...).
        """
        maps = maps.to(output.dtype)
        if self.name == "NHWC":
            return maps.permute(0, 2, 3, 1)
        if self.name == "NLC":
            prefix = output[:, : self.prefix_tokens].expand(len(maps), -1, -1)
            return torch.cat([prefix, maps.flatten(2).transpose(1, 2)], dim=1)
        return maps


@dataclass(frozen=True)
class Hints:
    """Knowledge about a layer's output beside its shape.

    Args:
        layout: Layout that the caller names, one of `LAYOUTS`.
        prefix_tokens: Number of tokens that the caller wants left out.
        expected_layout: Layout to choose when several fit the shape.
        expected_prefix: Number of class tokens that the model itself counts.
    """

    layout: LayoutName | None = None
    prefix_tokens: int | None = None
    expected_layout: LayoutName | None = None
    expected_prefix: int | None = None

    def __post_init__(self) -> None:
        if self.layout not in (None, *LAYOUTS):
            raise ValueError(f"unknown layout {self.layout!r}: expected one of {', '.join(LAYOUTS)}")

    def of_layer(self, layer: nn.Module | None) -> "Hints":
        """Return these hints, sharpened where the type of `layer` itself determines the layout."""
        channels_first = isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d | nn.AvgPool2d)
        return replace(self, expected_layout="NCHW") if channels_first else self


def hints_of(model: nn.Module, layout: LayoutName | None = None, prefix_tokens: int | None = None) -> Hints:
    """Collect hints on the features of a timm or transformers model, and add what the caller says."""
    inner = getattr(model, "backbone", model)
    if not hasattr(inner, "forward_features"):
        config = getattr(model, "config", None)
        config = getattr(config, "vision_config", config)  # CLIP and similar models keep patch_size there
        return Hints(layout, prefix_tokens, "NLC" if hasattr(config, "patch_size") else None)
    expected = getattr(inner, "output_fmt", None)
    return Hints(layout, prefix_tokens, getattr(expected, "value", expected), getattr(inner, "num_prefix_tokens", None))


def find_layout(output: Tensor, image_size: Sequence[int], hints: Hints) -> Layout:
    """Find the layout of a layer's output, or raise a ValueError that says what is unclear.

    Args:
        output: Output of the layer.
        image_size: Height and width of the images.
        hints: Knowledge about the output beside its shape.
    """
    if output.ndim not in (3, 4):
        raise ValueError(
            f"shape {tuple(output.shape)} has no locations: expected (B, K, H, W), (B, H, W, K) or tokens (B, L, K)"
        )
    if hints.layout is not None and len(hints.layout) != output.ndim:
        raise ValueError(f"layout={hints.layout!r} does not fit shape {tuple(output.shape)}")
    if output.ndim == 3:
        return _find_token_layout(output, image_size, hints)
    return Layout(_find_channel_order(output, image_size, hints))


def _find_channel_order(output: Tensor, image_size: Sequence[int], hints: Hints) -> LayoutName:
    if hints.layout is not None:
        return hints.layout
    sides: dict[LayoutName, Sequence[int]] = {"NCHW": output.shape[2:], "NHWC": output.shape[1:3]}
    fitting = [name for name, grid in sides.items() if _has_shape_of(image_size, grid)]
    if len(fitting) == 2 and hints.expected_layout in fitting:
        return hints.expected_layout
    if len(fitting) != 1:
        many = "can be read as NCHW and as NHWC" if fitting else "is in the shape of the image neither as NCHW nor NHWC"
        raise ValueError(f"{tuple(output.shape)} {many}: pass layout='NCHW' or layout='NHWC'")
    return fitting[0]


def _has_shape_of(image_size: Sequence[int], grid: Sequence[int]) -> bool:
    """Tell whether a grid has the proportions of the image, exactly for square images, else to one cell."""
    (height, width), (rows, columns) = image_size, grid
    if height == width or rows > height or columns > width:
        return rows == columns <= height
    return abs(rows - columns * height / width) <= 1 and abs(columns - rows * width / height) <= 1


def _find_token_layout(output: Tensor, image_size: Sequence[int], hints: Hints) -> Layout:
    length, channels = output.shape[1:]
    if hints.prefix_tokens is not None:
        return Layout("NLC", hints.prefix_tokens, _grid_of(length, hints.prefix_tokens, image_size))
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
        raise ValueError(f"{tuple(output.shape)} can be read as tokens (B, L, K) and as (B, K, L): pass layout='NLC'")
    return Layout("NLC", *next(iter(grids.items())))


def _grid_of(tokens: int, prefix_tokens: int, image_size: Sequence[int]) -> tuple[int, int]:
    """Return the grid that the tokens fill without those in front, or refuse a number that fills none."""
    length = tokens - prefix_tokens
    if prefix_tokens >= 0 and length > 0:
        height = grid_height(length, image_size[0], image_size[1])
        if _has_shape_of(image_size, (height, length // height)):
            return height, length // height
    raise ValueError(
        f"prefix_tokens={prefix_tokens} leaves {length} of {tokens} tokens, which fill no grid in the shape of the "
        f"{image_size[0]}x{image_size[1]} image: pass the number of class tokens and registers"
    )


def _token_grids(length: int, image_size: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Map each possible number of prefix tokens to the grid that the other tokens fill with one whole stride.

    Strides that divide the sides of the image come first; padded sides are tried where none fits.
    """
    for padded in (False, True):
        grids: dict[int, tuple[int, int]] = {}
        for stride in range(1, max(image_size)):
            if not padded and any(side % stride for side in image_size):
                continue
            grid = (-(-image_size[0] // stride), -(-image_size[1] // stride))
            prefix = length - grid[0] * grid[1]
            if 0 <= prefix <= _MOST_PREFIX_TOKENS and grid[0] * grid[1] > 1:
                grids[prefix] = grid
        if grids:
            return grids
    return {}
