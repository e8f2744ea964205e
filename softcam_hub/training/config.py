"""The settings of a training run, checked when they are made.

- The name of the model says how it is trained. `cape_*` and `softcam_*` models are trained with losses of
  their own, and a plain timm name is trained as the vanilla classifier that they are compared with.
- Ranges of values are part of the types of the fields.
- What takes torch is imported where it is used: a mistyped setting is answered at once.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ..data.config import AugmentationConfig, DataConfig
from ..data.fields import Count, Decay, NotNegative, Positive, ProperShare, Range, WholeNumber, check_ranges, flag
from ..models.modes import Mode

if TYPE_CHECKING:
    from ..models.losses import Bootstrap

SCORES = (
    *("loss", "accuracy", "balanced_accuracy", "auc", "kappa", "calibration_error", "confidence"),
    *("teacher_accuracy", "teacher_confidence", "disagreement", "sparseness", "completeness_error"),
    "cancelled_share",
)
"""Every score that a validation may give; a model without maps or teacher, or several labels, give fewer."""

LOWER_IS_BETTER = ("loss", "calibration_error", "completeness_error", "disagreement", "cancelled_share")

EFFECT_BEFORE = {"resize": "model"}
"""Settings that runs of earlier releases did not record, with what they had the effect of then."""

DEPENDENT = ("hold_out", "resize", "crop_scale")
"""Settings whose default depends on data or weights, or has changed: without them, a resumed run goes on as before."""


def as_recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add what a run of an earlier release did not record to its settings.

    A settings.yaml names every setting of its release, which a recipe of a user does not.
    """
    every_setting = {"data_seed", "hold_out", "crop_scale", "eval_crop", "checkpoint_steps"} <= settings.keys()
    return {**(EFFECT_BEFORE if every_setting else {}), **settings}


def options_of(family: str | None) -> tuple[str, ...]:
    """Return the names of the options that one family has and others lack."""
    if family is None:
        return ()
    from ..models.heads import HEADS
    from ..models.modeling import model_class

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
        "self-explaining or vanilla and have other classes, and '{fold}' is replaced by the number of the fold.",
    )
    num_classes: int | None = flag(None, "Expected number of classes; data with another number are refused.")
    image_size: Annotated[int, Range(32)] | None = flag(
        None, "Side of the input images in pixels; by default the architecture's own."
    )
    model_args: str = flag("", "Arguments of the timm architecture, such as 'output_stride=8 drop_rate=0.1'.")
    freeze_backbone: bool = flag(False, "Train only the head.")
    l1: NotNegative = flag(0.0, "SoftCAM: weight of mean |M'| (lasso); it makes evidence smaller, not sparser.")
    l2: NotNegative = flag(0.0, "SoftCAM: weight of mean M'^2 (ridge), which flattens maps; with l1 an elastic net.")
    teach_from_size: Annotated[int, Range(32)] | None = flag(
        None,
        "SoftCAM: side of larger images in pixels, from whose maps, as the model in --init draws them, the maps learn "
        "as well.",
    )
    mode: Mode = flag("direct", "CAPE: training mode.")
    alpha: float | None = flag(None, "CAPE: weight of the cross-entropy; the default depends on the mode.")
    beta: float | None = flag(None, "CAPE: weight of the divergence from the teacher; the default depends on the mode.")
    temperature: float = flag(2.0, "CAPE: temperature T of the teacher.")
    temperatures: str = flag("", "CAPE: train once for each T of a list such as '1 2 4', and keep the best one.")
    calibrate: bool = flag(False, "CAPE: fit T' to the validation images after training, to correct its confidence.")
    selective: bool = flag(False, "CAPE: count the divergence only where CAPE and teacher disagree (eq. 11).")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.init and self.pretrained:
            raise ValueError("init and pretrained both name the weights to start from: give one of them")
        if self.freeze_backbone and self.family is None:
            raise ValueError(
                f"freeze_backbone needs a self-explaining model: softcam_{self.model} has the same logits as "
                f"{self.model}"
            )
        if "scales" in self.architecture_args() and self.family is None:
            raise ValueError(f"a vanilla classifier has one scale: train softcam_{self.model} or leave scales out")
        self._check_options_of_families()
        self._check_larger_images()

    def _check_options_of_families(self) -> None:
        """Refuse options that belong to another family than the model's, or that its mode does not use."""
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        changed = [name for name in defaults if getattr(self, name) != defaults[name]]
        from ..models.heads import HEADS

        for family in HEADS:
            others = set(options_of(family)) - set(options_of(self.family))
            for name in changed:
                if name in others:
                    raise ValueError(f"{name} is an option of {family}_* models, but the model is {self.model!r}")
        for temperature in self.candidates() or [self.temperature]:
            self._bootstrap(temperature)  # raises an error if options do not fit
        for name in ("temperature", "temperatures", "selective"):
            if name in changed and self.mode == "direct":
                raise ValueError(f"{name} is an option of CAPE's teacher, and mode 'direct' has none: leave it out")

    def _check_larger_images(self) -> None:
        """Refuse maps of larger images where there is nothing that draws them, or nothing that learns from them."""
        if self.teach_from_size is None:
            return
        from ..models.heads import HEADS

        if self.family is None or not HEADS[self.family].map_kinds[0].averages_to_logit:
            raise ValueError(
                f"teach_from_size is an option of models whose maps average to the logits, such as softcam_*, but the "
                f"model is {self.model!r}"
            )
        if self.init is None:
            raise ValueError(
                "teach_from_size needs a trained model that draws the maps of larger images: name it in init"
            )
        if self.freeze_backbone:
            raise ValueError("teach_from_size changes nothing in a frozen backbone: leave freeze_backbone out")
        if self.image_size and self.teach_from_size <= self.image_size:
            raise ValueError(f"teach_from_size must be above image_size={self.image_size}, got {self.teach_from_size}")

    @property
    def family(self) -> str | None:
        """`softcam`, `cape`, or None for a vanilla classifier."""
        from ..models.heads import HEADS

        prefix = self.model.partition("_")[0]
        return prefix if prefix in HEADS else None

    def _bootstrap(self, temperature: float = 2.0) -> "Bootstrap":
        """Return CAPE's loss with a temperature, or raise ValueError if the options do not fit its mode."""
        from ..models.losses import Bootstrap

        return Bootstrap(self.mode, self.alpha, self.beta, temperature)

    @property
    def learns_from_labels(self) -> bool:
        """True if the loss has a cross-entropy; post-fitting has none unless `alpha` asks for it."""
        return self._bootstrap().learns_from_labels

    @property
    def frozen(self) -> bool:
        """True if the backbone keeps its initial weights."""
        return self.freeze_backbone or self.mode == "post-fit"

    def architecture_args(self) -> dict[str, Any]:
        """Return `model_args` as keyword arguments of `timm.create_model`, with the image size if timm needs it."""
        import timm

        from .model_args import parse_model_args

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
        names = [f"{value:g}" for value in values]
        if len(set(names)) < len(names):
            raise ValueError(f"temperatures must differ in their first six digits, got {self.temperatures!r}")
        return values

    @property
    def timm_name(self) -> str:
        """Name of the timm architecture, with its tag if there is one."""
        from ..models.names import split_name

        return split_name(self.model)[1] if self.family else self.model


