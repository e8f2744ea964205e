"""Create, load and save the network of a run.

- Initial weights are those that `find_start` finds. A head for other classes than those of the data starts fresh.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from transformers import PreTrainedConfig

from ..data.splits import Splits
from ..loading import find_model, load_classifier, read_config
from ..models.classifier import Classifier, build
from ..models.conversion import to_vanilla
from ..models.heads import HEADS
from ..models.label_kind import MULTI_LABEL, SINGLE_LABEL
from ..models.modeling import EvidenceForImageClassification, model_class
from ..models.names import split_name
from ..models.preprocessing import check_pretrained_cfg
from ..models.text import abbreviate
from ..models.weights import off_the_shelf_is_intended
from .config import Config, ModelConfig
from .objective import VanillaForTraining
from .start import Start, find_start

_ERRORS_OF_TIMM = (RuntimeError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
"""Errors that timm's architectures raise for arguments and weights that do not fit."""


def make_model(config: Config, splits: Splits, start: Start | None = None) -> nn.Module:
    """Create the network of the settings, with one output for each class of the data.

    Args:
        config: Settings of the run.
        splits: Data of the run.
        start: Weights to start from. The default is what `find_start` finds.
    """
    settings, classes = config.model, splits.classes
    if settings.num_classes not in (None, len(classes)):
        raise ValueError(
            f"num_classes={settings.num_classes}, but the data has {len(classes)} classes, {classes[:10]}: leave "
            "num_classes out"
        )
    torch.manual_seed(config.run.seed)
    try:
        start = start or find_start(settings, classes)
        with off_the_shelf_is_intended():
            model = _make_model(settings, splits, start)
    except _ERRORS_OF_TIMM as error:
        args = f" with model_args {settings.model_args!r}" if settings.model_args else ""
        source = f" from {settings.init}" if settings.init else ""
        reason = str(error)
        if settings.init and (mismatches := [line.strip() for line in reason.splitlines() if "size mismatch" in line]):
            # torch lists every weight, and the first says as much
            reason = f"{mismatches[0].removesuffix('.')}: its weights are of another architecture, which --model names"
        raise ValueError(f"model {settings.model!r}{args} cannot be made{source}: {reason}") from error
    _describe_images(model, config, start)
    return model


def _describe_images(model: nn.Module, config: Config, start: Start) -> None:
    """Write into the model how its images are prepared, so that every program prepares them as training did."""
    cfg, size = model.pretrained_cfg, config.model.image_size
    if size:
        cfg["input_size"] = (3, size, size)
    resize = config.augmentation.resize or ("model" if start.keeps_classifier else "squash")
    cfg.update(replace(config.augmentation, resize=resize).crop)
    if resize != "model":
        for name in (
            "test_input_size",
            "test_crop_pct",
        ):  # recommendations for the images that it was trained on before
            cfg.pop(name, None)
    check_pretrained_cfg(cfg)


def _make_model(settings: ModelConfig, splits: Splits, start: Start) -> nn.Module:
    classes = splits.classes
    if settings.mode == "post-fit" and not start.keeps_classifier and not start.is_random:
        raise ValueError(
            f"mode 'post-fit' fits CAPE to a trained classifier, but {start.source} has none for the classes "
            f"{abbreviate(classes)}: fine-tune the vanilla model {settings.timm_name} first, and name its folder "
            "with --init"
        )
    if settings.family is None:
        return VanillaForTraining(_make_vanilla(settings, start, len(classes)), splits.multi_label, classes)
    self_explaining = model_class(settings.family)
    loss_options = _loss_options(settings, splits.multi_label)
    label2id = {name: index for index, name in enumerate(classes)}
    labels = {"id2label": dict(enumerate(classes)), "label2id": label2id}

    # fresh weights, those of timm, or those of a file
    if not start.config:
        args = {**settings.architecture_args(), **_file_args(settings, start)}
        return self_explaining.from_timm(settings.model, not start.is_random, model_args=args, **labels, **loss_options)

    # a folder or repository with a model of the same family
    if _family_in(start.config) == settings.family:
        if not start.keeps_classifier:
            return self_explaining.from_timm(
                _load_with_fresh_head(settings, start, len(classes)), **labels, **loss_options
            )
        source = find_model(settings.init, timm_names=False).partition(":")[2]
        model = self_explaining.from_pretrained(source, **loss_options)
        _check_architecture(split_name(model.config.architecture)[1].split(".")[0], settings)
        _check_args(model.config, settings)
        scales = settings.architecture_args().get("scales", 1)
        if scales > 1 and not model.anatomy.finer:
            return self_explaining.from_timm(_with_scales(model, scales), **labels, **loss_options)
        return model

    # a folder or repository with a vanilla classifier, or with a model of another family
    scales = settings.architecture_args().get("scales", 1)
    vanilla = _make_vanilla(settings, start, len(classes))
    return self_explaining.from_timm(vanilla, model_args={"scales": scales}, **labels, **loss_options)


def _with_scales(model: EvidenceForImageClassification, scales: int) -> Classifier:
    """Return the timm model with the weights of a model of one scale, and with weights of zero for finer features."""
    args = {name: value for name, value in (model.config.model_args or {}).items() if name != "alignment"}
    cfg = dict(model.pretrained_cfg)
    classifier = build(model.timm_name, pretrained_cfg=cfg, num_classes=model.num_classes, scales=scales, **args)
    classifier.load_state_dict(model.state_dict())
    classifier.alignment, classifier.measures_on_first_use = model.alignment, model.measures_on_first_use
    return classifier


