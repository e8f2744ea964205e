"""`softcam-hub explain`: explain images, each with a picture and a line of JSON.

- Every readable image is explained. Images that cannot be read are named at the end, with exit code 1.
- The record of the output folder names the pictures before they are drawn. Pictures of an earlier run are
  replaced, other files never. The lines of an earlier run stay until all new lines are written.
"""

import argparse
import glob
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..files import draft_of
from ..models.images import UnreadableImage, read_user_image
from ..models.text import as_unicode, printable
from ..output_folder import OutputFolder
from . import add_model_option, register_models
from .image_files import check_images_are_kept, find_images, name_pictures

if TYPE_CHECKING:
    from torch import Tensor

    from ..loading import LoadedClassifier
    from ..models.explanation import Explanation

HELP = "Explain images, each with a picture and a line of JSON."

LINES = "predictions.jsonl"

MAX_MAPS = 39
"""Maps in a picture: together with the image they fill ten rows of four."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="Images, or folders of images.")
    add_model_option(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help=f"Folder for pictures and {LINES}.")
    parser.add_argument(
        "--classes", nargs="+", help="Labels or indices of the classes to explain. The most probable ones by default."
    )
    parser.add_argument(
        "--top-k", type=int, help=f"Number of most probable classes to explain; up to {MAX_MAPS} are drawn. [2]"
    )
    parser.add_argument("--kind", help="Kind of map of a self-explaining model: softcam, cape, mu-cape, cam.")
    parser.add_argument(
        "--explainer", help="Post-hoc method to use instead, such as grad-cam. A vanilla classifier needs one."
    )
    parser.add_argument(
        "--no-aligned",
        dest="aligned",
        action="store_false",
        help="Draw cells as squares that fill the image, as other libraries do, not where the network looks.",
    )
    parser.add_argument(
        "--size",
        type=read_size,
        metavar="PIXELS",
        help="Side (448), or height and width (448x336), at which the network sees the images: larger ones have finer "
        "maps and take longer. The model's own by default.",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="Number of images per batch. [16]")


def read_size(text: str) -> tuple[int, int]:
    """Read a side, such as 448, or height and width, such as 448x336."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(
            f"expected a side such as 448, or height and width such as 448x336: got {text!r}"
        )
    return int(sides[0]), int(sides[-1])


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit code."""
    check_arguments(arguments)
    pictures = name_pictures(find_images(arguments.images, arguments.output))
    check_images_are_kept(pictures, arguments.output)
    names = [LINES, *(glob.escape(name) for name in pictures.values())]
    folder = OutputFolder(arguments.output, "explanation run", names)
    with folder.locked("continue"):
        register_models()
        from ..loading import load_classifier

        explainer = ImageExplainer(load_classifier(arguments.model).at_size(arguments.size), arguments)
        folder.claim("continue")
        with draft_of(folder.path / LINES) as draft:
            write_explanations(explainer, pictures, draft)
            if len(explainer.problems) == len(pictures):
                raise unreadable_images(explainer.problems, len(pictures))  # the earlier lines stay
    count = len(pictures) - len(explainer.problems)
    images = f"{count} image{'' if count == 1 else 's'}"
    print("\n".join([f"{images} explained in {printable(arguments.output)}", *explainer.remarks]))
    if explainer.problems:
        raise unreadable_images(explainer.problems, len(pictures))
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise ValueError for options that contradict each other or are out of range."""
    for option, value in {"--top-k": arguments.top_k, "--batch-size": arguments.batch_size}.items():
        if value is not None and value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if arguments.classes and arguments.top_k:
        raise ValueError("--classes and --top-k both choose the classes to explain: give one of them")
    if arguments.kind and arguments.explainer:
        raise ValueError("--kind chooses one of the model's own maps and --explainer another method: give one of them")


def write_explanations(explainer: "ImageExplainer", pictures: dict[Path, str], draft: Path) -> None:
    """Write a picture and a line for each image that can be read.

    Args:
        explainer: Explainer of batches of images.
        pictures: Image file -> name of its picture, which is written beside `draft`.
        draft: File for the lines.
    """
    from tqdm import tqdm

    images = list(pictures)
    with draft.open("w", encoding="utf-8") as lines, tqdm(total=len(images), desc="images") as bar:
        for first in range(0, len(images), explainer.batch_size):
            batch = images[first : first + explainer.batch_size]
            for file, line, picture in explainer.explain_files(batch):
                line["picture"] = pictures[file]
                with draft_of(draft.with_name(line["picture"])) as unfinished:
                    picture.save(unfinished)
                lines.write(json.dumps(line) + "\n")
            bar.update(len(batch))


def unreadable_images(problems: list[str], count: int) -> ValueError:
    """Make the error for `count` images of which some could not be read, with a sentence on each of them."""
    return ValueError("\n  ".join([f"{len(problems)} of {count} could not be read:", *problems]))


