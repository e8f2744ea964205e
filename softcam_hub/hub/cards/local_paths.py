"""Where things lie on the machine of whoever trained, which is nobody else's business.

- Of a local path the last part is told, by the card and by the records that are pushed with it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .records import EXPLANATIONS, METRICS, RECIPE, Row, read_rows, read_values


def is_hub_id(data: str) -> bool:
    """Whether data are those of a user on the Hub; a local path may look the same, and is there."""
    try:
        validate_repo_id(data)
    except HFValidationError:
        return False
    return data.count("/") == 1 and not Path(data).exists()


def hide_local_path(data: Any) -> Any:
    """A name as others may read it."""
    if not isinstance(data, str) or "/" not in data or "://" in data or is_hub_id(data.removeprefix("hf-hub:")):
        return data
    return Path(data).name


def published_records(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Those of scores, recipe and rows in a model folder that name local paths, as others may read them."""
    metrics, recipe = read_values(folder / METRICS, json.loads), read_values(folder / RECIPE, yaml.safe_load)
    rows = read_rows(folder / EXPLANATIONS) if (folder / EXPLANATIONS).exists() else []
    if (told := _hide_local_paths(metrics)) != metrics:
        yield METRICS, f"{json.dumps(told, indent=2)}\n".encode()
    if (told := _hide_local_paths(recipe)) != recipe:
        yield RECIPE, yaml.safe_dump(told, sort_keys=False).encode()
    if (lines := [_hide_local_paths(row) for row in rows]) != rows:
        yield EXPLANATIONS, "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def _hide_local_paths(row: Row) -> Row:
    return {name: hide_local_path(value) for name, value in row.items()}
