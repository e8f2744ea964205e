"""Measure the cost of explaining in forward passes, beside captum, pytorch-grad-cam and torchcam.

python -m benchmarks.speed.explainers            # a quarter of an hour; rows go to benchmarks/results/explainers.jsonl
python -m benchmarks.speed.explainers --methods fd-cam score-cam   # replace the rows of these two
python -m benchmarks.speed.explainers --quick    # a smoke test: a small network, nothing written

- Every image has one class to explain. Weights and images are random, as the cost does not depend on them.
- Other libraries run under conditions that suit them: their objects are made before, images come as one
  batch, and weights are not frozen (two of the libraries fail on frozen weights). pytorch-grad-cam always
  enlarges its maps to the size of the image, which is a small part of its time.
- Our Integrated Gradients calls that of captum. The difference is the cost of our call.
- Memory is the rise of a fresh process above the network itself.
"""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import captum.attr
import pytorch_grad_cam
import timm
import torch
import torchcam.methods
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

import softcam_hub
from softcam_hub.arguments import ArgumentParser

from ..timing import (
    Row,
    Step,
    add_threads,
    environment,
    measure,
    peak_in_fresh_process,
    prepare,
    print_rows,
    read_rows,
    rise_in_mib,
    write_rows,
)

ROWS = Path(__file__).parents[1] / "results" / "explainers.jsonl"
LAST = "layer4"
SIX = ["cam", "grad-cam", "grad-cam++", "smooth-grad-cam++", "layer-cam", "lift-cam"]
CLOSED = {"six closed forms": SIX, "the six and fd-cam": [*SIX, "fd-cam"]}
PAIRS = {"integrated-gradients": 5, "score-cam": 4, **dict.fromkeys([*CLOSED, "fd-cam"], 30)}
"""Number of measured pairs of slow methods, and of methods that differ from a forward by a few percent.

Other methods are measured 10 times. Fewer than 5 pairs run without a warm-up."""

TORCHCAM = {
    "cam": "CAM",
    "grad-cam": "GradCAM",
    "grad-cam++": "GradCAMpp",
    "smooth-grad-cam++": "SmoothGradCAMpp",
    "layer-cam": "LayerCAM",
    "score-cam": "ScoreCAM",
}
PYTORCH_GRAD_CAM = {
    "grad-cam": "GradCAM",
    "grad-cam++": "GradCAMPlusPlus",
    "layer-cam": "LayerCAM",
    "score-cam": "ScoreCAM",
}
CAPTUM = {
    "grad-cam": "LayerGradCam",
    "guided-backprop": "GuidedBackprop",
    "integrated-gradients": "IntegratedGradients",
}
FAST = [*SIX, "fd-cam", *CLOSED, "guided-backprop"]
CASES = [
    ("resnet50", 1, [*FAST, "integrated-gradients"]),
    ("resnet50", 8, FAST),
    ("resnet18", 1, ["score-cam"]),  # one forward for each of 512 channels; ResNet-50 has 2048
]
"""Network, batch and methods of each table."""

QUICK = [("resnet18", 2, FAST)]
METHODS = [*FAST, "integrated-gradients", "score-cam"]


def ours(method: str, model: nn.Module, images: Tensor, classes: Tensor) -> Step:
    """Return a step that explains with this package."""
    explainer = softcam_hub.create_explainer(CLOSED.get(method, method), model)
    return lambda: explainer(images, classes)


def with_torchcam(method: str, model: nn.Module, images: Tensor, classes: Tensor) -> Step | None:
    """Return a step that explains with torchcam, if it has the method."""
    if method not in TORCHCAM:
        return None
    options = {"fc_layer": "fc"} if method == "cam" else {}
    chosen = classes.tolist()

    def step() -> Any:
        with peer_hooks(getattr(torchcam.methods, TORCHCAM[method])(model, LAST, **options)) as peer:
            context = torch.no_grad() if method in ("cam", "score-cam") else contextlib.nullcontext()
            with context:
                logits = model(images)
                return peer(chosen, logits)

    return step


@contextlib.contextmanager
def peer_hooks(peer: Any) -> Iterator[Any]:
    """Remove the hooks of torchcam at the end; they would run in the forward passes of other libraries."""
    try:
        yield peer
    finally:
        peer.remove_hooks()


