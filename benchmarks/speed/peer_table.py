"""Measure the time for the CAPE paper's Table 1 of 64 images, with this package and with other libraries.

python -m benchmarks.speed.peer_table  # a few minutes of two cores; rows go to benchmarks/results/peer_table.jsonl
python -m benchmarks.speed.peer_table --quick    # a smoke test: a small network, nothing written

- Each library is compared on the methods that it has. None has FD-CAM or LIFT-CAM.
- The side of a library is the code that its user would write. For each method and batch it computes the maps
  of two classes, the confidence of E⊙x (together with its map where the library returns both at once), and
  the confidence of (1-E)⊙x. Both sides use the same images, and our functions for the scores.
- Our side also loads the images and writes a folder of results.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_grad_cam
import timm
import torch
import torchcam.methods
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.config import DataConfig
from softcam_hub.data.splits import load_splits
from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.shards import make_dataset
from softcam_hub.explanation_scores.faithfulness import coherency, complexity, top_two_iou
from softcam_hub.explanation_scores.maps import heat
from softcam_hub.loading import load_classifier

from ..timing import Row, environment, measure, prepare, write_rows
from .explainers import LAST, PYTORCH_GRAD_CAM, TORCHCAM, peer_hooks

ROWS = Path(__file__).parents[1] / "results" / "peer_table.jsonl"
BATCH = 8
METHODS = {
    "torchcam": ["cam", "grad-cam", "grad-cam++", "smooth-grad-cam++", "layer-cam"],
    "pytorch-grad-cam": ["grad-cam", "grad-cam++", "layer-cam"],
}

Explain = Callable[[Tensor, list[list[int]] | None], tuple[Tensor, list[Tensor]]]
"""Function from images and lists of classes (None: the two most probable) to logits, and maps of each list."""


def top_two(logits: Tensor) -> list[list[int]]:
    """Return the most probable class of every image, and the second most probable class of every image."""
    return logits.detach().topk(2).indices.T.tolist()


def by_torchcam(method: str, model: nn.Module, images: Tensor, wanted: list[list[int]] | None) -> Any:
    """Explain with torchcam."""
    options = {"fc_layer": "fc"} if method == "cam" else {}
    made = getattr(torchcam.methods, TORCHCAM[method])(model, LAST, **options)
    with peer_hooks(made) as peer, torch.no_grad() if method == "cam" else nullcontext():
        logits = model(images)
        wanted = wanted or top_two(logits)
        retain = {} if method == "cam" else {"retain_graph": True}
        maps = [peer(classes, logits, **retain)[0] for classes in wanted]
    size = images.shape[-2:]
    return logits.detach(), [heat(one, tuple(size)) for one in maps]


def by_pytorch_grad_cam(method: str, model: nn.Module, images: Tensor, wanted: list[list[int]] | None) -> Any:
    """Explain with pytorch-grad-cam."""
    with getattr(pytorch_grad_cam, PYTORCH_GRAD_CAM[method])(model, [model.get_submodule(LAST)]) as peer:
        logits = None
        if wanted is None:
            with torch.no_grad():
                logits = model(images)
            wanted = top_two(logits)
        maps = [torch.from_numpy(peer(images, [ClassifierOutputTarget(c) for c in classes])) for classes in wanted]
        logits = peer.outputs.detach() if logits is None else logits
    return logits, maps


SIDES = {"torchcam": by_torchcam, "pytorch-grad-cam": by_pytorch_grad_cam}


def peer_scores(peer: str, model: nn.Module, batches: list[Tensor]) -> Row:
    """Compute Table 1 with a library: the mean of every column, by method."""
    table = {}
    for method in METHODS[peer]:
        explain = partial(SIDES[peer], method, model)
        parts = [batch_scores(explain, model, images) for images in batches]
        table[method] = {name: torch.cat([part[name] for part in parts]).mean().item() for name in parts[0]}
    return table


def batch_scores(explain: Explain, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Compute the columns of Table 1 for one batch, each (B,)."""
    logits, (first, second) = explain(images, None)
    top = logits.argmax(dim=1)

    def confidence(answers: Tensor) -> Tensor:
        return answers.softmax(dim=1).gather(1, top[:, None])[:, 0]

    kept, (again,) = explain(images * first[:, None], [top.tolist()])
    with torch.no_grad():
        removed = model(images * (1 - first)[:, None])
    y, o, d = confidence(logits), confidence(kept), confidence(removed)
    return {
        "average_drop": (y - o).clamp_min(0) / y,
        "increase": (y < o).float(),
        "drop_in_deletion": (y - d).clamp_min(0) / y,
        "coherency": coherency(first, again),
        "complexity": complexity(first),
        "iou": top_two_iou(first, second),
    }


def our_scores(model: nn.Module, methods: list[str], data: dict[str, Any]) -> list[Row]:
    """Compute Table 1 with `softcam_hub.benchmark`."""
    with tempfile.TemporaryDirectory() as folder:
        return benchmark(
            model,
            folder,
            explainers=methods,
            measures="table",
            aligned=False,
            batch_size=BATCH,
            shard_size=4 * BATCH,
            **data,
        )


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure a small network on few images, and write nothing")
    quick = parser.parse_args().quick
    prepare()
    architecture, size, count, pairs = ("resnet18", 64, 8, 2) if quick else ("resnet50", 224, 64, 3)
    model = timm.create_model(architecture, num_classes=4).eval()
    model.pretrained_cfg["input_size"] = (3, size, size)
    data = {"data": "lesions", "data_size": size, "eval_count": count, "train_count": 4}
    images = make_dataset(load_classifier(model).preprocessing, load_splits(DataConfig(**data)).test)
    batches = [
        torch.stack([images[at]["pixel_values"] for at in range(first, first + BATCH)])
        for first in range(0, count, BATCH)
    ]
    rows = []
    for peer, methods in METHODS.items():
        row = {
            "peer": peer,
            "methods": methods,
            "a": f"Table 1 with {peer}",
            "b": "softcam_hub.evaluation.benchmark",
            "model": architecture,
            "weights": "random",
            "images": count,
            "batch": BATCH,
            "image_size": size,
            **environment(),
        }
        step = partial(peer_scores, peer, model, batches)
        ours = next(
            one["average_drop"] / 100 for one in our_scores(model, methods, data) if one["explainer"] == "grad-cam"
        )
        row["difference_of_average_drop"] = abs(ours - step()["grad-cam"]["average_drop"])
        row |= measure(step, partial(our_scores, model, methods, data), pairs, warm_up=0)
        print(json.dumps(row))
        rows.append(row)
    if not quick:
        write_rows(rows, ROWS)


if __name__ == "__main__":
    main()
