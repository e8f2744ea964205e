"""Measure what explaining costs, in forward passes, beside captum, pytorch-grad-cam and torchcam.

python -m benchmarks.speed.explainers            # a quarter of an hour; rows go to benchmarks/results/explainers.jsonl
python -m benchmarks.speed.explainers --methods fd-cam score-cam   # these again, in place of their old rows
python -m benchmarks.speed.explainers --quick    # a smoke test: a small network, nothing written

- One class per image, weights and images random: the cost does not depend on them.
- Peers run under the conditions that suit them: objects are made beforehand, images come as one batch, and weights are
  not frozen (two of them fail on frozen ones). pytorch-grad-cam always enlarges its maps to the image, which is a small
  part of its time.
- Integrated Gradients is captum's own, called by our explainer; the difference is the cost of our call.
- Memory is the rise of a fresh process above the network itself.
"""

import argparse
import contextlib
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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

from ..timing import Row, Step, environment, measure, rise_in_mib, warn_if_busy, write

ROWS = Path(__file__).parents[1] / "results" / "explainers.jsonl"
LAST = "layer4"
SIX = ["cam", "grad-cam", "grad-cam++", "smooth-grad-cam++", "layer-cam", "lift-cam"]
CLOSED = {"six closed forms": SIX, "the six and fd-cam": [*SIX, "fd-cam"]}
PAIRS = {"integrated-gradients": 2, "score-cam": 4, **dict.fromkeys([*CLOSED, "fd-cam"], 30)}
"""Number of timed pairs for slow methods, and for those that differ from a forward by a few percent; 10 for others.
Below 5 there is no warm-up."""

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
    ("resnet18", 1, ["score-cam"]),  # 512 channels, a forward each; ResNet-50 has 2048
]
"""Network, batch and methods of each table."""

QUICK = [("resnet18", 2, FAST)]
METHODS = [*FAST, "integrated-gradients", "score-cam"]


def ours(method: str, model: nn.Module, images: Tensor, classes: Tensor) -> Step:
    explainer = softcam_hub.create_explainer(CLOSED.get(method, method), model)
    return lambda: explainer(images, classes)


def with_torchcam(method: str, model: nn.Module, images: Tensor, classes: Tensor) -> Step | None:
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
    """Remove the hooks of torchcam afterwards, as they would run in the forward passes of the others."""
    try:
        yield peer
    finally:
        peer.remove_hooks()


def with_pytorch_grad_cam(method: str, model: nn.Module, images: Tensor, classes: Tensor) -> Step | None:
    if method not in PYTORCH_GRAD_CAM:
        return None
    targets = [ClassifierOutputTarget(int(one)) for one in classes]

    def step() -> Any:
        with getattr(pytorch_grad_cam, PYTORCH_GRAD_CAM[method])(model, [model.get_submodule(LAST)]) as peer:
            return peer(images, targets)

    return step


def with_captum(method: str, model: nn.Module, images: Tensor, classes: Tensor) -> Step | None:
    if method not in CAPTUM:
        return None
    layer = [model.get_submodule(LAST)] if method == "grad-cam" else []
    attribution = getattr(captum.attr, CAPTUM[method])(model, *layer)
    leaf = images.clone().requires_grad_()  # captum says so when it has to do this itself
    return lambda: attribution.attribute(leaf, target=classes)


SIDES = {"ours": ours, "captum": with_captum, "pytorch-grad-cam": with_pytorch_grad_cam, "torchcam": with_torchcam}


def case(architecture: str, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
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
                "peak_mib": None if method == "score-cam" else peak_in_fresh_process(method, side, architecture, batch),
            }


def peak_in_fresh_process(method: str, side: str, architecture: str, batch: int) -> float | None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_mib, method, side, architecture, batch).result()


def peak_mib(method: str, side: str, architecture: str, batch: int) -> float | None:
    model, images, classes = case(architecture, batch)
    SIDES[side](method, model, images[:1, :, :64, :64], classes[:1])()  # threads and kernels are no part of it
    return rise_in_mib(SIDES[side](method, model, images, classes))


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network and few pairs, nothing written")
    parser.add_argument("--threads", type=int, help="torch's threads; one is steadier beside other programs")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, help="which to measure; all by default"
    )
    args = parser.parse_args()
    warn_if_busy()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    found = []
    for architecture, batch, methods in QUICK if args.quick else CASES:
        for row in rows(architecture, batch, [name for name in methods if name in args.methods], args.quick):
            print(json.dumps(row, ensure_ascii=False), flush=True)
            found.append(row)
    if not args.quick:
        old = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
        known = {(row["model"], row["batch"], row["method"], row["side"]): row for row in [*old, *found]}
        write(list(known.values()), ROWS)


if __name__ == "__main__":
    main()
