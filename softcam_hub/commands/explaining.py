"""`softcam-hub explain`: images in; a picture and a line of JSON for each out.

Every readable image is explained; those that cannot be read are named at the end, with exit code 1.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .. import CAPE_LESIONS

if TYPE_CHECKING:
    from torch import nn

    from ..models.explanation import Explanation

HELP = "explain images: a picture and a line of JSON for each"

LINES = "explanations.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument(
        "--model", default=str(CAPE_LESIONS), help="model folder, timm name or Hub id [a small lesions model]"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=f"folder for pictures and {LINES}")
    parser.add_argument("--classes", nargs="+", help="labels or indices to explain; by default the most probable ones")
    parser.add_argument("--top_k", type=int, help="how many of the most probable classes [2]")
    parser.add_argument("--kind", help="kind of map of a model of ours: softcam, cape, mu-cape, cam")
    parser.add_argument("--explainer", help="a post-hoc method instead, such as grad-cam; needed for a black box")
    parser.add_argument("--batch_size", type=int, default=16, help="images at a time [16]")


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..benchmarking.models import load_classifier
    from ..viewing import with_problem_type

    check(arguments)
    files = find_images(arguments.images)
    model = with_problem_type(load_classifier(arguments.model), arguments.model)
    explain = Explaining(model, arguments)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        lines = (arguments.out / LINES).open("w", encoding="utf-8")
    except OSError as error:
        raise OSError(f"output {arguments.out} cannot be written: {error.strerror}; choose another --out") from error
    problems: list[str] = []
    with lines, tqdm(total=len(files), desc="images") as bar:
        for first in range(0, len(files), arguments.batch_size):
            some = files[first : first + arguments.batch_size]
            for line in explain(list(readable(some, problems)), arguments.out):
                lines.write(json.dumps(line) + "\n")
            bar.update(len(some))
    print(f"{len(files) - len(problems)} images explained in {arguments.out}")
    if problems:
        counted = f"{len(problems)} of {len(files)} could not be read:"
        raise ValueError("\n  ".join([counted, *problems]))
    return 0


def check(arguments: argparse.Namespace) -> None:
    for name in ("top_k", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if arguments.classes and arguments.top_k:
        raise ValueError("classes and top_k both say what to explain: give one of them")
    if arguments.kind and arguments.explainer:
        raise ValueError("kind is of a model's own maps and explainer another method: give one of them")


def find_images(paths: list[Path]) -> list[Path]:
    """Files as they are named, and all images in folders."""
    known, found = Image.registered_extensions(), []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file())
            if not inside:
                raise FileNotFoundError(f"there is no image in folder {path}")
            found += inside
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def readable(files: list[Path], problems: list[str]) -> Iterator[tuple[Path, Image.Image]]:
    """Files with their images, RGB and upright; what cannot be read is added to `problems`, a sentence each."""
    from ..data.pictures import read_picture
    from ..data.rows import UnreadableImage

    for file in files:
        try:
            yield file, read_picture(file, str(file)).image
        except UnreadableImage as error:
            problems.append(str(error))


class Explaining:
    """Batches of images -> pictures, and a line for each.

    Args:
        model: in eval mode.
        arguments: of the command.
    """

    def __init__(self, model: "nn.Module", arguments: argparse.Namespace) -> None:
        import torch
        from timm.data import create_transform, resolve_data_config

        from ..models.self_explaining import SelfExplaining
        from ..viewing import labels_of

        if not arguments.explainer and not isinstance(model, SelfExplaining):
            raise ValueError("this model is a black box: name a method with --explainer, such as grad-cam")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.arguments = model.to(self.device), arguments
        self.config = resolve_data_config({}, pretrained_cfg=dict(model.pretrained_cfg))
        self.transform = create_transform(**self.config)
        self.labels = labels_of(model)
        self.classes = None if not arguments.classes else [index_of(name, self.labels) for name in arguments.classes]
        self.top_k = min(arguments.top_k or 2, len(self.labels))
        self.taken: set[str] = set()

    def __call__(self, images: list[tuple[Path, Image.Image]], folder: Path) -> Iterator[dict[str, Any]]:
        """Draw the pictures into `folder`; a line for each image."""
        import torch

        if not images:
            return
        pixels = torch.stack([self.transform(image) for _, image in images]).to(self.device)
        explanation, probabilities = self.explain(pixels)
        for place, (file, _) in enumerate(images):
            picture = self.draw(pixels[place], explanation, place)
            name = self.name_for(file)
            picture.save(folder / name)
            top = int(probabilities[place].argmax())
            yield {
                "file": str(file),
                "label": self.labels[top],
                "score": float(probabilities[place, top]),
                "probabilities": dict(zip(self.labels, probabilities[place].tolist(), strict=True)),
                "explained": [self.labels[index] for index in explanation.classes[place].tolist()],
                "kind": explanation.kind,
                "picture": name,
            }

    def explain(self, pixels: Any) -> "tuple[Explanation, Any]":
        """Maps of the chosen classes, and the probabilities (B, C) of all of them."""
        import torch

        from ..explain.explainers import create_explainer
        from ..models.explanation import Explanation

        with torch.no_grad():
            logits = getattr(output := self.model(pixels), "logits", output)
            asked = getattr(self.model, "probabilities", lambda logits: logits.float().softmax(dim=1))
            probabilities = asked(logits)
        if self.classes is None:
            classes = probabilities.topk(self.top_k, dim=1).indices
        else:
            classes = torch.tensor([self.classes] * len(pixels), device=pixels.device)
        if not self.arguments.explainer:
            return self.model.explain(pixels, classes, kind=self.arguments.kind), probabilities
        maps = create_explainer(self.arguments.explainer, self.model)(pixels, classes)
        return Explanation(maps, classes, probabilities.gather(1, classes), self.arguments.explainer), probabilities

    def draw(self, pixels: Any, explanation: "Explanation", place: int) -> Image.Image:
        """What the model saw, and beside it the map of every explained class."""
        from ..figures import overlay, picture, row

        seen = picture(pixels, self.config["mean"], self.config["std"])
        heats = explanation.heatmaps(tuple(pixels.shape[-2:]))[place]
        panels = [("what the model saw", seen)]
        for rank, (index, heat) in enumerate(zip(explanation.classes[place].tolist(), heats, strict=True)):
            probability = float(explanation.probabilities[place, rank])
            panels.append((f"{self.labels[index]}\n{probability:.1%}, {explanation.kind}", overlay(seen, heat)))
        return row(panels)

    def name_for(self, file: Path) -> str:
        """The picture's name: the image's, with a number where several images share one."""
        name, number = f"{file.stem}.png", 1
        while name in self.taken:
            number += 1
            name = f"{file.stem}-{number}.png"
        self.taken.add(name)
        return name


def index_of(name: str, labels: list[str]) -> int:
    if name in labels:
        return labels.index(name)
    if name.isdecimal() and int(name) < len(labels):
        return int(name)
    listed = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
    raise ValueError(f"unknown class {name!r}: this model's {len(labels)} labels are {listed}")
