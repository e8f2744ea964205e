"""Names of our architectures: a family and the name of a timm architecture, such as `cape_resnet50`."""

import difflib

import timm

from .heads import HEADS

ALIASES = {"swinv2_b": "swinv2_base_window8_256"}
"""Short names of timm architectures."""


def split_name(name: str) -> tuple[str, str]:
    """Split `cape_resnet50` into its family and timm architecture, with aliases resolved."""
    family, _, architecture = name.partition("_")
    if family not in HEADS:
        near = [f"{head}_{name}" for head in HEADS] if timm.is_model(name) else []
        names = " or ".join(f"{head}_<timm name>" for head in HEADS)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected {names}"
        if timm.is_model(architecture):
            hint += f". If another package brings the head {family!r}, import the module that registers it first"
        raise ValueError(f"unknown architecture {name!r}: {hint}")
    architecture = ALIASES.get(architecture, architecture)
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(f'{family}_{n}' for n in near)}?" if near else "see timm.list_models()"
        if not architecture:
            raise ValueError(f"unknown architecture {name!r}: expected {family}_<timm name>")
        raise ValueError(f"unknown architecture {name!r}: timm {timm.__version__} has no {architecture!r}; {hint}")
    return family, architecture
