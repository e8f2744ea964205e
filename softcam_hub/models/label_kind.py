"""One label per image or several: a property of a trained model, which decides between softmax and sigmoid.

The property travels in config.json under two names, because neither library reads the other's:

- transformers keeps it as `problem_type`, which is also the name in the configurations of this package.
- timm passes `model_args` on to the model and drops other keys. A model of several labels therefore has
  `"multi_label": true` among its `model_args`, where timm's own `save_for_hf` keeps it too.

Folders that were saved without `multi_label` still work in timm, as the models look up `problem_type` themselves.
"""

import json
from pathlib import Path
from typing import Any, Final

from huggingface_hub import hf_hub_download
from timm.models import PretrainedCfg
from torch import Tensor, nn

SINGLE_LABEL: Final = "single_label_classification"
MULTI_LABEL: Final = "multi_label_classification"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL)
"""Values of `problem_type` that a model of classes can have."""


def class_probabilities(logits: Tensor, multi_label: bool) -> Tensor:
    """Turn logits (B, C) into float32 probabilities: each class by itself, or all classes together."""
    return logits.float().sigmoid() if multi_label else logits.float().softmax(dim=1)


def check_class_count(count: int, multi_label: bool, given: str, remedy: str) -> None:
    """Refuse a single class whose probability would be a softmax.

    Args:
        count: Number of classes.
        multi_label: Whether an image may have several labels.
        given: The argument that says how many classes there are.
        remedy: The argument that asks for each class by itself.
    """
    if count == 1 and not multi_label:
        raise ValueError(
            f"{given} can neither predict nor learn, as a softmax over one class is always 1: name two classes, or for "
            f"SoftCAM set {remedy}, which asks for each class by itself"
        )


def is_multi_label(model: nn.Module, default: bool | None = False) -> bool | None:
    """Tell whether an image may have several labels for this model.

    Args:
        model: Any classifier. Self-explaining models hold the answer. For a vanilla timm model it is in the config.json
            that timm loaded it from, and for a model of transformers in its configuration.
        default: Answer for a model that does not say.
    """
    known = getattr(model, "multi_label", None)
    if known is None:
        known = recorded_multi_label(getattr(model, "pretrained_cfg", None))
    problem_type = getattr(getattr(model, "config", None), "problem_type", None)
    if known is None and problem_type in PROBLEM_TYPES:
        known = problem_type == MULTI_LABEL
    return default if known is None else known


def recorded_multi_label(cfg: Any, cache_dir: str | Path | None = None) -> bool | None:
    """Look up the kind of labels in the config.json that timm has just read, or return None where there is none.

    Args:
        cfg: timm's description of pretrained weights; `local-dir:` and `hf-hub:` names put their source into it.
        cache_dir: Folder of downloads that timm uses.
    """
    cfg = cfg.to_dict() if isinstance(cfg, PretrainedCfg) else cfg
    if not isinstance(cfg, dict) or cfg.get("source") not in ("local-dir", "hf-hub"):
        return None
    try:
        if cfg["source"] == "local-dir":
            file = Path(cfg["file"], "config.json")
        else:
            repo, _, revision = cfg["hf_hub_id"].partition("@")
            found = hf_hub_download(
                repo, "config.json", revision=revision or None, cache_dir=cache_dir, local_files_only=True
            )
            file = Path(found)
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError:  # the folder or the cache is gone since timm read it
        return None
    return written_multi_label(config)


def written_multi_label(config: dict[str, Any]) -> bool | None:
    """Read the kind of labels from the content of a config.json; None where it does not say."""
    problem, args = config.get("problem_type"), config.get("model_args")
    multi_label = args.get("multi_label") if isinstance(args, dict) else None
    if not isinstance(multi_label, bool | None):
        raise ValueError(f"multi_label in model_args must be true or false, got {multi_label!r}")
    if problem is None:
        return multi_label
    if multi_label is not None and multi_label != (problem == MULTI_LABEL):
        raise ValueError(
            f"config.json contradicts itself: problem_type is {problem!r}, but model_args say "
            f"multi_label={multi_label}: remove multi_label from model_args, or correct problem_type"
        )
    return problem == MULTI_LABEL
