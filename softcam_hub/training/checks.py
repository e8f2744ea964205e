"""What these data, this network and this launcher cannot give, said before anything is written or trained."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from torch import nn

from ..data.splits import Splits
from ..files import read_mapping
from ..models.losses import zeroing_l1
from ..models.modeling import EvidenceForImageClassification
from .config import Config
from .folder import SETTINGS_FILE
from .metrics import score_names

logger = logging.getLogger(__name__)

SHARDING_VARIABLES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""Variables by which `accelerate launch`, or an Accelerator with the plugin, asks to divide a network."""


def check_launcher() -> None:
    """Refuse to divide the network among processes: evaluation, moving average and checkpoints need all of it.

    Accelerate ignores these requests on a CPU, where a user would then believe that the network had been divided.
    """
    for variable, name in SHARDING_VARIABLES.items():
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
    file = Path(init).parent / SETTINGS_FILE
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


def check_reloads(model: nn.Module, args: dict[str, Any]) -> None:
    """Build the model again from the configuration that it would be saved with, and compare names and shapes.

    Args:
        model: A model of ours, or a black box.
        args: The `model_args` that it was made with.
    """
    with TemporaryDirectory() as place, torch.random.fork_rng(devices=[]):
        (model.config.save_pretrained if _is_ours(model) else model.save_config)(place)
        failure = _failure(model, Path(place))
        if failure is None:
            return
        for name in args:
            with TemporaryDirectory() as other:
                _copy_without(Path(place), Path(other), name)
                if _failure(model, Path(other)) != failure:
                    raise ValueError(
                        f"model_args: a model made with {name}={args[name]!r} can be saved, but not loaded again: "
                        f"{failure}. Leave {name} out"
                    )
        raise ValueError(f"a model made with model_args {args!r} can be saved, but not loaded again: {failure}")


def _copy_without(folder: Path, target: Path, name: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    for values in (config.get("model_args", {}), config):
        values.pop(name, None)
    (target / "config.json").write_text(json.dumps(config))


def _failure(model: nn.Module, folder: Path) -> str | None:
    """Why the model cannot be built again from a folder with its config.json; None if it can."""
    reason = None
    for device in ("meta", "cpu"):  # few architectures cannot be built on the meta device
        try:
            with torch.device(device):
                differences = [_difference(model, again) for again in _rebuilt(model, folder)]
        except Exception as error:  # timm's architectures raise errors of many kinds
            reason = str(error) or type(error).__name__
        else:
            return next((difference for difference in differences if difference), None)
    return reason


def _rebuilt(model: nn.Module, folder: Path) -> Iterator[nn.Module]:
    """The model as timm and, if it is one of ours, as transformers builds it."""
    yield timm.create_model(f"local-dir:{folder}")
    if _is_ours(model):
        yield type(model)(model.config_class.from_pretrained(folder))


def _is_ours(model: nn.Module) -> bool:
    return isinstance(model, EvidenceForImageClassification)


def _difference(model: nn.Module, again: nn.Module) -> str | None:
    made, found = _shapes(model), _shapes(again)
    names = [name for name in {**made, **found} if made.get(name) != found.get(name)]
    return f"its {names[0]} would be {found.get(names[0])} instead of {made.get(names[0])}" if names else None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    model = getattr(model, "vanilla", model)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.startswith("teacher.")}
