"""Scores that run the model on changed images: `predict(images) -> (B, C)`.

- `predict` returns the probabilities of normalised images, in eval mode; it needs no gradients.
- The class of an image is the predicted one unless `classes` (B,) says otherwise.
- At most `batch` changed images exist at a time, however many patches, steps or pixels there are.
- Removed pixels become `fill`, by default 0, which is the mean colour of normalised images.
- `explain(images, classes)` returns maps (B, H, W) or (B, 1, H, W) of one class per image, at any resolution.
"""

import torch
from torch import Tensor

from .faithfulness import coherency, complexity, pearson, ranks
from .localization import top_k
from .maps import (
    at_least_float32,
    blur,
    check_heat,
    heat,
    on_pixels,
    patch_means,
    patch_ranks,
    patch_side,
    require,
    smallest,
    unscored,
    without_broken,
)
from .predictions import (
    Explain,
    Predict,
    check_maps_fit,
    explain_images,
    fill_images,
    predict_confidence,
    predict_versions,
    region_drops,
)


def faithfulness_parts(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    explain: Explain | None = None,
    classes: Tensor | None = None,
    batch: int = 64,
) -> dict[str, Tensor]:
    """Compute the inputs of AD, IC, ADD and ADCC, each (B,): y, o and d of the CAPE paper, and parts of ADCC.

        parts = faithfulness_parts(predict, images, maps, explain)
        average_drop(parts["confidence"], parts["kept"])
        softcam_hub.load_scores().compute(**parts)

    Args:
        predict: Function from images to probabilities (B, C).
        images: Normalised images x, (B, C, H, W).
        maps: Heat maps E in [0, 1] at image size, (B, H, W).
        explain: Function that computes the map of E⊙x for the same class; without it coherency is left out.
        classes: Class of each image, (B,). The default is the predicted class.
        batch: Number of images per call of the model.
    """
    original = check_heat(maps)
    check_maps_fit(images, original)
    maps = without_broken(original)
    classes, confidence = predict_confidence(predict, images, classes, batch)
    weights = torch.stack([maps, 1 - maps]).to(images.dtype)  # E and 1 - E

    def change(image: Tensor, version: Tensor) -> Tensor:
        return weights[version, image][:, None] * images[image]

    kept, removed = predict_versions(predict, classes, 2, change, batch).unbind(dim=1)
    parts = {"kept": kept, "removed": removed, "complexity": complexity(maps)}
    if explain is not None:
        second = []
        batches = zip(images.split(batch), weights[0].split(batch), classes.split(batch), strict=True)
        for image, weight, label in batches:
            second.append(heat(explain_images(explain, image * weight[:, None], label), maps.shape[1:]))
        parts["coherency"] = coherency(maps, torch.cat(second))
    return {"confidence": confidence} | {name: unscored(values, original) for name, values in parts.items()}


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
    """Compute the share of p_c left with the n highest patches occluded, n = 1 to k: (B, k), lower is better.

    The value is 1 where p_c is 0 and cannot drop.

    Args:
        predict: Function from images to probabilities (B, C).
        images: Images, (B, C, H, W).
        maps: Maps at image size, (B, H, W); patches are ranked by their mean.
        k: Length of the curve. The default is 30, or the number of patches where there are fewer.
        patch: Side of a patch in pixels. The default is a sixteenth of the image's shorter side.
        fill: Value of occluded pixels, a number or anything that broadcasts to (B, C, H, W).
        classes: Class of each image, (B,). The default is the predicted class.
        batch: Number of images per call of the model.
    """
    patch = patch_side(check_maps_fit(images, maps), patch)
    ranks = patch_ranks(maps, patch)
    k = top_k(ranks[0].numel(), k)
    classes, confidence = predict_confidence(predict, images, classes, batch)
    filled = fill_images(fill, images)

    def change(image: Tensor, version: Tensor) -> Tensor:
        occluded = on_pixels(ranks[image] <= version[:, None, None], patch, images.shape[-2:])
        return torch.where(occluded[:, None], filled[image], images[image])

    confidence = confidence[:, None]
    ratios = predict_versions(predict, classes, k, change, batch) / confidence.clamp_min(smallest(confidence))
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
    """Compute the area under p_c while the highest pixels are removed first, (B,) in [0, 1], lower is better.

    The measure is that of RISE (Petsiuk et al. 2018).

    Args:
        predict: Function from images to probabilities (B, C).
        images: Images, (B, C, H, W).
        maps: Maps at image size, (B, H, W); pixels of equal value go in reading order.
        steps: Number of intervals of the curve, each of which removes the same share of pixels.
        fill: Value of removed pixels, a number or anything that broadcasts to (B, C, H, W).
        classes: Class of each image, (B,). The default is the predicted class.
        batch: Number of images per call of the model.
    """
    classes, _ = predict_confidence(predict, images, classes, batch)
    return area(predict, images, fill_images(fill, images), maps, steps, classes, batch)