@dataclass
class OptimizationConfig:
    """Number and size of the optimizer's steps."""

    _argument_group_name: ClassVar[str] = "optimization"

    epochs: Count = flag(10, "Number of passes over the training images.")
    steps_per_epoch: Count | None = flag(None, "Number of updates that make an epoch (needed for streaming data only).")
    batch_size: Count = flag(32, "Number of images per process and forward pass.")
    accumulation: Count = flag(1, "Number of forward passes per update.")
    optimizer: str = flag("sgd", "Name of an optimizer in timm, such as sgd (with Nesterov momentum) or adamw.")
    lr: NotNegative = flag(1e-3, "Learning rate.")
    momentum: NotNegative = flag(0.9, "Momentum of sgd and similar optimizers.")
    weight_decay: NotNegative = flag(5e-4, "Weight decay of matrices; biases, norms and CAPE's temperature have none.")
    layer_decay: Decay | None = flag(None, "Factor of the learning rate from each layer to the layer below.")
    fine_lr_scale: Positive = flag(
        1.0, "Factor of the learning rate of the weights of finer features, of a model with several scales."
    )
    schedule: Literal["constant", "cosine", "clipped-cosine", "linear", "step"] = flag(
        "cosine", "Course of the learning rate; clipped-cosine falls towards 0, but never below min_lr."
    )
    min_lr: NotNegative = flag(0.0, "Learning rate at the end of training.")
    warmup_epochs: NotNegative = flag(0.0, "Number of epochs of linear warm-up.")
    decay_epochs: Positive = flag(30.0, "Schedule 'step': number of epochs between two decays.")
    decay_rate: Positive = flag(0.1, "Schedule 'step': factor of each decay.")
    clip_grad: Positive | None = flag(None, "Largest norm of the gradient; larger gradients are scaled down.")
    label_smoothing: ProperShare = flag(0.0, "Share of the target that is spread over all classes.")
    balance: Literal["none", "loss", "sampling"] = flag("none", "Make rare classes count as much as common ones.")
    ema: Decay | None = flag(None, "Decay of an exponential moving average of the weights, which becomes the result.")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be below epochs={self.epochs}, got {self.warmup_epochs}")


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
    seed: WholeNumber = flag(0, "Seed of all random numbers.")
    select: Literal[SCORES] = flag("accuracy", "Validation score that chooses the best epoch.")
    checkpoint_steps: Count = flag(500, "Number of updates between checkpoints; every epoch ends with one, too.")
    log_steps: Count = flag(50, "Number of updates between two lines of the log.")
    trackers: str = flag("", "Further logs beside log.jsonl, such as 'tensorboard' or 'wandb mlflow'.")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = flag(
        None, "Precision of the forward pass; by default the choice of `accelerate launch`."
    )
    channels_last: bool = flag(False, "Use the memory layout in which convolutions are faster on GPUs.")
    compile: bool = flag(False, "Compile the network with torch.compile.")
    workers: WholeNumber = flag(0, "Number of processes that load images, for each training process.")
    cache_features: bool = flag(
        True, "Compute the features of a frozen backbone only once, if images are not augmented."
    )
    cache_dir: str | None = flag(None, "Folder of the cached features; by default output/features.")
    cache_limit: Positive = flag(20.0, "Disk space that cached features may take, in GB.")

    def __post_init__(self) -> None:
        check_ranges(self)
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

    def changed(self, **settings: Any) -> "Config":
        """Return the same configuration with other values of some settings."""
        groups = {}
        for group in dataclasses.fields(self):
            values = getattr(self, group.name)
            names = {item.name for item in dataclasses.fields(values)} & settings.keys()
            groups[group.name] = dataclasses.replace(values, **{name: settings[name] for name in names})
        return Config(**groups)
