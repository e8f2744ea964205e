"""A pytest plugin that makes timm's own model tests build our architectures.

The suite runs unmodified: the lists of architectures that it asks timm for are restricted before it is collected, and
the functions by which it makes models are exchanged while it runs. Its parameters stay timm's names, so that a test
has the same id in each run; `PEER_FAMILY` says what is built from a name.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import timm
from timm_architectures import ARCHITECTURES
from torch import nn

from softcam_hub import Classifier

FAMILY = os.environ.get("PEER_FAMILY", "")
"""`softcam`, `cape`, or nothing for timm's own models, which are the control."""


def ours(name: str) -> str:
    """Return our name for a timm architecture; a test of one that admits no evidence map is skipped."""
    architecture, dot, tag = name.partition(".")
    if not FAMILY:
        return name
    if not timm.is_model(f"{FAMILY}_{architecture}"):
        pytest.skip(f"{architecture} admits no evidence map")
    return f"{FAMILY}_{architecture}{dot}{tag}"


def with_our_name(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a timm function whose first argument, `model_name`, is a timm architecture see ours instead."""

    def renamed(model_name: str, *args: Any, **options: Any) -> Any:
        return function(ours(model_name), *args, **options)

    return renamed


def list_chosen(list_models: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Restrict `timm.list_models` to the chosen architectures, each with one of its tags."""

    def listed(*args: Any, **options: Any) -> list[str]:
        found = list_models(*args, **options)
        first = {name.partition(".")[0]: name for name in reversed(found)}
        return [first[name] for name in ARCHITECTURES if name in first]

    return listed


def look_into_backbone(model: nn.Module, name: str) -> Any:
    """Return an attribute of our model, or of its backbone where our model has none of that name.

    The suite reads parts of timm's own classes, such as `model.stages`. With them the tests reach what they are about.
    """
    try:
        return nn.Module.__getattr__(model, name)
    except AttributeError:
        if name.startswith("__") or "backbone" not in model._modules:
            raise
        return getattr(model._modules["backbone"], name)


Classifier.__getattr__ = look_into_backbone
timm.list_models = list_chosen(timm.list_models)
timm.list_pretrained = lambda *_, **__: []  # weights are not downloaded


@pytest.fixture(autouse=True)
def our_models(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchange what the suite's module makes models with, and leave timm itself as it is."""
    for function in ("create_model", "get_pretrained_cfg_value"):
        monkeypatch.setattr(request.module, function, with_our_name(getattr(timm, function)))
