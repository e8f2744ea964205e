"""What a classifier shows for its prediction: one map per explained class, at the resolution of the evidence.

CAPE's maps are probabilities, so they can be added up: over all locations they give the prediction, over a region they
give that region's share of it, and the difference of two classes' maps gives the difference of their probabilities.
SoftCAM's maps are signed evidence whose mean is the logit. The other kinds only rank locations.
"""

import io
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .alignment import Grid, check_sides, sides_of
from .classes import find_class
from .heads import at_least_float32, describe_kind, native_kinds
from .map_kind import MapKind
from .overlays import meaning_of, overlay, scale_of, to_picture
from .plotting import Row, draw_rows, make_figure
from .regions import Regions
from .text import format_share, printable

if TYPE_CHECKING:
    try:  # as in plotting.py
        from matplotlib.figure import Figure
        from pandas import DataFrame
    except ImportError:
        raise

SHOWN_IMAGES, SHOWN_CLASSES = 4, 8
"""Most images that a notebook and `print` show, and most classes of an image that they and figures show."""


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Maps of k classes for each of B images.

        explanation = model.explain(["a.jpg", "b.jpg"], top_k=2)
        explanation.save("why.png")  # both pictures with their maps, labels and percentages
        explanation[0].labels  # [["tench", "goldfish"]]
        explanation.overlay(1, rank=0)  # the second picture under the map of its most probable class

    Args:
        maps: Maps (B, k, H, W) at their own resolution.
        classes: Class index of each map, (B, k).
        probabilities: Predicted probability of each class, (B, k).
        kind: Name of the map kind, such as `softcam`, `cape`, `mu-cape` or `cam`, or of a post-hoc method.
        names: Names of all classes of the model, or None where they are not known.
        pixels: Images that the model saw, without their normalisation, as bytes (B, 3, H, W); None where they are not
            known.
        grid: Places of the cells in the image. The default is squares that fill the image.
    """

    maps: Tensor
    classes: Tensor
    probabilities: Tensor
    kind: str
    names: Sequence[str] | None = None
    pixels: Tensor | None = None
    grid: Grid | None = None

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, image: SupportsIndex | slice) -> "Explanation":
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
        return replace(self, pixels=None if self.pixels is None else self.pixels[image], **tensors)

    def __iter__(self) -> Iterator["Explanation"]:
        """Yield the explanation of each image."""
        return (self[image] for image in range(len(self)))

    def __repr__(self) -> str:
        rows = [self._describe(image) for image in range(min(len(self), SHOWN_IMAGES))]
        size = "x".join(map(str, self.maps.shape[2:]))
        if len(self) == 1:
            return f"Explanation({self.kind} maps {size}: {rows[0]})"
        if len(self) > len(rows):
            more = len(self) - len(rows)
            rows.append(f"and {more} image{'s' if more > 1 else ''} more")
        return "\n    ".join([f"Explanation({len(self)} images, {self.kind} maps {size}", *rows]) + ")"

    def _describe(self, image: int) -> str:
        """List the labels and percentages of one image."""
        texts = [f"{printable(label)} {share}" for label, share in self._captions(image)]
        return ", ".join(texts) + (", ..." if self.maps.shape[1] > len(texts) else "")

    def _captions(self, image: int) -> list[tuple[str, str]]:
        """Return the label and the percentage of each class of an image that is shown."""
        shares = [format_share(float(value)) for value in self.probabilities[image, :SHOWN_CLASSES].detach()]
        return list(zip(self.labels[image], shares, strict=False))

    @property
    def labels(self) -> list[list[str]]:
        """Names of the explained classes of each image; their indices where the names are not known."""
        names = self.names
        return [[str(index) if names is None else names[index] for index in row] for row in self.classes.tolist()]

    @property
    def images(self) -> list[Image.Image] | None:
        """Pictures that the model saw, resized and cropped; None where they are not known.

        Where the model was given tensors, the normalisation of its own preprocessing is undone.
        """
        return None if self.pixels is None else [to_picture(pixels) for pixels in self.pixels]

    @property
    def image(self) -> Image.Image | None:
        """Picture that the model saw, of an explanation of a single image."""
        if len(self) != 1:
            raise ValueError(
                f"image is the picture of one image, but this explanation has {len(self)}: take explanation[i].image"
            )
        return None if self.pixels is None else to_picture(self.pixels[0])

    def to(self, *args: Any, **options: Any) -> "Explanation":
        """Return a copy with maps and probabilities converted as by `Tensor.to`, and the rest on the same device."""
        maps, probabilities = (values.to(*args, **options) for values in (self.maps, self.probabilities))
        pixels = None if self.pixels is None else self.pixels.to(maps.device)
        classes = self.classes.to(maps.device)
        return replace(self, maps=maps, probabilities=probabilities, classes=classes, pixels=pixels)

    def cpu(self) -> "Explanation":
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

    def overlay(self, image: int = 0, rank: int = 0, opacity: float = 0.75, aligned: bool = True) -> Image.Image:
        """Draw the heat map of one class over the picture that the model saw.

        Args:
            image: Index of the image in the batch.
            rank: Index of the class among those explained for the image.
            opacity: Opacity of the hottest pixels.
            aligned: Draw every cell where the network looks, as in `heatmaps`.
        """
        one = self[image]
        if not 0 <= rank < self.maps.shape[1]:
            raise IndexError(f"rank {rank} is not among the {self.maps.shape[1]} explained classes of the image")
        if one.pixels is None:
            raise ValueError(
                "this explanation does not know its pictures: draw heatmaps(size) over them with "
                "softcam_hub.figures.overlay"
            )
        picture = to_picture(one.pixels[0])
        return overlay(picture, one.heatmaps(picture.size[::-1], aligned)[0, rank], opacity)

    def plot(self, aligned: bool = True) -> "Figure":
        """Draw every image and its maps, with labels, percentages and a colour bar, as a matplotlib figure.

        A notebook shows the figure, and so does `plt.show()` where matplotlib opens windows. All maps of an image share
        one scale. Up to eight classes of an image are drawn.

        Args:
            aligned: Draw every cell where the network looks, as in `heatmaps`.
        """
        return self._draw(make_figure(for_window=True), aligned)

    def save(self, path: str | Path, aligned: bool = True) -> None:
        """Write the figure of `plot` into a file.

        Args:
            path: File with a suffix of matplotlib: .png, .jpg, .webp, .tif, .pdf, .svg, .eps and others.
            aligned: Draw every cell where the network looks, as in `heatmaps`.
        """
        figure = make_figure()
        known, suffix = figure.canvas.get_supported_filetypes(), Path(path).suffix.lower()
        if suffix[1:] not in known:
            suffixes = ", ".join(f".{name}" for name in sorted(known))
            raise ValueError(f"cannot save an explanation as {printable(path)!r}: expected one of {suffixes}")
        self._draw(figure, aligned).savefig(Path(path).expanduser(), dpi=150)

    def _repr_png_(self) -> bytes | None:
        """Draw the first images, for notebooks; without images or matplotlib they show `repr` instead."""
        if not len(self):
            return None
        try:
            figure = make_figure()
        except ImportError:
            return None
        file = io.BytesIO()
        self[:SHOWN_IMAGES]._draw(figure).savefig(file, format="png", dpi=100)
        return file.getvalue()

    def _draw(self, figure: "Figure", aligned: bool = True) -> "Figure":
        """Draw every image and its maps into an empty figure."""
        if not len(self):
            raise ValueError("this explanation has no image to draw: it is empty")
        rows, grid = [], self.layout(aligned)
        for index, one in enumerate(self):
            maps = at_least_float32(one.maps[0, :SHOWN_CLASSES].detach()).cpu()
            title = f"image {index}" if len(self) > 1 else "image"
            rows.append(Row(title, one.image, maps, one._captions(0), scale_of(maps, self.kind), grid))
        note = f"{self.map_kind.title} maps. {meaning_of(self.kind)}"
        if self.maps.shape[1] > SHOWN_CLASSES:
            note += f" Shown: {SHOWN_CLASSES} of {self.maps.shape[1]} explained classes."
        draw_rows(figure, rows, note)
        return figure

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

    def mirrored(self) -> "Explanation":
        """Return this explanation as a mirror image, left for right, for averages over an image and its mirror image.

        mirror = model.explain(images.flip(-1), classes).mirrored()
        (model.explain(images, classes).heatmaps(224) + mirror.heatmaps(224)) / 2
        """
        grid = self.layout()
        if grid.alignment is not None:
            grid = replace(grid, alignment=grid.alignment.mirrored(grid.image_size, grid.cells))
        pixels = None if self.pixels is None else self.pixels.flip(-1)
        return replace(self, maps=self.maps.flip(-1), pixels=pixels, grid=grid)

    def difference(self, a: int | str | None = None, b: int | str | None = None) -> Tensor:
        """Subtract the map of class b from that of class a: signed, (B, H, W).

        For `cape` maps the result sums to the difference of the two probabilities.

        Args:
            a: Class index or label, explained for every image. The default is the first explained class.
            b: Class index or label, explained for every image. The default is the second explained class.
        """
        return self._map_of(a, rank=0) - self._map_of(b, rank=1)

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

    def _map_of(self, index: int | str | None, rank: int) -> Tensor:
        if isinstance(index, str):
            index = find_class(index, self.names or ())
        if index is None:
            if self.maps.shape[1] <= rank:
                raise ValueError("difference() needs two explained classes: call explain(..., top_k=2) or name classes")
            return self.maps[:, rank]
        matches = self.classes == index
        missing = (~matches.any(dim=1)).nonzero().flatten().tolist()
        if missing:
            raise ValueError(
                f"class {index} is not explained for image {missing[0]}, which has classes "
                f"{self.classes[missing[0]].tolist()}: name it in explain(..., classes=...)"
            )
        return self.maps[torch.arange(len(self.maps), device=self.maps.device), matches.int().argmax(dim=1)]
