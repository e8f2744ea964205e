"""Measure what every way to finer maps costs beside the plain network, and write rows.

python -m benchmarks.fine.costs    # ten minutes of a core; rows: results/fine_costs.jsonl

- A forward pass returns the maps of one image; a training step is that of a batch of the study, in its last epoch.
- Times are CPU times on one thread. The two sides of a comparison take turns, and the ratio is computed for each pair.
- Memory is the rise of resident memory with a batch, in a process of its own.
- Images are random, as neither times nor memory depend on them.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from softcam_hub.arguments import ArgumentParser
from softcam_hub.memory import keep_freed_memory

from ..timing import (
    Row,
    Step,
    environment,
    measure as measure_in_turn,
    peak_in_fresh_process,
    replace_rows,
    rise_in_mib,
    rounded,
)
from .network import VARIANTS, Variant, enlarge, loss_of, make_network, make_optimizer
from .tasks import Task, lesions, steel

ROWS = Path(__file__).parents[1] / "results" / "fine_costs.jsonl"
KEY = ("task", "variant")
BATCH = 32
"""Number of images of a batch."""

TOO_SLOW = (("steel", "stride 8"),)
"""Task and variant that would take longer than all others together."""

TASKS: dict[str, Callable[[], Task]] = {"lesions": lesions, "steel": lambda: steel(Path("manifest.csv"))}
"""Name -> function that makes the task; its images are not read here."""


def forward_step(task: Task, variant: Variant, count: int = 1) -> Step:
    """Return a step that computes the maps of some images."""
    network = make_network(task, variant).eval()
    pixels = torch.randn(count, 3, task.side, task.side).contiguous(memory_format=torch.channels_last)
    pixels = enlarge(pixels, task.larger_side if variant.enlarged else task.side)

    @torch.no_grad()
    def step() -> None:
        network.compose(network.terms(pixels))

    return step


def training_step(task: Task, variant: Variant, count: int = BATCH) -> Step:
    """Return a step that trains the network with some images as in the last epoch."""
    network = make_network(task, variant).train()
    teacher = make_network(task, VARIANTS[variant.after]) if variant.trained_teacher else None
    optimizer = make_optimizer(network, task)
    pixels = torch.randn(count, 3, task.side, task.side).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(count) % network.model.num_classes

    def step() -> None:
        optimizer.zero_grad()
        loss_of(network, task, variant, pixels, labels, task.epochs - 1, teacher).backward()
        optimizer.step()

    return step


STEPS: dict[str, tuple[Callable[..., Step], int]] = {
    "forward": (forward_step, 40),
    "training": (training_step, 5),
}
"""Prefix of columns -> function that makes a step, and number of measured pairs."""


def peak_mib(task: str, variant: str, kind: str) -> float | None:
    """Return by how many MiB a step with a batch raises memory, in a process that has made nothing else."""
    torch.set_num_threads(1)
    return rise_in_mib(STEPS[kind][0](TASKS[task](), VARIANTS[variant], count=BATCH))


def measure_costs(task: str, variant: str) -> Row:
    """Measure a variant beside the plain network."""
    row: Row = {"task": task, "variant": variant}
    for kind, (make_step, pairs) in STEPS.items():
        ours, plain = (make_step(TASKS[task](), VARIANTS[name]) for name in (variant, "plain"))
        timed = measure_in_turn(ours, plain, pairs)
        row |= {f"{kind}_cost": timed["cpu_ratio"], f"{kind}_cost_quartiles": timed["cpu_ratio_quartiles"]}
        row |= {f"{kind}_ms": rounded(1000 * timed["a_cpu_seconds"])}
        row |= {f"{kind}_mib": peak_in_fresh_process(peak_mib, task, variant, kind)}
    return {**row, "batch": BATCH, **environment()}


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="tasks; both by default")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="all by default")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    for task in arguments.tasks:
        for variant in arguments.variants:
            if (task, variant) not in TOO_SLOW:
                row = measure_costs(task, variant)
                print(json.dumps(row), flush=True)
                replace_rows([row], ROWS, KEY)


if __name__ == "__main__":
    main()
