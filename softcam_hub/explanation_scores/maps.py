"""Heat maps, patches and their order, and the checks of inputs, which all measures share.

- A map that holds NaN or infinity has no score: every measure gives NaN for its image, and numbers for the
  others.
- Patches tile the map from its upper left corner; those at the right and lower border may be cut off, and
  their mean is over the pixels inside the map.
- Patches of equal value keep reading order: row by row, from the left.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in float32, or in their own dtype where that is finer."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def smallest(values: Tensor) -> float:
    """Return the smallest positive number of a dtype, to which denominators are clamped."""
    return torch.finfo(values.dtype).tiny


def heat(maps: Tensor, size: int | Sequence[int]) -> Tensor:
    """Compute φ of the papers: positive part, bilinear upsampling, then min-max scaling to [0, 1].

    Args:
        maps: Maps at their own resolution, (B, H, W) or (B, k, H, W).
        size: Height and width of the image.

    Returns:
        Heat maps, (B, *size) or (B, k, *size); all zero where a map has no contrast, and all NaN where it
        holds NaN or infinity.
    """
    require(
        maps.ndim in (3, 4) and maps.numel() > 0, f"heat() expects maps (B, H, W) or (B, k, H, W), {shape_of(maps)}"
    )
    height, width = (size, size) if isinstance(size, int) else size
    flat = at_least_float32(maps).flatten(0, -3)  # (B or B·k, H, W)
    large = F.interpolate(without_broken(flat).relu()[:, None], (height, width), mode="bilinear", align_corners=False)
    return unscored(min_max(large[:, 0]), flat).reshape(*maps.shape[:-2], height, width)


def min_max(maps: Tensor) -> Tensor:
    """Scale each map (B, H, W) to [0, 1], or to zero where it has no contrast."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(smallest(maps)), 0.0)


def broken(maps: Tensor) -> Tensor:
    """Return booleans (B,), true where a map holds NaN or infinity."""
    return ~maps.isfinite().reshape(len(maps), -1).all(dim=1)


def unscored(values: Tensor, *maps: Tensor) -> Tensor:
    """Replace values (B, ...) by NaN for every image of which one of the maps holds NaN or infinity.

    Args:
        values: Values computed from maps whose broken ones were replaced.
        maps: Original maps, each (B, ...).
    """
    missing = torch.stack([broken(one) for one in maps]).any(dim=0).to(values.device)
    return values.masked_fill(missing.view(-1, *[1] * (values.ndim - 1)), torch.nan)


def without_broken(maps: Tensor) -> Tensor:
    """Replace broken maps (B, H, W) by zeros."""
    return torch.where(broken(maps)[:, None, None], 0.0, maps)


def patch_side(maps: Tensor, patch: int | None) -> int:
    """Return the side of a patch in pixels, by default a sixteenth of the shorter side of the maps.

    The SoftCAM paper has patches of 33 pixels in images of 512.
    """
    height, width = maps.shape[-2:]
    side = max(min(height, width) // 16, 1) if patch is None else patch
    require(
        1 <= side <= min(height, width), f"patch must be from 1 to the shorter side of {height}x{width}, got {patch}"
    )
    return side


def patch_means(maps: Tensor, patch: int) -> Tensor:
    """Compute the mean of every patch: (B, H, W) -> (B, ceil(H / patch), ceil(W / patch))."""
    means = F.avg_pool2d(without_broken(at_least_float32(maps))[:, None], patch, ceil_mode=True)[:, 0]
    return unscored(means, maps)


def patch_ranks(maps: Tensor, patch: int) -> Tensor:
    """Rank the patches of every map from 0, for the highest mean, on: (B, ceil(H / patch), ceil(W / patch))."""
    means = patch_means(without_broken(maps), patch)
    order = means.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, ranks).view_as(means)


def on_pixels(patches: Tensor, patch: int, size: Sequence[int]) -> Tensor:
    """Spread the value of every patch over its pixels: (B, h, w) -> (B, *size)."""
    return patches.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)[:, : size[0], : size[1]]


def grid_cells(size: Sequence[int], side: int) -> Tensor:
    """Number the cells of a grid over an image from 0, row by row: the cell of every pixel, (H, W).

    Every pixel belongs to one cell. Where `side` does not divide the image, some cells are a pixel longer than others.

    Args:
        size: Height and width of the image.
        side: Number of cells along each axis.
    """
    height, width = size
    require(
        1 <= side <= min(height, width),
        f"a grid of {side}x{side} cells does not fit an image of {height}x{width} pixels: expected at least 1 cell "
        "along a side, and no more cells than pixels",
    )
    rows, columns = (torch.arange(length) * side // length for length in (height, width))
    return rows[:, None] * side + columns


def blur(images: Tensor, radius: int, sigma: float) -> Tensor:
    """Blur images (B, C, H, W) by a Gaussian window of 2·radius + 1 pixels; border pixels are repeated."""
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    window = torch.exp(-0.5 * (offsets / sigma).square())
    window = (window / window.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(padded, window, groups=images.shape[1]), window.mT, groups=images.shape[1])


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def shape_of(values: Tensor) -> str:
    return f"got {values.dtype} of shape {tuple(values.shape)}"


def check_maps(maps: Tensor, name: str = "maps") -> Tensor:
    """Check maps (B, H, W) of real numbers, and return them in float32 or finer."""
    whole = maps.ndim == 3 and maps.numel() > 0 and maps.is_floating_point()
    require(whole, f"expected {name} as floating-point numbers (B, H, W), {shape_of(maps)}")
    return at_least_float32(maps)


def check_heat(maps: Tensor) -> Tensor:
    """Check maps E (B, H, W) in [0, 1], some of which may be broken, and return them in float32 or finer."""
    maps = check_maps(maps)
    whole = without_broken(maps)
    low, high = float(whole.min()), float(whole.max())
    require(low >= 0 and high <= 1, f"expected maps in [0, 1], got {low:.3g} to {high:.3g}: use heat(maps, size)")
    return maps


def check_same_size(maps: Tensor, others: Tensor, names: str) -> None:
    """Raise ValueError unless two sets of maps have one shape."""
    sizes = f"{tuple(maps.shape)} and {tuple(others.shape)}"
    require(maps.shape == others.shape, f"{names} must have one shape (B, H, W), got {sizes}: resize one of them")
