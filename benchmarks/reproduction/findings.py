"""Select rows of benchmarks/results/ to judge the papers' claims by, and average them over seeds.

- A column is a dictionary seed -> number. Accuracies are in percent; areas under a curve and errors are not.
- Values of every image belong to rows of explanations. Intervals and comparisons come from these: they resample the
  images within each seed, and photographs, which are the same in all seeds, in all of them at once. Where a seed has no
  values, there is neither.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from softcam_hub.evaluation.lines import lists_of
from softcam_hub.evaluation.report import with_borda
from softcam_hub.evaluation.results import image_values
from softcam_hub.evaluation.significance import Difference, compare_methods
from softcam_hub.evaluation.statistics import Array, join_seeds
from softcam_hub.explainers.methods import UNINFORMED

from ..timing import Row, read_rows
from ..values import read_values
from .studies import STEEL

RESULTS = Path(__file__).parents[1] / "results"
CAPE_NAMES = {"cape-pf": "PF", "cape-ts": "TS"}
"""Run of bootstrapped CAPE -> short name in tables."""

PERCENT = ("test_accuracy", "test_confidence", "test_teacher_accuracy", "test_disagreement")
"""Columns that are shown in percent."""

NOT_ALIGNED, LOCALISED, SUBSET = "not aligned", "localised", "subset"
"""Kinds of rows of localisation: of maps drawn as squares, of all test images, and of the images that a slow method
explains (column `of`)."""

ALL_LOCATED = "small boxes"
"""Value of the column `class` for all classes that count for localisation together."""

ALL_IMAGES = "all images"
"""Value of the column `of` in the values of all test images, by which localisation is measured on photographs."""

Column = dict[int, float]
Map = tuple[str, str]
"""Run and explainer."""


@dataclass(frozen=True)
class Findings:
    """All rows by which claims are judged.

    Args:
        reproduction: Rows of `reproduce.py`.
        heads: Rows of `speed/heads.py`, with the cost of the heads.
        explainers: Rows of `speed/explainers.py`, with the cost of post-hoc methods.
        values: Rows of `reproduce.py` with lists over the images, in the form of `benchmarks/values.py`.
    """

    reproduction: list[Row] = field(default_factory=list)
    heads: list[Row] = field(default_factory=list)
    explainers: list[Row] = field(default_factory=list)
    values: list[Row] = field(default_factory=list)

    def seeds(self, study: str | None = None) -> list[int]:
        """Return all seeds, or those of a study."""
        return sorted({row["seed"] for row in self.reproduction if study in (None, row["study"])})

    def rows(self, study: str, kind: str, **where: Any) -> list[Row]:
        """Return the rows of one kind in a study, with the given values in further columns."""
        rows = self._by_study_and_kind.get((study, kind), [])
        return [row for row in rows if all(row.get(name) == value for name, value in where.items())]

    def drawn_as_squares(self) -> "Findings":
        """Return the findings with the localisation of maps that fill the image with squares, without alignment.

        These maps have no values of the images.
        """
        squares = {_place(row): row for row in self.reproduction if row["kind"] == NOT_ALIGNED}
        rows = [row for row in self.reproduction if row["kind"] != NOT_ALIGNED]
        replaced = [
            {**row, **squares[_place(row)], "kind": row["kind"]}
            if row["kind"] == "explanation" and _place(row) in squares
            else row
            for row in rows
        ]
        return replace(self, reproduction=replaced, values=[])

    def column(self, study: str, kind: str, name: str, **where: Any) -> Column:
        """Return the number in a column of the rows that `rows` selects, by seed."""
        factor = 100 if name in PERCENT else 1
        return {row["seed"]: factor * row[name] for row in self.rows(study, kind, **where) if name in row}

    def trained(self, study: str, run: str, name: str) -> Column:
        """Return a score of a trained run on the test split, by seed."""
        return self.column(study, "training", f"test_{name}", run=run)

    def runs(self, study: str, kind: str = "training") -> list[str]:
        """Return the names of the runs of a study."""
        return list(dict.fromkeys(row["run"] for row in self.rows(study, kind)))

    def post_hoc(self, study: str, name: str) -> dict[str, Column]:
        """Return a column of every post-hoc method, without random and centre."""
        explainers = {row["explainer"] for row in self.rows(study, "explanation", run="vanilla")} - set(UNINFORMED)
        return {
            one: self.column(study, "explanation", name, run="vanilla", explainer=one) for one in sorted(explainers)
        }

    def native(self, study: str, run: str, name: str) -> Column:
        """Return a column of the maps of a SoftCAM run."""
        return self.column(study, "explanation", name, run=run, explainer="softcam")

    def table1(self, study: str) -> dict[str, list[Row]]:
        """Return the rows of every seed with their Borda points, by label.

        Post-hoc maps of the vanilla classifier stand beside the maps of bootstrapped CAPE, without random and
        centre.
        """
        table: dict[str, list[Row]] = {}
        for seed in self.seeds():
            rows = [
                {**row, "label": label(row)}
                for row in self.rows(study, "explanation", seed=seed)
                if row["run"] in ("vanilla", *CAPE_NAMES) and row["explainer"] not in UNINFORMED
            ]
            named = [{**row, "explains": row["run"]} for row in rows]  # two runs have maps of one name
            images = {(row["explainer"], row["run"]): self.images(study, row["run"], row["explainer"]) for row in rows}
            values = {key: seeds[seed] for key, seeds in images.items() if seed in seeds}
            for row in with_borda(named, [values] if rows and len(values) == len(rows) else []):
                table.setdefault(row["label"], []).append(row)
        return table

    def images(self, study: str, run: str, explainer: str) -> dict[int, dict[str, Array]]:
        """Return the values of the images behind an explanation's numbers: seed -> measure -> values.

        A measure whose values do not have the row's number as their mean is left out: they are rounded too much for it,
        or belong to another run.
        """
        known = self._images
        if (study, run, explainer) not in known:
            known[study, run, explainer] = self._find_images(study, run, explainer)
        return known[study, run, explainer]

    def _find_images(self, study: str, run: str, explainer: str) -> dict[int, dict[str, Array]]:
        """Collect the values of the images behind an explanation's numbers."""
        where = {"run": run, "explainer": explainer}
        found = {seed: dict(values) for seed, values in self._values_of.get((study, run, explainer, None), {}).items()}
        placed = self.rows(study, LOCALISED, **where, **{"class": ALL_LOCATED})
        for row in placed:
            values = self._values_of.get((study, run, explainer, ALL_IMAGES), {}).get(row["seed"], {})
            if values:
                counted = np.isin(values["label"], self._located_labels(study))
                own = {name: column[counted] for name, column in values.items() if name in row}
                found[row["seed"]] = found.get(row["seed"], {}) | own
        numbers = {row["seed"]: row for row in [*placed, *self.rows(study, "explanation", **where)]}
        return {
            seed: {name: column for name, column in values.items() if _has_mean(column, numbers[seed].get(name))}
            for seed, values in found.items()
            if seed in numbers
        }

    def strata(self, study: str, maps: Mapping[int, Map], name: str) -> list[Array] | None:
        """Return the values of the images in every seed, or None if a seed has none.

        Photographs are the same in every seed, and are joined to one.

        Args:
            study: Name of the study.
            maps: Run and explainer in every seed.
            name: Name of the measure.
        """
        columns = [self.images(study, *maps[seed]).get(seed, {}).get(name) for seed in sorted(maps)]
        if not columns or any(column is None for column in columns):
            return None
        return [join_seeds([column[None] for column in columns])[0][0]] if study in STEEL else columns

    def few_images(self, study: str, of: str, run: str, explainer: str, name: str) -> list[Array]:
        """Return the places on the photographs that a slow method explains, joined over the seeds; none without values.

        Args:
            study: Name of the study.
            of: Name of the slow method.
            run: Run that is explained.
            explainer: Name of the explainer.
            name: Name of a measure of places.
        """
        seeds = self._values_of.get((study, run, explainer, of), {})
        columns = [
            values[name][np.isin(values["label"], self._located_labels(study))]
            for _, values in sorted(seeds.items())
            if name in values
        ]
        return [join_seeds([column[None] for column in columns])[0][0]] if columns else []

    def difference(
        self, study: str, name: str, first: Mapping[int, Map], second: Mapping[int, Map]
    ) -> Difference | None:
        """Compare two maps on the same images of every seed, or return None if a seed has no values of both.

        Args:
            study: Name of the study.
            name: Name of the measure.
            first: Run and explainer in every seed.
            second: Run and explainer to compare with, in the same seeds.
        """
        ours, theirs = self.strata(study, first, name), self.strata(study, second, name)
        if ours is None or theirs is None or first.keys() != second.keys():
            return None
        return compare_methods(ours, theirs)

    @cached_property
    def _by_study_and_kind(self) -> dict[tuple[str, str], list[Row]]:
        """Study and kind -> rows of reproduction."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.reproduction:
            found.setdefault((row["study"], row["kind"]), []).append(row)
        return found

    @cached_property
    def _images(self) -> dict[tuple[str, str, str], dict[int, dict[str, Array]]]:
        """Study, run and explainer -> values of the images, for those that were asked for."""
        return {}

    @cached_property
    def _values_of(self) -> dict[tuple[Any, ...], dict[int, dict[str, Array]]]:
        """Study, run, explainer and images -> seed -> measure -> values, with the labels of the images."""
        found: dict[tuple[Any, ...], dict[int, dict[str, Array]]] = {}
        for row in self.values:
            columns = lists_of(row)
            key = (row["study"], row["run"], row["explainer"], row.get("of"))
            found.setdefault(key, {})[row["seed"]] = image_values(columns) | {"label": np.array(columns["label"])}
        return found

    def _located_labels(self, study: str) -> list[int]:
        """Return the labels of the images that count for localisation in a study of photographs."""
        classes = list(dict.fromkeys(row["class"] for row in self.rows(study, LOCALISED)))  # in the order of labels
        classes.remove(ALL_LOCATED)
        return [classes.index(name) for name in STEEL[study].located]


def _place(row: Row) -> tuple[Any, ...]:
    """Return what names a measured explainer."""
    return tuple(row.get(name) for name in ("study", "seed", "run", "explainer"))


def _has_mean(values: Array, number: float | None) -> bool:
    """Tell whether a number is the mean of values, up to their rounding to four digits.

    Of a share of images, rounding may move one image to the other side.
    """
    known = values[~np.isnan(values)]
    if number is None or not len(known):
        return False
    is_share = bool(np.isin(known, (0, 100)).all())
    tolerance = 100 / len(known) if is_share else 0.0
    return bool(np.isclose(known.mean(), number, rtol=2e-3, atol=1e-2 + tolerance))


def label(row: Row) -> str:
    """Return the name of an explanation in a table with others."""
    if row["run"] == "vanilla":
        return row["explainer"]
    if row["run"].startswith("softcam"):
        return row["run"]
    return f"{row['explainer']} ({CAPE_NAMES.get(row['run'], row['run'].removeprefix('cape-'))})"


def read() -> Findings:
    """Read the rows in benchmarks/results/, without their missing numbers."""
    files = []
    for name in ("reproduction", "heads", "explainers"):
        rows = read_rows(RESULTS / f"{name}.jsonl")
        files.append([{column: value for column, value in row.items() if value is not None} for row in rows])
    return Findings(*files, read_values("reproduction"))


def minus(a: Column, b: Column) -> Column:
    """Return a - b for the seeds that both columns have."""
    return {seed: a[seed] - b[seed] for seed in a if seed in b}


def best_of(columns: dict[str, Column], choose: Callable[..., float] = max) -> Column:
    """Return the best value of several columns for each seed."""
    seeds = set().union(*columns.values()) if columns else set()
    return {seed: choose(column[seed] for column in columns.values() if seed in column) for seed in sorted(seeds)}


def mean(column: Column) -> float:
    """Return the mean over seeds."""
    return statistics.fmean(column.values())


def spread(column: Column, form: str = ".1f", sign: str = "") -> str:
    """Format mean ± standard deviation over seeds."""
    if not column:
        return "-"
    deviation = f" ± {statistics.stdev(column.values()):{form}}" if len(column) > 1 else ""
    return f"{mean(column):{sign}{form}}{deviation}"


def with_seeds(column: Column, form: str = ".1f") -> str:
    """Format the mean over seeds and, in brackets, the number of every seed."""
    return f"{mean(column):{form}} ({', '.join(f'{column[seed]:{form}}' for seed in sorted(column))})"
