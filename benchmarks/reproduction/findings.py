"""The rows of benchmarks/results/ that the papers' claims are judged by, picked and averaged over seeds.

A column is a dictionary seed -> number; accuracies are in percent, areas and errors are not.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softcam_hub.evaluation.report import with_borda
from softcam_hub.explainers.methods import UNINFORMED

RESULTS = Path(__file__).parents[1] / "results"
CAPE_NAMES = {"cape-pf": "PF", "cape-ts": "TS"}
PERCENT = ("test_accuracy", "test_confidence", "test_teacher_accuracy", "test_disagreement")

Row = dict[str, Any]
Column = dict[int, float]


@dataclass(frozen=True)
class Findings:
    """All rows that there are.

    Args:
        reproduction: rows of reproduce.py.
        heads: rows of heads.py: what our heads cost.
        explainers: rows of explainers.py: what post-hoc methods cost.
    """

    reproduction: list[Row] = field(default_factory=list)
    heads: list[Row] = field(default_factory=list)
    explainers: list[Row] = field(default_factory=list)

    def studies(self) -> list[str]:
        return list(dict.fromkeys(row["study"] for row in self.reproduction))

    def seeds(self) -> list[int]:
        return sorted({row["seed"] for row in self.reproduction})

    def rows(self, study: str, kind: str, **where: Any) -> list[Row]:
        """Rows of one kind whose columns are these."""
        wanted = {"study": study, "kind": kind, **where}
        return [row for row in self.reproduction if all(row.get(name) == value for name, value in wanted.items())]

    def column(self, study: str, kind: str, name: str, **where: Any) -> Column:
        """Seed -> number."""
        factor = 100 if name in PERCENT else 1
        return {row["seed"]: factor * row[name] for row in self.rows(study, kind, **where) if name in row}

    def trained(self, study: str, run: str, name: str) -> Column:
        return self.column(study, "training", f"test_{name}", run=run)

    def runs(self, study: str, kind: str = "training") -> list[str]:
        return list(dict.fromkeys(row["run"] for row in self.rows(study, kind)))

    def post_hoc(self, study: str, name: str) -> dict[str, Column]:
        """Explainer of the vanilla classifier -> its column; random and centre are none."""
        found = {row["explainer"] for row in self.rows(study, "explanation", run="vanilla")} - set(UNINFORMED)
        return {one: self.column(study, "explanation", name, run="vanilla", explainer=one) for one in sorted(found)}

    def native(self, study: str, run: str, name: str) -> Column:
        """Of the maps that a SoftCAM run adds up."""
        return self.column(study, "explanation", name, run=run, explainer="softcam")

    def table1(self, study: str) -> dict[str, list[Row]]:
        """Return the rows of every seed with their Borda points, by label.

        Post-hoc maps of the vanilla classifier stand beside the maps of bootstrapped CAPE, without random and centre.
        """
        found: dict[str, list[Row]] = {}
        for seed in self.seeds():
            rows = [
                {**row, "label": label(row)}
                for row in self.rows(study, "explanation", seed=seed)
                if row["run"] in ("vanilla", *CAPE_NAMES) and row["explainer"] not in UNINFORMED
            ]
            named = [{**row, "explains": row["run"]} for row in rows]  # two runs have maps of one name
            for row in with_borda(named):
                found.setdefault(row["label"], []).append(row)
        return found


def label(row: Row) -> str:
    """What an explanation is called beside others."""
    if row["run"] == "vanilla":
        return row["explainer"]
    if row["run"].startswith("softcam"):
        return row["run"]
    return f"{row['explainer']} ({CAPE_NAMES.get(row['run'], row['run'].removeprefix('cape-'))})"


def read() -> Findings:
    """What is in benchmarks/results/; numbers that are missing are left out of their rows."""
    return Findings(*(_rows(RESULTS / f"{name}.jsonl") for name in ("reproduction", "heads", "explainers")))


def _rows(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [{name: value for name, value in json.loads(line).items() if value is not None} for line in lines]


def minus(a: Column, b: Column) -> Column:
    """a - b, for the seeds that both have."""
    return {seed: a[seed] - b[seed] for seed in a if seed in b}


def best_of(columns: dict[str, Column], choose: Callable[..., float] = max) -> Column:
    """The best of several columns, seed by seed."""
    seeds = set().union(*columns.values()) if columns else set()
    return {seed: choose(column[seed] for column in columns.values() if seed in column) for seed in sorted(seeds)}


def mean(column: Column) -> float:
    return statistics.fmean(column.values())


def spread(column: Column, form: str = ".1f", sign: str = "") -> str:
    """Mean ± standard deviation over seeds."""
    if not column:
        return "-"
    deviation = f" ± {statistics.stdev(column.values()):{form}}" if len(column) > 1 else ""
    return f"{mean(column):{sign}{form}}{deviation}"
