"""Measure the cost of the two heads, beside the vanilla classifier and the formula of the CAPE authors.

python -m benchmarks.speed.heads                   # half an hour of two cores; rows: benchmarks/results/heads.jsonl
python -m benchmarks.speed.heads --parts formula   # measures a part again, and keeps the rows of the others
python -m benchmarks.speed.heads --quick           # a smoke test: two pairs of small cases, nothing written

- The control compares a copy of the vanilla model with the vanilla model. Its ratio shows how small a
  difference this machine can resolve.
- Peak memory is measured in a fresh process for every side, which holds nothing that the other side has
  allocated.
"""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.models.heads import CAPEHead

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
    rounded,
    write_rows,
)

ROWS = Path(__file__).parents[1] / "results" / "heads.jsonl"
PAIRS = {
    "resnet50": (40, 30),
    "convnext_tiny": (30, 8),
    "swinv2_tiny_window8_256": (30, 8),
    "efficientnet_b0": (40, 40),
}
"""Architecture -> number of pairs at batch 1 and at batch 8. Differences of one percent need many pairs."""

EVIDENCE_SHAPES = ((8, 200, 14, 14), (8, 1000, 7, 7))
FORMULA_PAIRS = 10

# Whole models


def model_rows(architecture: str, batch: int, pairs: int) -> Iterator[Row]:
    """Measure a copy of the vanilla model, both heads with all maps, and SoftCAM without maps."""
    vanilla = timm.create_model(architecture).eval()
    size = vanilla.pretrained_cfg["input_size"][-1]
    images = torch.randn(batch, 3, size, size)
    for name, (description, step) in compared_steps(vanilla, images).items():
        with torch.inference_mode():
            costs = measure(step, lambda: vanilla(images), pairs)
        yield {
            "comparison": name,
            "a": description,
            "b": "vanilla timm forward",
            "model": architecture,
            "weights": "random, the same on both sides",
            "batch": batch,
            "image_size": size,
            **environment(),
            **costs,
        }


def compared_steps(vanilla: nn.Module, images: Tensor) -> dict[str, tuple[str, Step]]:
    """Return the steps to compare with `vanilla(images)`: name -> description and step."""
    other = copy.deepcopy(vanilla)  # the weights of the same object would still be in the processor's cache
    softcam, cape = softcam_hub.convert(vanilla, "softcam"), softcam_hub.convert(vanilla, "cape")
    return {
        "control": ("a copy of the vanilla model", lambda: other(images)),
        "softcam explained": ("SoftCAM: logits and the maps of all classes", lambda: explained(softcam, images)),
        "cape explained": ("CAPE: logits and the maps of all classes", lambda: explained(cape, images)),
        "softcam logits": ("SoftCAM: logits only", lambda: softcam(images)),
    }


def explained(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute logits and the maps of all classes."""
    return model.head(model.forward_features(images), kind=model.head.kinds[0])


MANY_CLASSES = 21_841
"""Number of classes of ImageNet-21k."""

MANY_CLASSES_PAIRS = {1: 20, 8: 10}
"""Batch -> number of pairs."""


def many_classes_rows(architecture: str, batch: int, pairs: int, classes: int = MANY_CLASSES) -> Iterator[Row]:
    """Measure `explain(top_k=1)` and the maps of all classes, where these are many."""
    vanilla = timm.create_model(architecture, num_classes=classes).eval()
    other, softcam = copy.deepcopy(vanilla), softcam_hub.convert(vanilla, "softcam")
    images = torch.randn(batch, *vanilla.pretrained_cfg["input_size"])
    steps: dict[str, tuple[str, Step]] = {
        "many classes: control": ("a copy of the vanilla model", lambda: other(images)),
        "many classes: explain": ("SoftCAM: explain(images, top_k=1)", lambda: softcam.explain(images, top_k=1)),
        "many classes: all maps": ("SoftCAM: logits and the maps of all classes", lambda: explained(softcam, images)),
    }
    for name, (description, step) in steps.items():
        with torch.inference_mode():
            costs = measure(step, lambda: vanilla(images), pairs)
        yield {
            "comparison": name,
            "a": description,
            "b": "vanilla timm forward",
            "model": architecture,
            "weights": "random, the same on both sides",
            "classes": classes,
            "batch": batch,
            **environment(),
            **costs,
        }


# CAPE's formula


class PairwiseCAPE(nn.Module):
    """Compute log p̂ by the formula of the CAPE authors' code (eq. 9: one sum over classes and locations).

    The denominator of every location sums over all classes and over the saliency of all locations. Their code
    stores every term of these sums, in a tensor (B, C, HW, HW), before it adds them up. This version is
    faster than theirs in two ways: it has one temperature instead of three, and it leaves out their second,
    softened output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.zeros(1))

    def forward(self, evidence: Tensor) -> Tensor:
        evidence = evidence.flatten(2) / self.log_temperature.exp()  # (B, C, N)
        saliency = evidence.mean(dim=1, keepdim=True)  # (B, 1, N)
        sums = evidence[..., None] + saliency[:, :, None]  # (B, C, N, N)
        largest = sums.amax(dim=(1, 3), keepdim=True)  # (B, 1, N, 1): without it, exp overflows
        sums = sums - largest
        denominator = sums.exp().sum(dim=(1, 3))  # (B, N)
        numerator = (evidence + saliency - largest[..., 0]).exp()
        return (numerator / denominator[:, None]).sum(dim=2).log()


