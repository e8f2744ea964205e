"""Generate fundus-like images with pixel-accurate lesion masks, in any number and the same on every machine.

- An image is a function of (seed, index) and its settings alone, so that a data set needs no download.
- Every class shows the same vessels, optic disc, bright drusen-like specks and dark pigment specks. Only
  lesions tell the classes apart. Colour, exposure and contrast vary more than any lesion can change the mean.
- Lesions are synthetic. They have the colour and form of real lesions, and nothing learnt from them is a
  diagnosis.
- The order of random draws is part of the data: a change of it changes every image.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

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
}
"""Variant -> class names: a type of lesion, a grade of severity, several labels, 48 classes, or two."""

_LESION_COUNTS = {"none": (0, 0), "mild": (1, 2), "moderate": (4, 6), "severe": (9, 14)}
"""Severity -> smallest and largest number of lesions."""

_SPLIT_SEEDS = {"train": 0, "validation": 1, "test": 2}

_OVERSAMPLING = 2
"""Factor by which an image is drawn larger than it becomes, so that edges are smooth."""


@dataclass(frozen=True)
class LesionImage:
    """A generated image.

    Args:
        image: RGB image.
        mask: Booleans (H, W), true where a lesion is.
        label: Class index, or a multi-hot list with the variant `labels`.
    """

    image: Image.Image
    mask: np.ndarray
    label: int | list[int]


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
    from datasets import ClassLabel, Dataset, Features, Sequence, Value
    from datasets import Image as ImageFeature

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


def draw(index: int, split: str = "train", size: int = 128, variant: str = "lesions", seed: int = 0) -> LesionImage:
    """Draw the image at `index` of a split. Its class is `index` modulo the number of classes."""
    rng = np.random.default_rng([seed, _SPLIT_SEEDS[split], list(VARIANTS).index(variant), index])
    scene = _Scene(rng, size * _OVERSAMPLING)
    label = _add_lesions(scene, variant, index)
    return LesionImage(scene.photograph(size), scene.mask(size), label)


def _add_lesions(scene: "_Scene", variant: str, index: int) -> int | list[int]:
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
            scene.add_lesions(LESIONS[int(rng.integers(len(LESIONS)))], 1)
    elif name != "healthy":
        lesion = LESIONS[int(rng.integers(len(LESIONS)))] if variant == "screening" else name
        scene.add_lesions(lesion, int(rng.integers(1, 7)))
    return label


class _Scene:
    """A fundus under construction, at a multiple of its final size.

    Positions and radii are fractions of the side.

    Args:
        rng: Source of all random numbers.
        side: Height and width in pixels while drawing.
    """

    def __init__(self, rng: np.random.Generator, side: int) -> None:
        self.rng, self.side = rng, side
        self.blood = tuple(int(c) for c in (rng.uniform(60, 120), rng.uniform(10, 40), rng.uniform(5, 30)))
        self.image = self._retina()
        self.lesion_layer = Image.new("L", (side, side))
        disc = (float(rng.choice([0.27, 0.73])), float(rng.uniform(0.42, 0.58)))
        self._vessels(disc)
        self._stain(self._ellipse(disc, rng.uniform(0.05, 0.08)), (250, 225, 165), rng.uniform(0.6, 0.95), blur=0.01)
        for _ in range(int(rng.integers(0, 7))):  # drusen-like specks, pale and blurred, in every class
            self._stain(self._ellipse(self._random_point(), rng.uniform(0.008, 0.02)), (235, 200, 140), 0.5, blur=0.008)
        for _ in range(int(rng.integers(0, 5))):  # pigment specks, grey, in every class
            self._stain(self._ellipse(self._random_point(), rng.uniform(0.01, 0.035)), (70, 65, 60), 0.5, blur=0.004)

    def add_lesions(self, lesion: str, count: int) -> None:
        """Draw `count` lesions of one type, and add them to the mask."""
        for _ in range(count):
            layer, colour = getattr(self, f"_{lesion}")(self._random_point())
            self._stain(layer, colour, self.rng.uniform(0.6, 0.95), blur=0.002)
            self._add_to_mask(layer)

    def add_mark(self, tint: str, form: str) -> None:
        """Draw one coloured form, and add it to the mask."""
        colour = {
            "dark red": (120, 10, 10),
            "yellow": (250, 220, 60),
            "white": (250, 250, 245),
            "green": (60, 160, 60),
            "violet": (120, 50, 150),
            "black": (15, 10, 10),
        }[tint]
        layer = self._form(form, self._random_point(), self.rng.uniform(0.06, 0.1), self.rng.uniform(0, 2 * math.pi))
        self._stain(layer, colour, self.rng.uniform(0.7, 0.95), blur=0.002)
        self._add_to_mask(layer)

    def photograph(self, size: int) -> Image.Image:
        """Render the picture with exposure, colour balance, vignette, noise and a black surround."""
        rng = self.rng
        pixels = np.asarray(self.image.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255
        y, x = np.mgrid[0:size, 0:size] / (size - 1) - 0.5
        radius = np.hypot(x, y)[..., None]
        gain = rng.uniform(0.65, 1.25) * rng.uniform(0.85, 1.15, 3)
        pixels = (pixels * gain) ** rng.uniform(0.8, 1.25) * (1 - rng.uniform(0.2, 1.2) * radius**2)
        pixels += rng.normal(0, rng.uniform(0.005, 0.03), pixels.shape)
        pixels[radius[..., 0] > 0.49] = 0
        return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))

    def mask(self, size: int) -> np.ndarray:
        """Return booleans (size, size), true where at least a quarter of the pixel is lesion."""
        return np.asarray(self.lesion_layer.resize((size, size), Image.Resampling.BOX)) >= 64

    def _retina(self) -> Image.Image:
        """Return the background: one colour with soft mottling."""
        rng = self.rng
        base = np.array([rng.uniform(150, 215), rng.uniform(75, 125), rng.uniform(30, 75)])
        mottle = Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).resize((self.side, self.side), 3)
        shade = 1 + rng.uniform(0.05, 0.25) * (np.asarray(mottle, dtype=np.float32)[..., None] / 127.5 - 1)
        return Image.fromarray((base * shade).clip(0, 255).astype(np.uint8))

    def _random_point(self) -> tuple[float, float]:
        """Return a random point inside the field of view."""
        angle, distance = self.rng.uniform(0, 2 * math.pi), 0.4 * math.sqrt(self.rng.uniform(0, 1))
        return 0.5 + distance * math.cos(angle), 0.5 + distance * math.sin(angle)

    def _vessels(self, start: tuple[float, float]) -> None:
        """Draw vessels from the optic disc into all quadrants."""
        layer = Image.new("L", self.image.size)
        pen = ImageDraw.Draw(layer)
        for quadrant in range(int(self.rng.integers(4, 7))):
            self._vessel(
                pen, start, quadrant * math.pi / 2 + self.rng.uniform(0.2, 1.4), self.rng.uniform(0.008, 0.016)
            )
        self._stain(layer, self.blood, self.rng.uniform(0.5, 0.85), blur=0.002)

    def _vessel(self, pen: ImageDraw.ImageDraw, at: tuple[float, float], heading: float, width: float) -> None:
        """Draw a winding line that becomes thinner and has one branch."""
        bend = self.rng.normal(0, 0.06)
        for step in range(28):
            heading += bend + self.rng.normal(0, 0.08)
            to = (at[0] + 0.025 * math.cos(heading), at[1] + 0.025 * math.sin(heading))
            pixels = max(1, round(width * (1 - step / 40) * self.side))
            pen.line([self._pixel(at), self._pixel(to)], fill=255, width=pixels)
            if step == 9 and width > 0.006:
                self._vessel(pen, to, heading + float(self.rng.choice([-0.7, 0.7])), width * 0.6)
            at = to

    def _microaneurysm(self, at: tuple[float, float]) -> tuple[Image.Image, tuple[int, int, int]]:
        """Return a small dot and its colour."""
        return self._ellipse(at, self.rng.uniform(0.012, 0.02)), self.blood

    def _haemorrhage(self, at: tuple[float, float]) -> tuple[Image.Image, tuple[int, int, int]]:
        """Return an irregular blot and its colour."""
        radius = self.rng.uniform(0.03, 0.065)
        angles = np.linspace(0, 2 * math.pi, 14, endpoint=False)
        reach = radius * self.rng.uniform(0.55, 1.15, len(angles))
        outline = [(at[0] + r * math.cos(a), at[1] + r * math.sin(a)) for a, r in zip(angles, reach, strict=True)]
        layer = Image.new("L", self.image.size)
        ImageDraw.Draw(layer).polygon([self._pixel(point) for point in outline], fill=255)
        return layer, self.blood

    def _exudate(self, at: tuple[float, float]) -> tuple[Image.Image, tuple[int, int, int]]:
        """Return a cluster of sharp yellow flecks and its colour."""
        layer = Image.new("L", self.image.size)
        pen = ImageDraw.Draw(layer)
        for _ in range(int(self.rng.integers(4, 10))):
            point = (at[0] + self.rng.normal(0, 0.025), at[1] + self.rng.normal(0, 0.025))
            pen.ellipse(self._box(point, self.rng.uniform(0.006, 0.016)), fill=255)
        return layer, (250, 235, 110)

    def _form(self, form: str, at: tuple[float, float], radius: float, turn: float) -> Image.Image:
        """Return a layer with one of `FORMS`, turned by an angle in radians."""
        layer = Image.new("L", self.image.size)
        pen, box, thick = ImageDraw.Draw(layer), self._box(at, radius), max(2, round(0.28 * radius * self.side))
        degrees = math.degrees(turn)
        if form in ("bar", "cross"):
            for angle in (turn, turn + math.pi / 2)[: 1 + (form == "cross")]:
                ends = [(at[0] + s * radius * math.cos(angle), at[1] + s * radius * math.sin(angle)) for s in (-1, 1)]
                pen.line([self._pixel(end) for end in ends], fill=255, width=thick)
        elif form == "cluster":
            for angle in (turn + i * 2 * math.pi / 5 for i in range(5)):
                point = (at[0] + 0.7 * radius * math.cos(angle), at[1] + 0.7 * radius * math.sin(angle))
                pen.ellipse(self._box(point, 0.25 * radius), fill=255)
        elif form == "triangle":
            pen.regular_polygon((*self._pixel(at), radius * self.side), 3, rotation=round(degrees), fill=255)
        elif form == "wedge":
            pen.pieslice(box, degrees, degrees + 90, fill=255)
        elif form == "dot":
            pen.ellipse(box, fill=255)
        else:
            pen.arc(box, degrees, degrees + (360 if form == "ring" else 150), fill=255, width=thick)
        return layer

    def _ellipse(self, at: tuple[float, float], radius: float) -> Image.Image:
        """Return a layer with one ellipse of random aspect."""
        layer = Image.new("L", self.image.size)
        ImageDraw.Draw(layer).ellipse(self._box(at, radius, self.rng.uniform(0.8, 1.2)), fill=255)
        return layer

    def _stain(self, layer: Image.Image, colour: tuple[int, int, int], opacity: float, blur: float) -> None:
        """Blend a colour into the picture where the layer is set, with a soft edge."""
        box = layer.getbbox()
        if box is None:  # the layer lies outside the picture
            return
        # Only the surroundings that the blur reaches are computed.
        edge = math.ceil(4 * blur * self.side) + 1
        left, top, right, bottom = box
        box = (max(0, left - edge), max(0, top - edge), min(self.side, right + edge), min(self.side, bottom + edge))
        soft = layer.crop(box).filter(ImageFilter.GaussianBlur(blur * self.side))
        self.image.paste(colour, box, soft.point([round(value * opacity) for value in range(256)]))

    def _add_to_mask(self, layer: Image.Image) -> None:
        box = layer.getbbox()
        if box is not None:
            self.lesion_layer.paste(255, box, layer.crop(box))

    def _pixel(self, point: tuple[float, float]) -> tuple[float, float]:
        """Return a point in pixels."""
        return point[0] * self.side, point[1] * self.side

    def _box(self, at: tuple[float, float], radius: float, aspect: float = 1.0) -> tuple[float, float, float, float]:
        """Return the bounding box of an ellipse in pixels."""
        x, y = self._pixel(at)
        width, height = radius * self.side, radius * aspect * self.side
        return x - width, y - height, x + width, y + height
