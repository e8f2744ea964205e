"""Check a whole run before any work: launcher, data, model and settings must fit each other.

- `check_launcher` needs nothing, and comes first. `check_run` follows when data and model are loaded, and
  before the output folder is claimed, so that a mistake costs neither an earlier run nor an hour of training.
- A model folder records the arguments of its architecture in config.json. Arguments that JSON changes, or
  that timm does not accept again, would otherwise show only when the finished model is loaded.
"""

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

from ..data.samples import Samples
from ..data.splits import Splits
from ..data.transforms import make_transforms
from ..models.evaluation_mode import evaluation_mode
from ..models.image_size import check_takes_size
from ..models.losses import zeroing_l1
from ..models.modeling import EvidenceForImageClassification
from .cache_folder import DTYPE, GB, check_folder, check_limit
from .config import Config, ModelConfig
from .feature_cache import caches_features
from .folder import settings_behind
from .metrics import score_names
from .optimization import make_optimizer
from .results import data_config
from .start import Start

logger = logging.getLogger(__name__)

SHARDING_VARIABLES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""Environment variables with which `accelerate launch` or a plugin asks to divide a network."""


def check_launcher() -> None:
    """Refuse launchers that divide the network among processes.

    Evaluation, moving average and checkpoints need the whole network. Accelerate ignores these variables on a
    CPU, so that a user would believe that the network had been divided.
    """
    for variable, name in SHARDING_VARIABLES.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise ValueError(
                f"accelerate is set to divide the network among processes with {name}, but training keeps "
                "the whole network in every process and divides the images: launch with --multi_gpu instead "
                "(or run `accelerate config` again without it), or use torchrun"
            )


def check_run(config: Config, splits: Splits, model: nn.Module, processes: int, start: Start) -> None:
    """Refuse settings that do not fit the data, the model or the number of processes.

    Args:
        config: Settings of the run.
        splits: Data of the run.
        model: Model to train, a self-explaining one or a `VanillaForTraining`.
        processes: Number of training processes.
        start: Weights that the model starts from.
    """
    check_reloads(model, config.model.architecture_args())
    make_optimizer(model, config.optimization)  # raises a ValueError for a name that timm does not know
    check_training_images(config, splits, processes)
    check_validation(config, splits, model)
    make_transforms(data_config(model), config.augmentation)  # raises a ValueError for a policy that timm does not know
    if caches_features(config, splits):
        check_cache(config, splits, model)
    if config.model.teach_from_size is not None:
        check_larger_images(config.model, model, start)
    if config.model.init is not None:
        check_held_out(config.model.init, config.flat())
    least = zeroing_l1(len(splits.classes), splits.multi_label)
    if config.model.l1 >= least:
        logger.warning(
            "l1=%g leaves nothing to learn: with %d classes, from %g on, maps of zero have the least loss; "
            "a tenth of that kept the accuracy in docs/reproduction.md",
            *(config.model.l1, len(splits.classes), least),
        )


def check_larger_images(settings: ModelConfig, model: EvidenceForImageClassification, start: Start) -> None:
    """Refuse larger images that the network does not take, or whose maps a fresh head would draw.

    Args:
        settings: Settings of the model, with `teach_from_size`.
        model: Model to train.
        start: Weights that it starts from.
    """
    is_fresh = not model.anatomy.exact and not str(start.config.get("architecture")).startswith(f"{settings.family}_")
    if not start.keeps_classifier or is_fresh:  # the classifier of a ViT or VGG cannot be applied at each location
        raise ValueError(
            f"teach_from_size needs a model whose maps were trained on these classes, but {start.source} has none: "
            "train one first, and name its folder in init"
        )
    size, own = settings.teach_from_size, model.input_size[1:]
    fixed = bool(model.pretrained_cfg.get("fixed_input_size"))
    check_takes_size(model.backbone, fixed, size, own)
    if size is not None and size <= max(own):
        raise ValueError(f"teach_from_size must be above the size of the images, {max(own)} px, got {size}")


def check_training_images(config: Config, splits: Splits, processes: int) -> None:
    """Refuse a training split that does not admit a single update, or the chosen balancing of classes."""
    settings = config.optimization
    if not isinstance(splits.train, Samples):
        if settings.balance != "none":
            raise ValueError("balance needs to count the classes before training, which streaming data does not allow")
        if settings.steps_per_epoch is None:
            raise ValueError("streaming data has no length: say how long an epoch is with --steps-per-epoch")
        return
    count = len(splits.train)
    if count < settings.batch_size * settings.accumulation * processes:
        raise ValueError(
            f"the training split has {count} images, fewer than one update takes: {settings.batch_size} x "
            f"{settings.accumulation} accumulated x {processes} processes; lower batch_size"
        )
    if settings.balance == "sampling" and splits.multi_label:
        raise ValueError("balance='sampling' needs one label per image: use balance='loss'")


def check_validation(config: Config, splits: Splits, model: nn.Module) -> None:
    """Refuse settings that need validation images if there are none, and scores that are not computed."""
    if splits.validation is None:
        needs_validation = {"temperatures": config.model.candidates(), "calibrate": config.model.calibrate}
        for name, is_set in needs_validation.items():
            if is_set:
                raise ValueError(
                    f"{name} needs validation images, but there are none: set hold_out, such as --hold-out 0.2"
                )
        return
    known = score_names(model, splits.multi_label)
    if config.run.select not in known:
        raise ValueError(f"select={config.run.select!r} is not a validation score here: expected {', '.join(known)}")


def check_cache(config: Config, splits: Splits, model: nn.Module) -> None:
    """Refuse features that cannot be cached, for want of room or because of the folder."""
    if config.run.cache_dir:
        check_folder(Path(config.run.cache_dir).absolute())
    with torch.no_grad(), evaluation_mode(model):
        features = model.forward_features(torch.zeros(1, *data_config(model)["input_size"]))
    images = len(splits.train) + len(splits.validation or ())
    check_limit(images * features.numel() * DTYPE.itemsize / GB, config.run.cache_limit)


def check_held_out(init: str, settings: dict[str, Any]) -> None:
    """Refuse initial weights that have learnt from images that this run holds out.

    Args:
        init: Model to start from.
        settings: Settings of this run by name.
    """
    found = settings_behind(init)
    if found is None:
        return
    file, earlier = found[0], {**settings, **found[1]}
    if earlier.get("data") == settings["data"] and _held_out(earlier) != _held_out(settings):
        raise ValueError(
            f"init {init} has learnt from images that are to be held out now: its run ({file}) divided the "
            f"same data by {_held_out(earlier)}, this one by {_held_out(settings)}. Start from a run with the "
            "same division; {fold} in init and output stands for the number of the fold"
        )


def _held_out(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide which images of the training split are held out."""
    if not (settings["folds"] or settings["hold_out"]):
        return {"folds": 0, "hold_out": 0.0}
    return {name: settings[name] for name in ("folds", "fold", "hold_out", "data_seed", "group_column")}