def insertion_auc(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    steps: int = 50,
    fill: float | Tensor | None = None,
    classes: Tensor | None = None,
    batch: int = 64,
) -> Tensor:
    """Compute the area under p_c while the highest pixels are inserted first, (B,), higher is better.

    Arguments as for `deletion_auc`, except that the default of `fill`, where the curve begins, is the blurred
    image (a window of 11 pixels with sigma 5).
    """
    classes, _ = predict_confidence(predict, images, classes, batch)
    start = blur(images, radius=5, sigma=5.0) if fill is None else fill_images(fill, images)
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
    """Compute the area under p_c while pixels change from `before` to `after`, the highest first, (B,)."""
    require(steps >= 1, f"steps must be at least 1, got {steps}")
    ranks = patch_ranks(check_maps_fit(before, maps), patch=1)

    def change(image: Tensor, version: Tensor) -> Tensor:
        changed = ranks[image] < (version * ranks[0].numel() // steps)[:, None, None]
        return torch.where(changed[:, None], after[image], before[image])

    areas = torch.trapezoid(predict_versions(predict, classes, steps + 1, change, batch), dx=1 / steps, dim=1)
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
    """Compute the rank correlation of the attributions of fine patches with the drops by their deletion, (B,).

    Values lie in [-1, 1], and higher is better; 0 where all patches have one value. This is a single-deletion score
    out of domain: the model has never seen such holes. It is not the published IDSDS, which deletes the cells of a
    4x4 grid from images of a model that has learnt from such images: `idsds` computes that. Here `predict` may return
    logits as well.

    Args:
        predict: Function from images to logits or probabilities (B, C).
        images: Images, (B, C, H, W).
        maps: Maps at image size, (B, H, W), signed or not; the attribution of a patch is its mean.
        patch: Side of a patch in pixels. The default is a sixteenth of the image's shorter side.
        fill: Value of deleted pixels, a number or anything that broadcasts to (B, C, H, W).
        classes: Class of each image, (B,). The default is the predicted class.
        batch: Number of images per call of the model.
    """
    patch = patch_side(check_maps_fit(images, maps), patch)
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
    """Compute the drop of the class's output when each of the n patches of an image is deleted, (B, n).

    Arguments as for `single_deletion`.
    """
    rows, columns = (-(-length // patch) for length in images.shape[-2:])
    patches = torch.arange(rows * columns).view(1, rows, columns)
    return region_drops(predict, images, on_pixels(patches, patch, images.shape[-2:])[0], fill, classes, batch)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Compute the rank correlation of the rows of two (B, N), in [-1, 1]; 0 where a row is constant."""
    return unscored(pearson(ranks(at_least_float32(first)), ranks(at_least_float32(second))), first, second)


def max_sensitivity(
    explain: Explain,
    images: Tensor,
    classes: Tensor,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    batch: int = 64,
) -> Tensor:
    """Compute the largest ‖E(x + δ) - E(x)‖ / ‖E(x)‖ over random |δ| ≤ radius, (B,), lower is better.

    Where E(x) is all zero the difference is not divided (Yeh et al. 2019).

    Args:
        explain: Function from images and classes to one map per image.
        images: Images, (B, C, H, W).
        classes: Class of each image, (B,).
        radius: Largest change of a pixel.
        samples: Number of uniformly drawn δ, which are the same for all images.
        seed: Seed of the draw.
        batch: Number of images per call of the model.
    """
    require(samples >= 1 and radius > 0, f"samples and radius must be above 0, got {samples} and {radius}")
    generator = torch.Generator().manual_seed(seed)
    noises = radius * (2 * torch.rand(samples, *images.shape[1:], generator=generator) - 1)
    parts = zip(images.split(batch), classes.split(batch), strict=True)
    return torch.cat([_sensitivity(explain, image, label, noises.to(image)) for image, label in parts])


def _sensitivity(explain: Explain, images: Tensor, classes: Tensor, noises: Tensor) -> Tensor:
    clean = explain_images(explain, images, classes).flatten(1)
    changes = []
    for noise in noises:
        noisy = explain_images(explain, images + noise, classes).flatten(1)
        changes.append((noisy - clean).norm(dim=1))
    size = clean.norm(dim=1)
    largest = torch.stack(changes).amax(dim=0) / torch.where(size > 0, size, 1.0)
    return unscored(largest, largest, size)
