"""Derive the tables of README and of the pages in `docs/` from the rows in `benchmarks/results/`.

python -m benchmarks.tables            # write the tables between their markers
python -m benchmarks.tables --check    # exit 1 where a page differs from the rows
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.agreement import agreement_table
from benchmarks.alignment.tables import checks_table, gains_table, real_weights_table, steel_table
from benchmarks.causal.tables import causal_speed_table, causal_table
from benchmarks.explanation_tables import (
    explanations_table,
    lesions_agreement_table,
    methods_table,
    reliability_table,
    sizes_table,
    summary_table,
)
from benchmarks.fine.tables import fine_table
from benchmarks.hidden_layers import hidden_layers_table, trained_table
from benchmarks.idsds import idsds_table
from benchmarks.image_sizes import image_sizes_table
from benchmarks.lesions_table import lesions_table
from benchmarks.measures.tables import measures_table
from benchmarks.patch_shares import architectures_table, patch_shares_table
from benchmarks.recipes import recipes_table
from benchmarks.runtimes import runtimes_table
from benchmarks.speed.tables import (
    aims_table,
    alignment_speed_table,
    explainers_table,
    heads_table,
    import_table,
    memory_table,
    peer_table,
    scales_table,
    threads_table,
    training_steps_table,
    training_table,
)
from benchmarks.timing import Row, read_rows
from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation.report import (
    markdown,
)
from softcam_hub.evaluation.statistics import bootstrap_means

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]

Table = tuple[Callable[..., str], tuple[str, ...]]
"""Function that renders a table, and the files of rows that it takes."""


def alignment_table(rows: list[Row]) -> str:
    """Render one line per explainer of the shipped model: how well its map points, aligned and not."""
    body = []
    for row in rows:
        if row["aligned"]:
            key = ("explainer", "explains")
            before = next(one for one in rows if not one["aligned"] and all(one[name] == row[name] for name in key))
            scores = [_gain(before, row, name) for name in ("pointing_game", "activation_precision")]
            body.append([f"`{row['explainer']}`", row["explains"], *scores])
    row = rows[0]
    down, right = row["map_offset"]
    return (
        f"Percent, for the true class on {row['images']} diseased test images of `lesions`, drawn as squares → "
        "aligned, and the mean gain on the same images with its 95 % interval. The shipped model looks "
        f"{down:+.2f} cells down and {right:+.2f} right of where its cells are drawn as squares.\n\n"
    ) + markdown(["map", "explains", "pointing game", "activation precision"], body)


def _gain(habit: Row, aligned: Row, name: str) -> str:
    """Say a score before and after, and the interval of the difference over the images."""
    text = f"{100 * habit[name]:.1f} → {100 * aligned[name]:.1f}"
    differences = 100 * (np.array(aligned["values"][name]) - np.array(habit["values"][name]))
    if not differences.any():  # maps that do not move
        return text
    found = bootstrap_means([differences[None]])
    low, high = (float(end[0]) for end in found.interval())
    return f"{text} ({found.estimate[0]:+.1f} [{low:+.1f}, {high:+.1f}])"


def kills_table(rows: list[Row]) -> str:
    """Render one line per command and setting: the number of kills, and whether the output was whole."""
    body = [
        [
            f"{row['command']}: {row['configuration']}",
            *(str(row[name]) for name in ("processes", "kills")),
            "yes" if row["identical"] else "no",
            *(str(row[name]) for name in ("lost_files", "seconds")),
        ]
        for row in rows
    ]
    kills, same = sum(row["kills"] for row in rows), sum(row["identical"] for row in rows)
    lost = sum(row["lost_files"] for row in rows)
    return (
        f"{kills} kills; output identical in {same} of {len(rows)} cases; lost files: {lost}. Seconds include "
        f"the undisturbed run and all reruns, on a machine that did other work too.\n\n"
    ) + markdown(["command", "processes", "kills", "identical", "lost files", "seconds"], body)


def notebooks_table(rows: list[Row]) -> str:
    """Render one line per tutorial: the commands and cells that a reader runs, and how long they take."""
    body = [[f"[{row['notebook']}](notebooks/{row['notebook']}.ipynb)"] for row in rows]
    for line, row in zip(body, rows, strict=True):
        line += [str(row["commands"]), str(row["cells"]), f"{row['seconds'] / 60:.1f}"]
    machines = sorted({f"{row['cores']} cores, torch {row['torch']}" for row in rows})
    return f"One run of each on {'; '.join(machines)}, without a GPU.\n\n" + markdown(
        ["tutorial", "commands", "cells", "minutes"], body
    )


README_TABLES: dict[str, Table] = {"summary": (summary_table, ("lesions", "explanations"))}
SCORES_TABLES: dict[str, Table] = {
    "lesions": (lesions_table, ("lesions",)),
    "sizes": (sizes_table, ("explanations",)),
    "reliability": (reliability_table, ("explanations",)),
    "explanations": (explanations_table, ("explanations",)),
    "alignment": (alignment_table, ("alignment",)),
    "causal": (causal_table, ("causal",)),
    "causal_speed": (causal_speed_table, ("causal_speed",)),
    "measures": (measures_table, ("measures",)),
    "idsds": (idsds_table, ("idsds",)),
    "agreement_lesions": (lesions_agreement_table, ("agreement_lesions",)),
    "agreement": (agreement_table, ("agreement_steel",)),
}
SPEED_TABLES: dict[str, Table] = {
    "aims": (aims_table, ("heads", "explainers", "import", "training_steps")),
    "explainers": (explainers_table, ("explainers",)),
    "peer_table": (peer_table, ("peer_table",)),
    "heads": (heads_table, ("heads",)),
    "alignment_speed": (alignment_speed_table, ("alignment_speed",)),
    "training": (training_table, ("training",)),
    "training_steps": (training_steps_table, ("training_steps",)),
    "scales": (scales_table, ("scales",)),
    "threads": (threads_table, ("threads",)),
    "memory": (memory_table, ("memory",)),
    "import": (import_table, ("import",)),
    "notebooks": (notebooks_table, ("notebooks",)),
}
FAQ_TABLES: dict[str, Table] = {"methods": (methods_table, ("explainers", "explanations"))}
OUTPUTS_TABLES: dict[str, Table] = {"kills": (kills_table, ("kills",))}
EXPLAINERS_TABLES: dict[str, Table] = {
    "patch_shares": (patch_shares_table, ("patch_shares",)),
    "patch_shares_architectures": (architectures_table, ("patch_shares_architectures",)),
}
MODELS_TABLES: dict[str, Table] = {
    "hidden_layers": (hidden_layers_table, ("hidden_layers",)),
    "hidden_layers_trained": (trained_table, ("hidden_layers_trained",)),
    "image_sizes": (image_sizes_table, ("image_sizes",)),
    "fine": (fine_table, ("fine", "fine_costs")),
    "runtimes": (runtimes_table, ("runtimes",)),
}
ALIGNMENT_TABLES: dict[str, Table] = {
    "checks": (checks_table, ("alignment_checks",)),
    "real_weights": (real_weights_table, ("alignment_real_weights",)),
    "gains": (gains_table, ("reproduction",)),
    "steel": (steel_table, ("alignment_steel",)),
}

FIRST_DATA_SET_TABLES: dict[str, Table] = {"recipes": (recipes_table, ("recipes",))}

PAGES: dict[Path, dict[str, Table]] = {
    ROOT / "README.md": README_TABLES,
    ROOT / "docs" / "scores.md": SCORES_TABLES,
    ROOT / "docs" / "speed.md": SPEED_TABLES,
    ROOT / "docs" / "outputs.md": OUTPUTS_TABLES,
    ROOT / "docs" / "faq.md": FAQ_TABLES,
    ROOT / "docs" / "models.md": MODELS_TABLES,
    ROOT / "docs" / "explainers.md": EXPLAINERS_TABLES,
    ROOT / "docs" / "alignment.md": ALIGNMENT_TABLES,
    ROOT / "docs" / "first_data_set.md": FIRST_DATA_SET_TABLES,
}
"""Page -> name between its markers -> table."""


def read_results(name: str) -> list[Row]:
    """Read a file of `benchmarks/results/`, or end the program with the command that writes it."""
    rows = read_rows(RESULTS / f"{name}.jsonl")
    if not rows:
        target = name if name in ("kills", "notebooks") else "bench"
        sys.exit(f"benchmarks/results/{name}.jsonl does not exist or is empty: run `make {target}` first")
    return rows


def filled(page: str, text: str, name: str, table: str) -> str:
    """Return `text` with `table` between the markers of `name`."""
    pattern = re.compile(rf"(<!-- table: {name} -->\n)(?:(?!<!-- table).)*?(<!-- /table -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        sys.exit(f"{page} needs `<!-- table: {name} -->` and `<!-- /table -->` once, each on its own line")
    return pattern.sub(lambda markers: f"{markers[1]}\n{table.rstrip()}\n\n{markers[2]}", text)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 where a page differs from the rows")
    check = parser.parse_args().check
    for page, tables in PAGES.items():
        if not page.exists():
            sys.exit(f"{page.name} does not exist: write it first, with a pair of markers for each table")
        old = new = page.read_text(encoding="utf-8")
        for name, (render, files) in tables.items():
            new = filled(page.name, new, name, render(*(read_results(file) for file in files)))
        if check and new != old:
            sys.exit(f"{page.name} differs from the rows in benchmarks/results: run `python -m benchmarks.tables`")
        if new != old:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
