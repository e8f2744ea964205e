"""Keep the paths of files on somebody's machine out of cards and of published records.

Only the last part of a local path is shown.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .records import EXPLANATIONS, METRICS, RECIPE, Row, read_optional_mapping, read_rows


def is_hub_id(name: str) -> bool:
    """Tell whether a name is that of a repository on the Hub; a local path that looks alike exists."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).exists()


def hide_local_path(value: Any) -> Any:
    """Return a text with the last part alone of every local path, and any other value as it is."""
    if not isinstance(value, str) or "/" not in value or "://" in value:
        return value
    if is_hub_id(value.removeprefix("hf-hub:")):
        return value
    if "=" in value:  # arguments of the architecture, of which some may be paths
        return re.sub(r"""[^\s"'=:,{]*/([^\s"',}/]+)""", r"\1", value)
    return Path(value).name


def published_records(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and new content of each record in a model folder that names local paths.

    Args:
        folder: Model folder with, perhaps, metrics, a recipe and the rows of a benchmark.
    """
    metrics, recipe = read_optional_mapping(folder / METRICS), read_optional_mapping(folder / RECIPE)
    rows = read_rows(folder / EXPLANATIONS) if (folder / EXPLANATIONS).exists() else []
    if (published := _hide_local_paths(metrics)) != metrics:
        yield METRICS, f"{json.dumps(published, indent=2)}\n".encode()
    if (published := _hide_local_paths(recipe)) != recipe:
        yield RECIPE, yaml.safe_dump(published, sort_keys=False).encode()
    if (published := [_hide_local_paths(row) for row in rows]) != rows:
        yield EXPLANATIONS, "".join(f"{json.dumps(row)}\n" for row in published).encode()


def _hide_local_paths(row: Row) -> Row:
    return {name: hide_local_path(value) for name, value in row.items()}
