"""The network in training, and its loss: one module, so that Accelerate wraps both.

- The black box is trained as timm makes it; ours are the Hugging Face models, which hold teacher and frozen parts.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from timm.models import save_for_hf
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..data.splits import Splits
from ..files import DRAFT, flush
from ..loading import find_model, load_classifier, read_config
from ..models.classifier import build, split_name
from ..models.heads import HEADS
from ..models.label_kind import MULTI_LABEL, SINGLE_LABEL, class_probabilities
from ..models.losses import cross_entropy
from ..models.modeling import CAPEForImageClassification, EvidenceForImageClassification, SoftCAMForImageClassification
from ..models.preprocessing import check_pretrained_cfg
from ..models.weights import describe_file
from .checks import check_reloads
from .config import Config, ModelConfig

MODELS: dict[str, type[EvidenceForImageClassification]] = {
    "softcam": SoftCAMForImageClassification,
    "cape": CAPEForImageClassification,
}

_TIMMS_ERRORS = (RuntimeError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
"""Errors that timm's architectures raise for arguments and weights that do not fit them."""


class Step(NamedTuple):
    """What one batch gives.

    Args:
        loss: scalar.
        logits: (B, C).
        maps: (B, C, H, W), where asked for.
        teacher_logits: (B, C), of CAPE's teacher.
    """

    loss: Tensor
    logits: Tensor
    maps: Tensor | None = None
    teacher_logits: Tensor | None = None


class VanillaForTraining(nn.Module):
    """A timm classifier, with the interface of our models that training needs.

    Args:
        vanilla: from `timm.create_model`.
        multi_label: an image may have several labels.
        classes: their names.
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
        """Write weights and configuration; files that are there stay as they are until all of it is written."""
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
        problem = MULTI_LABEL if self.multi_label else SINGLE_LABEL
        facts = {"label_names": self.classes, "problem_type": problem}
        save_config_for_hf(self.vanilla, str(file), model_config=facts)
        config = json.loads(file.read_text())
        config.get("model_args", {}).pop("num_classes", None)  # transformers passes it on beside its own
        file.write_text(json.dumps(config, indent=2))


class Objective(nn.Module):
    """A model and the loss that it is trained with.

    Args:
        model: a Hugging Face model of ours, or `VanillaForTraining`.
        label_smoothing: share of the target that is spread over all classes.
        class_weights: (C,).
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, labels: Tensor, output_maps: bool = False, **inputs: Tensor) -> Step:
        """The loss of `pixel_values` (B, 3, H, W), or of `features` (B, K, H, W) that were computed before."""
        output = self.model(**inputs, output_maps=output_maps or self.model.penalises_maps)
        teacher_logits = output.teacher_logits
        options = {"label_smoothing": self.label_smoothing, "class_weights": self.class_weights}
        loss = self.model.loss(output.logits, labels, output.maps, teacher_logits, **options)
        return Step(loss, output.logits, output.maps if output_maps else None, teacher_logits)


def make_model(config: Config, splits: Splits) -> nn.Module:
    """The network that the settings ask for, for the classes of the data."""
    settings, classes = config.model, splits.classes
    if settings.num_classes not in (None, len(classes)):
        raise ValueError(f"num_classes={settings.num_classes}, but the data has {len(classes)} classes: {classes[:10]}")
    torch.manual_seed(config.run.seed)
    try:
        model = _make(settings, splits)
    except _TIMMS_ERRORS as error:
        args = f" with model_args {settings.model_args!r}" if settings.model_args else ""
        start = f" from {settings.init}" if settings.init else ""
        raise ValueError(f"model {settings.model!r}{args} cannot be made{start}: {error}") from error
    if settings.image_size:
        model.pretrained_cfg["input_size"] = (3, settings.image_size, settings.image_size)
    if config.augmentation.eval_crop:
        model.pretrained_cfg["crop_pct"] = config.augmentation.eval_crop  # what a saved model does to its images
    check_pretrained_cfg(model.pretrained_cfg)
    check_reloads(model, settings.architecture_args())
    return model


def _make(settings: ModelConfig, splits: Splits) -> nn.Module:
    classes = splits.classes
    if settings.family is None:
        return VanillaForTraining(_vanilla(settings, len(classes)), splits.multi_label, classes)
    source = MODELS[settings.family]
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: index for index, name in enumerate(classes)}}
    options = {**labels, **_loss_settings(settings, splits.multi_label)}
    if settings.init is None or _is_file(settings.init):
        args = {**settings.architecture_args(), **_weights_of_file(settings, len(classes))}
        pretrained = settings.pretrained or settings.init is not None
        return source.from_timm(settings.model, pretrained, model_args=args, **options)
    if _family_of(settings.init) == settings.family:
        model = source.from_pretrained(settings.init, **_loss_settings(settings, splits.multi_label))
        _check_classes(list(model.config.id2label.values()), classes, settings.init)
        _check_architecture(split_name(model.config.architecture)[1].split(".")[0], settings)
        _check_args(model.config, settings)
        return model
    vanilla = _vanilla(settings, len(classes))
    _check_classes(vanilla.pretrained_cfg.get("label_names"), classes, settings.init)
    return source.from_timm(vanilla, **options)


