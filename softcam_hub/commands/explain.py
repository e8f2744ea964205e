"""`softcam-hub explain`: images in; a picture and a line of JSON for each out.

- Every readable image is explained; those that cannot be read are named at the end, with exit code 1.
- The folder's record names the pictures before they are drawn. Pictures of an earlier run are replaced, other files
  never. The earlier lines stay until all new ones are written.
"""

import argparse
import glob
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .. import CAPE_LESIONS
from ..files import DRAFT, draft_of, is_draft
from ..output_folder import OutputFolder

if TYPE_CHECKING:
    from torch import Tensor

    from ..loading import LoadedClassifier
    from ..models.explanation import Explanation

HELP = "explain images: a picture and a line of JSON for each"

LINES = "predictions.jsonl"

LONGEST_NAME = 200
"""Bytes in the name of a picture: file systems take 255 at most, and some fewer."""

MOST = 39
"""Maps in a picture: with the image, ten rows of four."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument(
        "--model", default=CAPE_LESIONS, help="model folder, timm name or Hub id [a small lesions model]"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"folder for pictures and {LINES}",
    )
    parser.add_argument("--classes", nargs="+", help="labels or indices to explain; by default the most probable ones")
    parser.add_argument("--top_k", type=int, help=f"how many of the most probable classes [2]; up to {MOST} are drawn")
    parser.add_argument("--kind", help="kind of map of a model of ours: softcam, cape, mu-cape, cam")
    parser.add_argument("--explainer", help="a post-hoc method instead, such as grad-cam; needed for a black box")
    parser.add_argument("--batch_size", type=int, default=16, help="images at a time [16]")


def run(arguments: argparse.Namespace) -> int:
    from ..data.text import printable
    from ..loading import load_classifier

    check(arguments)
    files = find_images(arguments.images, arguments.out)
    pictures = name_pictures(files)
    keep_photographs(pictures, arguments.out)
    names = [LINES, *(glob.escape(name) for name in pictures.values())]
    folder = OutputFolder(arguments.out, "explanation run", names, flag="--out")
    problems: list[str] = []
    remarks: list[str] = []
    with folder.locked("continue"):
        explain = ImageExplainer(load_classifier(arguments.model), arguments)
        folder.claim("continue")
        with draft_of(folder.path / LINES) as draft:
            write_explanations(explain, pictures, draft, problems, remarks)
    print("\n".join([f"{len(files) - len(problems)} images explained in {printable(arguments.out)}", *remarks]))
    if problems:
        raise unreadable(problems, files)
    return 0


def write_explanations(
    explain: "ImageExplainer", pictures: dict[Path, str], draft: Path, problems: list[str], remarks: list[str]
) -> None:
    """Write a picture and a line for each image that can be read.

    Args:
        explain: Maker of lines and pictures.
        pictures: Image file -> name of its picture, which is written beside `draft`.
        draft: File for the lines.
        problems: List that gets a sentence on each image that cannot be read.
        remarks: List that gets a sentence on each image of which something was left out.
    """
    from tqdm import tqdm

    files = list(pictures)
    with draft.open("w", encoding="utf-8") as lines, tqdm(total=len(files), desc="images") as bar:
        for first in range(0, len(files), explain.batch_size):
            some = files[first : first + explain.batch_size]
            for file, line, picture in explain(list(explain.read(some, problems, remarks))):
                line["picture"] = pictures[file]
                with draft_of(draft.with_name(line["picture"])) as unfinished:
                    picture.save(unfinished)
                lines.write(json.dumps(line) + "\n")
            bar.update(len(some))
    if len(problems) == len(files):
        raise unreadable(problems, files)


def check(arguments: argparse.Namespace) -> None:
    for name in ("top_k", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if arguments.classes and arguments.top_k:
        raise ValueError("classes and top_k both say what to explain: give one of them")
    if arguments.kind and arguments.explainer:
        raise ValueError("kind is of a model's own maps and explainer another method: give one of them")


def find_images(paths: list[Path], out: Path) -> list[Path]:
    """Files as they are named, and all images in folders but those in `out`, where an earlier run has drawn."""
    from ..data.images import SUFFIXES
    from ..data.text import printable

    found, drawn = [], out.resolve()
    for path in paths:
        if os.path.isdir(path):  # unlike Path.is_dir, false for a name that is too long
            every = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            every = [file for file in every if not is_draft(file)]
            inside = [file for file in every if drawn not in file.resolve().parents]
            if not inside:
                outside = f" outside of --out {printable(out)}: choose another --out" if every else ""
                raise FileNotFoundError(f"there is no image in folder {printable(path)}{outside}")
            found += inside
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def name_pictures(files: list[Path]) -> dict[Path, str]:
    """Return file -> name of its picture: the image's, with a number where several images share one."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        stem = f"_{file.stem}" if file.stem.startswith(DRAFT) else file.stem  # drafts are deleted by later runs
        name, number = writable_name(stem, ".png"), 1
        while name.lower() in taken:  # folders of macOS and Windows do not tell a.png from A.png
            number += 1
            name = writable_name(stem, f"-{number}.png")
        taken.add(name.lower())
        names[file] = name
    return names


