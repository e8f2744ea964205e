"""What a map says of the model, found out by asking the model: `predict(images) -> (B, C)` on changed images.

- `predict` gives probabilities, in eval mode, of normalised images; its gradients are not needed.
- The class of an image is the predicted one unless `classes` (B,) says otherwise.
- At most `batch` changed images exist at a time, however many patches, steps or pixels there are.
- What is taken away is replaced by `fill`, 0 by default: the mean colour of normalised images.
- `explain(images, classes) -> (B, H, W)` or `(B, 1, H, W)`: maps of one class per image, at any resolution.
"""

import torch
from torch import Tensor

from .faithfulness import coherency, complexity, pearson
from .localization import top_k
from .maps import (
    at_least_float32,
    blur,
    check,
    check_heat,
    heat,
    on_pixels,
    patch_means,
    patch_ranks,
    patch_side,
    smallest,
    unscored,
    without_broken,
)
from .predictions import Explain, Predict, ask, check_fits, confidence_of, explained, filling, pick, sweep, target


def faithfulness_parts(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    explain: Explain | None = None,
    classes: Tensor | None = None,
    batch: int = 64,
) -> dict[str, Tensor]:
    """y, o and d of the CAPE paper and ADCC's parts, each (B,): what AD, IC, ADD and ADCC are made of.

        parts = faithfulness_parts(predict, images, maps, explain)
        average_drop(parts["confidence"], parts["kept"])
        softcam_hub.load_scores().compute(**parts)

    Args:
        predict: images -> probabilities (B, C).
        images: x (B, C, H, W), normalised.
        maps: E (B, H, W) in [0, 1], at image size.
        explain: draws the second map of coherency, that of E⊙x for the same class; without it coherency is left out.
        classes: (B,).
        batch: images at a time.
    """
    given = check_heat(maps)
    check_fits(images, given)
    maps = without_broken(given)
    classes, confidence = confidence_of(predict, images, classes, batch)
    weights = torch.stack([maps, 1 - maps]).to(images.dtype)  # E and 1 - E

    def change(image: Tensor, version: Tensor) -> Tensor:
        return weights[version, image][:, None] * images[image]

    kept, removed = sweep(predict, classes, 2, change, batch).unbind(dim=1)
    parts = {"kept": kept, "removed": removed, "complexity": complexity(maps)}
    if explain is not None:
        second = [
            heat(explained(explain, image * weight[:, None], label), maps.shape[1:])
            for image, weight, label in zip(
                images.split(batch), weights[0].split(batch), classes.split(batch), strict=True
            )
        ]
        parts["coherency"] = coherency(maps, torch.cat(second))
    return {"confidence": confidence} | {name: unscored(values, given) for name, values in parts.items()}


def topk_sensitivity(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    k: int | None = None,
    patch: int | None = None,
    fill: float | Tensor = 0.0,
    classes: Tensor | None = None,
    batch: int = 64,
) -> Tensor:
    """p_c with the n highest patches occluded, divided by p_c, for n = 1 to k: (B, k), at least 0, lower is better.

    It is 1 where p_c is 0: there is nothing that could drop, as in `average_drop`.

    Args:
        predict: images -> probabilities (B, C).
        images: (B, C, H, W).
        maps: (B, H, W) at image size; patches are ranked by their mean.
        k: length of the curve; 30 by default, or all patches where there are fewer.
        patch: side of a patch in pixels; a sixteenth of the image's shorter side by default.
        fill: what occluded pixels become, a number or anything that broadcasts to (B, C, H, W).
        classes: (B,).
        batch: images at a time.
    """
    patch = patch_side(check_fits(images, maps), patch)
    ranks = patch_ranks(maps, patch)
    k = top_k(ranks[0].numel(), k)
    classes, confidence = confidence_of(predict, images, classes, batch)
    filled = filling(fill, images)

    def change(image: Tensor, version: Tensor) -> Tensor:
        occluded = on_pixels(ranks[image] <= version[:, None, None], patch, images.shape[-2:])
        return torch.where(occluded[:, None], filled[image], images[image])

    confidence = confidence[:, None]
    ratios = sweep(predict, classes, k, change, batch) / confidence.clamp_min(smallest(confidence))
    return unscored(ratios.masked_fill(confidence == 0, 1), maps)


def deletion_auc(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    steps: int = 50,
    fill: float | Tensor = 0.0,
    classes: Tensor | None = None,
    batch: int = 64,
) -> Tensor:
    """Area under p_c while pixels go, the highest first, (B,) in [0, 1], lower is better (RISE, Petsiuk et al. 2018).

    Args:
        predict: images -> probabilities (B, C).
        images: (B, C, H, W).
        maps: (B, H, W) at image size; pixels of equal value go in reading order.
        steps: intervals of the curve; each takes the same share of pixels.
        fill: what the pixels become, a number or anything that broadcasts to (B, C, H, W).
        classes: (B,).
        batch: images at a time.
    """
    classes, _ = confidence_of(predict, images, classes, batch)
    return area(predict, images, filling(fill, images), maps, steps, classes, batch)


