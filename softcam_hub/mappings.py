"""Files of names and values, JSON or YAML, that a person or a broken disk may have changed since they were written."""

import json
from pathlib import Path
from typing import Any

import yaml


def read_mapping(file: Path, remedy: str = "") -> dict[str, Any]:
    """Read a file that must hold names and values.

    Args:
        file: A .json file, or a YAML file.
        remedy: Advice for the error message if the file is damaged, such as "remove it and run the same again".
    """
    advice = f": {remedy}" if remedy else ""
    kind, parse = ("JSON", json.loads) if file.suffix == ".json" else ("YAML", yaml.safe_load)
    try:
        found = parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} cannot be read, it is no {kind} ({reason}){advice}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{file} must hold names and values, but holds {_describe(found)}{advice}")
    return found


def _describe(value: Any) -> str:
    return {type(None): "nothing", dict: "names that are no text"}.get(type(value), f"a {type(value).__name__}")
