"""The settings of a training run, checked when they are made.

- The name of the model says how it is trained. `cape_*` and `softcam_*` models are trained with losses of
  their own, and a plain timm name is trained as the vanilla classifier that they are compared with.
- A model folder records the arguments of its architecture in config.json, so that `model_args` must survive
  JSON.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import timm
import yaml

from ..data.config import DataConfig, flag
from ..data.transforms import AugmentationConfig
from ..models.heads import HEADS
from ..models.losses import MODES, Bootstrap
from ..models.modeling import model_class
from ..models.names import split_name
from ..models.preprocessing import check_model_args, check_pretrained_cfg
from ..models.weights import SOURCES

SCORES = (
    *("loss", "accuracy", "balanced_accuracy", "auc", "kappa", "calibration_error", "confidence"),
    *("teacher_accuracy", "teacher_confidence", "disagreement", "sparseness", "completeness_error"),
)
"""Every score that a validation may give; a model without maps or teacher, or several labels, give fewer."""

_SET_ELSEWHERE = {
    "pretrained": "set --pretrained",
    "num_classes": "the number of classes comes from the data",
    "checkpoint_path": "give the file to --init",
    "features_only": "a classifier is trained, and not a feature extractor",
    "out_indices": "a classifier is trained, and not a feature extractor",
    "device": "`accelerate launch` chooses the device",
    "dtype": "set --mixed_precision",
}
"""Arguments of `timm.create_model` that `model_args` refuses, with what to do instead."""


def options_of(family: str | None) -> tuple[str, ...]:
    """Return the names of the options that one family has and others lack."""
    if family is None:
        return ()
    names = model_class(family).config_class.loss_settings
    if "temperature" in names:
        names += ("temperatures",)
    if HEADS[family].has_temperature:
        names += ("calibrate",)
    return names


@dataclass
class ModelConfig:
    """The network, its initial weights, and its loss."""

    _argument_group_name: ClassVar[str] = "model"

    model: str = flag("cape_resnet18", "cape_<timm name>, softcam_<timm name>, or a timm name (vanilla classifier).")
    pretrained: bool = flag(False, "Start from the weights that timm provides.")
    init: str | None = flag(
        None,
        "Model folder, Hub id or file of weights (.safetensors, .pth) to start from; the model may be "
        "self-explaining or vanilla, and '{fold}' is replaced by the number of the fold.",
    )
    num_classes: int | None = flag(None, "Expected number of classes; data with another number are refused.")
    image_size: int | None = flag(None, "Side of the input images in pixels; by default the architecture's own.")
    model_args: str = flag("", "Arguments of the timm architecture, such as 'output_stride=8 drop_rate=0.1'.")
    freeze_backbone: bool = flag(False, "Train only the head.")
    l1: float = flag(0.0, "SoftCAM: weight of mean |M'|; a value above zero makes maps sparse (lasso).")
    l2: float = flag(0.0, "SoftCAM: weight of mean M'^2 (ridge); together with l1 an elastic net.")
    mode: str = flag("direct", f"CAPE: training mode, one of {', '.join(MODES)}.")
    alpha: float | None = flag(None, "CAPE: weight of the cross-entropy; the default depends on the mode.")
    beta: float | None = flag(None, "CAPE: weight of the divergence from the teacher; the default depends on the mode.")
    temperature: float = flag(2.0, "CAPE: temperature T of the teacher.")
    temperatures: str = flag("", "CAPE: train once for each T of a list such as '1 2 4', and keep the best one.")
    calibrate: bool = flag(False, "CAPE: fit T' to the validation images after training, to correct its confidence.")
    selective: bool = flag(False, "CAPE: count the divergence only where CAPE and teacher disagree (eq. 11).")

    def __post_init__(self) -> None:
        if self.init and self.pretrained:
            raise ValueError("init and pretrained both name the weights to start from: give one of them")
        if self.image_size is not None and self.image_size < 32:
            raise ValueError(f"image_size must be at least 32 pixels, got {self.image_size}")
        if self.freeze_backbone and self.family is None:
            raise ValueError(
                f"freeze_backbone needs a self-explaining model: softcam_{self.model} has the same logits as "
                f"{self.model}"
            )
        self.architecture_args()
        self._check_options_of_families()

    def _check_options_of_families(self) -> None:
        """Refuse options that belong to another family than the model's, or that its mode does not use."""
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        changed = [name for name in defaults if getattr(self, name) != defaults[name]]
        for family in HEADS:
            others = set(options_of(family)) - set(options_of(self.family))
            for name in changed:
                if name in others:
                    raise ValueError(f"{name} is an option of {family}_* models, but the model is {self.model!r}")
        for temperature in self.candidates() or [self.temperature]:
            Bootstrap(self.mode, self.alpha, self.beta, temperature)  # raises an error if options do not fit
        for name in ("temperature", "selective"):
            if name in changed and self.mode == "direct":
                raise ValueError(f"{name} is an option of CAPE's teacher, and mode 'direct' has none: leave it out")

    @property
    def family(self) -> str | None:
        """`softcam`, `cape`, or None for a vanilla classifier."""
        prefix = self.model.partition("_")[0]
        return prefix if prefix in HEADS else None

    @property
    def learns_from_labels(self) -> bool:
        """True if the loss has a cross-entropy; post-fitting has none unless `alpha` asks for it."""
        return Bootstrap(self.mode, self.alpha, self.beta).learns_from_labels

    @property
    def frozen(self) -> bool:
        """True if the backbone keeps its initial weights."""
        return self.freeze_backbone or self.mode == "post-fit"

    def architecture_args(self) -> dict[str, Any]:
        """Return `model_args` as keyword arguments of `timm.create_model`, with the image size if timm needs it."""
        args = parse_model_args(self.model_args, self.pretrained)
        cfg = timm.get_pretrained_cfg(self.timm_name, allow_unregistered=True)
        if self.image_size and cfg is not None and cfg.fixed_input_size:
            args.setdefault("img_size", self.image_size)
        return args

    def candidates(self) -> list[float]:
        """Return the temperatures to choose from, or an empty list if there is only one."""
        try:
            values = [float(value) for value in self.temperatures.replace(",", " ").split()]
        except ValueError:
            raise ValueError(f"temperatures must be numbers, such as '1 2 4', got {self.temperatures!r}") from None
        if values and self.mode == "direct":
            raise ValueError("temperatures are an option of CAPE's teacher, and mode 'direct' has none")
        return values

    @property
    def timm_name(self) -> str:
        """Name of the timm architecture, with its tag if there is one."""
        return split_name(self.model)[1] if self.family else self.model


