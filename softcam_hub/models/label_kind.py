"""One label per image or several: a fact about a trained model, which decides between softmax and sigmoid.

The fact travels in config.json under two names, because neither library reads the other's:

- transformers keeps it as `problem_type`, which is what our configurations hold in memory.
- timm passes `model_args` on to the model and drops other keys. A model of several labels therefore has
  `"multi_label": true` among its `model_args`, where timm's own `save_for_hf` keeps it too.

Folders that were saved without `multi_label` still say it to our timm models, which look up `problem_type` themselves.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from timm.models import PretrainedCfg
from torch import Tensor, nn

SINGLE_LABEL, MULTI_LABEL = PROBLEM_TYPES = ("single_label_classification", "multi_label_classification")
"""Values of `problem_type` that a model of classes can have."""


def class_probabilities(logits: Tensor, multi_label: bool) -> Tensor:
    """Turn logits (B, C) into float32 probabilities: each class by itself, or all classes together."""
    return logits.float().sigmoid() if multi_label else logits.float().softmax(dim=1)


def is_multi_label(model: nn.Module, default: bool | None = False) -> bool | None:
    """Say whether an image may have several labels for this model.

    Args:
        model: Any classifier. Our models say it themselves. A vanilla timm model says it in the config.json that timm
            loaded it from.
        default: Answer for a model that does not say.
    """
    known = getattr(model, "multi_label", None)
    if known is None:
        known = recorded_multi_label(getattr(model, "pretrained_cfg", None))
    return default if known is None else known


def recorded_multi_label(cfg: Any, cache_dir: str | Path | None = None) -> bool | None:
    """Look up the kind of labels in the config.json that timm has just read, or return None where there is none.

    Args:
        cfg: timm's description of pretrained weights; `local-dir:` and `hf-hub:` names put their place into it.
        cache_dir: Folder of downloads that timm was asked to use.
    """
    cfg = cfg.to_dict() if isinstance(cfg, PretrainedCfg) else cfg
    if not isinstance(cfg, dict) or cfg.get("source") not in ("local-dir", "hf-hub"):
        return None
    try:
        if cfg["source"] == "local-dir":
            file = Path(cfg["file"], "config.json")
        else:
            repo, _, revision = cfg["hf_hub_id"].partition("@")
            options = {"revision": revision or None, "cache_dir": cache_dir, "local_files_only": True}
            file = Path(hf_hub_download(repo, "config.json", **options))
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError:  # the folder or the cache is gone since timm read it
        return None
    return written_multi_label(config)


def written_multi_label(config: dict[str, Any]) -> bool | None:
    """Read the kind of labels from the content of a config.json; None where it does not say."""
    problem, args = config.get("problem_type"), config.get("model_args")
    told = args.get("multi_label") if isinstance(args, dict) else None
    if not isinstance(told, bool | None):
        raise ValueError(f"multi_label in model_args must be true or false, got {told!r}")
    if problem is None:
        return told
    if told is not None and told != (problem == MULTI_LABEL):
        raise ValueError(
            f"config.json contradicts itself: problem_type is {problem!r}, but model_args say multi_label={told}: "
            "remove multi_label from model_args, or correct problem_type"
        )
    return problem == MULTI_LABEL
