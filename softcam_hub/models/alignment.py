"""Where the cells of a map lie in the image, and maps at the resolution of the image.

- A cell is usually drawn as if it looked at its own square of the image. It does not: a strided convolution of 3x3
  with padding 1 looks at the pixel 2i, not at 2i + 1/2, and training moves that. So the place is measured, see
  `flip_registration`.
- The place of a cell is kept as start + step·i in pixels, which also holds for images whose sides are no multiples of
  the stride.
- Maps themselves never change, so that they add up as before. Only their pictures move.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor

from .heads import at_least_float32

Offset = tuple[float | None, float | None]
"""Distances in cells downwards and to the right; None along an axis where it is not known."""


@dataclass(frozen=True)
class Alignment:
    """Places at which the cells of a map look: start + step·i in pixels from the upper left corner, for each axis.

        model.alignment.offset((128, 128))  # (-0.43, -0.31): the cells look up and left of where they are drawn

    Args:
        start: Place of the first row and of the first column in pixels; None along an axis where it is not known.
        step: Distance between neighbouring rows and between neighbouring columns in pixels.
        image_size: Height and width of the images on which the places were measured.
        same_padding: The network pads as TensorFlow does, so that the places change with the size of the image. They
            are known for sizes only that leave the same remainder when they are divided by the step.
        ratio: Number of these cells for one cell of the last features of the network, along each axis. Above 1, the
            maps of the network are finer than those that post-hoc methods make of its last features.
        depths: Places of the evidence of every depth that the maps are the sum of, the last features first, where the
            ratio is above 1. Features of several depths do not look at the same part of a large cell, and maps are
            drawn at the place of the finest that was measured.
    """

    start: Offset
    step: tuple[float, float]
    image_size: tuple[int, int]
    same_padding: bool = False
    ratio: int = 1
    depths: tuple["Alignment", ...] = ()

    def __post_init__(self) -> None:
        numbers = (*(start for start in self.start if start is not None), *self.step, *self.image_size)
        whole = len(self.start) == len(self.step) == len(self.image_size) == 2
        if not whole or any(isinstance(one, bool) for one in numbers) or not isinstance(self.same_padding, bool):
            raise ValueError(
                "an alignment has two starts, two steps and two sides of an image in pixels, and same_padding is true "
                f"or false: got {self.start}, {self.step}, {self.image_size} and {self.same_padding}"
            )
        if not all(0 < length < math.inf for length in (*self.step, *self.image_size)):
            raise ValueError(
                f"steps and sides of an image in an alignment must be positive, got {self.step} and {self.image_size}"
            )
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int) or self.ratio < 1:
            raise ValueError(f"the ratio of an alignment must be a whole number from 1, got {self.ratio!r}")
        expected = [
            (2**depth, tuple(step * self.ratio / 2**depth for step in self.step))
            for depth in range(self.ratio.bit_length() if self.ratio > 1 else 0)
        ]
        found = [(one.ratio, tuple(one.step)) for one in self.depths]
        if found != expected[: len(found)]:
            raise ValueError(
                f"the depths of an alignment with the ratio {self.ratio} and steps of {self.step} pixels must have "
                f"ratios and steps {expected}, or the first of these: got {found}"
            )
        for start, step in zip(self.start, self.step, strict=True):
            if start is not None and not abs(start - step / 2) < 2.5 * step * self.ratio:
                raise ValueError(
                    f"the first cell of an alignment cannot look at pixel {start:.4g}: expected one near its square "
                    f"of {step:.4g} pixels"
                )

    @property
    def is_known(self) -> bool:
        """Whether the place is known along an axis at least."""
        return any(start is not None for start in self.start)

    def starts(self, image_size: Sequence[int], cells: Sequence[int]) -> Offset:
        """Return the place of the first row and column in images of a size; None where it is not known there.

        Args:
            image_size: Height and width of the image.
            cells: Height and width of its maps.
        """
        return (self._start(0, image_size, cells), self._start(1, image_size, cells))

    def _start(self, axis: int, image_size: Sequence[int], cells: Sequence[int]) -> float | None:
        start, step, length = self.start[axis], self.step[axis], image_size[axis]
        if self.same_padding and (length - self.image_size[axis]) % (step * self.ratio):
            return None
        # a grid of another step, such as that of a network which resizes its features
        return start if abs(cells[axis] - length / step) < 1.5 * self.ratio else None

    def offset(self, image_size: Sequence[int], cells: Sequence[int]) -> Offset | None:
        """Return how far the cells look from where they are drawn as squares, (down, right) in cells; None if unknown.

        Other libraries draw cells as squares that fill the image. In images whose sides are no multiples of the step
        the distance differs from cell to cell, and this is the one in the middle.

        Args:
            image_size: Height and width of the image.
            cells: Height and width of its maps.
        """
        down, right = (
            None if start is None else (start + step * (count - 1) / 2 - length / 2) / step
            for start, step, count, length in zip(
                self.starts(image_size, cells), self.step, cells, image_size, strict=True
            )
        )
        return None if down is None and right is None else (down, right)

    def mirrored(self, image_size: Sequence[int], cells: Sequence[int]) -> "Alignment":
        """Return the places for maps of images that were mirrored horizontally, after the maps were mirrored back."""
        top, left = self.starts(image_size, cells)
        right = None if left is None else image_size[1] - left - self.step[1] * (cells[1] - 1)
        size = (image_size[0], image_size[1])
        depths = tuple(
            one.mirrored(image_size, [count * 2**depth // self.ratio for count in cells])
            for depth, one in enumerate(self.depths)
        )
        return Alignment((top, right), self.step, size, self.same_padding, self.ratio, depths)

    def divided(self, ratio: int) -> "Alignment":
        """Return the places for maps with `ratio` times as many rows and columns, whose cells divide these cells.

        They are those of a model that has not learnt from finer features yet, where all cells that divide a large one
        hold the same evidence.
        """
        return self if ratio == 1 else self.of_parts(ratio, (self,))

    def of_parts(self, parts: int, depths: tuple["Alignment", ...]) -> "Alignment":
        """Return the places of the cells that divide these cells, along each axis, into a number of parts.

        Args:
            parts: Number of parts.
            depths: Places of the evidence of every depth, of maps of the smaller cells.
        """
        step = (self.step[0] / parts, self.step[1] / parts)
        top, left = (
            start if start is None else start - whole / 2 + part / 2
            for start, whole, part in zip(self.start, self.step, step, strict=True)
        )
        return Alignment((top, left), step, self.image_size, self.same_padding, self.ratio * parts, depths)

    def merged(self) -> "Alignment":
        """Return the places of the cells of the last features, each of which was divided; the inverse of `divided`."""
        if self.depths:
            return self.depths[0]
        beyond = (self.ratio - 1) / 2
        top, left = (
            None if start is None else start + beyond * step for start, step in zip(self.start, self.step, strict=True)
        )
        step = (self.step[0] * self.ratio, self.step[1] * self.ratio)
        return Alignment((top, left), step, self.image_size, self.same_padding)

    def as_dict(self) -> dict[str, Any]:
        """Return the content as JSON holds it."""
        places = {"start": list(self.start), "step": list(self.step), "image_size": list(self.image_size)}
        others: dict[str, Any] = {"same_padding": True} if self.same_padding else {}
        if self.ratio > 1:
            others |= {"ratio": self.ratio, "depths": [one.as_dict() for one in self.depths]}
        return places | others

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Alignment":
        """Read what `as_dict` returned, and refuse anything else."""
        try:
            start, step, size = (tuple(content[name]) for name in ("start", "step", "image_size"))
            depths = tuple(cls.from_dict({**one}) for one in content.get("depths", []))
            return cls(start, step, size, content.get("same_padding", False), content.get("ratio", 1), depths)
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(
                "alignment must hold start, step and image_size with two numbers each, as measure_alignment writes "
                f"them, got {content!r}"
            ) from error


def check_sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a picture, from one side or both, and refuse anything else."""
    sides = (size, size) if isinstance(size, SupportsIndex) else size
    try:
        height, width = (operator.index(side) for side in sides)
    except (TypeError, ValueError) as error:
        raise TypeError(f"a size is a whole number of pixels, or height and width: got {size!r}") from error
    if isinstance(size, bool) or height < 1 or width < 1:
        raise ValueError(f"a size must be at least one pixel, got {size!r}")
    return height, width


