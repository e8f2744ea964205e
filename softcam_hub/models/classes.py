"""Classes as users name them: by index or by label, the same ones for all images or others for each image."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from .text import abbreviate

Classes: TypeAlias = int | str | Sequence[Any] | np.ndarray | Tensor
"""Classes as `choose_classes` takes them: indices or labels."""


def name_classes(num_classes: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return a different name for every class: the given names, those of ImageNet, or numbers.

    Args:
        num_classes: Number of classes. timm's ImageNet data sets are recognised by it.
        names: Names of the classes, or None where they are not known. Names of another number of classes are those of
            an earlier head.
    """
    return _name_classes(num_classes, tuple(names) if names is not None and len(names) == num_classes else None)


@lru_cache(maxsize=16)  # every explanation asks for the names, and ImageNet has up to 21,843
def _name_classes(num_classes: int, names: tuple[str, ...] | None) -> tuple[str, ...]:
    if names is None and (subset := infer_imagenet_subset({"num_classes": num_classes})):
        names = tuple(map(ImageNetInfo(subset).index_to_description, range(num_classes)))
    if names is None:
        names = tuple(map(str, range(num_classes)))
    return tuple(distinct_names(dict(enumerate(names))).values())


def distinct_names(names: Mapping[int, str]) -> dict[int, str]:
    """Add the class index to every name that several classes share, as ImageNet's two cranes do."""
    shared = Counter(names.values())
    return {index: f"{name} ({index})" if shared[name] > 1 else name for index, name in names.items()}


def find_class(name: str, labels: Sequence[str]) -> int:
    """Return the index of a class that a user names by its label, or by its index written in digits.

    Args:
        name: Label or index of the class.
        labels: Names of all classes.
    """
    if name in labels:
        return labels.index(name)
    if name.isdecimal() and int(name) < len(labels):
        return int(name)
    lower = name.casefold()
    similar = [label for label in labels if lower in label.casefold()][:5]
    if not similar:
        by_lower = {label.casefold(): label for label in reversed(labels)}
        similar = [by_lower[near] for near in difflib.get_close_matches(lower, by_lower, n=3, cutoff=0.7)]
    message = f"labels of this model are {abbreviate(list(labels), 10)}"
    if similar:
        # Ten names of ImageNet fill a page, and the wanted class is seldom among them.
        hint = f"did you mean {' or '.join(map(repr, similar))}?"
        message = f"{hint} The {message}" if len(labels) <= 10 else hint
    else:
        message = f"the {message}"
    raise ValueError(f"unknown class {name!r}: {message}")


def choose_classes(
    classes: Classes | None, top_k: int, batch: int, num_classes: int, labels: Sequence[str] | None = None
) -> int | Tensor:
    """Return checked class indices (B, k), or the number of the most probable classes to explain.

    A flat list is ambiguous: with several images it names one class for each of them, and with a single image all the
    classes to explain.

    Args:
        classes: A class for all images, one per image (B,), several per image (B, k), or several for all images (1, k).
            Classes are indices, or labels where `labels` is given.
        top_k: Number of classes to explain when `classes` is None.
        batch: Number B of images.
        num_classes: Number C of classes of the model.
        labels: Names of all classes.
    """
    if classes is None:
        if not isinstance(top_k, int | np.integer) or isinstance(top_k, bool) or not 1 <= top_k <= num_classes:
            raise ValueError(
                f"top_k must be a whole number from 1 to the number of classes {num_classes}, got {top_k!r}"
            )
        return int(top_k)
    index = _as_indices(classes, labels)
    outside = index[(index < 0) | (index >= num_classes)]
    if outside.numel():
        raise ValueError(
            f"class index {int(outside[0])} is out of range: this model has {num_classes} classes, "
            f"0 to {num_classes - 1}"
        )
    if index.ndim == 0:
        index = index.expand(batch, 1)
    elif index.ndim == 1:
        index = index[None] if batch == 1 else index[:, None] if len(index) == batch else index
    if index.ndim == 2 and len(index) in (1, batch) and index.shape[1]:
        return index.long().expand(batch, -1)
    raise ValueError(
        f"classes must be an int, ({batch},) or ({batch}, k) for {batch} image{'s' if batch > 1 else ''}, got shape "
        f"{tuple(index.shape)}: to explain several classes of every image pass [[3, 5]]"
    )


def _as_indices(classes: Any, labels: Sequence[str] | None) -> Tensor:
    """Return class indices as a tensor, with the index in the place of every label."""
    if isinstance(classes, np.ndarray):
        classes = classes.tolist() if classes.dtype.kind in "UO" else classes
    if labels is not None:
        classes = _replace_labels(classes, labels)
    try:
        index = torch.as_tensor(classes)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(classes, list) and len({_length(row) for row in classes}) > 1:
            raise ValueError(
                f"classes must name the same number of classes for each image, got {classes!r}: fill the shorter "
                "lists up, or explain the images one by one"
            ) from error
        raise TypeError(f"classes must be integer class indices, got {classes!r}") from error
    if index.numel() and (index.is_floating_point() or index.dtype == torch.bool):
        raise TypeError(f"classes must be integer class indices, got {index.dtype}")
    return index


def _replace_labels(classes: Any, labels: Sequence[str]) -> Any:
    """Replace every label in a value, or in lists of any depth, by the index of its class."""
    if isinstance(classes, str):
        return find_class(classes, labels)
    if isinstance(classes, list | tuple):
        return [_replace_labels(one, labels) for one in classes]
    return classes


def _length(row: Any) -> int:
    return len(row) if isinstance(row, list | tuple) else -1
