"""Asking the model about changed images, at most `batch` of them at a time, and the checks of what it answers."""

from collections.abc import Callable

import torch
from torch import Tensor

from .maps import at_least_float32, check, check_maps

Predict = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) -> answers (B, classes)."""
Explain = Callable[[Tensor, Tensor], Tensor]
"""Images (B, C, H, W) and classes (B,) -> one map per image, (B, H, W) or (B, 1, H, W), at any resolution."""
Change = Callable[[Tensor, Tensor], Tensor]
"""Image indices (n,) and versions (n,) -> changed images (n, C, H, W)."""


@torch.no_grad()
def ask(predict: Predict, images: Tensor, batch: int = 64) -> Tensor:
    """What the model answers, (B, C), at most `batch` images at a time."""
    check(batch >= 1, f"batch must be at least 1, got {batch}")
    answers = torch.cat([predict(part) for part in images.split(batch)])
    check(
        answers.ndim == 2 and len(answers) == len(images),
        f"predict() must return (B, C) for {len(images)} images, got shape {tuple(answers.shape)}",
    )
    return at_least_float32(answers).to(images.device)


def target(answers: Tensor, classes: Tensor | None) -> Tensor:
    """The class (B,) to look at: the given one, or the one with the highest answer."""
    if classes is None:
        return answers.argmax(dim=1)
    batch, count = answers.shape
    whole = classes.shape == (batch,) and not classes.is_floating_point()
    check(whole, f"expected classes as integers of shape ({batch},), got {classes.dtype} of {tuple(classes.shape)}")
    outside = classes[(classes < 0) | (classes >= count)].tolist()
    check(not outside, f"classes must be from 0 to {count - 1}, got {outside}")
    return classes.to(answers.device)


def confidence_of(predict: Predict, images: Tensor, classes: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
    """The class of each image and its probability, both (B,)."""
    answers = ask(predict, images, batch)
    low, high = float(answers.min()), float(answers.max())
    fits = low >= -1e-3 and high <= 1 + 1e-3
    check(fits, f"predict() must return probabilities, got {low:.3g} to {high:.3g}: apply softmax or sigmoid to logits")
    classes = target(answers, classes)
    return classes, pick(answers, classes)


def pick(answers: Tensor, classes: Tensor) -> Tensor:
    return answers.gather(1, classes[:, None])[:, 0]


def sweep(predict: Predict, classes: Tensor, steps: int, change: Change, batch: int) -> Tensor:
    """The class's answer for every image at every step, (B, steps).

    Args:
        predict: the model.
        classes: (B,).
        steps: how many versions there are of an image.
        change: makes the changed images.
        batch: the most images to make at once.
    """
    every = torch.arange(len(classes) * steps, device=classes.device)
    images, versions = every // steps, every % steps
    found = [
        pick(ask(predict, change(image, version), batch), classes[image])
        for image, version in zip(images.split(batch), versions.split(batch), strict=True)
    ]
    return torch.cat(found).view(len(classes), steps)


def explained(explain: Explain, images: Tensor, classes: Tensor) -> Tensor:
    """One map (H, W) per image, with its shape checked."""
    maps = explain(images, classes).detach()
    maps = maps[:, 0] if maps.ndim == 4 and maps.shape[1] == 1 else maps
    whole = maps.ndim == 3 and len(maps) == len(images)
    check(whole, f"explain() must return one map per image, ({len(images)}, H, W), got shape {tuple(maps.shape)}")
    return check_maps(maps)


def filling(fill: float | Tensor, images: Tensor) -> Tensor:
    """`fill` as images (B, C, H, W), without copies."""
    return torch.as_tensor(fill, device=images.device, dtype=images.dtype).expand_as(images)


def check_fits(images: Tensor, maps: Tensor) -> Tensor:
    """The maps (B, H, W), which must have the size of the images (B, C, H, W)."""
    check(images.ndim == 4, f"expected images (B, C, H, W), got shape {tuple(images.shape)}")
    check_maps(maps)
    expected = (len(images), *images.shape[-2:])
    check(maps.shape == expected, f"expected maps {expected} for these images, got {tuple(maps.shape)}: use heat()")
    return maps
