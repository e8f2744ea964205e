"""Measure what larger images give: finer maps, at another accuracy and at a price, and write rows.

python -m benchmarks.recipes finetune-medium --seeds 0 --photographs FOLDER    # trains the network of steel
python -m benchmarks.image_sizes --photographs FOLDER                          # a quarter of an hour of a core
python -m benchmarks.image_sizes cape_lesions                                  # the network on generated images alone

- Networks are not trained again: they see the test images larger or smaller than those that they learnt from.
- The shipped model explains generated images that are drawn at twice the side that it learnt from, so that larger
  sizes show more detail. Photographs of steel have 200 pixels a side, and larger sizes show no more of them.
- Time is CPU time of `explain` on one thread, in turns with the network's own size.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation.report import markdown
from softcam_hub.loading import load_classifier

from . import timing
from .recipes import RUNS
from .timing import Row, environment, replace_rows, rounded

ROWS = Path(__file__).parent / "results" / "image_sizes.jsonl"
PAIRS = 9
"""Pairs of timed calls."""

LESIONS, STEEL = "cape_lesions", "finetune-medium"
NETWORKS = {LESIONS: (96, 128, 160, 192, 256), STEEL: (160, 224, 320, 448)}
"""Network -> sizes at which it sees images; the one on steel was trained at 224 pixels, the other at 128."""


def measure(
    source: str | Path, data: dict[str, Any], sizes: tuple[int, ...], output: Path, limit: int | None = None
) -> Iterator[Row]:
    """Yield what a network reaches on the test images at every size.

    Args:
        source: Model folder.
        data: Settings of the data.
        sizes: Sides of the images in pixels.
        output: Folder of the benchmarks.
        limit: Number of test images; None for all.
    """
    classifier = load_classifier(source)
    model, own = classifier.model, classifier.preprocessing["input_size"][1]
    example = torch.zeros(4, *classifier.preprocessing["input_size"])
    explain_own = partial(model.explain, example)
    for size in sizes:
        settings = {**data, "explainers": model.family, "measures": "localisation", "limit": limit, "batch_size": 32}
        (row,) = softcam_hub.benchmark(source, output / f"{size} px", image_size=size, overwrite=True, **settings)
        time = timing.measure(partial(model.explain, example, size=size), explain_own, PAIRS)
        yield {
            "size": size,
            "own_size": own,
            "images": row["images"],
            "annotated": row["annotated"],
            "map_side": model.explain(example, size=size).maps.shape[-1],
            **{name: rounded(row[name]) for name in ("accuracy", "pointing_game", "hit_rate", "energy_pointing")},
            "hit_rate_interval": [rounded(end) for end in row.get("hit_rate_interval", [])],
            "hit_rate_of_small": rounded(row["by_size"]["small"]["hit_rate"]),
            "map_offset": row["map_offset"],
            "time_ratio": time["cpu_ratio"],
            "time_ratio_quartiles": time["cpu_ratio_quartiles"],
            **environment(),
        }


def image_sizes_table(rows: list[Row]) -> str:
    """Write the rows of all networks as a table of one line for each size."""
    header = [
        "network",
        "image",
        "map",
        "accuracy",
        "pointing game",
        "hit rate",
        "of small ones",
        "energy in box",
        "time",
    ]
    body = []
    for row in rows:
        own = " (own)" if row["size"] == row["own_size"] else ""
        scores = ("accuracy", "pointing_game", "hit_rate", "hit_rate_of_small", "energy_pointing")
        numbers = [f"{row[name]:.1f}" for name in scores]
        side = row["map_side"]
        body.append(
            [f"`{row['network']}`", f"{row['size']}{own}", f"{side}x{side}", *numbers, f"{row['time_ratio']:.2f}"]
        )
    counts = {row["network"]: f"{row['images']} images, {row['annotated']} with boxes" for row in rows}
    text = "; ".join(f"`{name}`: {count}" for name, count in counts.items())
    return (
        f"Percent, on test images ({text}). The hit rate is the pointing game with the usual tolerance of 15 pixels at "
        "224; *small ones* are the third of the images with the smallest annotations; *time* is the CPU time of "
        "`explain` beside the network's own size (median of pairs).\n\n" + markdown(header, body)
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="networks to measure; both by default")
    parser.add_argument("--photographs", type=Path, help="folder of NEU-DET, with manifest.csv")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs of benchmarks.recipes")
    parser.add_argument("--limit", type=int, help="number of test images; all by default")
    parser.add_argument("--output", type=Path, default=ROWS, help="file of the rows")
    arguments = parser.parse_args()
    if STEEL in arguments.networks and arguments.photographs is None:
        parser.error(f"{STEEL} needs --photographs, the folder of NEU-DET")
    timing.prepare(1)
    sources: dict[str, tuple[str | Path, dict[str, Any]]] = {
        LESIONS: (
            softcam_hub.CAPE_LESIONS,
            {"data": "lesions", "data_size": 2 * 128, "eval_count": arguments.limit or 480},
        ),
        STEEL: (arguments.runs / STEEL / "model", {"data": f"{arguments.photographs}/manifest.csv"}),
    }
    for name in arguments.networks:
        source, data = sources[name]
        folder = arguments.runs / "image sizes" / name
        rows = [
            {"network": name, "data": "neu-det" if name == STEEL else data["data"], **row}
            for row in measure(source, data, NETWORKS[name], folder, arguments.limit)
        ]
        replace_rows(rows, arguments.output, ("network", "size"))


if __name__ == "__main__":
    main()