def _loss_options(settings: ModelConfig, multi_label: bool) -> dict[str, Any]:
    names = model_class(settings.family).config_class.loss_settings
    options = {name: getattr(settings, name) for name in (*names, "freeze_backbone")}
    return {**options, "problem_type": MULTI_LABEL if multi_label else SINGLE_LABEL}


def load_model(folder: Path, splits: Splits) -> nn.Module:
    """Load the model of a folder that a run has written, with its teacher if it has one."""
    family = _family_in(read_config(find_model(folder, timm_names=False)))
    if family is not None:
        return model_class(family).from_pretrained(folder)
    vanilla = load_classifier(folder, timm_names=False).model
    return VanillaForTraining(vanilla, splits.multi_label, splits.classes)


def save_vanilla(model: EvidenceForImageClassification, model_folder: Path, target: Path, classes: list[str]) -> None:
    """Save the vanilla timm classifier that has the weights of the teacher.

    Args:
        model: Model with an exact head and a teacher.
        model_folder: Folder from which the model was loaded.
        target: Folder to write.
        classes: Names of the classes.
    """
    timm_model = timm.create_model(f"local-dir:{model_folder}", pretrained=True)
    assert isinstance(timm_model, Classifier)
    if timm_model.anatomy.finer:
        timm_model.head.fine_weight.data.zero_()  # the teacher does not read finer features
    timm_model.head.weight.data.copy_(model.teacher.weight.data)
    timm_model.head.bias.data.copy_(model.teacher.bias.data)
    VanillaForTraining(to_vanilla(timm_model), False, classes).save_pretrained(target)


def _family_in(config: dict[str, Any]) -> str | None:
    """Return the family of the model that a config.json describes, or None for a vanilla classifier."""
    family = str(config.get("architecture")).partition("_")[0]
    return family if family in HEADS else None


def _make_vanilla(settings: ModelConfig, start: Start, num_classes: int) -> nn.Module:
    """Create the vanilla timm classifier with fresh weights, or with those that the settings name."""
    if not start.config:
        args = {**settings.architecture_args(), **_file_args(settings, start)}
        return timm.create_model(settings.timm_name, pretrained=not start.is_random, num_classes=num_classes, **args)
    if start.keeps_classifier:
        args = _vanilla_args(settings)
        model = load_classifier(settings.init, timm_names=False, **args).model
    else:
        model = _load_with_fresh_head(settings, start, num_classes)
    if isinstance(model, Classifier):
        model = to_vanilla(model)
    _check_architecture(model.pretrained_cfg.get("architecture"), settings)
    return model


def _vanilla_args(settings: ModelConfig) -> dict[str, Any]:
    """Return `model_args` without the number of scales, which a vanilla classifier does not have."""
    return {name: value for name, value in settings.architecture_args().items() if name != "scales"}


def _load_with_fresh_head(settings: ModelConfig, start: Start, num_classes: int) -> nn.Module:
    """Load a timm model from the folder or repository in `init`, with a fresh classifier in place of its own."""
    args = settings.architecture_args() if _family_in(start.config) == settings.family else _vanilla_args(settings)
    model = load_classifier(settings.init, timm_names=False, num_classes=num_classes, **args).model
    model.reset_classifier(num_classes)  # timm keeps a classifier of as many classes
    for name in ("label_names", "label_descriptions"):
        model.pretrained_cfg.pop(name, None)
    if isinstance(model, Classifier):
        _check_architecture(model.architecture, settings)
    return model


def _file_args(settings: ModelConfig, start: Start) -> dict[str, Any]:
    """Return the arguments with which timm loads the weights of the file in `init`, if there is one.

    A classifier for another number of classes than the data have is replaced by a fresh one, as with
    `pretrained`.
    """
    if not start.overlay:
        return {}
    args = settings.architecture_args()
    overlay = {**(args.pop("pretrained_cfg_overlay", None) or {}), **start.overlay}
    if not start.keeps_classifier:
        # For another number of classes, timm loads the weights that fit and is silent about the rest. A model
        # with the classes of the file takes all weights or raises an error.
        create = timm.create_model if settings.family is None else build
        if overlay.get("num_classes") is not None:
            args["num_classes"] = overlay["num_classes"]
        create(settings.model, pretrained=True, pretrained_cfg_overlay=overlay, **args)
    return {"pretrained_cfg_overlay": overlay}


def _check_architecture(architecture: str | None, settings: ModelConfig) -> None:
    """Refuse weights of another architecture than the settings name."""
    if architecture != settings.timm_name.split(".")[0]:
        raise ValueError(f"{settings.init} holds a {architecture}, but the model to train is {settings.model}")


def _check_args(config: PreTrainedConfig, settings: ModelConfig) -> None:
    """Refuse arguments that contradict those with which the saved architecture was made."""
    saved = {"img_size": config.pretrained_cfg["input_size"][-1], "scales": 1, **(config.model_args or {})}
    for name, value in settings.architecture_args().items():
        may_grow = name == "scales" and saved[name] == 1
        if saved.get(name) != value and not may_grow:
            raise ValueError(
                f"{settings.init} was made with {name}={saved.get(name)!r}, but model_args and image_size "
                f"make it {value!r}: leave them out, or start from another model"
            )
