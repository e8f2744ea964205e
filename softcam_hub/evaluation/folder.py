"""The folder of a benchmark: its files, and the settings that its values follow from.

A benchmark continues an earlier one with the same settings. Other settings are refused, so that one table
never mixes values of two benchmarks.
"""

import json
import re
from pathlib import Path
from typing import Any

from ..files import write_json
from ..output_folder import OutputFolder, Use

SETTINGS, SHARDS, ROWS, VALUES = "settings.json", "shards", "rows.jsonl", "values.jsonl"
CURVES, TABLE1 = "curves.png", "table1.md"
TABLE2, TABLE2_ROWS = "table2.md", "table2.jsonl"
AGREEMENT_ROWS, AGREEMENT_PICTURE = "agreement.jsonl", "agreement.png"
LOCALISATION_TABLES = "localisation.md"

NAMES = [
    *(SETTINGS, f"{SHARDS}/[0-9]*.json", ROWS, VALUES, CURVES, TABLE1, TABLE2_ROWS, TABLE2),
    *(AGREEMENT_ROWS, AGREEMENT_PICTURE, LOCALISATION_TABLES),
]
"""Files of a benchmark. The settings come first and are deleted last, so that no shard is left without them."""

KNOWN_SETTINGS = {"model", "data", "split", "explainers", "measures", "pairs", "weights", "images"}
"""Settings that every release has written, by which an earlier benchmark is recognised."""

UNALIGNED: dict[str, Any] = {"aligned": False, "alignment": {}}
"""Settings that benchmarks of earlier releases, which drew every cell as its own square of the image, do not name."""

SHARD = re.compile(r"\d{5}\.(json|unfinished)")
"""Names of files in `shards/`, and of the drafts of earlier releases."""


def benchmark_folder(path: str | Path) -> OutputFolder:
    """Return the output folder of a benchmark at `path`."""
    return OutputFolder(path, "benchmark", NAMES, recognise=is_earlier_benchmark)


def is_earlier_benchmark(path: Path) -> bool:
    """Tell whether a folder without a record holds a benchmark, or a table of accuracies."""
    entries = {entry.name for entry in path.iterdir()}
    if SETTINGS in entries:
        settings, shards = read_json(path / SETTINGS), path / SHARDS
        whole = isinstance(settings, dict) and settings.keys() >= KNOWN_SETTINGS
        return whole and all(SHARD.fullmatch(file.name) for file in shards.glob("*"))
    return TABLE2_ROWS in entries and _holds_accuracies(path / TABLE2_ROWS)


def claim_folder(folder: OutputFolder, settings: dict[str, Any], use: Use) -> None:
    """Claim the folder for a benchmark, after a check that it holds no values of other settings.

    Args:
        folder: Locked folder.
        settings: Everything that the values follow from.
        use: "continue" to keep earlier shards, "replace" to delete them.
    """
    if use == "continue":
        _check_same_settings(folder.path, settings)
    folder.claim(use)
    (folder.path / SHARDS).mkdir(exist_ok=True)
    write_json(folder.path / SETTINGS, settings)


def _check_same_settings(folder: Path, settings: dict[str, Any]) -> None:
    if not (folder / SETTINGS).exists():
        if any((folder / SHARDS).glob("*.json")):
            raise ValueError(
                f"{folder} holds values in {SHARDS} but no {SETTINGS}, so that nothing says what was "
                f"measured: delete {SHARDS}, start again with --overwrite, or choose another --output"
            )
        return
    before = read_json(folder / SETTINGS)
    if not isinstance(before, dict):
        raise ValueError(
            f"{folder / SETTINGS} is damaged, so that nothing says what was measured: start again with "
            "--overwrite, or choose another --output"
        )
    before = UNALIGNED | with_current_role(before)
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"{folder} holds a benchmark with {name}={before.get(name)!r}, but now it is {value!r}: use "
                "the same settings to continue it, --overwrite to delete it, or another --output"
            )


def with_current_role(content: Any) -> Any:
    """Return the content of a file with `vanilla` in place of `twin`, its name in earlier releases."""
    if isinstance(content, list):
        return [with_current_role(one) for one in content]
    if not isinstance(content, dict):
        return content
    content = {"vanilla" if name == "twin" else name: value for name, value in content.items()}
    nested = {name: with_current_role(content[name]) for name in ("pairs", "weights") if name in content}
    role = {"explains": "vanilla"} if content.get("explains") == "twin" else {}
    return {**content, **nested, **role}


def read_json(file: Path) -> Any:
    """Read a JSON file; return None where it holds no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _holds_accuracies(file: Path) -> bool:
    """Tell whether every line of a file is a row of the table of accuracies."""
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return False
    return all(isinstance(row, dict) and {"variant", "model"} <= row.keys() for row in rows)
