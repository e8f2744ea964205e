"""What a classifier shows for its prediction: one map per explained class, as figures, pictures and text.

The maps as tensors, with all that can be computed from them, are in `class_maps`.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from .alignment import Grid, sides_of
from .class_maps import ClassMaps
from .heads import at_least_float32
from .overlays import meaning_of, overlay, scale_of, to_picture
from .plotting import Row, draw_rows, make_figure
from .scales import add_terms
from .text import format_share, printable

if TYPE_CHECKING:
    try:  # as in plotting.py
        from matplotlib.figure import Figure
    except ImportError:
        raise

SHOWN_IMAGES, SHOWN_CLASSES = 4, 8
"""Most images that a notebook and `print` show, and most classes of an image that they and figures show."""

EVIDENCE, SIGNS = "softcam", "Orange speaks for the class and blue against it."
"""Map kind whose maps are evidence, as which the parts of any evidence are drawn, and what their colours mean."""


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(ClassMaps):
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
        terms: Pixels for a cell -> evidence (B, k, H, W) of each depth, of a model with several `scales`.
    """

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

    def plot(self, aligned: bool = True, by_scale: bool = False) -> "Figure":
        """Draw every image and its maps, with labels, percentages and a colour bar, as a matplotlib figure.

        A notebook shows the figure, and so does `plt.show()` where matplotlib opens windows. All maps of an image share
        one scale. Up to eight classes of an image are drawn.

        Args:
            aligned: Draw every cell where the network looks, as in `heatmaps`.
            by_scale: Draw the evidence for the first class of every image, and the part of it that each depth of the
                network has, of a model with several `scales`.
        """
        return self._draw(make_figure(for_window=True), aligned, by_scale)

    def save(self, path: str | Path, aligned: bool = True, by_scale: bool = False) -> None:
        """Write the figure of `plot` into a file.

        Args:
            path: File with a suffix of matplotlib: .png, .jpg, .webp, .tif, .pdf, .svg, .eps and others.
            aligned: Draw every cell where the network looks, as in `heatmaps`.
            by_scale: Draw the evidence of each depth, as in `plot`.
        """
        figure = make_figure()
        known, suffix = figure.canvas.get_supported_filetypes(), Path(path).suffix.lower()
        if suffix[1:] not in known:
            suffixes = ", ".join(f".{name}" for name in sorted(known))
            raise ValueError(f"cannot save an explanation as {printable(path)!r}: expected one of {suffixes}")
        self._draw(figure, aligned, by_scale).savefig(Path(path).expanduser(), dpi=150)

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

    def _draw(self, figure: "Figure", aligned: bool = True, by_scale: bool = False) -> "Figure":
        """Draw every image and its maps into an empty figure."""
        if not len(self):
            raise ValueError("this explanation has no image to draw: it is empty")
        rows = []
        for index, one in enumerate(self):
            maps, kind = at_least_float32(one.maps[0, :SHOWN_CLASSES].detach()).cpu(), self.kind
            captions, grid = one._captions(0), self.layout(aligned)
            if by_scale:
                kind, (maps, captions) = EVIDENCE, one._draw_depths(captions[0], aligned)
                grid = Grid(sides_of(maps), sides_of(maps))
            title = f"image {index}" if len(self) > 1 else "image"
            rows.append(Row(title, one.image, maps, captions, scale_of(maps, kind), grid))
        note = f"{self.map_kind.title} maps. {meaning_of(self.kind)}"
        if by_scale:
            note = f"Evidence for a class, and what each depth of the network adds to it. {SIGNS}"
        elif self.maps.shape[1] > SHOWN_CLASSES:
            note += f" Shown: {SHOWN_CLASSES} of {self.maps.shape[1]} explained classes."
        draw_rows(figure, rows, note)
        return figure

    def _draw_depths(self, caption: tuple[str, str], aligned: bool) -> tuple[Tensor, list[tuple[str, str]]]:
        """Return the evidence (n, height, width) for the first class of one image and its parts by depth, enlarged to
        the image.

        Args:
            caption: Label and percentage of the class.
            aligned: Draw every part where the cells of its depth look, and the sum where it looks.
        """
        parts = {stride: at_least_float32(term[0, :1].detach()).cpu() for stride, term in self.by_scale().items()}
        sizes = [float(part.abs().mean()) for part in parts.values()]
        shares = [format_share(size / max(sum(sizes), 1e-12)) for size in sizes]
        captions = [(f"stride {stride}", f"{share} of it") for stride, share in zip(parts, shares, strict=True)]
        evidence, grid = add_terms([part[None] for part in parts.values()])[0, 0], self.layout(aligned)
        size = grid.image_size if self.pixels is None else sides_of(self.pixels)
        of_depths = [
            grid.of_depth(depth, sides_of(part)).upsample(part[0], size) for depth, part in enumerate(parts.values())
        ]
        return torch.stack([grid.upsample(evidence, size), *of_depths]), [caption, *captions]
