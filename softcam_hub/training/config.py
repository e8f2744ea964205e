"""What a training run is told: flags, or a recipe with flags over it.

- A recipe's settings are read as if they stood on the command line before the flags, so that both are checked alike.
- The name of the model says how it is trained: `cape_*` and `softcam_*` by their own losses, a plain timm name as the
  black box that they are compared with.
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
from ..models.classifier import split_name
from ..models.heads import HEADS
from ..models.losses import MODES, Bootstrap
from ..models.preprocessing import check_model_args, check_pretrained_cfg
from ..models.weights import SOURCES

SCORES = (
    *("loss", "accuracy", "balanced_accuracy", "auc", "kappa", "calibration_error", "confidence"),
    *("teacher_accuracy", "teacher_confidence", "disagreement", "sparseness", "completeness_error"),
)
"""Of a split, those that its model and labels have."""


_SAID_ELSEWHERE = {
    "pretrained": "set --pretrained",
    "num_classes": "the data say how many classes there are",
    "checkpoint_path": "give the file to --init",
    "features_only": "a classifier is trained, and not a feature extractor",
    "out_indices": "a classifier is trained, and not a feature extractor",
    "device": "`accelerate launch` chooses the device",
    "dtype": "set --mixed_precision",
}
"""Arguments of `timm.create_model` that a run does not take -> what to do instead."""


@dataclass
class ModelConfig:
    """The network, what it starts from, and its loss."""

    _argument_group_name: ClassVar[str] = "model"

    model: str = flag("cape_resnet18", "softcam_<timm name>, cape_<timm name>, or a plain timm name: the black box")
    pretrained: bool = flag(False, "start from timm's weights")
    init: str | None = flag(
        None,
        "start from this model folder or Hub id, one of ours or a vanilla timm one, or from a file of weights "
        "(.safetensors, .pth); '{fold}' in it is the fold",
    )
    num_classes: int | None = flag(None, "refuse data with another number of classes")
    image_size: int | None = flag(None, "side of the images that it sees; the architecture's own by default")
    model_args: str = flag("", "what the timm architecture takes, such as 'output_stride=8 drop_rate=0.1'")
    freeze_backbone: bool = flag(False, "train the head alone")
    l1: float = flag(0.0, "SoftCAM: weight of mean |M'|; above zero makes maps sparse (lasso)")
    l2: float = flag(0.0, "SoftCAM: weight of mean M'^2 (ridge); both: elastic net, none: dense")
    mode: str = flag("direct", f"CAPE: {', '.join(MODES)}")
    alpha: float | None = flag(None, "CAPE: weight of the cross-entropy; the mode's own by default")
    beta: float | None = flag(None, "CAPE: weight of the divergence from the teacher; the mode's own by default")
    temperature: float = flag(2.0, "CAPE: T of the teacher")
    temperatures: str = flag("", "CAPE: values of T to train with, '1 2 4'; the best on validation is kept")
    calibrate: bool = flag(False, "CAPE: at the end fit T' to the validation images, which mends its confidence")
    selective: bool = flag(False, "CAPE: the divergence counts only where it disagrees with the teacher (eq. 11)")

    def __post_init__(self) -> None:
        if self.init and self.pretrained:
            raise ValueError("init and pretrained both say what to start from: give one of them")
        if self.image_size is not None and self.image_size < 32:
            raise ValueError(f"image_size must be at least 32 pixels, got {self.image_size}")
        if self.freeze_backbone and self.family is None:
            raise ValueError(f"freeze_backbone needs a model of ours: softcam_{self.model} has the same logits")
        self.architecture_args()
        cape = ("mode", "alpha", "beta", "temperature", "temperatures", "calibrate", "selective")
        theirs = {"cape": cape, "softcam": ("l1", "l2")}
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        for family, names in theirs.items():
            strange = [name for name in names if family != self.family and getattr(self, name) != defaults[name]]
            if strange:
                raise ValueError(f"{strange[0]} is a setting of {family}_* models, but model is {self.model!r}")
        for temperature in self.candidates() or [self.temperature]:
            Bootstrap(self.mode, self.alpha, self.beta, temperature)  # checks them
        unused = [name for name in ("temperature", "selective") if getattr(self, name) != defaults[name]]
        if self.family == "cape" and self.mode == "direct" and unused:
            raise ValueError(f"{unused[0]} is of CAPE's teacher, and mode 'direct' has none: leave it out")

    @property
    def family(self) -> str | None:
        """`softcam`, `cape`, or None for the black box."""
        prefix = self.model.partition("_")[0]
        return prefix if prefix in HEADS else None

    @property
    def learns_from_labels(self) -> bool:
        """Whether the loss has a cross-entropy: post-fitting has none unless `alpha` asks for it."""
        return self.family != "cape" or Bootstrap(self.mode, self.alpha, self.beta).learns_from_labels

    @property
    def frozen(self) -> bool:
        return self.freeze_backbone or self.mode == "post-fit"

    def architecture_args(self) -> dict[str, Any]:
        """`model_args` as keyword arguments; values are read as YAML."""
        args = parse_model_args(self.model_args, self.pretrained)
        cfg = timm.get_pretrained_cfg(self.timm_name, allow_unregistered=True)
        if self.image_size and cfg is not None and cfg.fixed_input_size:
            args.setdefault("img_size", self.image_size)
        return args

    def candidates(self) -> list[float]:
        """The values of T to choose from; none where it is given."""
        try:
            values = [float(value) for value in self.temperatures.replace(",", " ").split()]
        except ValueError:
            raise ValueError(f"temperatures must be numbers, such as '1 2 4', got {self.temperatures!r}") from None
        if values and self.mode == "direct":
            raise ValueError("temperatures are of CAPE's teacher, and mode 'direct' has none")
        return values

    @property
    def timm_name(self) -> str:
        """The timm architecture, with its tag if there is one."""
        return split_name(self.model)[1] if self.family else self.model


@dataclass
class OptimizationConfig:
    """Steps and their size."""

    _argument_group_name: ClassVar[str] = "optimization"

    epochs: int = flag(10, "passes over the training images")
    steps_per_epoch: int | None = flag(None, "streaming only: updates that make an epoch")
    batch_size: int = flag(32, "images per process and forward pass")
    accumulation: int = flag(1, "forward passes per update")
    optimizer: str = flag("sgd", "any of timm's; sgd has Nesterov momentum, adamw, ...")
    lr: float = flag(1e-3, "learning rate")
    momentum: float = flag(0.9, "of sgd and its like")
    weight_decay: float = flag(5e-4, "of matrices; biases, norms and CAPE's temperature are spared")
    layer_decay: float | None = flag(None, "factor of the learning rate from each layer to the one below")
    schedule: Literal["constant", "cosine", "clipped-cosine", "linear", "step"] = flag(
        "cosine", "how the learning rate falls; clipped-cosine goes towards 0 but not below min_lr"
    )
    min_lr: float = flag(0.0, "where the learning rate ends")
    warmup_epochs: float = flag(0.0, "epochs of linear warm-up")
    decay_epochs: float = flag(30.0, "step: epochs between decays")
    decay_rate: float = flag(0.1, "step: factor of a decay")
    clip_grad: float | None = flag(None, "largest norm of the gradient")
    label_smoothing: float = flag(0.0, "share of the target that is spread over all classes")
    balance: Literal["none", "loss", "sampling"] = flag("none", "make rare classes count as much as common ones")
    ema: float | None = flag(None, "decay of an exponential moving average of the weights, which is then the result")

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
            raise ValueError(f"warmup_epochs {self.warmup_epochs} leaves nothing of {self.epochs} epochs")
        if self.label_smoothing >= 1:
            raise ValueError(f"label_smoothing must be below 1, got {self.label_smoothing}")


@dataclass
class RunConfig:
    """Where, how, and what is kept."""

    _argument_group_name: ClassVar[str] = "run"

    output: str = flag(
        "",
        "folder for the model, metrics, curve, log and checkpoints, '{fold}' in it is the fold; by default runs/ and "
        "the name of recipe or model",
    )
    resume: bool = flag(False, "go on from the last checkpoint in output; the end is the same as without a break")
    overwrite: bool = flag(False, "throw away what an earlier run left in output")
    seed: int = flag(0, "of everything random")
    select: Literal[SCORES] = flag("accuracy", "validation score that chooses the best epoch")
    checkpoint_steps: int = flag(500, "updates between checkpoints, beside the one after every epoch")
    log_steps: int = flag(50, "updates between lines of the log")
    trackers: str = flag("", "beside the log in JSON lines: 'tensorboard', 'wandb' or both")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = flag(None, "by default what `accelerate launch` says")
    channels_last: bool = flag(False, "memory layout that GPUs prefer for convolutions")
    compile: bool = flag(False, "torch.compile the network")
    workers: int = flag(0, "processes that load images, per training process")
    cache_features: bool = flag(True, "frozen backbone without augmentation: compute features once and keep them")
    cache_dir: str | None = flag(None, "where features are kept; output/features by default")
    cache_limit: float = flag(20.0, "GB of disk that kept features may take")

    def __post_init__(self) -> None:
        for name, least in {"checkpoint_steps": 1, "log_steps": 1, "workers": 0, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.cache_limit > 0:
            raise ValueError(f"cache_limit must be above 0 GB, got {self.cache_limit}")
        if self.resume and self.overwrite:
            raise ValueError("resume goes on with an earlier run and overwrite throws it away: give one of them")


@dataclass(frozen=True)
class Config:
    """Everything that a run is told."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        settings = self.optimization
        unused = {"label_smoothing": settings.label_smoothing > 0, "balance": settings.balance == "loss"}
        for name in (name for name, given in unused.items() if given and not self.model.learns_from_labels):
            raise ValueError(
                f"{name}={getattr(settings, name)} changes the cross-entropy, and mode {self.model.mode!r} learns from "
                "the teacher alone: leave it out"
            )

    def flat(self) -> dict[str, Any]:
        """All settings by name, those that a recipe could hold."""
        groups = (getattr(self, group.name) for group in dataclasses.fields(self))
        return {name: value for group in groups for name, value in dataclasses.asdict(group).items()}