class ImageExplainer:
    """Turn batches of image files into lines of JSON and pictures.

    `problems` collects a sentence on each image that cannot be read, and `remarks` a sentence on each image
    of which something was left out.

    Args:
        classifier: Classifier to explain.
        arguments: Options of the command.
    """

    def __init__(self, classifier: "LoadedClassifier", arguments: argparse.Namespace) -> None:
        import torch
        from timm.data import create_transform

        from ..explainers.create import create_explainer
        from ..models.classes import find_class
        from ..models.flip_registration import measure_on_first_use
        from ..models.heads import native_kinds
        from ..models.self_explaining import SelfExplaining

        if arguments.explainer in native_kinds():
            self.kind, self.method = arguments.explainer, None
        else:
            self.kind, self.method = arguments.kind, arguments.explainer
        model = classifier.model
        if not self.method and not isinstance(model, SelfExplaining):
            raise ValueError(
                "this model is a vanilla classifier without maps: name a method with --explainer, such as grad-cam"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device)
        self.multi_label = bool(classifier.multi_label)
        self.explainer = create_explainer(self.method, self.model) if self.method else None
        if self.explainer and isinstance(model, SelfExplaining):
            measure_on_first_use(self.model)
        if not self.method:
            model.head_class.check_kind(self.kind)
        self.preprocessing = classifier.preprocessing
        self.transform = create_transform(**self.preprocessing)
        self.labels = classifier.labels
        self.classes = [find_class(name, self.labels) for name in arguments.classes or []]
        self.top_k, self.batch_size = min(arguments.top_k or 2, len(self.labels)), arguments.batch_size
        self.aligned = arguments.aligned
        self.problems: list[str] = []
        self.remarks: list[str] = []

    def explain_files(self, files: list[Path]) -> Iterator[tuple[Path, dict[str, Any], Image.Image]]:
        """Yield the file, a line and a picture for each image of a batch that can be read."""
        import torch

        images = list(self._read(files))
        if not images:
            return
        pixels = torch.stack([image for _, image in images]).to(self.device)
        explanation, probabilities = self.explain(pixels)
        if not self.aligned:
            explanation = replace(explanation, grid=None)
        for index, (file, _) in enumerate(images):
            predicted = int(probabilities[index].argmax())
            line = {
                "file": as_unicode(file),
                "label": self.labels[predicted],
                "score": float(probabilities[index, predicted]),
                "probabilities": dict(zip(self.labels, probabilities[index].tolist(), strict=True)),
                "explained": [self.labels[class_] for class_ in explanation.classes[index].tolist()],
                "kind": explanation.kind,
                "map_offset": explanation.layout().offset,
            }
            yield file, line, self._draw(pixels[index], explanation, index)

    def _read(self, files: list[Path]) -> "Iterator[tuple[Path, Tensor]]":
        """Yield each readable file with the input of the model, (3, H, W)."""

        for file in files:
            try:
                image = read_user_image(file, str(file))
            except UnreadableImage as error:
                self.problems.append(str(error))
                continue
            if image.remark:
                self.remarks.append(image.remark)
            yield file, self.transform(image.image)

    def explain(self, pixels: "Tensor") -> "tuple[Explanation, Tensor]":
        """Return the maps of the chosen classes, and the probabilities (B, C) of all classes.

        Args:
            pixels: Images (B, 3, H, W).
        """
        import torch

        from ..explainers.methods import find_grid
        from ..models.explanation import Explanation
        from ..models.label_kind import class_probabilities

        with torch.no_grad():
            probabilities = class_probabilities(self.model(pixels), self.multi_label)
        if self.classes:
            classes = torch.tensor([self.classes] * len(pixels), device=pixels.device)
        else:
            classes = probabilities.topk(self.top_k, dim=1).indices
        if self.explainer is None:
            return self.model.explain(pixels, classes, kind=self.kind), probabilities
        maps = self.explainer(pixels, classes)
        grid = find_grid(self.method, self.explainer.explainers.model, pixels, maps)
        probability = probabilities.gather(1, classes)
        return Explanation(maps, classes, probability, self.method, grid=grid), probabilities

    def _draw(self, pixels: "Tensor", explanation: "Explanation", index: int) -> Image.Image:
        """Draw the input of the model, and beside it the map of every explained class."""
        from ..figures import denormalise, per_class

        model_input = denormalise(pixels, self.preprocessing["mean"], self.preprocessing["std"])
        if self.method:  # a post-hoc map is never signed, even if one of our kinds has the same name
            explanation = replace(explanation, kind=f"post-hoc {self.method}")
        return per_class(model_input, explanation, self.labels, index, most=MAX_MAPS)
