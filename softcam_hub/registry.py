"""`softcam_*` and `cape_*` as timm architectures, with timm's own pretrained tags.

- Which architectures admit evidence maps stands in `architectures.json`, written by `tools/probe_timm.py`. Names that
  the installed timm does not have are skipped, and names that it has beyond them can still be made with `build`.
- The pretrained weights are timm's official ones: their classifier is carried over at load time.
"""

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import timm
from timm.models import generate_default_cfgs, get_pretrained_cfg, register_model
from timm.models._registry import get_arch_pretrained_cfgs
from torch import nn

from .models.classifier import ALIASES, build
from .models.heads import HEADS
from .models.weights import derive_cfg

EXACT = ("linear", "affine", "norm")

default_cfgs: dict[str, Any] = {}
"""Where timm's `register_model` looks for the pretrained tags of this module's architectures."""


@cache
def architectures() -> dict[str, str]:
    """timm architecture -> how its head reads the features (`models.backbone.Anatomy.kind`)."""
    table = json.loads(files(__package__).joinpath("architectures.json").read_text())
    return {name: kind for kind, names in table["kinds"].items() for name in names}


def register() -> None:
    """Make every `softcam_*` and `cape_*` name known to timm."""
    names = {name: name for name in architectures() if timm.is_model(name)}
    names |= {alias: name for alias, name in ALIASES.items() if name in names}
    for short, architecture in names.items():
        cfgs = _pretrained_tags(architecture)
        for family in HEADS:
            name = f"{family}_{short}"
            default_cfgs.update(generate_default_cfgs({f"{name}{tag}": cfg for tag, cfg in cfgs.items()}))
            globals()[name] = register_model(_entrypoint(name))


def _pretrained_tags(architecture: str) -> dict[str, Any]:
    """`.tag` -> description of weights, timm's default first; shared by both families, as timm fills in the name."""
    default = get_pretrained_cfg(architecture)
    cfgs = get_arch_pretrained_cfgs(architecture)
    tags = sorted(cfgs.values(), key=lambda cfg: default is None or cfg.tag != default.tag)
    return {f".{cfg.tag}" if cfg.tag else "": derive_cfg(cfg) for cfg in tags}


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return build(name, pretrained, **options)

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    return create
