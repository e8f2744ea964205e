"""Generate fundus-like images with pixel-accurate lesion masks, in any number and the same on every machine.

- An image is a function of (seed, index) and its settings alone, so that a data set needs no download.
- Every class shows the same vessels, optic disc, bright drusen-like specks and dark pigment specks. Only
  lesions tell the classes apart. Colour, exposure and contrast vary more than any lesion can change the mean.
- Lesions are synthetic. They have the colour and form of real lesions, and nothing learnt from them is a
  diagnosis.
- Every image has *twins*: the same image without one of its parts, and equal to the bit everywhere else.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .fundus import DISTRACTORS, Part, Scene, Shape, draw_mask, field_of_view

if TYPE_CHECKING:
    from datasets import Dataset

LESIONS = ("microaneurysm", "haemorrhage", "exudate")
SEVERITIES = ("none", "mild", "moderate", "severe")
FORMS = ("dot", "ring", "bar", "cross", "arc", "cluster", "triangle", "wedge")
TINTS = ("dark red", "yellow", "white", "green", "violet", "black")

VARIANTS: dict[str, tuple[str, ...]] = {
    "lesions": ("healthy", *LESIONS),
    "severity": SEVERITIES,
    "labels": LESIONS,
    "marks": tuple(f"{tint} {form}" for tint in TINTS for form in FORMS),
    "screening": ("healthy", "diseased"),
    "cue": ("plain", "marked"),
}
"""Variant -> class names: a type of lesion, a grade of severity, several labels, 48 classes, healthy or diseased, and a
planted cue. The order is part of the data: the place of a variant is one of its seeds."""

_LESION_COUNTS = {"none": (0, 0), "mild": (1, 2), "moderate": (4, 6), "severe": (9, 14)}
"""Severity -> smallest and largest number of lesions."""

_SPLIT_SEEDS = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class LesionImage:
    """A generated image.

    Args:
        image: RGB image.
        mask: Booleans (H, W), true where a lesion is. With the variant `cue`, the planted mark is the only lesion.
        label: Class index, or a multi-hot list with the variant `labels`.
        shapes: What every stain of the drawing covers, for `part_masks`.
    """

    image: Image.Image
    mask: np.ndarray
    label: int | list[int]
    shapes: tuple[Shape, ...] = field(default=(), repr=False)

    @cached_property
    def part_masks(self) -> dict[Part, np.ndarray]:
        """Masks (H, W) of the parts by number of the lesion or name of the distractor, in the order of drawing.

        They cover each other where parts do, and end at the border of the field of view, where nothing can be seen.
        """
        of_part: dict[Part, list[Shape]] = {}
        for shape in self.shapes:
            of_part.setdefault(shape.part, []).append(shape)
        size = self.image.width
        return {part: draw_mask(shapes, size) & field_of_view(size) for part, shapes in of_part.items()}


def load_lesions(
    split: str = "train", count: int = 1000, size: int = 128, variant: str = "lesions", seed: int = 0
) -> "Dataset":
    """Generate a `datasets.Dataset` with the columns `image`, `label` (or multi-hot `labels`) and `mask`.

    Args:
        split: `train`, `validation` or `test`. The splits share no image.
        count: Number of images. The classes take turns.
        size: Height and width in pixels.
        variant: One of `VARIANTS`.
        seed: Seed of all images.
    """
    from datasets import ClassLabel, Dataset, Features, Image as ImageFeature, Sequence, Value

    _check_settings(split, count, size, variant)
    if variant == "labels":
        column, label = "labels", Sequence(Value("int64"), length=len(LESIONS))
    else:
        column, label = "label", ClassLabel(names=list(VARIANTS[variant]))
    features = Features({"image": ImageFeature(), column: label, "mask": ImageFeature()})
    images = (draw(index, split, size, variant, seed) for index in range(count))
    rows = [{"image": drawn.image, column: drawn.label, "mask": Image.fromarray(drawn.mask)} for drawn in images]
    return Dataset.from_list(rows, features=features)


def _check_settings(split: str, count: int, size: int, variant: str) -> None:
    for name, value, known in (("split", split, _SPLIT_SEEDS), ("variant", variant, VARIANTS)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: expected one of {', '.join(known)}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, as lesions vanish in smaller images, got {size}")


def draw(
    index: int,
    split: str = "train",
    size: int = 128,
    variant: str = "lesions",
    seed: int = 0,
    without: Iterable[Part] = (),
) -> LesionImage:
    """Draw the image at `index` of a split. Its class is `index` modulo the number of classes.

        draw(5).part_masks.keys()  # "vessels", "disc", "drusen", "pigment", 0, 1, ...
        draw(5, without=[0])  # the same image without its first lesion

    Args:
        index: Position in the split.
        split: `train`, `validation` or `test`.
        size: Height and width in pixels.
        variant: One of `VARIANTS`.
        seed: Seed of all images.
        without: Parts to leave out: numbers of lesions, which count from 0, and names of distractors. Everything else
            stays as it is, the label too. A distractor that the image does not show can be left out.
    """
    scene, label = _compose(index, split, size, variant, seed)
    left_out: set[Part] = {without} if isinstance(without, str | int) else set(without)
    _check_parts(left_out, scene, variant, index)
    (image,) = scene.photograph([left_out])
    return _finish(scene, image, label, left_out)


def draw_twins(
    index: int, split: str = "train", size: int = 128, variant: str = "lesions", seed: int = 0
) -> tuple[LesionImage, dict[Part, Image.Image]]:
    """Draw an image, and its twins by the part that they leave out.

    This is faster than a call of `draw` for each part. Arguments as for `draw`.
    """
    scene, label = _compose(index, split, size, variant, seed)
    image, *twins = scene.photograph([(), *((part,) for part in scene.parts)])
    return _finish(scene, image, label), dict(zip(scene.parts, twins, strict=True))


def list_distractors(variant: str) -> tuple[str, ...]:
    """Return the names of the parts that say nothing about the class; an image need not show all of them."""
    return (*DISTRACTORS, "lesions") if variant == "cue" else DISTRACTORS


def _compose(index: int, split: str, size: int, variant: str, seed: int) -> tuple[Scene, int | list[int]]:
    """Draw all parts of an image, and return them with the label."""
    _check_settings(split, 1, size, variant)
    rng = np.random.default_rng([seed, _SPLIT_SEEDS[split], list(VARIANTS).index(variant), index])
    scene = Scene(rng, size)
    return scene, _add_lesions(scene, variant, index)


def _check_parts(left_out: set[Part], scene: Scene, variant: str, index: int) -> None:
    """Raise ValueError for a part that this image cannot have."""
    names = list_distractors(variant)
    unknown = sorted(map(repr, left_out - set(names) - set(range(scene.lesions))))
    if unknown:
        numbers = f"numbers of lesions from 0 to {scene.lesions - 1} or " if scene.lesions else ""
        raise ValueError(
            f"image {index} has {scene.lesions} lesions and no part {', '.join(unknown)}: expected {numbers}names of "
            f"distractors ({', '.join(names)})"
        )


def _finish(scene: Scene, image: Image.Image, label: int | list[int], without: Collection[Part] = ()) -> LesionImage:
    """Add masks to a picture of the scene."""
    shapes = scene.shapes(without)
    lesions = [shape for shape in shapes if isinstance(shape.part, int)]
    return LesionImage(image, draw_mask(lesions, scene.size), label, shapes)


def _add_lesions(scene: Scene, variant: str, index: int) -> int | list[int]:
    """Draw the lesions of the class that an index stands for, and return the label."""
    rng = scene.rng
    if variant == "labels":
        present = [(index >> bit) & 1 for bit in range(len(LESIONS))]
        for lesion, is_present in zip(LESIONS, present, strict=True):
            scene.add_lesions(lesion, int(rng.integers(1, 5)) if is_present else 0)
        return present
    label = index % len(VARIANTS[variant])
    name = VARIANTS[variant][label]
    if variant == "marks":
        tint, form = TINTS[label // len(FORMS)], FORMS[label % len(FORMS)]
        for _ in range(int(rng.integers(1, 4))):
            scene.add_mark(tint, form)
    elif variant == "severity":
        low, high = _LESION_COUNTS[name]
        for _ in range(int(rng.integers(low, high + 1))):
            scene.add_lesions(_random_lesion(rng), 1)
    elif variant == "cue":  # all random numbers are drawn in both classes, so that nothing but the mark depends on it
        for _ in range(int(rng.integers(0, 7))):
            scene.add_lesions(_random_lesion(rng), 1, distractor="lesions")
        scene.add_tag(visible=name == "marked")
    elif name != "healthy":
        lesion = _random_lesion(rng) if variant == "screening" else name
        scene.add_lesions(lesion, int(rng.integers(1, 7)))
    return label


def _random_lesion(rng: np.random.Generator) -> str:
    return LESIONS[int(rng.integers(len(LESIONS)))]
