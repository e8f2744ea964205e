"""Measure what the two heads cost, beside the vanilla classifier and beside the CAPE authors' formula.

python -m benchmarks.speed.heads            # about five minutes of two cores; rows go to benchmarks/results/heads.jsonl
python -m benchmarks.speed.heads --quick    # a smoke test: two pairs of everything small, nothing written

- The control is a copy of the vanilla model against the vanilla model: its ratio shows what this machine can resolve.
- Peak memory is measured in a fresh process for every side, so that no side finds what another one left allocated.
"""

import argparse
import copy
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.models.heads import CAPEHead

from ..timing import Row, Step, environment, measure, rise_in_mib, rounded, warn_if_busy, write

ROWS = Path(__file__).parents[1] / "results" / "heads.jsonl"
PAIRS = {
    "resnet50": (40, 30),
    "convnext_tiny": (30, 8),
    "swinv2_tiny_window8_256": (30, 8),
    "efficientnet_b0": (40, 40),
}
"""How often each model is measured at batch 1 and at batch 8: differences of one percent need many pairs."""
EVIDENCE_SHAPES = ((8, 200, 14, 14), (8, 1000, 7, 7))
FORMULA_PAIRS = 10

# Whole models


def model_rows(architecture: str, batch: int, pairs: int) -> Iterator[Row]:
    """The vanilla model against its copy, both heads with all maps, and SoftCAM without maps."""
    vanilla = timm.create_model(architecture).eval()
    size = vanilla.pretrained_cfg["input_size"][-1]
    images = torch.randn(batch, 3, size, size)
    for name, (what, step) in contestants(vanilla, images).items():
        with torch.inference_mode():
            found = measure(step, lambda: vanilla(images), pairs)
        yield {
            "comparison": name,
            "a": what,
            "b": "vanilla timm forward",
            "model": architecture,
            "weights": "random, the same on both sides",
            "batch": batch,
            "image_size": size,
            **environment(),
            **found,
        }


def contestants(vanilla: nn.Module, images: Tensor) -> dict[str, tuple[str, Step]]:
    """What is compared with `vanilla(images)`: name -> what it does, and the step."""
    other = copy.deepcopy(vanilla)  # not the same object: its weights would stay in the cache as no other model's do
    softcam, cape = softcam_hub.convert(vanilla, "softcam"), softcam_hub.convert(vanilla, "cape")
    return {
        "control": ("a copy of the vanilla model", lambda: other(images)),
        "softcam explained": ("SoftCAM: logits and the maps of all classes", lambda: explained(softcam, images)),
        "cape explained": ("CAPE: logits and the maps of all classes", lambda: explained(cape, images)),
        "softcam logits": ("SoftCAM: logits only", lambda: softcam(images)),
    }


def explained(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    return model.head(model.forward_features(images), kind=model.head.kinds[0])


# CAPE's formula


class PairwiseCAPE(nn.Module):
    """log p̂ by the formula of the CAPE authors' code (eq. 9: one sum over classes and locations), in our own lines.

    The denominator of every location sums over all classes and over the saliency of all locations. Their code forms
    each of these sums before it adds them up: (B, C, HW, HW). Kinder to it than the original in two ways: one
    temperature instead of three, and none of the second, softened output that theirs computes as well.
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
    """log p̂ as `CAPEHead` computes it, from evidence; its weights are of no use here."""

    def __init__(self) -> None:
        super().__init__(in_features=1, num_classes=1)

    def forward(self, evidence: Tensor) -> Tensor:
        return self.compose(evidence)


FORMULAS: dict[str, type[nn.Module]] = {"authors": PairwiseCAPE, "ours": FactoredCAPE}


def formula_step(formula: str, shape: tuple[int, ...], backward: bool) -> Step:
    """Evidence to log p̂, and back to the gradients of evidence and temperature when `backward`."""
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


def formula_row(shape: tuple[int, ...], backward: bool, pairs: int) -> Row:
    row = {
        "comparison": "cape formula",
        "a": "the authors' formula, (B, C, HW, HW)",
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
        row["a_peak_mib"] = peak_in_fresh_process("authors", shape, backward)
        row["b_peak_mib"] = peak_in_fresh_process("ours", shape, backward)
    except (RuntimeError, MemoryError) as error:  # torch cannot allocate, or the system killed the process
        return {**row, "not_run": f"out of memory: {type(error).__name__}"}
    a, b = (formula_step(formula, shape, backward) for formula in FORMULAS)
    row["largest_difference"] = rounded(float((a() - b()).detach().abs().max()))
    return {**row, **measure(a, b, pairs)}


def peak_in_fresh_process(formula: str, shape: tuple[int, ...], backward: bool) -> float | None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_mib, formula, shape, backward).result()


def peak_mib(formula: str, shape: tuple[int, ...], backward: bool) -> float | None:
    formula_step(formula, (1, 2, 2, 2), backward)()  # threads and kernels are no part of the formula
    return rise_in_mib(formula_step(formula, shape, backward))


def rows(quick: bool) -> Iterator[Row]:
    if quick:
        yield formula_row((2, 20, 7, 7), backward=True, pairs=2)
        yield from model_rows("efficientnet_b0", batch=1, pairs=2)
        return
    for shape in EVIDENCE_SHAPES:
        for backward in (False, True):
            yield formula_row(shape, backward, FORMULA_PAIRS)
    for architecture, pairs in PAIRS.items():
        for batch, count in zip((1, 8), pairs, strict=True):
            yield from model_rows(architecture, batch, count)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pairs of small cases, to see that everything runs")
    parser.add_argument("--out", type=Path, help=f"JSON rows; results/{ROWS.name} by default, nowhere with --quick")
    parser.add_argument("--threads", type=int, help="torch's threads; one is steadier beside other programs")
    args = parser.parse_args()
    warn_if_busy()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    found = []
    for row in rows(args.quick):
        print(json.dumps(row, ensure_ascii=False), flush=True)
        found.append(row)
    out = args.out or (None if args.quick else ROWS)
    if out:
        write(found, out)


if __name__ == "__main__":
    main()