def sides_of(values: Tensor) -> tuple[int, int]:
    """Return height and width of images or maps (..., H, W)."""
    return (values.shape[-2], values.shape[-1])


@dataclass(frozen=True)
class Grid:
    """The cells of a map, laid out over one image: the place of each row and column, in pixels of that image.

    Args:
        image_size: Height and width of the image.
        cells: Height and width of the map.
        alignment: Measured places; where they are not known, the cells are squares that fill the image. The cells may
            be those of the last features of the network where its maps are finer.
    """

    image_size: tuple[int, int]
    cells: tuple[int, int]
    alignment: Alignment | None = None

    def of_depth(self, depth: int, cells: tuple[int, int]) -> "Grid":
        """Return where the cells of the evidence of one depth lie; squares where that is not known.

        Args:
            depth: Number of the depth, from 0 for the last features.
            cells: Height and width of its evidence.
        """
        depths = () if self.alignment is None else self.alignment.depths
        return Grid(self.image_size, cells, depths[depth] if depth < len(depths) else None)

    @property
    def places(self) -> Alignment | None:
        """The alignment of cells of this size."""
        if self.alignment is None or self.alignment.ratio == 1:
            return self.alignment
        merged = self.alignment.merged()
        whole, divided = (abs(self.cells[0] - self.image_size[0] / one.step[0]) for one in (merged, self.alignment))
        return merged if whole < divided else self.alignment

    @property
    def is_aligned(self) -> bool:
        """Whether a measured place is used along an axis at least."""
        return self.offset is not None

    @property
    def offset(self) -> Offset | None:
        """How far the cells look from their squares, (down, right) in cells; None where it is not known."""
        places = self.places
        return None if places is None else places.offset(self.image_size, self.cells)

    def axis(self, axis: int) -> tuple[float, float]:
        """Return start and step in pixels, of the rows (axis 0) or of the columns (axis 1)."""
        places = self.places
        start = None if places is None else places.starts(self.image_size, self.cells)[axis]
        if start is None:
            step = self.image_size[axis] / self.cells[axis]
            return step / 2, step
        assert places is not None
        return start, places.step[axis]

    def edges(self, axis: int) -> Tensor:
        """Return the borders between the cells, (n + 1,): half way between neighbours, and those of the image."""
        (start, step), length, count = self.axis(axis), self.image_size[axis], self.cells[axis]
        edges = start + step * (torch.arange(count + 1, dtype=torch.float64) - 0.5)
        edges[0], edges[-1] = 0, length
        return edges.clamp(0, length)

    def weights(self, axis: int, pixels: int, nearest: bool = False) -> Tensor:
        """Return the weight of each cell at each pixel, (pixels, n), by which a map is interpolated along an axis.

        Args:
            axis: 0 for the height, 1 for the width.
            pixels: Number of pixels that the image is drawn with.
            nearest: Give a pixel to the nearest cell alone.
        """
        (start, step), count = self.axis(axis), self.cells[axis]
        places = (torch.arange(pixels, dtype=torch.float64) + 0.5) * (self.image_size[axis] / pixels)
        index = ((places - start) / step).clamp(0, count - 1)
        if nearest:
            return F.one_hot(index.round().long(), count).double()
        return (1 - (index[:, None] - torch.arange(count)).abs()).clamp_min(0)

    def kernels(self, axis: int, pixels: int) -> Tensor:
        """Return the share of each cell that each pixel gets, (pixels, n): every column adds up to 1."""
        weights = self.weights(axis, pixels)
        start, step = self.axis(axis)
        places = (start + step * torch.arange(self.cells[axis])) * (pixels / self.image_size[axis])
        own = F.one_hot(places.long().clamp(0, pixels - 1), pixels).double().T  # where no pixel is near enough
        weights = torch.where(weights.sum(dim=0) > 0, weights, own)
        return weights / weights.sum(dim=0)

    def upsample(self, maps: Tensor, size: tuple[int, int], nearest: bool = False) -> Tensor:
        """Interpolate maps (..., h, w) bilinearly to a picture of the image, (..., *size); values stay in range.

        Args:
            maps: Maps, (..., h, w).
            size: Height and width of the picture.
            nearest: Give every pixel the value of the nearest cell instead.
        """
        maps = at_least_float32(maps)
        if not self.is_aligned:
            batch = maps[(None,) * (4 - maps.ndim)]
            return F.interpolate(batch, size=size, mode="nearest" if nearest else "bilinear").view(
                *maps.shape[:-2], *size
            )
        rows, columns = (self.weights(axis, size[axis], nearest).to(maps) for axis in (0, 1))
        return rows @ maps @ columns.T

    def spread(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Spread the values of maps (..., h, w) over the pixels around the places of their cells, (..., *size).

        Nothing is lost at the border: the pixels add up to what the cells add up to.

        Args:
            maps: Maps, (..., h, w).
            size: Height and width of the picture.
        """
        exact = torch.float32 if maps.device.type == "mps" else torch.float64  # which not every device has
        rows, columns = (self.kernels(axis, size[axis]).to(maps.device, exact) for axis in (0, 1))
        return (rows @ maps.to(exact) @ columns.T).to(at_least_float32(maps).dtype)