def with_pytorch_grad_cam(method: str, model: nn.Module, images: Tensor, classes: Tensor) -> Step | None:
    """Return a step that explains with pytorch-grad-cam, if it has the method."""
    if method not in PYTORCH_GRAD_CAM:
        return None
    targets = [ClassifierOutputTarget(int(one)) for one in classes]

    def step() -> Any:
        with getattr(pytorch_grad_cam, PYTORCH_GRAD_CAM[method])(model, [model.get_submodule(LAST)]) as peer:
            return peer(images, targets)

    return step


def with_captum(method: str, model: nn.Module, images: Tensor, classes: Tensor) -> Step | None:
    """Return a step that explains with captum, if it has the method."""
    if method not in CAPTUM:
        return None
    layer = [model.get_submodule(LAST)] if method == "grad-cam" else []
    attribution = getattr(captum.attr, CAPTUM[method])(model, *layer)
    leaf = images.clone().requires_grad_()  # captum warns where it has to do this itself
    options = {"internal_batch_size": 32} if method == "integrated-gradients" else {}  # as many as ours at once
    return lambda: attribution.attribute(leaf, target=classes, **options)


SIDES = {"ours": ours, "captum": with_captum, "pytorch-grad-cam": with_pytorch_grad_cam, "torchcam": with_torchcam}
IN_TURN = ("guided-backprop", "integrated-gradients")
"""Methods that are also measured in turn with captum, as they cost about the same there."""


def case(architecture: str, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Make a network with random weights, images and classes."""
    torch.manual_seed(0)
    model = timm.create_model(architecture).eval()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # captum's Guided Backprop needs it
    size = model.pretrained_cfg["input_size"][-1]
    return model, torch.randn(batch, 3, size, size), torch.randint(model.num_classes, (batch,))


def rows(architecture: str, batch: int, methods: list[str], quick: bool) -> Iterator[Row]:
    """Measure every method of every library against one forward pass."""
    model, images, classes = case(architecture, batch)

    def forward() -> Tensor:
        with torch.inference_mode():
            return model(images)

    for method in methods:
        for side, make in SIDES.items():
            step = make(method, model, images, classes)
            if step is None:
                continue
            pairs = 2 if quick else PAIRS.get(method, 10)
            yield {
                "comparison": "method",
                "method": method,
                "side": side,
                "a": f"{method}, {side}",
                "b": "one forward",
                "model": architecture,
                "weights": "random",
                "batch": batch,
                "image_size": images.shape[-1],
                **environment(),
                **measure(step, forward, pairs, warm_up=2 if pairs >= 5 else 0),
                "peak_mib": peak_in_fresh_process(peak_mib, method, side, architecture, batch)
                if (quick and (method, side) == ("grad-cam", "ours")) or (not quick and method != "score-cam")
                else None,
            }
        if method in IN_TURN:
            pairs = 2 if quick else PAIRS.get(method, 10)
            yield {
                "comparison": "in turn",
                "method": method,
                "side": "ours / captum",
                "a": f"{method}, ours",
                "b": f"{method}, captum",
                "model": architecture,
                "weights": "random",
                "batch": batch,
                "image_size": images.shape[-1],
                **environment(),
                **measure(*(make(method, model, images, classes) for make in (ours, with_captum)), pairs),
                "peak_mib": None,
            }


def peak_mib(method: str, side: str, architecture: str, batch: int) -> float | None:
    """Measure the memory of one explanation in this process."""
    model, images, classes = case(architecture, batch)
    SIDES[side](method, model, images[:1, :, :64, :64], classes[:1])()  # allocates threads and kernels
    return rise_in_mib(SIDES[side](method, model, images, classes))


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure a small network in few pairs, and write nothing")
    add_threads(parser)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, help="methods to measure; all by default"
    )
    args = parser.parse_args()
    prepare(args.threads)
    measured = print_rows(
        row
        for architecture, batch, methods in (QUICK if args.quick else CASES)
        for row in rows(architecture, batch, [name for name in methods if name in args.methods], args.quick)
    )
    if not args.quick:
        latest = {(row["model"], row["batch"], row["method"], row["side"]): row for row in read_rows(ROWS) + measured}
        write_rows(list(latest.values()), ROWS)


if __name__ == "__main__":
    main()
