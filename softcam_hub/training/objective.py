"""The network in training and its loss, in one module, so that Accelerate wraps both.

- Self-explaining models are the Hugging Face models, which hold their teacher and their frozen parts.
- Vanilla classifiers are timm models; `VanillaForTraining` gives them the same interface.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import save_for_hf
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..data.splits import Splits
from ..files import DRAFT, flush
from ..loading import find_model, load_classifier, read_config
from ..models.classifier import Classifier, build
from ..models.conversion import to_vanilla
from ..models.heads import HEADS
from ..models.label_kind import MULTI_LABEL, SINGLE_LABEL, class_probabilities
from ..models.losses import cross_entropy
from ..models.modeling import EvidenceForImageClassification, model_class
from ..models.names import split_name
from ..models.preprocessing import check_pretrained_cfg
from ..models.weights import describe_file
from .config import Config, ModelConfig

_ERRORS_OF_TIMM = (RuntimeError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
"""Errors that timm's architectures raise for arguments and weights that do not fit."""


class Step(NamedTuple):
    """The output of the network, and of its loss, for one batch.

    Args:
        loss: Scalar loss.
        logits: Logits (B, C).
        maps: Maps (B, C, H, W) of a model that has some, before the loss is computed.
        teacher_logits: Logits (B, C) of CAPE's teacher, if there is one.
    """

    loss: Tensor
    logits: Tensor
    maps: Tensor | None = None
    teacher_logits: Tensor | None = None


class VanillaForTraining(nn.Module):
    """A vanilla timm classifier with the interface that training needs.

    Args:
        vanilla: Model from `timm.create_model`.
        multi_label: An image may have several labels.
        classes: Names of the classes.
    """

    family = None
    penalises_maps = False

    def __init__(self, vanilla: nn.Module, multi_label: bool, classes: list[str]) -> None:
        super().__init__()
        self.vanilla, self.multi_label, self.classes = vanilla, multi_label, classes

    def forward(self, pixel_values: Tensor, output_maps: bool = False) -> Step:
        return Step(None, self.vanilla(pixel_values))

    def loss(self, logits: Tensor, labels: Tensor, *_: None, **cross_entropy_options: Any) -> Tensor:
        return cross_entropy(logits, labels, multi_label=self.multi_label, **cross_entropy_options)

    def probabilities(self, logits: Tensor) -> Tensor:
        return class_probabilities(logits, self.multi_label)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return self.vanilla.pretrained_cfg

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights and config.json; existing files are replaced when all new files are complete."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=DRAFT) as draft:
            save_for_hf(self.vanilla, draft, safe_serialization=True)
            self.save_config(draft)
            flush(Path(draft))
            for file in sorted(Path(draft).iterdir()):
                os.replace(file, target / file.name)

    def save_config(self, folder: str | Path) -> None:
        """Write the config.json of the model, which timm and transformers read."""
        file = Path(folder) / "config.json"
        problem_type = MULTI_LABEL if self.multi_label else SINGLE_LABEL
        model_config = {"label_names": self.classes, "problem_type": problem_type}
        save_config_for_hf(self.vanilla, str(file), model_config=model_config)
        config = json.loads(file.read_text())
        config.get("model_args", {}).pop("num_classes", None)  # transformers passes its own value to timm, too
        file.write_text(json.dumps(config, indent=2))


