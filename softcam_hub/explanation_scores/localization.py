"""Localisation: does a map point at the annotation? One value per image, higher is better but where it is said.

- Only the positive part of a map counts. A map without any positive value scores 0.
- `evidence_precision` and `share_of_positive` alone read signed evidence. The first depends on the size of the
  evidence and the second on no place at all, so that neither ranks the maps of networks with different penalties.
- A map without contrast singles out no patch: its top-k localisation precision is 0, wherever the annotation
  is.
- Activation precision is what others call relevance mass; the energy pointing game is the same with boxes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import (
    check_maps,
    check_same_size,
    min_max,
    patch_means,
    patch_ranks,
    patch_side,
    require,
    smallest,
    unscored,
    without_broken,
)

TOP_PATCHES = 30
"""Length k of the SoftCAM paper's curves."""

TOLERANCE = 15 / 224
"""Distance by which the highest pixel may miss the annotation, as a share of the image's shorter side: the published 15
pixels, in images of the usual 224."""


def localization_precision(maps: Tensor, masks: Tensor, k: int | None = None, patch: int | None = None) -> Tensor:
    """Compute the share of the n highest patches that touch the annotation, for n = 1 to k: (B, k) in [0, 1].

    Args:
        maps: Maps at image size, (B, H, W); patches are ranked by the mean of the positive part.
        masks: Masks, (B, H, W), true on the annotation.
        k: Length of the curve. The default is 30, or the number of patches where there are fewer.
        patch: Side of a patch in pixels. The default is a sixteenth of the image's shorter side.
    """
    original, masks = check_annotated(maps, masks)
    maps, patch = without_broken(original).relu(), patch_side(original, patch)
    ranks = patch_ranks(maps, patch).flatten(1)
    k = top_k(ranks.shape[1], k)
    touched = touched_patches(masks, patch, maps.dtype)
    hits = touched.gather(1, ranks.argsort(dim=1)[:, :k])
    contrast = (maps.amin(dim=(1, 2)) < maps.amax(dim=(1, 2)))[:, None]
    return unscored(contrast * hits.cumsum(dim=1) / torch.arange(1, k + 1, device=hits.device), original)


def touched_patches(masks: Tensor, patch: int, dtype: torch.dtype) -> Tensor:
    """Return 1 for every patch that touches the annotation and 0 for the others, (B, patches) in reading order."""
    return F.max_pool2d(masks[:, None].to(dtype), patch, ceil_mode=True).flatten(1)


def top_k(patches: int, k: int | None) -> int:
    """Return the length of the curve, and check that there are as many patches."""
    k = min(TOP_PATCHES, patches) if k is None else k
    require(1 <= k <= patches, f"k must be from 1 to the {patches} patches of a map, got {k}: choose a smaller patch")
    return k


