"""Draw a fundus part by part, so that any part can be left out while everything else stays equal to the bit.

- A *part* is a lesion, which has a number in the order of drawing, or a distractor, which has a name. It is drawn as
  one or more stains, later ones over earlier ones.
- All random numbers are drawn once, whatever is left out. The order of the draws is part of the data: a change of it
  changes every image.
- Positions and radii are fractions of the side.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Part = int | str
"""Number of a lesion, or name of a distractor."""

DISTRACTORS = ("vessels", "disc", "drusen", "pigment")
"""Parts that every class shows, in the order of drawing: vessels, optic disc, pale drusen-like specks, dark specks."""

OVERSAMPLING = 2
"""Factor by which an image is drawn larger than it becomes, so that edges are smooth."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""


class Shape(NamedTuple):
    """The pixels that a stain covers, at the size of drawing.

    Args:
        part: Part that the stain belongs to.
        box: Place of `layer`.
        layer: Picture in mode "L", 255 where the stain is.
    """

    part: Part
    box: Box
    layer: Image.Image


@dataclass(frozen=True)
class Stain:
    """A spot of colour with a soft edge.

    Args:
        shape: Pixels that the stain covers, without the edge.
        colour: RGB colour.
        box: Place of `opacity`.
        opacity: Opacity of every pixel, in mode "L".
    """

    shape: Shape
    colour: tuple[int, int, int]
    box: Box
    opacity: Image.Image


def field_of_view(size: int) -> np.ndarray:
    """Return booleans (size, size), true inside the round field of view. Everything outside is black."""
    return _distance(size) <= 0.49


def draw_mask(shapes: Sequence[Shape], size: int) -> np.ndarray:
    """Return booleans (size, size), true where shapes cover at least a quarter of the pixel."""
    side = size * OVERSAMPLING
    layer = Image.new("L", (side, side))
    for shape in shapes:
        layer.paste(255, shape.box, shape.layer)
    return np.asarray(layer.resize((size, size), Image.Resampling.BOX)) >= 64