@dataclass
class OptimizationConfig:
    """Number and size of the optimizer's steps."""

    _argument_group_name: ClassVar[str] = "optimization"

    epochs: int = flag(10, "Number of passes over the training images.")
    steps_per_epoch: int | None = flag(None, "Number of updates that make an epoch (needed for streaming data only).")
    batch_size: int = flag(32, "Number of images per process and forward pass.")
    accumulation: int = flag(1, "Number of forward passes per update.")
    optimizer: str = flag("sgd", "Name of an optimizer in timm, such as sgd (with Nesterov momentum) or adamw.")
    lr: float = flag(1e-3, "Learning rate.")
    momentum: float = flag(0.9, "Momentum of sgd and similar optimizers.")
    weight_decay: float = flag(5e-4, "Weight decay of matrices; biases, norms and CAPE's temperature have none.")
    layer_decay: float | None = flag(None, "Factor of the learning rate from each layer to the layer below.")
    schedule: Literal["constant", "cosine", "clipped-cosine", "linear", "step"] = flag(
        "cosine", "Course of the learning rate; clipped-cosine falls towards 0, but never below min_lr."
    )
    min_lr: float = flag(0.0, "Learning rate at the end of training.")
    warmup_epochs: float = flag(0.0, "Number of epochs of linear warm-up.")
    decay_epochs: float = flag(30.0, "Schedule 'step': number of epochs between two decays.")
    decay_rate: float = flag(0.1, "Schedule 'step': factor of each decay.")
    clip_grad: float | None = flag(None, "Largest norm of the gradient; larger gradients are scaled down.")
    label_smoothing: float = flag(0.0, "Share of the target that is spread over all classes.")
    balance: Literal["none", "loss", "sampling"] = flag("none", "Make rare classes count as much as common ones.")
    ema: float | None = flag(None, "Decay of an exponential moving average of the weights, which becomes the result.")

    def __post_init__(self) -> None:
        at_least = {"epochs": 1, "batch_size": 1, "accumulation": 1, "lr": 0, "weight_decay": 0, "min_lr": 0}
        at_least |= {"warmup_epochs": 0, "momentum": 0, "label_smoothing": 0}
        for name, least in at_least.items():
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least {least} and finite, got {getattr(self, name)}")
        for name in ("ema", "layer_decay"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        for name in ("clip_grad", "steps_per_epoch", "decay_epochs", "decay_rate"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be below epochs={self.epochs}, got {self.warmup_epochs}")
        if self.label_smoothing >= 1:
            raise ValueError(f"label_smoothing must be below 1, got {self.label_smoothing}")


@dataclass
class RunConfig:
    """The output of a run, its log, and the way it uses the machine."""

    _argument_group_name: ClassVar[str] = "run"

    output: str = flag(
        "",
        "Output folder, in which '{fold}' is replaced by the number of the fold; by default runs/NAME, with "
        "the name of the recipe or model.",
    )
    resume: bool = flag(False, "Continue from the last checkpoint in output, to the same result as without a break.")
    overwrite: bool = flag(False, "Delete the files of an earlier run in output.")
    seed: int = flag(0, "Seed of all random numbers.")
    select: Literal[SCORES] = flag("accuracy", "Validation score that chooses the best epoch.")
    checkpoint_steps: int = flag(500, "Number of updates between checkpoints; every epoch ends with one, too.")
    log_steps: int = flag(50, "Number of updates between two lines of the log.")
    trackers: str = flag("", "Further logs beside log.jsonl: 'tensorboard', 'wandb' or both.")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = flag(
        None, "Precision of the forward pass; by default the choice of `accelerate launch`."
    )
    channels_last: bool = flag(False, "Use the memory layout in which convolutions are faster on GPUs.")
    compile: bool = flag(False, "Compile the network with torch.compile.")
    workers: int = flag(0, "Number of processes that load images, for each training process.")
    cache_features: bool = flag(
        True, "Compute the features of a frozen backbone only once, if images are not augmented."
    )
    cache_dir: str | None = flag(None, "Folder of the cached features; by default output/features.")
    cache_limit: float = flag(20.0, "Disk space that cached features may take, in GB.")

    def __post_init__(self) -> None:
        for name, least in {"checkpoint_steps": 1, "log_steps": 1, "workers": 0, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.cache_limit > 0:
            raise ValueError(f"cache_limit must be above 0 GB, got {self.cache_limit}")
        if self.resume and self.overwrite:
            raise ValueError("resume continues an earlier run and overwrite deletes it: give one of them")


@dataclass(frozen=True)
class Config:
    """All settings of a training run, in groups."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        settings = self.optimization
        weighted = settings.balance == "loss"
        for name, is_set in {"label_smoothing": settings.label_smoothing > 0, "balance": weighted}.items():
            if is_set and not self.model.learns_from_labels:
                raise ValueError(
                    f"{name}={getattr(settings, name)} changes the cross-entropy, but mode "
                    f"{self.model.mode!r} learns from the teacher only: leave it out"
                )

    def flat(self) -> dict[str, Any]:
        """Return all settings by name, as a recipe holds them."""
        groups = [dataclasses.asdict(getattr(self, group.name)) for group in dataclasses.fields(self)]
        return {name: value for group in groups for name, value in group.items()}


def parse_model_args(text: str, pretrained: bool) -> dict[str, Any]:
    """Parse the setting `model_args` into keyword arguments, and refuse arguments that a run cannot use.

    Args:
        text: Pairs of name and value, such as 'output_stride=8 drop_rate=0.1'. Values are read as YAML.
        pretrained: Pretrained weights are loaded, so that the arguments may say where they are.
    """
    args = {}
    for pair in text.split():
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ValueError(f"model_args: expected name=value pairs, such as 'output_stride=8', got {name!r}")
        try:
            args[name] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"model_args: the value of {pair} is not valid YAML ({reason}). Values must not contain "
                "spaces, which separate pairs: write 'name={\"key\":1}'"
            ) from error
    _check_model_args(args, pretrained)
    return args


def _check_model_args(args: dict[str, Any], pretrained: bool) -> None:
    for name, value in args.items():
        if name in _SET_ELSEWHERE:
            raise ValueError(
                f"model_args: {name}={value!r} is not an argument of an architecture: {_SET_ELSEWHERE[name]}"
            )
        if name not in SOURCES and not _survives_json(value):
            raise ValueError(
                f"model_args: {name}={value!r} cannot be saved in config.json, which holds numbers, text, "
                "lists and mappings: leave it out, or write it in another form"
            )
    overlay = args.get("pretrained_cfg_overlay")
    if overlay is not None and not isinstance(overlay, dict):
        raise ValueError(f"model_args: pretrained_cfg_overlay must map names to values, got {overlay!r}")
    if overlay and {"file", "url", "hf_hub_id"} & overlay.keys() and not pretrained:
        raise ValueError(
            "model_args: pretrained_cfg_overlay names weights, but weights are only loaded with "
            "--pretrained; a local file of weights can also be given to --init"
        )
    if overlay and "architecture" in overlay:
        raise ValueError("model_args: pretrained_cfg_overlay names another architecture: name it with --model")
    check_pretrained_cfg(overlay)
    check_model_args(args)


def _survives_json(value: Any) -> bool:
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False
