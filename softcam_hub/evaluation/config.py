"""What a benchmark is told, checked before anything is loaded."""

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..data.config import DataConfig, flag
from ..explainers.methods import list_explainers

TABLE, LOCALISATION, SENSITIVITY = "table", "localisation", "sensitivity"
SINGLE_DELETION, GRID = "single_deletion", "grid_pointing"
DEFAULT_MEASURES = (TABLE, LOCALISATION, SENSITIVITY)
"""AD, IC, ADD, ADCC, mIoU and completeness; and, on annotated images, precision at the annotation and the drop of the
confidence with the top patches occluded."""

OPTIONAL_MEASURES = ("gini", "insertion", "deletion", "road", SINGLE_DELETION, "max_sensitivity", GRID)
"""Measures beyond both papers, most of them dearer."""

SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured, where, and what is kept; each field's `help` says the rest."""

    _argument_group_name: ClassVar[str] = "benchmark"

    output: str = flag("", "folder for rows, tables and curves; a run that was cut off goes on there")
    explainers: str = flag(
        "", "names, 'cape grad-cam random'; 'all' for every one that the models admit; by default the fast ones"
    )
    measures: str = flag(
        "",
        f"what is measured: {', '.join(DEFAULT_MEASURES)} (the default; without annotations {TABLE} alone), "
        f"{', '.join(OPTIONAL_MEASURES)}",
    )
    split: str = flag("test", f"the images to explain: {', '.join(SPLITS)}")
    limit: int | None = flag(None, "the first so many images only")
    batch_size: int = flag(16, "images per forward pass")
    shard_size: int = flag(32, "images between two savings; processes divide the work by shards")
    patch: int | None = flag(None, "side of a patch in pixels (localisation, sensitivity); a sixteenth of the image's")
    seed: int = flag(0, "of random maps and of noise")
    per_image: bool = flag(False, "keep the values of every image in values.jsonl")
    overwrite: bool = flag(False, "throw away what an earlier benchmark left in output")

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("output is missing: name the folder for rows and tables, such as --output results")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        for name, least in {"limit": 1, "batch_size": 1, "shard_size": 1, "patch": 1, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        check_names(self.chosen_explainers or (), [*list_explainers(), "all"], "explainer")
        check_names(words(self.measures), [*DEFAULT_MEASURES, *OPTIONAL_MEASURES], "measure")

    @property
    def chosen_explainers(self) -> tuple[str, ...] | None:
        """Names in their order, each once; None for the default."""
        return words(self.explainers) or None

    def chosen_measures(self, annotated: bool) -> tuple[str, ...]:
        """What is measured on data with or without annotations."""
        chosen = words(self.measures) or (DEFAULT_MEASURES if annotated else (TABLE,))
        if LOCALISATION in chosen and not annotated:
            raise ValueError(f"{LOCALISATION} needs annotations, and these data have neither masks nor boxes")
        return chosen


def words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.replace(",", " ").split()))


def check_names(names: tuple[str, ...], known: list[str], what: str) -> None:
    """Refuse unknown names, with a hint."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(known)}"
            raise ValueError(f"unknown {what} {name!r}: {hint}")


def make_settings(**settings: Any) -> tuple[BenchmarkConfig, DataConfig]:
    """The settings of both groups from one set of names; lists of names may be given as lists."""
    groups = (BenchmarkConfig, DataConfig)
    known = {field.name: group for group in groups for field in dataclasses.fields(group)}
    check_names(tuple(settings), list(known), "setting")
    plain = {
        name: " ".join(value) if isinstance(value, list | tuple) else str(value) if isinstance(value, Path) else value
        for name, value in settings.items()
        if value is not None
    }
    benchmark, data = ({name: value for name, value in plain.items() if known[name] is group} for group in groups)
    return BenchmarkConfig(**benchmark), DataConfig(**data)
