"""Compare two explainers on the same images, from the values that a benchmark keeps of every image.

- Values come from the folder of a benchmark, or from a file of values: one line for every explainer and image
  (`values.jsonl`), or one for every explainer with lists over images (`benchmarks/results/values/`).
- Two benchmarks can be compared if they are of the same images, in the same order and with the same labels.
- Nothing here imports torch before the files are read and the explainers are found, so that mistakes are told at once.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arguments import did_you_mean
from .folder import ROWS, SETTINGS, SHARDS, VALUES, read_json, with_current_role
from .lines import Columns, Line, columns_of, group_lines, is_line, lists_of
from .significance import SIGNIFICANT, compare_methods, compare_sums, holm

Row = dict[str, Any]

HOW = (
    f"measure them with `softcam-hub benchmark --per-image`, and name its folder, {ROWS} or {VALUES} (a finished "
    "benchmark that is run again with --per-image computes nothing anew)"
)


@dataclass(frozen=True)
class Measured:
    """The values of all images of a benchmark.

    Args:
        source: File or folder that was read.
        explainers: Explainer and role of the explained model -> entries of all images.
        images: Description of the images in the settings of the benchmark; None for a file of values.
    """

    source: Path
    explainers: Mapping[tuple[str, str], Columns]
    images: Any = None

    def find(self, name: str) -> tuple[str, str]:
        """Return explainer and role by a name such as `cape`, or `cape:model` if it explains two models."""
        explainer, colon, role = name.partition(":")
        found = [key for key in self.explainers if key[0] == explainer and (not colon or key[1] == role)]
        if len(found) == 1:
            return found[0]
        known = list(dict.fromkeys(one for one, _ in self.explainers))
        if explainer not in known:
            hint = did_you_mean(explainer, known)
            raise ValueError(f"{self.source} has no explainer {explainer!r}{hint} (it has {', '.join(known)})")
        roles = [f"{explainer}:{other}" for one, other in self.explainers if one == explainer]
        raise ValueError(f"{name!r} is not one explainer of {self.source}: write {' or '.join(roles)}")


def compare(results: Sequence[str | Path], first: str, second: str) -> list[Row]:
    """Compare two explainers measure by measure, and return a row for each measure of both.

    Args:
        results: One benchmark of both explainers, or two benchmarks of the same images, of one explainer each: folders,
            their rows.jsonl, or files of values.
        first: Explainer such as `cape`, or `cape:model` where it explains two models.
        second: Explainer to compare it with.
    """
    if not 1 <= len(results) <= 2:
        raise ValueError(f"expected one benchmark or two, got {len(results)}")
    measured = [read_measured(Path(path).expanduser()) for path in results]
    sides = [(measured[0], measured[0].find(first)), (measured[-1], measured[-1].find(second))]
    if sides[0] == sides[1]:
        raise ValueError(f"{first} would be compared with itself: name two explainers, or two benchmarks")
    _check_same_images(sides)
    return _compare_columns(*(one.explainers[key] for one, key in sides))


def read_measured(path: Path) -> Measured:
    """Read the values of all images from a folder, its rows.jsonl, or a file of values."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: name the folder of a benchmark, its {ROWS} or its {VALUES}")
    folder = path if path.is_dir() else path.parent if path.name == ROWS else None
    if folder is None:
        return Measured(path, _columns_by_explainer(_read_lines(path), path))
    settings = read_json(folder / SETTINGS)
    images = settings.get("images") if isinstance(settings, dict) else None
    return Measured(path, _columns_by_explainer(_read_folder(folder), path), images)


def _read_folder(folder: Path) -> list[Line]:
    """Read the values of a finished benchmark, from its file of values or its shards."""
    if (folder / VALUES).exists():
        return _read_lines(folder / VALUES)
    shards = sorted((folder / SHARDS).glob("[0-9]*.json"))
    if not shards:
        raise ValueError(f"{folder} has no values of the images: {HOW}")
    if not (folder / ROWS).exists():
        raise ValueError(f"the benchmark in {folder} has not ended: run the same command again")
    from .shards import read_shard  # with torch
    from .tuning import add_tuned_iou, recorded_thresholds

    lines = [line for shard in shards for line in read_shard(shard)]
    if thresholds := recorded_thresholds(_read_rows(folder / ROWS)):
        add_tuned_iou(lines, thresholds)  # shards are written before anything is tuned
    return lines