def _loss_settings(settings: ModelConfig, multi_label: bool) -> dict[str, Any]:
    names = {"softcam": ("l1", "l2"), "cape": ("mode", "alpha", "beta", "temperature", "selective")}[settings.family]
    problem = MULTI_LABEL if multi_label else SINGLE_LABEL
    chosen = {name: getattr(settings, name) for name in names}
    return {**chosen, "problem_type": problem, "freeze_backbone": settings.freeze_backbone}


def load_model(folder: Path, splits: Splits) -> nn.Module:
    """The model of a folder that a run wrote, with its teacher if it has one."""
    family = _family_of(folder)
    if family is not None:
        return MODELS[family].from_pretrained(folder)
    vanilla = load_classifier(folder, timm_names=False).model
    return VanillaForTraining(vanilla, splits.multi_label, splits.classes)


def _family_of(source: str | Path) -> str | None:
    """`softcam` or `cape` where a folder or repo holds a model of ours."""
    kind = read_config(find_model(source, timm_names=False)).get("model_type")
    return kind if kind in HEADS else None


def _vanilla(settings: ModelConfig, classes: int) -> nn.Module:
    """The plain timm model, from timm's weights or a folder."""
    name, args = settings.model, settings.architecture_args()
    if settings.family is not None:
        name = name.removeprefix(f"{settings.family}_")
    if settings.init is None or _is_file(settings.init):
        args |= _weights_of_file(settings, classes)
        pretrained = settings.pretrained or settings.init is not None
        return timm.create_model(name, pretrained=pretrained, num_classes=classes, **args)
    model = load_classifier(settings.init, timm_names=False, **args).model
    if model.num_classes != classes:
        raise ValueError(f"{settings.init} has {model.num_classes} classes, but the data has {classes}")
    _check_architecture(model.pretrained_cfg.get("architecture"), settings)
    return model


def _is_file(init: str) -> bool:
    return Path(init).expanduser().is_file()


def _weights_of_file(settings: ModelConfig, classes: int) -> dict[str, Any]:
    """The argument that makes timm load the weights of the file in `init`; none where `init` is no file.

    A classifier for another number of classes than the data have is replaced by a fresh one, as with `pretrained`.
    """
    if settings.init is None:
        return {}
    overlay = describe_file(Path(settings.init).expanduser(), settings.timm_name)
    args = settings.architecture_args()
    chosen = args.pop("pretrained_cfg_overlay", None) or {}
    overlay = {"pretrained_cfg_overlay": {**chosen, **overlay}}
    rows = overlay["pretrained_cfg_overlay"].get("num_classes")
    if rows != classes:  # for other classes timm loads what fits and says nothing: all of the file must fit
        make = timm.create_model if settings.family is None else build
        known = {} if rows is None else {"num_classes": rows}
        make(settings.model, pretrained=True, **known, **{**args, **overlay})
    return overlay


def _check_architecture(made: str | None, settings: ModelConfig) -> None:
    """Weights of another network are not loaded into this one, nor is this one quietly replaced by the other."""
    if made != settings.timm_name.split(".")[0]:
        raise ValueError(f"{settings.init} holds a {made}, but the model to train is {settings.model}")


def _check_args(config: PreTrainedConfig, settings: ModelConfig) -> None:
    """What the saved architecture was made with stays; `model_args` may repeat it, but not change it."""
    made = {"img_size": config.pretrained_cfg["input_size"][-1], **(config.model_args or {})}
    for name, value in settings.architecture_args().items():
        if made.get(name) != value:
            raise ValueError(
                f"{settings.init} was made with {name}={made.get(name)!r}, but model_args and image_size make it "
                f"{value!r}: leave them out, or start from something else"
            )


def _check_classes(theirs: list[str] | None, ours: list[str], source: str) -> None:
    """Weights mean nothing for classes in another order."""
    if theirs is not None and list(theirs) != ours:
        raise ValueError(f"{source} was trained on the classes {list(theirs)[:10]}, but the data has {ours[:10]}")


def balanced_weights(labels: np.ndarray, classes: int) -> Tensor:
    """(C,) weights by which every class counts the same, with mean 1 over the images.

    For multi-hot labels (N, C): how much more often each class is absent than present.
    """
    if labels.ndim == 2:
        present = labels.mean(axis=0)
        return torch.as_tensor((1 - present) / np.clip(present, 1 / len(labels), None), dtype=torch.float32)
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.clip(counts, 1, None))
    return torch.as_tensor(weights, dtype=torch.float32)