def insertion_auc(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    steps: int = 50,
    fill: float | Tensor | None = None,
    classes: Tensor | None = None,
    batch: int = 64,
) -> Tensor:
    """Area under p_c while pixels come, the highest first, (B,) in [0, 1], higher is better.

    Arguments as for `deletion_auc`, but that `fill`, where the curve begins, is the blurred image by default (an 11
    pixel window with sigma 5).
    """
    classes, _ = confidence_of(predict, images, classes, batch)
    start = blur(images, radius=5, sigma=5.0) if fill is None else filling(fill, images)
    return area(predict, start, images, maps, steps, classes, batch)


def area(
    predict: Predict,
    before: Tensor,
    after: Tensor,
    maps: Tensor,
    steps: int,
    classes: Tensor,
    batch: int,
) -> Tensor:
    """Area under p_c while the pixels of `before` become those of `after`, the highest of the map first."""
    check(steps >= 1, f"steps must be at least 1, got {steps}")
    ranks = patch_ranks(check_fits(before, maps), patch=1)

    def change(image: Tensor, version: Tensor) -> Tensor:
        changed = ranks[image] < (version * ranks[0].numel() // steps)[:, None, None]
        return torch.where(changed[:, None], after[image], before[image])

    areas = torch.trapezoid(sweep(predict, classes, steps + 1, change, batch), dx=1 / steps, dim=1)
    return unscored(areas, maps)


def single_deletion(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    patch: int | None = None,
    fill: float | Tensor = 0.0,
    classes: Tensor | None = None,
    batch: int = 64,
) -> Tensor:
    """IDSDS: rank correlation of what a patch is said to matter and what its deletion costs, (B,) in [-1, 1].

    Higher is better; 0 where all patches have one value. In the domain of the model only if it has seen such deletions
    in training (Hesse et al. 2024). Here `predict` may return logits as well.

    Args:
        predict: images -> logits or probabilities (B, C).
        images: (B, C, H, W).
        maps: (B, H, W) at image size, signed or not; a patch's attribution is its mean.
        patch: side of a patch in pixels; a sixteenth of the image's shorter side by default.
        fill: what deleted pixels become, a number or anything that broadcasts to (B, C, H, W).
        classes: (B,).
        batch: images at a time.
    """
    patch = patch_side(check_fits(images, maps), patch)
    drops = patch_drops(predict, images, patch, fill, classes, batch)
    return spearman(patch_means(maps, patch).flatten(1), drops)


def patch_drops(
    predict: Predict,
    images: Tensor,
    patch: int,
    fill: float | Tensor = 0.0,
    classes: Tensor | None = None,
    batch: int = 64,
) -> Tensor:
    """How much the class's answer drops when each of the n patches of an image is deleted, (B, n); of any map.

    Arguments as for `single_deletion`.
    """
    answers = ask(predict, images, batch)
    classes, filled = target(answers, classes), filling(fill, images)
    rows, columns = (-(-length // patch) for length in images.shape[-2:])
    cells = torch.arange(rows * columns, device=images.device).view(1, rows, columns)
    cell_of_pixel = on_pixels(cells, patch, images.shape[-2:])

    def change(image: Tensor, version: Tensor) -> Tensor:
        deleted = cell_of_pixel == version[:, None, None]
        return torch.where(deleted[:, None], filled[image], images[image])

    return pick(answers, classes)[:, None] - sweep(predict, classes, cells.numel(), change, batch)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Rank correlation of each row of two (B, N), in [-1, 1]; 0 where a row is constant."""
    return unscored(pearson(ranks(at_least_float32(first)), ranks(at_least_float32(second))), first, second)


def ranks(rows: Tensor) -> Tensor:
    """Ranks of each row of (B, N), from 1 for the lowest; equal values share the mean of their ranks."""
    ordered = rows.sort(dim=1).values.contiguous()
    below = torch.searchsorted(ordered, rows.contiguous())
    not_above = torch.searchsorted(ordered, rows.contiguous(), right=True)
    return (below + not_above + 1) / 2


def max_sensitivity(
    explain: Explain,
    images: Tensor,
    classes: Tensor,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    batch: int = 64,
) -> Tensor:
    """Largest ‖E(x + δ) - E(x)‖ / ‖E(x)‖ over random |δ| ≤ radius, (B,), at least 0, lower is better.

    Where E(x) is all zero the difference is not divided (Yeh et al. 2019).

    Args:
        explain: images and classes -> one map per image.
        images: (B, C, H, W).
        classes: (B,).
        radius: largest change of a pixel.
        samples: how many δ are drawn, uniformly; all images see the same ones.
        seed: of the draw.
        batch: images at a time.
    """
    check(samples >= 1 and radius > 0, f"samples and radius must be above 0, got {samples} and {radius}")
    generator = torch.Generator().manual_seed(seed)
    noises = radius * (2 * torch.rand(samples, *images.shape[1:], generator=generator) - 1)
    parts = zip(images.split(batch), classes.split(batch), strict=True)
    return torch.cat([_sensitivity(explain, image, label, noises.to(image)) for image, label in parts])


def _sensitivity(explain: Explain, images: Tensor, classes: Tensor, noises: Tensor) -> Tensor:
    clean = explained(explain, images, classes).flatten(1)
    moved = [(explained(explain, images + noise, classes).flatten(1) - clean).norm(dim=1) for noise in noises]
    size = clean.norm(dim=1)
    largest = torch.stack(moved).amax(dim=0) / torch.where(size > 0, size, 1.0)
    return unscored(largest, largest, size)
