"""Run the model on changed images, at most `batch` of them at a time, and check its outputs."""

from collections.abc import Callable

import torch
from torch import Tensor

from .maps import at_least_float32, check_maps, require

Predict = Callable[[Tensor], Tensor]
"""Function from images (B, C, H, W) to outputs (B, classes)."""

Explain = Callable[[Tensor, Tensor], Tensor]
"""Function from images (B, C, H, W) and classes (B,) to maps (B, h, w) or (B, 1, h, w) of any size."""

Change = Callable[[Tensor, Tensor], Tensor]
"""Function from image indices (N,) and versions (N,) to changed images (N, C, H, W)."""


@torch.no_grad()
def predict_in_batches(predict: Predict, images: Tensor, batch: int = 64) -> Tensor:
    """Compute the outputs (B, C) of the model, for at most `batch` images at a time."""
    require(batch >= 1, f"batch must be at least 1, got {batch}")
    outputs = torch.cat([predict(part) for part in images.split(batch)])
    require(
        outputs.ndim == 2 and len(outputs) == len(images),
        f"predict() must return (B, C) for {len(images)} images, got shape {tuple(outputs.shape)}",
    )
    return at_least_float32(outputs).to(images.device)


def choose_classes(outputs: Tensor, classes: Tensor | None) -> Tensor:
    """Return the class of each image that the caller names, or the class with the highest output, (B,)."""
    if classes is None:
        return outputs.argmax(dim=1)
    batch, count = outputs.shape
    whole = classes.shape == (batch,) and not classes.is_floating_point()
    require(whole, f"expected classes as integers of shape ({batch},), got {classes.dtype} of {tuple(classes.shape)}")
    outside = classes[(classes < 0) | (classes >= count)].tolist()
    require(not outside, f"classes must be from 0 to {count - 1}, got {outside}")
    return classes.to(outputs.device)


def predict_confidence(predict: Predict, images: Tensor, classes: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
    """Return the class of each image and its probability, both (B,)."""
    outputs = predict_in_batches(predict, images, batch)
    low, high = float(outputs.min()), float(outputs.max())
    fits = low >= -1e-3 and high <= 1 + 1e-3
    require(
        fits, f"predict() must return probabilities, got {low:.3g} to {high:.3g}: apply softmax or sigmoid to logits"
    )
    classes = choose_classes(outputs, classes)
    return classes, select_class(outputs, classes)


def select_class(outputs: Tensor, classes: Tensor) -> Tensor:
    """Select the output of one class per image, (B,), from outputs (B, C)."""
    return outputs.gather(1, classes[:, None])[:, 0]


def predict_versions(predict: Predict, classes: Tensor, steps: int, change: Change, batch: int) -> Tensor:
    """Compute the output of the class for every image at every step, (B, steps).

    Args:
        predict: Model.
        classes: Class of each image, (B,).
        steps: Number of versions of an image.
        change: Function that makes the changed images.
        batch: Largest number of changed images at a time.
    """
    every = torch.arange(len(classes) * steps, device=classes.device)
    images, versions = every // steps, every % steps
    outputs = []
    for image, version in zip(images.split(batch), versions.split(batch), strict=True):
        changed = predict_in_batches(predict, change(image, version), batch)
        outputs.append(select_class(changed, classes[image]))
    return torch.cat(outputs).view(len(classes), steps)


def region_drops(
    predict: Predict,
    images: Tensor,
    regions: Tensor,
    fill: float | Tensor = 0.0,
    classes: Tensor | None = None,
    batch: int = 64,
) -> Tensor:
    """Compute the drop of the class's output when each of n regions of an image is deleted, (B, n).

    Args:
        predict: Function from images to logits or probabilities (B, C).
        images: Images, (B, C, H, W).
        regions: Region of every pixel, numbers from 0 to n - 1, (H, W).
        fill: Value of deleted pixels, a number or anything that broadcasts to (B, C, H, W).
        classes: Class of each image, (B,). The default is the class with the highest output.
        batch: Number of images per call of the model.
    """
    outputs = predict_in_batches(predict, images, batch)
    classes, filled, regions = choose_classes(outputs, classes), fill_images(fill, images), regions.to(images.device)

    def change(image: Tensor, version: Tensor) -> Tensor:
        deleted = regions == version[:, None, None]
        return torch.where(deleted[:, None], filled[image], images[image])

    count = int(regions.max()) + 1
    return select_class(outputs, classes)[:, None] - predict_versions(predict, classes, count, change, batch)


def explain_images(explain: Explain, images: Tensor, classes: Tensor) -> Tensor:
    """Compute one map (H, W) per image, and check its shape."""
    maps = explain(images, classes).detach()
    maps = maps[:, 0] if maps.ndim == 4 and maps.shape[1] == 1 else maps
    whole = maps.ndim == 3 and len(maps) == len(images)
    require(whole, f"explain() must return one map per image, ({len(images)}, H, W), got shape {tuple(maps.shape)}")
    return check_maps(maps)


def fill_images(fill: float | Tensor, images: Tensor) -> Tensor:
    """Return `fill` in the shape of images (B, C, H, W), without copies."""
    return torch.as_tensor(fill, device=images.device, dtype=images.dtype).expand_as(images)


def check_maps_fit(images: Tensor, maps: Tensor) -> Tensor:
    """Check that maps (B, H, W) have the size of images (B, C, H, W), and return them."""
    require(images.ndim == 4, f"expected images (B, C, H, W), got shape {tuple(images.shape)}")
    check_maps(maps)
    expected = (len(images), *images.shape[-2:])
    require(maps.shape == expected, f"expected maps {expected} for these images, got {tuple(maps.shape)}: use heat()")
    return maps