def _read_rows(file: Path) -> list[Row]:
    """Read the rows of a finished benchmark."""
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} cannot be read as JSON lines ({error}): {HOW}") from error
    return [row for row in with_current_role(rows) if isinstance(row, dict)]


def _read_lines(file: Path) -> list[Row]:
    """Read a file of JSON lines, which may be compressed."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        lines = [json.loads(line) for line in content.decode().splitlines()]
    except (ValueError, OSError, EOFError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON lines ({error}): {HOW}") from error
    if not lines or not (all(map(is_line, lines)) or all(map(_is_row_of_values, lines))):
        raise ValueError(f"{file} does not hold the values of images: {HOW}")
    return with_current_role(lines)


def _is_row_of_values(row: Any) -> bool:
    """Tell whether this is a mapping of an explainer and lists over the images, numbers or None but for labels."""
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("explainer", "explains")):
        return False
    columns = lists_of(row)
    if "label" not in columns or len({len(entries) for entries in columns.values()}) != 1 or not columns["label"]:
        return False
    numbers = [number for name, entries in columns.items() if name != "label" for number in entries]
    return all(number is None or isinstance(number, int | float) for number in numbers)


def _columns_by_explainer(lines: list[Row], source: Path) -> dict[tuple[str, str], Columns]:
    """Return the entries of all images of every explainer and role."""
    if is_line(lines[0]):
        explainers = {key: columns_of(group) for key, group in group_lines(lines).items()}
        twice = [key for key, columns in explainers.items() if len(set(columns["index"])) < len(columns["index"])]
    else:
        keys = [(row["explainer"], row["explains"]) for row in lines]
        twice = [key for key in keys if keys.count(key) > 1]
        explainers = dict(zip(keys, map(lists_of, lines), strict=True))
    if twice:
        raise ValueError(f"{source} has several values of {':'.join(twice[0])} for an image: name one benchmark")
    return explainers


def _check_same_images(sides: Sequence[tuple[Measured, tuple[str, str]]]) -> None:
    """Refuse explainers that were measured on different images, as far as files can tell."""
    names = [f"{':'.join(key)} of {one.source}" for one, key in sides]
    different = f"{' and '.join(names)} were not measured on the same images"
    described = [one.images if isinstance(one.images, dict) else {} for one, _ in sides]
    for name in described[0].keys() & described[1].keys():
        if described[0][name] != described[1][name]:
            raise ValueError(f"{different}: the {name} of the images differs in {SETTINGS}")
    for name in ("index", "label"):
        first, second = (one.explainers[key].get(name) for one, key in sides)
        if first is not None and second is not None and first != second:
            raise ValueError(
                f"{different}: they have {len(first)} and {len(second)} images, of which the {name} differs"
            )


def _has_values(columns: Columns, name: str) -> bool:
    """Tell whether a column has an entry for some image; images without an annotation have none."""
    return any(entry is not None for entry in columns.get(name, ()))


def _compare_columns(first: Columns, second: Columns) -> list[Row]:
    """Compare two explainers, given the entries of all images of each."""
    from .localisation_rows import SUMS
    from .report import COLUMNS
    from .results import image_values

    values = [image_values(columns) for columns in (first, second)]
    rows = []
    for name in COLUMNS:
        if all(name in side for side in values):
            found = compare_methods([values[0][name]], [values[1][name]])
        elif name in SUMS and all(_has_values(side, SUMS[name].column) for side in (first, second)):
            ours, theirs = (SUMS[name].images_of(side[SUMS[name].column]) for side in (first, second))
            found = compare_sums(ours, theirs, SUMS[name].score)
        else:
            continue
        if found.images:
            rows.append({"measure": name, **found._asdict()})
    if not rows:
        raise ValueError("the two explainers have no measure in common: run their benchmarks with the same --measures")
    adjusted = holm([row["p"] for row in rows])
    return [
        {**row, "p_holm": float(p), "significant": bool(p <= SIGNIFICANT)}
        for row, p in zip(rows, adjusted, strict=True)
    ]
