"""What these data, this network and this launcher cannot give, said before anything is written or trained."""

import logging
import os
from pathlib import Path
from typing import Any

from torch import nn

from ..data.loading import Splits
from ..files import read_mapping
from ..models.losses import zeroing_l1
from .config import Config
from .evaluation import score_names
from .folder import SETTINGS

logger = logging.getLogger(__name__)

SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""Variables by which `accelerate launch`, or an Accelerator with the plugin, asks to divide a network."""


def check_launcher() -> None:
    """Refuse to divide the network among processes: evaluation, moving average and checkpoints need all of it.

    Accelerate ignores these requests on a CPU, where a user would then believe that the network had been divided.
    """
    for variable, name in SHARDING.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise ValueError(
                f"accelerate is set to divide the network among processes with {name}, but training keeps the whole "
                "network in every process and divides the images: launch with --multi_gpu instead (or run "
                "`accelerate config` again without it), or use torchrun"
            )


def check_choices(config: Config, splits: Splits, model: nn.Module) -> None:
    """Refuse a score to choose by that there will not be, and weights that have seen the images to test on."""
    if splits.validation is None and config.model.candidates():
        raise ValueError("temperatures are chosen on validation data, but there is none: set hold_out, such as 0.1")
    if splits.validation is None and config.model.calibrate:
        raise ValueError("calibrate fits T' to validation data, but there is none: set hold_out, such as 0.1")
    known = score_names(model, splits.multi_label)
    if splits.validation is not None and config.run.select not in known:
        raise ValueError(f"select={config.run.select!r} is no validation metric: there are {', '.join(known)}")
    least = zeroing_l1(len(splits.classes), splits.multi_label)
    if config.model.l1 >= least:
        logger.warning(
            "l1=%g leaves nothing to learn: from %g on, with these classes, maps of zero have the least loss; a tenth "
            "of that kept the accuracy in docs/reproduction.md",
            *(config.model.l1, least),
        )
    if config.model.init is not None:
        _check_division(config.model.init, config.flat())


def _check_division(init: str, now: dict[str, Any]) -> None:
    """Weights of a run that divided the same data otherwise have learnt from images that are held out now."""
    file = Path(init).parent / SETTINGS
    if not file.is_file():
        return
    before = {**now, **read_mapping(file, "mend it, or copy the model out of its run")}
    if before.get("data") == now["data"] and _division(before) != _division(now):
        raise ValueError(
            f"init {init} has learnt from images that are to be held out now: its run ({file}) divided the same data "
            f"by {_division(before)}, this one by {_division(now)}. Start from a run with the same division; "
            "{fold} in init and output stands for the fold"
        )


def _division(settings: dict[str, Any]) -> dict[str, Any]:
    """What decides which training images are held out; nothing where all are learnt from."""
    if not (settings["folds"] or settings["hold_out"]):
        return {"folds": 0, "hold_out": 0.0}
    return {name: settings[name] for name in ("folds", "fold", "hold_out", "data_seed", "group_column")}