@lru_cache(maxsize=2)
def _distance(size: int) -> np.ndarray:
    """Return the distance of every pixel from the centre, (size, size)."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1) - 0.5
    return np.hypot(x, y)


class Scene:
    """A fundus under construction, at a multiple of its final size.

    Args:
        rng: Source of all random numbers.
        size: Height and width of the photograph in pixels.
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size, self.side = rng, size, size * OVERSAMPLING
        self.stains: list[Stain] = []
        self.lesions = 0
        """Number of lesions so far."""
        self.blood = tuple(int(c) for c in (rng.uniform(60, 120), rng.uniform(10, 40), rng.uniform(5, 30)))
        self.retina = self._retina()
        disc = (float(rng.choice([0.27, 0.73])), float(rng.uniform(0.42, 0.58)))
        self._vessels(disc)
        layer = self._ellipse(disc, rng.uniform(0.05, 0.08))
        self._stain("disc", layer, (250, 225, 165), rng.uniform(0.6, 0.95), blur=0.01)
        for _ in range(int(rng.integers(0, 7))):  # drusen-like specks, pale and blurred, in every class
            layer = self._ellipse(self._random_point(), rng.uniform(0.008, 0.02))
            self._stain("drusen", layer, (235, 200, 140), 0.5, blur=0.008)
        for _ in range(int(rng.integers(0, 5))):  # pigment specks, grey, in every class
            layer = self._ellipse(self._random_point(), rng.uniform(0.01, 0.035))
            self._stain("pigment", layer, (70, 65, 60), 0.5, blur=0.004)

    @property
    def parts(self) -> list[Part]:
        """The parts that have been drawn, in the order of drawing."""
        return list(dict.fromkeys(stain.shape.part for stain in self.stains))

    def add_lesions(self, lesion: str, count: int, distractor: str | None = None) -> None:
        """Draw lesions of one type.

        Args:
            lesion: Type of the lesions.
            count: Number of lesions.
            distractor: Name of a part for all of them. By default every lesion is a part with a number of its own.
        """
        for _ in range(count):
            layer, colour = getattr(self, f"_{lesion}")(self._random_point())
            part = self._next_lesion() if distractor is None else distractor
            self._stain(part, layer, colour, self.rng.uniform(0.6, 0.95), blur=0.002)

    def add_mark(self, tint: str, form: str) -> None:
        """Draw one coloured form as a lesion."""
        colour = {
            "dark red": (120, 10, 10),
            "yellow": (250, 220, 60),
            "white": (250, 250, 245),
            "green": (60, 160, 60),
            "violet": (120, 50, 150),
            "black": (15, 10, 10),
        }[tint]
        layer = self._form(form, self._random_point(), self.rng.uniform(0.06, 0.1), self.rng.uniform(0, 2 * math.pi))
        self._stain(self._next_lesion(), layer, colour, self.rng.uniform(0.7, 0.95), blur=0.002)

    def add_tag(self, visible: bool) -> None:
        """Draw a small bright square as a lesion, or only the random numbers of one."""
        layer, at, radius = Image.new("L", self.retina.size), self._random_point(), self.rng.uniform(0.025, 0.035)
        ImageDraw.Draw(layer).rectangle(self._box(at, radius), fill=255)
        opacity = self.rng.uniform(0.85, 0.95)
        if visible:
            self._stain(self._next_lesion(), layer, (240, 245, 255), opacity, blur=0.002)

    def photograph(self, versions: Sequence[Collection[Part]]) -> list[Image.Image]:
        """Render pictures with the same exposure, colour balance, vignette and noise, and a black surround.

        Args:
            versions: For each picture the parts that it leaves out.
        """
        rng, size, outside = self.rng, self.size, ~field_of_view(self.size)
        gain = rng.uniform(0.65, 1.25) * rng.uniform(0.85, 1.15, 3)
        gamma = rng.uniform(0.8, 1.25)
        vignette = 1 - rng.uniform(0.2, 1.2) * _distance(size)[..., None] ** 2
        noise = rng.normal(0, rng.uniform(0.005, 0.03), (size, size, 3))
        pictures = []
        for without in versions:
            drawn = self._render(without).resize((size, size), Image.Resampling.BOX)
            pixels = (np.asarray(drawn, dtype=np.float32) / 255 * gain) ** gamma * vignette
            pixels += noise
            pixels[outside] = 0
            pictures.append(Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)))
        return pictures

    def shapes(self, without: Collection[Part] = ()) -> tuple[Shape, ...]:
        """Return what all stains cover, but for those of parts that are left out."""
        return tuple(stain.shape for stain in self.stains if stain.shape.part not in without)

    def _render(self, without: Collection[Part]) -> Image.Image:
        """Stain the retina with all parts but those that are left out."""
        picture = self.retina.copy()
        for stain in self.stains:
            if stain.shape.part not in without:
                picture.paste(stain.colour, stain.box, stain.opacity)
        return picture

    def _next_lesion(self) -> int:
        """Return the number of the lesion that is drawn next."""
        self.lesions += 1
        return self.lesions - 1

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
        layer = Image.new("L", self.retina.size)
        pen = ImageDraw.Draw(layer)
        for quadrant in range(int(self.rng.integers(4, 7))):
            self._vessel(
                pen, start, quadrant * math.pi / 2 + self.rng.uniform(0.2, 1.4), self.rng.uniform(0.008, 0.016)
            )
        self._stain("vessels", layer, self.blood, self.rng.uniform(0.5, 0.85), blur=0.002)

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
        layer = Image.new("L", self.retina.size)
        ImageDraw.Draw(layer).polygon([self._pixel(point) for point in outline], fill=255)
        return layer, self.blood

    def _exudate(self, at: tuple[float, float]) -> tuple[Image.Image, tuple[int, int, int]]:
        """Return a cluster of sharp yellow flecks and its colour."""
        layer = Image.new("L", self.retina.size)
        pen = ImageDraw.Draw(layer)
        for _ in range(int(self.rng.integers(4, 10))):
            point = (at[0] + self.rng.normal(0, 0.025), at[1] + self.rng.normal(0, 0.025))
            pen.ellipse(self._box(point, self.rng.uniform(0.006, 0.016)), fill=255)
        return layer, (250, 235, 110)

    def _form(self, form: str, at: tuple[float, float], radius: float, turn: float) -> Image.Image:
        """Return a layer with one of `FORMS`, turned by an angle in radians."""
        layer = Image.new("L", self.retina.size)
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
        layer = Image.new("L", self.retina.size)
        ImageDraw.Draw(layer).ellipse(self._box(at, radius, self.rng.uniform(0.8, 1.2)), fill=255)
        return layer

    def _stain(self, part: Part, layer: Image.Image, colour: tuple[int, int, int], opacity: float, blur: float) -> None:
        """Add a stain where a layer is set, with a soft edge."""
        shape_box = layer.getbbox()
        if shape_box is None:  # the layer lies outside the picture
            return
        # Only the surroundings that the blur reaches are computed.
        edge = math.ceil(4 * blur * self.side) + 1
        left, top, right, bottom = shape_box
        box = (max(0, left - edge), max(0, top - edge), min(self.side, right + edge), min(self.side, bottom + edge))
        soft = layer.crop(box).filter(ImageFilter.GaussianBlur(blur * self.side))
        alpha = soft.point([round(value * opacity) for value in range(256)])
        self.stains.append(Stain(Shape(part, shape_box, layer.crop(shape_box)), colour, box, alpha))

    def _pixel(self, point: tuple[float, float]) -> tuple[float, float]:
        """Return a point in pixels."""
        return point[0] * self.side, point[1] * self.side

    def _box(self, at: tuple[float, float], radius: float, aspect: float = 1.0) -> tuple[float, float, float, float]:
        """Return the bounding box of an ellipse in pixels."""
        x, y = self._pixel(at)
        width, height = radius * self.side, radius * aspect * self.side
        return x - width, y - height, x + width, y + height
