"""Configurations: one config.json that transformers and timm both read.

- timm reads `architecture`, `num_classes`, `label_names`, `pretrained_cfg` and `model_args`; transformers the rest.
- A `model_args` of null crashes timm, so it is left out when empty.
"""

import copy
import math
from typing import Any, ClassVar, cast

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .heads import HEADS
from .label_kind import MULTI_LABEL, PROBLEM_TYPES, check_class_count, written_multi_label
from .losses import Bootstrap
from .modes import Mode
from .names import split_name
from .preprocessing import check_classes
from .saved_format import read_saved_args, written_args
from .weights import SOURCES

_NOT_MODEL_ARGS = ("num_classes", "global_pool", "multi_label", *SOURCES)
"""Keys of `model_args` that timm's own export writes although they stand elsewhere or have one possible value, and keys
that name the source of other weights."""

_LABELS = ("id2label", "label2id", "num_labels", "num_classes", "label_names")
"""Keys of a config.json that speak of classes, in transformers' words and in timm's."""

_NOT_PREPROCESSING = (
    *("state_dict", "hf_hub_id", "hf_hub_filename", "url", "file", "source", "tag"),
    *("architecture", "label_names", "label_descriptions"),
)
"""Keys of a `pretrained_cfg` that name the source of other weights, or that stand at the root of config.json."""