def writable_name(stem: str, ending: str) -> str:
    """Return a file name that every file system takes and every terminal shows.

    Args:
        stem: Name of the image without its suffix; it may be anything, and as long as a file name may be.
        ending: Characters that stay whole at the end.
    """
    printable = "".join(character if character.isprintable() else "_" for character in stem)
    return printable.encode()[: LONGEST_NAME - len(ending)].decode(errors="ignore") + ending


def keep_photographs(pictures: dict[Path, str], out: Path) -> None:
    """Refuse to draw a picture over an image that is to be explained."""
    from ..data.text import printable

    given = {file.resolve() for file in pictures}
    for name in pictures.values():
        if (out / name).resolve() in given:
            raise FileExistsError(
                f"{printable(out / name)} is to be explained, so no picture may replace it: choose another --out"
            )


def unreadable(problems: list[str], files: list[Path]) -> ValueError:
    return ValueError("\n  ".join([f"{len(problems)} of {len(files)} could not be read:", *problems]))


class ImageExplainer:
    """Turn batches of images into lines and pictures.

    Args:
        classifier: Classifier to explain.
        arguments: Options of the command.
    """

    def __init__(self, classifier: "LoadedClassifier", arguments: argparse.Namespace) -> None:
        import torch
        from timm.data import create_transform

        from ..explainers.methods import create_explainer
        from ..models.heads import native_kinds
        from ..models.self_explaining import SelfExplaining

        own = arguments.explainer in native_kinds()
        self.kind, self.method = (arguments.explainer, None) if own else (arguments.kind, arguments.explainer)
        model = classifier.model
        if not self.method and not isinstance(model, SelfExplaining):
            raise ValueError("this model is a black box: name a method with --explainer, such as grad-cam")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device)
        self.multi_label = bool(classifier.multi_label)
        self.explainer = create_explainer(self.method, self.model) if self.method else None
        if not self.method:
            model.head_class.check_kind(self.kind)
        self.config = classifier.preprocessing
        self.transform = create_transform(**self.config)
        self.labels = classifier.labels
        self.classes = None if not arguments.classes else [index_of(name, self.labels) for name in arguments.classes]
        self.top_k, self.batch_size = min(arguments.top_k or 2, len(self.labels)), arguments.batch_size

    def read(self, files: list[Path], problems: list[str], remarks: list[str]) -> "Iterator[tuple[Path, Tensor]]":
        """Files with what the model takes of them, (3, H, W).

        Args:
            files: of images.
            problems: takes a sentence on each that cannot be read.
            remarks: takes a sentence on each of which something was left out.
        """
        from ..data.images import UnreadableImage, read_user_image

        for file in files:
            try:
                picture = read_user_image(file, str(file))
            except UnreadableImage as error:
                problems.append(str(error))
                continue
            remarks += [picture.remark] if picture.remark else []
            yield file, self.transform(picture.image)

    def __call__(self, images: "list[tuple[Path, Tensor]]") -> Iterator[tuple[Path, dict[str, Any], Image.Image]]:
        """Yield the file, a line and a picture for each image."""
        import torch

        from ..data.text import as_unicode

        if not images:
            return
        pixels = torch.stack([one for _, one in images]).to(self.device)
        explanation, probabilities = self.explain(pixels)
        for place, (file, _) in enumerate(images):
            top = int(probabilities[place].argmax())
            line = {
                "file": as_unicode(file),
                "label": self.labels[top],
                "score": float(probabilities[place, top]),
                "probabilities": dict(zip(self.labels, probabilities[place].tolist(), strict=True)),
                "explained": [self.labels[index] for index in explanation.classes[place].tolist()],
                "kind": explanation.kind,
            }
            yield file, line, self.draw(pixels[place], explanation, place)

    def explain(self, pixels: "Tensor") -> "tuple[Explanation, Tensor]":
        """Maps of the chosen classes, and the probabilities (B, C) of all of them."""
        import torch

        from ..models.explanation import Explanation
        from ..models.label_kind import class_probabilities

        with torch.no_grad():
            logits = getattr(output := self.model(pixels), "logits", output)
            probabilities = class_probabilities(logits, self.multi_label)
        if self.classes is None:
            classes = probabilities.topk(self.top_k, dim=1).indices
        else:
            classes = torch.tensor([self.classes] * len(pixels), device=pixels.device)
        if self.explainer is None:
            return self.model.explain(pixels, classes, kind=self.kind), probabilities
        maps = self.explainer(pixels, classes)
        return Explanation(maps, classes, probabilities.gather(1, classes), self.method), probabilities

    def draw(self, pixels: "Tensor", explanation: "Explanation", place: int) -> Image.Image:
        """What the model saw, and beside it the map of every explained class."""
        from ..figures import denormalise, per_class

        seen = denormalise(pixels, self.config["mean"], self.config["std"])
        if self.method:  # whose maps are never signed, also where a kind of ours has the same name
            explanation = replace(explanation, kind=f"post-hoc {self.method}")
        return per_class(seen, explanation, self.labels, place, most=MOST)


def index_of(name: str, labels: list[str]) -> int:
    if name in labels:
        return labels.index(name)
    if name.isdecimal() and int(name) < len(labels):
        return int(name)
    near = [label for label in labels if name in label][:5]
    if near:
        raise ValueError(f"unknown class {name!r}: did you mean {' or '.join(map(repr, near))}?")
    listed = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
    raise ValueError(f"unknown class {name!r}: this model's {len(labels)} labels are {listed}")