def parse_model_args(text: str, pretrained: bool) -> dict[str, Any]:
    """Read the setting `model_args` as arguments by name, and refuse what is no argument of an architecture.

    Args:
        text: Pairs of name and value such as 'output_stride=8 drop_rate=0.1'. Values are read as YAML.
        pretrained: The run starts from timm's weights, or from those that the arguments point to.
    """
    pairs = [pair.partition("=") for pair in text.split()]
    wrong = [name for name, equals, _ in pairs if not (name and equals)]
    if wrong:
        raise ValueError(f"model_args: expected name=value pairs, such as 'output_stride=8', got {wrong[0]!r}")
    args = {name: _read_value(name, value) for name, _, value in pairs}
    _check_allowed(args, pretrained)
    return args


def _read_value(name: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"model_args: the value of {name}={value} is no YAML ({reason}); spaces separate pairs, so that a value "
            "holds none, such as 'name={\"key\":1}'"
        ) from error


def _check_allowed(args: dict[str, Any], pretrained: bool) -> None:
    for name, value in args.items():
        if name in _SAID_ELSEWHERE:
            raise ValueError(f"model_args: {name}={value!r} is no argument of an architecture: {_SAID_ELSEWHERE[name]}")
        if name not in SOURCES and not _survives_json(value):
            raise ValueError(
                f"model_args: {name}={value!r} cannot be saved in a config.json, which holds numbers, text, lists and "
                "names with values: leave it out, or write it otherwise"
            )
    overlay = args.get("pretrained_cfg_overlay")
    if overlay is not None and not isinstance(overlay, dict):
        raise ValueError(f"model_args: pretrained_cfg_overlay must map names to values, got {overlay!r}")
    if overlay and {"file", "url", "hf_hub_id"} & overlay.keys() and not pretrained:
        raise ValueError(
            "model_args: pretrained_cfg_overlay says where weights are, but they are only loaded with --pretrained; "
            "a local file of weights can also be given to --init"
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
