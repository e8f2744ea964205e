"""Maps of the explained classes as tensors: where their cells lie, heat maps, sums, differences and regions.

CAPE's maps are probabilities, so they can be added up: over all locations they give the prediction, over a region they
give that region's share of it, and the difference of two classes' maps gives the difference of their probabilities.
SoftCAM's maps are signed evidence whose mean is the logit. The other kinds only rank locations.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from .alignment import Grid, check_sides, sides_of
from .classes import find_class
from .heads import at_least_float32, describe_kind, native_kinds
from .map_kind import MapKind
from .regions import Regions

if TYPE_CHECKING:
    try:  # as in plotting.py
        from pandas import DataFrame
    except ImportError:
        raise


@dataclass(frozen=True, eq=False, repr=False)
class ClassMaps:
    """Maps of k classes for each of B images, and what follows from them in numbers.

    The fields are those of `Explanation`, which adds pictures and text.
    """

    maps: Tensor  # (B, k, H, W)
    classes: Tensor  # (B, k)
    probabilities: Tensor  # (B, k)
    kind: str
    names: Sequence[str] | None = None
    pixels: Tensor | None = None  # bytes (B, 3, H, W)
    grid: Grid | None = None
    terms: Mapping[int, Tensor] = field(default_factory=dict)  # pixels for a cell -> (B, k, H, W)

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, image: SupportsIndex | slice) -> Self:
        """Return the explanation of one image, or of a slice of the images."""
        if not isinstance(image, slice):
            if not isinstance(image, SupportsIndex):
                found = type(image).__name__
                raise TypeError(
                    f"an image of an explanation has a number, and several are taken by a slice: got {found}"
                )
            image = operator.index(image)
            if not -len(self) <= image < len(self):
                raise IndexError(f"image {image} is not among the {len(self)} explained images")
            image = slice(image, image + 1 or None)
        tensors = {name: getattr(self, name)[image] for name in ("maps", "classes", "probabilities")}
        pixels = None if self.pixels is None else self.pixels[image]
        return replace(self, pixels=pixels, terms=self._change_terms(lambda term: term[image]), **tensors)

    def _change_terms(self, change: Callable[[Tensor], Tensor]) -> dict[int, Tensor]:
        return {stride: change(term) for stride, term in self.terms.items()}

    def __iter__(self) -> Iterator[Self]:
        """Yield the explanation of each image."""
        return (self[image] for image in range(len(self)))

    @property
    def labels(self) -> list[list[str]]:
        """Names of the explained classes of each image; their indices where the names are not known."""
        names = self.names
        return [[str(index) if names is None else names[index] for index in row] for row in self.classes.tolist()]

    def to(self, *args: Any, **options: Any) -> Self:
        """Return a copy with maps and probabilities converted as by `Tensor.to`, and the rest on the same device."""
        maps, probabilities = (values.to(*args, **options) for values in (self.maps, self.probabilities))
        pixels = None if self.pixels is None else self.pixels.to(maps.device)
        classes = self.classes.to(maps.device)
        terms = self._change_terms(lambda term: term.to(*args, **options))
        return replace(self, maps=maps, probabilities=probabilities, classes=classes, pixels=pixels, terms=terms)

    def cpu(self) -> Self:
        """Return a copy on the CPU."""
        return self.to("cpu")

    def numpy(self) -> dict[str, np.ndarray]:
        """Return `maps`, `classes` and `probabilities` as arrays, for `np.savez("why.npz", **explanation.numpy())`."""
        floats = {name: at_least_float32(getattr(self, name)) for name in ("maps", "probabilities")}
        return {name: values.detach().cpu().numpy() for name, values in (floats | {"classes": self.classes}).items()}

    def to_pandas(self) -> "DataFrame":
        """Return a table with a row for each explained class of each image: image, class, label, probability, kind."""
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas: pip install pandas") from error
        count, each = self.classes.shape
        columns = {
            "image": np.arange(count).repeat(each),
            "class": self.classes.flatten().cpu().numpy(),
            "label": [label for row in self.labels for label in row],
            "probability": self.numpy()["probabilities"].flatten(),
            "kind": self.kind,
        }
        return DataFrame(columns)

    def by_scale(self) -> dict[int, Tensor]:
        """Return the evidence of each depth of the network for the explained classes, by the pixels for a cell.

            model = timm.create_model("softcam_resnet50", pretrained=True, scales=3)
            model.explain(images).by_scale()  # {32: (B, k, 7, 7), 16: (B, k, 14, 14), 8: (B, k, 28, 28)}

        Repeated on the finest grid, they add up to the evidence M'. That is the map itself for SoftCAM, and what CAPE's
        probabilities are made of.
        """
        if not self.terms:
            raise ValueError(
                "these maps are not divided by depth: explain images with a model of several depths, such as one that "
                "was made with scales=3"
            )
        return dict(self.terms)

    @property
    def map_kind(self) -> MapKind:
        """What the maps mean: whether they are signed, and how they make up the prediction."""
        return describe_kind(self.kind)

    def layout(self, aligned: bool = True) -> Grid:
        """Return where the cells of the maps lie in the image.

        Args:
            aligned: Use the measured places; otherwise the cells are squares that fill the image.
        """
        if self.grid is None or self.grid.cells != sides_of(self.maps):
            return Grid(sides_of(self.maps), sides_of(self.maps))
        return self.grid if aligned else replace(self.grid, alignment=None)

    def heatmaps(self, size: int | tuple[int, int], aligned: bool = True) -> Tensor:
        """Make heat maps, φ of the papers: positive part, upsampled, then min-max scaled to [0, 1].

        Args:
            size: Side, or height and width, of the result; usually the image's.
            aligned: Draw every cell where the network looks, if that was measured. Other libraries, and the papers,
                draw cells as squares that fill the image.

        Returns:
            (B, k, *size); all zero where a map has no contrast.
        """
        height, width = check_sides(size)
        large = self.layout(aligned).upsample(at_least_float32(self.maps).relu(), (height, width))
        low, high = large.amin(dim=(2, 3), keepdim=True), large.amax(dim=(2, 3), keepdim=True)
        return torch.where(high > low, (large - low) / (high - low).clamp_min(torch.finfo(large.dtype).tiny), 0.0)

    def at_pixels(self, size: int | tuple[int, int], aligned: bool = True) -> Tensor:
        """Spread the maps over the pixels of the image, so that they still make up the prediction.

        Every cell is spread around the place at which it looks. Nothing is lost at the border: the pixels of a CAPE map
        add up to the probability of its class, and those of a SoftCAM map average to its logit.

        Args:
            size: Side, or height and width, of the result; usually the image's.
            aligned: Use the measured places; otherwise the cells are squares that fill the image.

        Returns:
            (B, k, *size), in float32 or finer.
        """
        height, width = check_sides(size)
        fine = self.layout(aligned).spread(self.maps, (height, width))
        if self.map_kind.sums_to_probability:
            return fine
        return fine * (height * width / (self.maps.shape[2] * self.maps.shape[3]))

    def mirrored(self) -> Self:
        """Return this explanation as a mirror image, left for right, for averages over an image and its mirror image.

        mirror = model.explain(images.flip(-1), classes).mirrored()
        (model.explain(images, classes).heatmaps(224) + mirror.heatmaps(224)) / 2
        """
        grid = self.layout()
        if grid.places is not None:
            grid = replace(grid, alignment=grid.places.mirrored(grid.image_size, grid.cells))
        pixels = None if self.pixels is None else self.pixels.flip(-1)
        terms = self._change_terms(lambda term: term.flip(-1))
        return replace(self, maps=self.maps.flip(-1), pixels=pixels, grid=grid, terms=terms)

    def difference(self, a: int | str | None = None, b: int | str | None = None) -> Tensor:
        """Subtract the map of class b from that of class a: signed, (B, H, W).

        For `cape` maps the result sums to the difference of the two probabilities.

        Args:
            a: Class index or label, explained for every image. The default is the first explained class that is not b.
            b: Class index or label, explained for every image. The default is the first explained class that is not a.
        """
        if self.maps.shape[1] < 2:
            raise ValueError("difference() needs two explained classes: call explain(..., top_k=2) or name classes")
        first = self.classes[:, 0] if a is None else self._class_of(a)
        second = self.classes[:, 1] if b is None else self._class_of(b)
        if a is None:
            first = torch.where(first == second, self.classes[:, 1], first)
        elif b is None:
            second = torch.where(first != self.classes[:, 0], self.classes[:, 0], second)
        if (first == second).any():
            raise ValueError(
                f"difference() takes two classes, got class {int(second[0])} twice: its map less itself is 0"
            )
        return self._map_of(first) - self._map_of(second)

    def regions(self, threshold: float | None = None) -> Regions:
        """Find the locations above a fraction of each map's maximum, and the share of the probability they carry.

        Args:
            threshold: Fraction of the maximum, in [0, 1). The default is that of the map kind: 0.05 for `cape`, as in
                the paper.
        """
        self.check_probabilities("regions() adds up", "rank locations with heatmaps()")
        threshold = self.map_kind.threshold if threshold is None else threshold
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be a fraction of the maximum in [0, 1), got {threshold}")
        mask = self.maps > threshold * self.maps.amax(dim=(2, 3), keepdim=True)
        total = self.maps.sum(dim=(2, 3))
        share = (self.maps * mask).sum(dim=(2, 3)) / total.clamp_min(torch.finfo(total.dtype).tiny)
        return Regions(mask, share, self.probabilities)

    def check_probabilities(self, purpose: str, alternative: str = "") -> None:
        """Raise ValueError unless the maps are probabilities that add up to the prediction.

        Args:
            purpose: Beginning of the message, such as "regions() adds up".
            alternative: End of the message: an advice for other maps, such as "draw the maps with per_class()".
        """
        if self.map_kind.sums_to_probability:
            return
        families = {
            name: head.family for name, head in native_kinds().items() if describe_kind(name).sums_to_probability
        }
        name = next(iter(families))
        hint = f"Use a {families[name]}_* model with kind={name!r}" + (alternative and f", or {alternative}")
        raise ValueError(
            f"{purpose} probabilities, and only {' and '.join(map(repr, families))} maps hold probabilities: this "
            f"explanation is {self.kind!r}. {hint}"
        )

    def _class_of(self, index: int | str) -> Tensor:
        """Return an explained class for every image, (B,), or raise ValueError if an image has no map of it."""
        if isinstance(index, str):
            index = find_class(index, self.names or ())
        missing = (~(self.classes == index).any(dim=1)).nonzero().flatten().tolist()
        if missing:
            raise ValueError(
                f"class {index} is not explained for image {missing[0]}, which has classes "
                f"{self.classes[missing[0]].tolist()}: name it in explain(..., classes=...)"
            )
        return torch.full_like(self.classes[:, 0], index)

    def _map_of(self, classes: Tensor) -> Tensor:
        """Return the map of one explained class (B,) for every image, (B, H, W)."""
        position = (self.classes == classes[:, None]).int().argmax(dim=1)
        return self.maps[torch.arange(len(self.maps), device=self.maps.device), position]