@strict
class EvidenceConfig(PreTrainedConfig):
    """Describe a model of any family. Families with settings of their own have a subclass.

        EvidenceConfig(architecture="lse_resnet50", id2label={0: "healthy", 1: "drusen"})

    The arguments of `transformers.PreTrainedConfig` are accepted too, among them `num_labels` or `id2label` for the
    classes, and `problem_type="multi_label_classification"` for several labels per image.

    Attributes:
        architecture: Name that `softcam_hub.build` takes, such as `cape_resnet50`.
        model_args: Options of the head (`naive`), and arguments of the timm architecture, such as `output_stride`.
        pretrained_cfg: timm's description of input size, mean, std, crop and interpolation.
        output_maps: Return the maps beside the logits by default.
        freeze_backbone: Train the head alone; the backbone also keeps its batch statistics.
    """

    model_type = "softcam_hub"
    """The family for those that have a configuration of their own; this one serves all others."""

    loss_settings: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that shape the loss."""

    auto_classes: ClassVar[dict[str, str]] = {}
    """transformers' `auto_map`: the classes in the code that travels with the weights, if any travels."""

    keys_to_ignore_at_inference = ["maps", "hidden_states", "teacher_logits"]  # noqa: RUF012, for transformers

    architecture: str = "softcam_resnet50"
    model_args: dict[str, Any] | None = None
    pretrained_cfg: dict[str, Any] | None = None
    output_maps: bool = True
    freeze_backbone: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        classes, names = kwargs.pop("num_classes", None), kwargs.pop("label_names", None)
        count, named = kwargs.get("num_labels"), self.id2label is not None
        if self.id2label is not None and count not in (None, len(self.id2label)):
            raise ValueError(f"num_labels={count} contradicts id2label, which names {len(self.id2label)} classes")
        super().__post_init__(**kwargs)
        if not named and count is None and classes not in (None, self.num_labels):
            raise ValueError(f"num_classes={classes} is timm's word: configurations take num_labels, or id2label")
        if self.problem_type is None and (self.model_args or {}).get("multi_label"):
            self.problem_type = MULTI_LABEL
        self.label2id = self.label2id or {name: index for index, name in self._names_by_index().items()}
        if self.model_args:
            args = read_saved_args(self.model_args, self.architecture)
            self.model_args = {name: value for name, value in args.items() if name not in _NOT_MODEL_ARGS}
        if self.pretrained_cfg:
            self.pretrained_cfg = self.without_sources(self.pretrained_cfg)
        self.validate_settings()
        self._check_timms_labels(classes, names)

    def validate_settings(self) -> None:
        """Refuse settings that are impossible or contradict one another.

        This runs whenever a configuration is complete: when it is made or read, when a model is built from it, and
        when it is saved, since transformers then runs every method named `validate_*`.
        """
        family, architecture = split_name(self.architecture)
        expected = type(self).model_type  # the attribute of the instance is what a config.json says
        if expected in HEADS and family != expected:
            raise ValueError(
                f"a {expected} configuration describes {expected}_* architectures, got {self.architecture!r}: use "
                f"{expected}_{architecture}, or the configuration of {family}"
            )
        if not self.num_labels:
            raise ValueError("num_labels must be at least 1: a model that shows evidence has classes to show it for")
        if set(indices := self._names_by_index()) != set(range(self.num_labels)):
            raise ValueError(f"id2label must name the classes 0 to {self.num_labels - 1}, got {list(indices)}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(
                f"problem_type={self.problem_type!r} is not possible, evidence maps are maps of classes: expected "
                f"{' or '.join(PROBLEM_TYPES)}"
            )
        if self.problem_type == MULTI_LABEL and not HEADS[family].multi_label:
            raise ValueError(
                f"{HEADS[family].title}'s class probabilities sum to one, so problem_type={self.problem_type!r} is not "
                "possible: use SoftCAM for several labels per image"
            )
        several = self.problem_type == MULTI_LABEL
        check_class_count(self.num_labels, several, "num_labels=1", f"problem_type={MULTI_LABEL!r}")

    def _check_timms_labels(self, num_classes: int | None, label_names: list[str] | None) -> None:
        """Refuse `num_classes` or `label_names`, which timm reads, where they contradict `id2label`."""
        if num_classes not in (None, self.num_labels):
            raise ValueError(f"num_classes={num_classes} contradicts the {self.num_labels} classes of id2label")
        check_classes(num_classes, label_names)
        known = self.class_names()
        if label_names is not None and list(label_names) != known:
            raise ValueError(f"label_names {list(label_names)[:10]} contradict id2label, which names {known[:10]}")

    def _names_by_index(self) -> dict[Any, str]:
        return dict(self.id2label or {})

    def class_names(self) -> list[str]:
        """Return the names of the classes, in the order of the logits."""
        return [name for _, name in sorted(self._names_by_index().items())]

    @staticmethod
    def without_sources(pretrained_cfg: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in pretrained_cfg.items() if key not in _NOT_PREPROCESSING}

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a config.json from disk or the Hub; timm's own exports have no type, and transformers gives them one."""
        config_dict, kwargs = super().get_config_dict(*args, **kwargs)
        if not config_dict:
            raise OSError(f"{args[0] if args else 'the model'} holds no config.json, so what to build is not known")
        if config_dict.get("model_type") == "timm_wrapper":
            config_dict = {**config_dict, "model_type": cls.model_type}
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration from a config.json that this package or timm's export of a model wrote.

        Settings given as keywords replace the written ones before the configuration is made, so that one check
        sees them all. A new number of classes, or new names, replace all that is written about classes.

        Args:
            config_dict: Content of the config.json.
            kwargs: Settings, and arguments of `PreTrainedConfig.from_dict`.
        """
        settings = _with_id2label(config_dict)
        fields = {*cls.__dataclass_fields__, *_LABELS} - {"num_labels", "dtype"}  # these two transformers reads itself
        chosen = {name: kwargs.pop(name) for name in fields & kwargs.keys()}
        if "id2label" in chosen or kwargs.get("num_labels", _count(settings)) != _count(settings):
            settings = {name: value for name, value in settings.items() if name not in _LABELS}
        return super().from_dict({**settings, **chosen}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json, in the words of transformers and of timm."""
        output = super().to_dict()
        output["num_classes"] = self.num_labels
        output["label_names"] = self.class_names()
        output["image_processor_type"] = "TimmWrapperImageProcessor"
        if self.auto_classes:
            output["auto_map"] = self.auto_classes
        output["model_args"] = written_args(self.model_args or {}, split_name(self.architecture)[0])
        if self.problem_type == MULTI_LABEL:
            output["model_args"]["multi_label"] = True  # for timm's loader
        if not output.get("pretrained_cfg"):
            output.pop("pretrained_cfg", None)
        return output