def activation_precision(maps: Tensor, masks: Tensor) -> Tensor:
    """Compute Σ(E⁺ in mask) / ΣE⁺, (B,) in [0, 1]: the share of the activation that is on the annotation.

    Args:
        maps: Maps at image size, (B, H, W).
        masks: Masks, (B, H, W), true on the annotation.
    """
    original, masks = check_annotated(maps, masks)
    maps = without_broken(original)
    positive = maps.relu() / maps.amax(dim=(1, 2), keepdim=True).clamp_min(smallest(maps))  # sums stay finite
    shares = (positive * masks).sum(dim=(1, 2)) / positive.sum(dim=(1, 2)).clamp_min(smallest(maps))
    return unscored(shares, original)


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Return 1 for each map whose highest pixel is on the annotation and 0 for the others, (B,).

    This is `hit_rate` without tolerance.

    Args:
        maps: Maps at image size, (B, H, W).
        masks: Masks, (B, H, W), true on the annotation.
    """
    return hit_rate(maps, masks, tolerance=0.0)


def hit_rate(maps: Tensor, masks: Tensor, tolerance: float | None = None) -> Tensor:
    """Return 1 for each map whose highest pixel is on or near the annotation and 0 for the others, (B,).

    This is the pointing game of Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016: a hit is
    an annotated pixel whose centre is at most 15 pixels from that of the highest one. Images of other sizes than 224
    get the same share of their shorter side. A small annotation is hit more easily than without tolerance, so that
    the rate of a random map is the one to surpass. The first in reading order counts where several pixels are the
    highest. A map without contrast points nowhere and scores 0.

    Args:
        maps: Maps at image size, (B, H, W).
        masks: Masks, (B, H, W), true on the annotation.
        tolerance: Largest distance in pixels. The default is 15/224 of the image's shorter side.
    """
    original, masks = check_annotated(maps, masks)
    height, width = original.shape[1:]
    tolerance = TOLERANCE * min(height, width) if tolerance is None else tolerance
    require(0 <= tolerance < float("inf"), f"tolerance must be a number of pixels from 0 on, got {tolerance}")
    flat = without_broken(original).relu().flatten(1)
    highest, place = flat.max(dim=1)
    row, column = (place // width)[:, None], (place % width)[:, None]
    down = (torch.arange(height, device=flat.device) - row).square()  # (B, H)
    right = (torch.arange(width, device=flat.device) - column).square()
    near = down[:, :, None] + right[:, None, :] <= tolerance**2
    hits = (near & masks).flatten(1).any(dim=1) & (highest > flat.amin(dim=1))
    return unscored(hits.to(flat.dtype), original)


def activation_sensitivity(maps: Tensor, masks: Tensor) -> Tensor:
    """Compute Σ(E⁺ in mask) / |mask| with min-max scaled E⁺, (B,) in [0, 1]: the activation of the mask.

    Arguments as for `activation_precision`. A map without contrast scores 0.
    """
    maps, masks = check_annotated(maps, masks)
    covered = (min_max(without_broken(maps).relu()) * masks).sum(dim=(1, 2)) / masks.sum(dim=(1, 2))
    return unscored(covered, maps)


def evidence_precision(maps: Tensor, masks: Tensor, threshold: float = 1.0, patch: int | None = None) -> Tensor:
    """Compute the share of the patches with evidence above the threshold that touch the annotation, (B,) in [0, 1].

    An image without evidence above the threshold has no score (NaN). The SoftCAM authors' code measures this as
    "precision", with evidence in units of the logit and a threshold of 1. Its patches have 33 of 512 pixels and begin
    every 8 pixels, each has the evidence of one point of the enlarged map, and the patches of all images form one
    share; here patches tile the image, have their mean evidence, and every image has a share.

    The score depends on the size of the evidence, not on its place alone. A penalty that shrinks evidence leaves fewer
    patches above the threshold, so that the precision may rise, and images lose their score, with no better place.
    Read it beside the number of images that have a score, and beside `share_of_positive`: in the authors' own runs the
    share on diseased images rose from 0.28 without a penalty to 0.50 with one.

    Args:
        maps: Signed maps in units of the logit at image size, (B, H, W), and no heat maps, which have lost their unit.
        masks: Masks, (B, H, W), true on the annotation.
        threshold: Evidence that a patch must surpass to count.
        patch: Side of a patch in pixels, 1 for single locations. The default is a sixteenth of the image's shorter
            side.
    """
    original, masks = check_annotated(maps, masks)
    maps, patch = without_broken(original), patch_side(original, patch)
    above = (patch_means(maps, patch).flatten(1) > threshold).to(maps.dtype)
    hits = (above * touched_patches(masks, patch, maps.dtype)).sum(dim=1)
    return unscored(hits / above.sum(dim=1), original)  # 0 / 0 is NaN: no patch counts


def share_of_positive(maps: Tensor) -> Tensor:
    """Compute the share of the cells of signed maps with evidence above zero, (B,) in [0, 1].

    The SoftCAM authors compare diseased with healthy images: call the function for each of the two. Scale plays no
    part, so that a penalty which only shrinks evidence changes nothing here.

    Args:
        maps: Signed maps at their own resolution, (B, h, w).
    """
    maps = check_maps(maps)
    return unscored((maps > 0).to(maps.dtype).mean(dim=(1, 2)), maps)


def energy_pointing_game(maps: Tensor, boxes: Tensor) -> Tensor:
    """Compute Σ(E⁺ in the boxes) / ΣE⁺, (B,) in [0, 1].

    Args:
        maps: Maps at image size, (B, H, W).
        boxes: Boxes (B, 4) or (B, n, 4), as for `box_masks`.
    """
    return activation_precision(maps, box_masks(boxes, (maps.shape[-2], maps.shape[-1])))


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Make masks (B, *size) that are true inside any of an image's boxes.

    Args:
        boxes: Boxes (B, 4) or (B, n, 4) as left, top, right, bottom in pixels; right and bottom are the first
            outside.
        size: Height and width of the image.
    """
    whole = boxes.ndim in (2, 3) and boxes.shape[-1] == 4
    require(whole, f"expected boxes (B, 4) or (B, n, 4) as left, top, right, bottom, got {tuple(boxes.shape)}")
    left, top, right, bottom = boxes.view(len(boxes), -1, 4, 1, 1).unbind(dim=2)  # each (B, n, 1, 1)
    inside = (left >= 0) & (left < right) & (right <= size[1]) & (top >= 0) & (top < bottom) & (bottom <= size[0])
    require(bool(inside.all()), f"boxes must have left < right and top < bottom and lie inside the {size} image")
    rows = torch.arange(size[0], device=boxes.device)[:, None]
    columns = torch.arange(size[1], device=boxes.device)
    return ((left <= columns) & (columns < right) & (top <= rows) & (rows < bottom)).any(dim=1)