def check_reloads(model: nn.Module, args: dict[str, Any]) -> None:
    """Rebuild the model from the configuration that it would be saved with, and compare the shapes of weights.

    Args:
        model: Self-explaining model, or a `VanillaForTraining`.
        args: Arguments of the architecture with which the model was made.
    """
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        save_config = model.config.save_pretrained if _is_self_explaining(model) else model.save_config
        save_config(folder)
        problem = _problem_of_reloading(model, Path(folder))
        if problem is None:
            return

        # the argument without which there is no problem, or another one, is to blame
        for name in args:
            with TemporaryDirectory() as other:
                _copy_config_without(Path(folder), Path(other), name)
                if _problem_of_reloading(model, Path(other)) != problem:
                    raise ValueError(
                        f"model_args: a model made with {name}={args[name]!r} can be saved, but not loaded "
                        f"again: {problem}. Leave {name} out"
                    )
        raise ValueError(
            f"a model made with model_args {args!r} can be saved, but not loaded again ({problem}): choose another "
            "model, or fewer model_args"
        )


def _copy_config_without(folder: Path, target: Path, name: str) -> None:
    """Copy a config.json without one argument of the architecture."""
    config = json.loads((folder / "config.json").read_text())
    for values in (config.get("model_args", {}), config):
        values.pop(name, None)
    (target / "config.json").write_text(json.dumps(config))


def _problem_of_reloading(model: nn.Module, folder: Path) -> str | None:
    """Say why the model cannot be rebuilt from the config.json of a folder, or return None if it can."""
    problem = None
    for device in ("meta", "cpu"):  # a few architectures cannot be built on the meta device
        try:
            with torch.device(device):
                differences = [_difference(model, rebuilt) for rebuilt in _rebuild(model, folder)]
        except Exception as error:  # the architectures of timm raise errors of many kinds
            problem = str(error) or type(error).__name__
        else:
            return next((difference for difference in differences if difference), None)
    return problem


def _rebuild(model: nn.Module, folder: Path) -> Iterator[nn.Module]:
    """Build the model as timm does and, if it is self-explaining, as transformers does."""
    yield timm.create_model(f"local-dir:{folder}")
    if _is_self_explaining(model):
        yield type(model)(model.config_class.from_pretrained(folder))


def _is_self_explaining(model: nn.Module) -> bool:
    return isinstance(model, EvidenceForImageClassification)


def _difference(model: nn.Module, rebuilt: nn.Module) -> str | None:
    """Describe the first weight that is missing from one of two models or has another shape there."""
    expected, actual = _shapes(model), _shapes(rebuilt)
    for name in {**expected, **actual}:
        if expected.get(name) != actual.get(name):
            return f"its {name} would be {actual.get(name)} instead of {expected.get(name)}"
    return None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    weights = getattr(model, "vanilla", model).state_dict()
    return {name: tuple(weights[name].shape) for name in weights if not name.startswith("teacher.")}
