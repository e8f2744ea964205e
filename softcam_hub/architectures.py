"""The table of architectures that admit evidence maps, which `tools/probe_timm.py` writes to `architectures.json`."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from .models.head_types import EXACT

__all__ = ["EXACT", "architectures", "read_table"]


@cache
def read_table() -> dict[str, Any]:
    """Read the table: version of timm, our families, and the architectures by the type of their head."""
    return json.loads(files(__package__).joinpath("architectures.json").read_text(encoding="utf-8"))


@cache
def architectures() -> dict[str, str]:
    """Return timm architecture -> how its head reads the features (`models.backbone.Anatomy.head_type`)."""
    return {name: head_type for head_type, names in read_table()["kinds"].items() for name in names}