def mosaics(images: Tensor, labels: Tensor, side: int = 2) -> tuple[Tensor, Tensor]:
    """Make mosaics of `side`² images, and return them with the classes of their cells in reading order.

        pictures, classes = mosaics(images, labels)                 # (G, C, 2H, 2W), (G, 4)
        maps = model.explain(pictures, classes=classes).maps        # (G, 4, h, w)
        score = grid_pointing_game(heat(maps, pictures.shape[-2:]))

    Args:
        images: Images (G·side², C, H, W); neighbours in the batch form a mosaic, and must be of different
            classes.
        labels: Class of each image, (G·side²,).
        side: Number of cells in a row of the mosaic.
    """
    cells = side * side
    whole = images.ndim == 4 and len(images) == len(labels) > 0 and len(images) % cells == 0
    wanted = f"expected images (B, C, H, W) and labels (B,) with B a multiple of {cells}"
    require(whole, f"{wanted}, got {tuple(images.shape)} and {tuple(labels.shape)}")
    classes = labels.view(-1, cells)
    ordered = classes.sort(dim=1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(dim=1).nonzero().flatten().tolist()
    require(not twice, f"mosaics {twice} would hold a class twice: order the images so that neighbours differ")
    _, channels, height, width = images.shape
    grid = images.view(-1, side, side, channels, height, width).permute(0, 3, 1, 4, 2, 5)  # (G, C, row, H, column, W)
    return grid.reshape(-1, channels, side * height, side * width), classes


def grid_pointing_game(maps: Tensor, side: int = 2) -> Tensor:
    """Compute the share of each map's positive part in the cell of its class, (G, side²) in [0, 1].

    A constant map has 1/side².

    Args:
        maps: Maps (G, side², H, W) of the classes in the cells, in reading order; height and width are
            multiples of `side`.
        side: Number of cells in a row of the mosaic.
    """
    whole = maps.ndim == 4 and maps.shape[1] == side * side and not any(length % side for length in maps.shape[2:])
    wanted = f"expected maps (G, {side * side}, H, W), height and width multiples of {side}"
    require(whole, f"{wanted}, got {tuple(maps.shape)}: upsample them to the mosaic's size with heat()")
    height, width = maps.shape[2] // side, maps.shape[3] // side
    cell = torch.arange(side * side, device=maps.device)
    corners = torch.stack([cell % side * width, cell // side * height], dim=1)
    boxes = torch.cat([corners, corners + torch.tensor([width, height], device=maps.device)], dim=1)
    return energy_pointing_game(maps.flatten(0, 1), boxes.repeat(len(maps), 1)).view(-1, side * side)


def check_annotated(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Check maps and masks, and return maps in float32 or finer and boolean masks of the same shape."""
    maps = check_maps(maps)
    check_same_size(maps, masks, "maps and masks")
    return maps, check_masks(masks).to(maps.device)


def check_masks(masks: Tensor) -> Tensor:
    """Check masks (B, H, W), none of which may be empty, and return them as booleans."""
    if masks.dtype != torch.bool:
        wanted = "masks must be boolean or hold only 0 and 1"
        require(bool(((masks == 0) | (masks == 1)).all()), f"{wanted}, got values up to {float(masks.max()):.3g}")
        masks = masks.to(torch.bool)
    empty = (~masks.flatten(1).any(dim=1)).nonzero().flatten().tolist()
    require(not empty, f"the masks of images {empty} are empty: leave out images without an annotation")
    return masks
