"""Measure how far explainers agree on photographs of steel: rows, and the matrix docs/agreement-steel.png.

python -m benchmarks.agreement    # after `make reproduce-steel`: minutes of a core

- Post-hoc maps explain the vanilla classifier of the study *steel* with seed 0, and CAPE's maps its post-fitted CAPE.
- Score-CAM and integrated gradients are left out: they would take hours.
"""

import sys
import tempfile
from pathlib import Path

from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.agreement import write_agreement
from softcam_hub.evaluation.folder import AGREEMENT_PICTURE, AGREEMENT_ROWS
from softcam_hub.evaluation.report import markdown
from softcam_hub.explainers.methods import CLASS_ACTIVATION, PIXELS, UNINFORMED
from softcam_hub.files import copy_file

from .averages import SEEDS, average_over_seeds
from .reproduction.chain import RUNS
from .reproduction.steel import SUBSETS
from .timing import Row, read_rows, rounded, write_rows

ROWS = Path(__file__).parent / "results" / "agreement_steel.jsonl"
PICTURE = Path(__file__).parents[1] / "docs" / "agreement-steel.png"
IMAGES = 120
"""Number of test images, in which the classes take turns."""

KEPT = ("explainer", "explains", "correlation", "compared_images", "torch", "timm", "device")
COMPARED = ("cam", "guided-backprop", "cape", "mu-cape")
"""Explainers with a column in the table."""


def measure(folder: Path, output: Path) -> list[Row]:
    """Compare the maps of a study's vanilla classifier and of its post-fitted CAPE; write rows and a picture.

    Args:
        folder: Folder of the runs of a study with one seed.
        output: Folder for the benchmark.
    """
    post_hoc = [name for name in (*CLASS_ACTIVATION, *PIXELS, *UNINFORMED) if name not in SUBSETS]
    run = folder / "cape-pf"
    benchmark(
        run / "model",
        output,
        vanilla=run / "vanilla",
        data=folder / "manifest.csv",
        explainers=" ".join([*post_hoc, "cape", "mu-cape"]),
        measures="agreement",
        limit=IMAGES,
        batch_size=20,
    )
    rows = [{**row, "data": "neu-det"} for row in read_rows(output / AGREEMENT_ROWS)]
    write_agreement(output, rows, IMAGES)  # once more, without the path of this machine
    return kept_agreement(rows)


def kept_agreement(rows: list[Row]) -> list[Row]:
    """Return rows of a benchmark's agreement.jsonl with the columns that are committed."""
    kept = [{name: row[name] for name in KEPT} for row in rows]
    return [
        {**row, "correlation": {name: rounded(value) for name, value in row["correlation"].items()}} for row in kept
    ]


def average_agreement(rows: list[Row]) -> list[Row]:
    """Average the correlations over the seeds.

    A correlation that some seed does not have is None. Of the numbers of compared images, the smallest is kept.
    """
    found = []
    for row in average_over_seeds(rows)[0]:
        counts = [one["compared_images"] for one in row[SEEDS]]
        found.append({**row, "compared_images": {name: min(one[name] for one in counts) for name in counts[0]}})
    return found


def agreement_table(rows: list[Row], images: str = f"{IMAGES} test photographs of steel") -> str:
    """Render a line for every explainer, with its correlation with some of the others.

    Args:
        rows: Rows of all explainers.
        images: What the maps are of, in words.
    """
    body = [
        [f"`{row['explainer']}`", *("-" if name == row["explainer"] else _number(row, name) for name in COMPARED)]
        for row in rows
    ]
    fewest = min(row["compared_images"][name] for row in rows for name in COMPARED)
    return (
        f"Rank correlation over the pixels, means over {images} ({fewest} at least, where model and vanilla classifier "
        "predict the same class).\n\n"
    ) + markdown(["map", *(f"`{name}`" for name in COMPARED)], body)


def _number(row: Row, other: str) -> str:
    value = row["correlation"][other]
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    """Measure, and write rows and picture."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=RUNS / "steel" / "0", help="runs of the study with one seed")
    folder = parser.parse_args().runs
    if not (folder / "cape-pf" / "model").exists():
        sys.exit(f"{folder} has no run cape-pf: run `make reproduce-steel` first, or name a folder with --runs")
    with tempfile.TemporaryDirectory() as output:
        write_rows(measure(folder, Path(output) / "agreement"), ROWS)
        copy_file(Path(output) / "agreement" / AGREEMENT_PICTURE, PICTURE)


if __name__ == "__main__":
    main()