def _with_id2label(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a config.json, with `id2label` or `num_labels` where only timm's words are there."""
    if "architecture" not in config_dict:
        raise ValueError("config.json names no architecture: expected one such as 'softcam_resnet50'")
    labels, classes, names = (config_dict.get(name) for name in ("id2label", "num_classes", "label_names"))
    check_classes(classes, names)
    if labels is not None and not isinstance(labels, dict):
        raise ValueError(f"id2label must map class indices to names, got a {type(labels).__name__}")
    written_multi_label(config_dict)  # refuses a contradiction
    if labels is not None or "num_labels" in config_dict:
        return dict(config_dict)
    if names:
        return {**config_dict, "id2label": dict(enumerate(names))}
    return dict(config_dict) if classes is None else {**config_dict, "num_labels": classes}


def _count(settings: dict[str, Any]) -> int:
    """Return the number of classes in the settings; the default of transformers is 2."""
    labels = settings.get("id2label")
    return settings.get("num_labels", 2) if labels is None else len(labels)


@strict
class SoftCAMConfig(EvidenceConfig):
    """Describe a SoftCAM model: logits are the mean of the maps, trained with cross-entropy and ElasticNet.

        SoftCAMConfig(architecture="softcam_resnet50", num_labels=5, l1=1e-3)

    Attributes:
        architecture: Name that `softcam_hub.build` takes, such as `softcam_resnet50`.
        model_args: Options of the head, and arguments of the timm architecture, such as `output_stride`.
        pretrained_cfg: timm's description of input size, mean, std, crop and interpolation.
        output_maps: Return the maps beside the logits by default.
        freeze_backbone: Train the head alone; the backbone also keeps its batch statistics.
        l1: Weight of mean|M'|. A larger weight makes evidence smaller, not sparser: see `losses.elastic_net`.
        l2: Weight of mean M'². A larger weight makes evidence smaller and maps flatter.
    """

    model_type = "softcam"
    loss_settings = ("l1", "l2")
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration.SoftCAMConfig",
        "AutoModel": "modeling.SoftCAMModel",
        "AutoModelForImageClassification": "modeling.SoftCAMForImageClassification",
    }

    architecture: str = "softcam_resnet50"
    l1: float | int = 0.0
    l2: float | int = 0.0

    def validate_settings(self) -> None:
        super().validate_settings()
        for name in ("l1", "l2"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} weighs a penalty and must be at least 0 and finite, got {value}")


@strict
class CAPEConfig(EvidenceConfig):
    """Describe a CAPE model: maps are probabilities that sum to the prediction.

        CAPEConfig(architecture="cape_resnet50", num_labels=5, mode="from-scratch")

    Attributes:
        architecture: Name that `softcam_hub.build` takes, such as `cape_resnet50`.
        model_args: Options of the head (`naive`), and arguments of the timm architecture, such as `output_stride`.
        pretrained_cfg: timm's description of input size, mean, std, crop and interpolation.
        output_maps: Return the maps beside the logits by default.
        freeze_backbone: Train the head alone; the backbone also keeps its batch statistics.
        mode: `direct`, `from-scratch` or `post-fit` (`losses.Bootstrap`); the last two hold a teacher.
        alpha: Weight of the cross-entropy. The default is that of the mode.
        beta: Weight of the divergence from the teacher. The default is that of the mode.
        temperature: Temperature T of the teacher.
        selective: Count the divergence only where model and teacher disagree (eq. 11).
    """

    model_type = "cape"
    loss_settings = ("mode", "alpha", "beta", "temperature", "selective")
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration.CAPEConfig",
        "AutoModel": "modeling.CAPEModel",
        "AutoModelForImageClassification": "modeling.CAPEForImageClassification",
    }

    architecture: str = "cape_resnet50"
    mode: Mode | str = "direct"  # a str, so that `Bootstrap` refuses an unknown mode, with a sentence of ours
    alpha: float | int | None = None
    beta: float | int | None = None
    temperature: float | int = 2.0
    selective: bool = False

    def validate_settings(self) -> None:
        super().validate_settings()
        self.bootstrap  # noqa: B018, refuses contradictory values

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration; a `mode` chosen at loading brings its own weights of the two terms."""
        if kwargs.get("mode", config_dict.get("mode")) != config_dict.get("mode"):
            config_dict = {key: value for key, value in config_dict.items() if key not in ("alpha", "beta")}
        return super().from_dict(config_dict, **kwargs)

    def for_inference(self) -> "CAPEConfig":
        """Return a copy without the training mode, which would ask for a teacher."""
        self.validate_settings()
        config = copy.deepcopy(self)
        config.mode, config.alpha, config.beta = "direct", None, None
        return config

    @property
    def bootstrap(self) -> Bootstrap:
        """The loss that these settings describe."""
        return Bootstrap(cast(Mode, self.mode), self.alpha, self.beta, self.temperature, self.selective)