class FactoredCAPE(CAPEHead):
    """Compute log p̂ from evidence as `CAPEHead` does; the weights of the head are not used."""

    def __init__(self) -> None:
        super().__init__(in_features=1, num_classes=1)

    def forward(self, evidence: Tensor) -> Tensor:
        return self.compose(evidence)


class AutogradCAPE(FactoredCAPE):
    """Compute the same with a backward pass by autograd."""

    def forward(self, evidence: Tensor) -> Tensor:
        return self.log_parts(evidence).flatten(2).logsumexp(dim=2)


FORMULAS: dict[str, type[nn.Module]] = {"authors": PairwiseCAPE, "autograd": AutogradCAPE, "ours": FactoredCAPE}
OTHERS = {"authors": "the authors' formula, (B, C, HW, HW)", "autograd": "the formula of CAPEHead by autograd"}
"""Formula that is compared with ours -> its description."""


def formula_step(formula: str, shape: tuple[int, ...], backward: bool) -> Step:
    """Return a step from evidence to log p̂.

    Args:
        formula: One of `FORMULAS`.
        shape: Shape of the evidence.
        backward: Compute the gradients of evidence and temperature, too.
    """
    head = FORMULAS[formula]()
    evidence = torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=backward)

    def step() -> Tensor:
        with torch.set_grad_enabled(backward):
            log_probabilities = head(evidence)
        if backward:
            inputs = [evidence, head.log_temperature]
            torch.autograd.grad(log_probabilities, inputs, torch.ones_like(log_probabilities))
        return log_probabilities

    return step


def formula_row(formula: str, shape: tuple[int, ...], backward: bool, pairs: int) -> Row:
    """Measure time and memory of another formula and of ours for one shape of evidence."""
    row = {
        "comparison": "cape formula",
        "formula": formula,
        "a": OTHERS[formula],
        "b": "CAPEHead",
        "scope": "evidence (B, C, H, W) to log p̂; the 1x1 evidence layer is on neither side",
        "pass": "forward and backward" if backward else "forward",
        "model": "CAPE head alone",
        "weights": "random evidence, standard normal, the same on both sides",
        "batch": shape[0],
        "classes": shape[1],
        "map_size": list(shape[2:]),
        **environment(),
    }
    try:
        row["a_peak_mib"] = peak_in_fresh_process(peak_mib, formula, shape, backward)
        row["b_peak_mib"] = peak_in_fresh_process(peak_mib, "ours", shape, backward)
    except (RuntimeError, MemoryError) as error:  # torch cannot allocate, or the system killed the process
        return {**row, "not_run": f"out of memory: {type(error).__name__}"}
    a, b = (formula_step(one, shape, backward) for one in (formula, "ours"))
    row["largest_difference"] = rounded(float((a() - b()).detach().abs().max()))
    return {**row, **measure(a, b, pairs)}


def peak_mib(formula: str, shape: tuple[int, ...], backward: bool) -> float | None:
    """Measure the memory of a formula in this process."""
    formula_step(formula, (1, 2, 2, 2), backward)()  # allocates threads and kernels
    return rise_in_mib(formula_step(formula, shape, backward))


def quick_rows() -> Iterator[Row]:
    """Measure a small case of every part."""
    yield from (formula_row(formula, (2, 20, 7, 7), backward=True, pairs=2) for formula in OTHERS)
    yield from model_rows("efficientnet_b0", batch=1, pairs=2)
    yield from many_classes_rows("test_resnet", batch=1, pairs=2, classes=100)


def formula_rows() -> Iterator[Row]:
    """Measure the formula for all shapes of evidence."""
    for shape in EVIDENCE_SHAPES:
        for backward in (False, True):
            yield formula_row("authors", shape, backward, FORMULA_PAIRS)
        yield formula_row("autograd", shape, True, FORMULA_PAIRS)


def all_model_rows() -> Iterator[Row]:
    """Measure all models."""
    for architecture, pairs in PAIRS.items():
        for batch, count in zip((1, 8), pairs, strict=True):
            yield from model_rows(architecture, batch, count)


def all_many_classes_rows() -> Iterator[Row]:
    """Measure ResNet-50 with many classes."""
    for batch, count in MANY_CLASSES_PAIRS.items():
        yield from many_classes_rows("resnet50", batch, count)


PARTS = {"formula": formula_rows, "models": all_model_rows, "many-classes": all_many_classes_rows}
"""Name of a part -> function that measures it."""


def part_of(row: Row) -> str:
    """Return the name of the part that a row belongs to."""
    if row["comparison"] == "cape formula":
        return "formula"
    return "many-classes" if row["comparison"].startswith("many classes") else "models"


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure two pairs of small cases, and write nothing")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; all by default"
    )
    add_threads(parser)
    args = parser.parse_args()
    prepare(args.threads)
    if args.quick:
        print_rows(quick_rows())
        return
    measured = print_rows(row for part in args.parts for row in PARTS[part]())
    kept = [row for row in read_rows(ROWS) if part_of(row) not in args.parts]
    write_rows(kept + measured, ROWS)


if __name__ == "__main__":
    main()
