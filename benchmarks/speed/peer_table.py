"""Measure the CAPE paper's Table 1 of 64 images with `softcam_hub.evaluation`, and with peers that explain.

python -m benchmarks.speed.peer_table  # a few minutes of two cores; rows go to benchmarks/results/peer_table.jsonl
python -m benchmarks.speed.peer_table --quick    # a smoke test: a small network, nothing written

- Each peer is compared on the methods that it has; there is none with FD-CAM or LIFT-CAM.
- The peers' side is what one would write with them: per method and batch the maps of two classes, the confidence of
  E⊙x together with its map where the peer gives both at once, and the confidence of (1-E)⊙x. The scores are our
  functions on both sides, and so are the images.
- Ours also reads the images through its own loading and writes its folder of results.
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

from ..timing import Row, environment, measure, warn_if_busy, write
from .explainers import LAST, PYTORCH_GRAD_CAM, TORCHCAM, peer_hooks

ROWS = Path(__file__).parents[1] / "results" / "peer_table.jsonl"
BATCH = 8
METHODS = {
    "torchcam": ["cam", "grad-cam", "grad-cam++", "smooth-grad-cam++", "layer-cam"],
    "pytorch-grad-cam": ["grad-cam", "grad-cam++", "layer-cam"],
}

Explain = Callable[[Tensor, list[list[int]] | None], tuple[Tensor, list[Tensor]]]
"""Images and lists of classes, by default the two most probable, -> logits and the maps (B, H, W) of each list."""


def top_two(logits: Tensor) -> list[list[int]]:
    return logits.detach().topk(2).indices.T.tolist()


def by_torchcam(method: str, model: nn.Module, images: Tensor, wanted: list[list[int]] | None) -> Any:
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


def of_peer(peer: str, model: nn.Module, batches: list[Tensor]) -> Row:
    """Table 1 with a peer: method -> (B,) values of each column."""
    table = {}
    for method in METHODS[peer]:
        explain = partial(SIDES[peer], method, model)
        parts = [of_batch(explain, model, images) for images in batches]
        table[method] = {name: torch.cat([part[name] for part in parts]).mean().item() for name in parts[0]}
    return table


def of_batch(explain: Explain, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
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


def of_ours(model: nn.Module, methods: list[str], data: dict[str, Any]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return benchmark(
            model, folder, explainers=methods, measures="table", batch_size=BATCH, shard_size=4 * BATCH, **data
        )


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network and few images, nothing written")
    quick = parser.parse_args().quick
    warn_if_busy()
    architecture, size, count, pairs = ("resnet18", 64, 8, 2) if quick else ("resnet50", 224, 64, 3)
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=4).eval()
    model.pretrained_cfg["input_size"] = (3, size, size)
    data = {"data": "lesions", "data_size": size, "eval_count": count, "train_count": 4}
    images = make_dataset(load_classifier(model).preprocessing, load_splits(DataConfig(**data)).test)
    batches = [
        torch.stack([images[at]["pixel_values"] for at in range(first, first + BATCH)])
        for first in range(0, count, BATCH)
    ]
    found = []
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
        step = partial(of_peer, peer, model, batches)
        ours = next(
            one["average_drop"] / 100 for one in of_ours(model, methods, data) if one["explainer"] == "grad-cam"
        )
        row["difference_of_average_drop"] = abs(ours - step()["grad-cam"]["average_drop"])
        row |= measure(step, partial(of_ours, model, methods, data), pairs, warm_up=0)
        print(json.dumps(row))
        found.append(row)
    if not quick:
        write(found, ROWS)


if __name__ == "__main__":
    main()