class Objective(nn.Module):
    """A model together with the loss that it is trained with.

    Args:
        model: Hugging Face model of the package, or `VanillaForTraining`.
        label_smoothing: Share of the target that is spread over all classes.
        class_weights: Weights (C,) of the classes in the cross-entropy.
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, labels: Tensor, **inputs: Tensor) -> Step:
        """Compute the loss of a batch.

        Args:
            labels: Labels (B,), or multi-hot labels (B, C).
            inputs: Images `pixel_values` (B, 3, H, W), or `features` (B, K, H, W) that were computed before.
        """
        output = self.model(**inputs, output_maps=self.model.penalises_maps)
        options = {"label_smoothing": self.label_smoothing, "class_weights": self.class_weights}
        loss = self.model.loss(output.logits, labels, output.maps, output.teacher_logits, **options)
        return Step(loss, output.logits, teacher_logits=output.teacher_logits)


def make_model(config: Config, splits: Splits) -> nn.Module:
    """Create the network of the settings, with one output for each class of the data."""
    settings, classes = config.model, splits.classes
    if settings.num_classes not in (None, len(classes)):
        raise ValueError(f"num_classes={settings.num_classes}, but the data has {len(classes)} classes: {classes[:10]}")
    torch.manual_seed(config.run.seed)
    try:
        model = _make_model(settings, splits)
    except _ERRORS_OF_TIMM as error:
        args = f" with model_args {settings.model_args!r}" if settings.model_args else ""
        start = f" from {settings.init}" if settings.init else ""
        raise ValueError(f"model {settings.model!r}{args} cannot be made{start}: {error}") from error

    # a saved model prepares its images as training did
    if settings.image_size:
        model.pretrained_cfg["input_size"] = (3, settings.image_size, settings.image_size)
    if config.augmentation.eval_crop:
        model.pretrained_cfg["crop_pct"] = config.augmentation.eval_crop
    check_pretrained_cfg(model.pretrained_cfg)
    return model


def _make_model(settings: ModelConfig, splits: Splits) -> nn.Module:
    classes = splits.classes
    if settings.family is None:
        return VanillaForTraining(_make_vanilla(settings, len(classes)), splits.multi_label, classes)
    self_explaining = model_class(settings.family)
    loss_options = _loss_options(settings, splits.multi_label)
    label2id = {name: index for index, name in enumerate(classes)}
    labels = {"id2label": dict(enumerate(classes)), "label2id": label2id}

    # fresh weights, those of timm, or those of a file
    if settings.init is None or _is_file(settings.init):
        args = {**settings.architecture_args(), **_file_args(settings, len(classes))}
        pretrained = settings.pretrained or settings.init is not None
        return self_explaining.from_timm(settings.model, pretrained, model_args=args, **labels, **loss_options)

    # a folder or repository with a model of the same family
    if _family_of(settings.init) == settings.family:
        model = self_explaining.from_pretrained(settings.init, **loss_options)
        _check_classes(list(model.config.id2label.values()), classes, settings.init)
        _check_architecture(split_name(model.config.architecture)[1].split(".")[0], settings)
        _check_args(model.config, settings)
        return model

    # a folder or repository with a vanilla classifier
    vanilla = _make_vanilla(settings, len(classes))
    _check_classes(vanilla.pretrained_cfg.get("label_names"), classes, settings.init)
    return self_explaining.from_timm(vanilla, **labels, **loss_options)


def _loss_options(settings: ModelConfig, multi_label: bool) -> dict[str, Any]:
    names = model_class(settings.family).config_class.loss_settings
    options = {name: getattr(settings, name) for name in (*names, "freeze_backbone")}
    return {**options, "problem_type": MULTI_LABEL if multi_label else SINGLE_LABEL}


def load_model(folder: Path, splits: Splits) -> nn.Module:
    """Load the model of a folder that a run has written, with its teacher if it has one."""
    family = _family_of(folder)
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
    timm_model.head.weight.data.copy_(model.teacher.weight.data)
    timm_model.head.bias.data.copy_(model.teacher.bias.data)
    VanillaForTraining(to_vanilla(timm_model), False, classes).save_pretrained(target)


def _family_of(source: str | Path) -> str | None:
    """Return the family of the model in a folder or repository, or None for a vanilla classifier."""
    family = str(read_config(find_model(source, timm_names=False)).get("architecture")).partition("_")[0]
    return family if family in HEADS else None


def _make_vanilla(settings: ModelConfig, num_classes: int) -> nn.Module:
    """Create the vanilla timm classifier with fresh weights, or with those that the settings name."""
    args = settings.architecture_args()
    if settings.init is None or _is_file(settings.init):
        args |= _file_args(settings, num_classes)
        pretrained = settings.pretrained or settings.init is not None
        return timm.create_model(settings.timm_name, pretrained=pretrained, num_classes=num_classes, **args)
    model = load_classifier(settings.init, timm_names=False, **args).model
    if model.num_classes != num_classes:
        raise ValueError(f"{settings.init} has {model.num_classes} classes, but the data has {num_classes}")
    _check_architecture(model.pretrained_cfg.get("architecture"), settings)
    return model


def _is_file(init: str) -> bool:
    return Path(init).expanduser().is_file()


def _file_args(settings: ModelConfig, num_classes: int) -> dict[str, Any]:
    """Return the arguments with which timm loads the weights of the file in `init`, if there is one.

    A classifier for another number of classes than the data have is replaced by a fresh one, as with
    `pretrained`.
    """
    if settings.init is None:
        return {}
    args = settings.architecture_args()
    description = describe_file(Path(settings.init).expanduser(), settings.timm_name)
    overlay = {**(args.pop("pretrained_cfg_overlay", None) or {}), **description}
    num_classes_of_file = overlay.get("num_classes")
    if num_classes_of_file != num_classes:
        # For another number of classes, timm loads the weights that fit and is silent about the rest. A model
        # with the classes of the file takes all weights or raises an error.
        create = timm.create_model if settings.family is None else build
        if num_classes_of_file is not None:
            args["num_classes"] = num_classes_of_file
        create(settings.model, pretrained=True, pretrained_cfg_overlay=overlay, **args)
    return {"pretrained_cfg_overlay": overlay}


def _check_architecture(architecture: str | None, settings: ModelConfig) -> None:
    """Refuse weights of another architecture than the settings name."""
    if architecture != settings.timm_name.split(".")[0]:
        raise ValueError(f"{settings.init} holds a {architecture}, but the model to train is {settings.model}")


def _check_args(config: PreTrainedConfig, settings: ModelConfig) -> None:
    """Refuse arguments that contradict those with which the saved architecture was made."""
    saved = {"img_size": config.pretrained_cfg["input_size"][-1], **(config.model_args or {})}
    for name, value in settings.architecture_args().items():
        if saved.get(name) != value:
            raise ValueError(
                f"{settings.init} was made with {name}={saved.get(name)!r}, but model_args and image_size "
                f"make it {value!r}: leave them out, or start from another model"
            )


def _check_classes(saved: list[str] | None, classes: list[str], source: str) -> None:
    """Refuse a classifier whose outputs stand for other classes, or for the same classes in another order."""
    if saved is not None and list(saved) != classes:
        raise ValueError(f"{source} was trained on the classes {list(saved)[:10]}, but the data has {classes[:10]}")
