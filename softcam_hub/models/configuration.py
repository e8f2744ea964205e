"""Configurations: one config.json that transformers and timm both read.

- timm reads `architecture`, `num_classes`, `label_names`, `pretrained_cfg` and `model_args`; transformers the rest.
- A `model_args` of null crashes timm, so it is left out when empty.
"""

import copy
import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .classifier import split_name
from .label_kind import MULTI_LABEL, PROBLEM_TYPES, written_multi_label
from .losses import Bootstrap
from .preprocessing import check_classes
from .weights import SOURCES

_NOT_MODEL_ARGS = ("num_classes", "global_pool", "multi_label", *SOURCES)
"""What timm's own export puts into `model_args` although it is said elsewhere or has one possible value, and what says
where other weights came from."""

_NOT_PREPROCESSING = (
    *("state_dict", "hf_hub_id", "hf_hub_filename", "url", "file", "source", "tag"),
    *("architecture", "label_names", "label_descriptions"),
)
"""Keys of a `pretrained_cfg` that say where other weights came from, or what config.json says at its root."""


@strict
class EvidenceConfig(PreTrainedConfig):
    """What both families share.

    Args:
        architecture: a name that `softcam_hub.build` takes, such as `cape_resnet50`.
        model_args: what the timm architecture takes (`img_size`, `output_stride`, `in_chans`, ...).
        pretrained_cfg: timm's description of input size, mean, std, crop and interpolation.
        output_maps: give the maps beside the logits by default.
        freeze_backbone: train the head alone; the backbone also keeps its batch statistics.
    """

    keys_to_ignore_at_inference = [  # noqa: RUF012, transformers reads this class attribute
        *("maps", "hidden_states", "teacher_logits")
    ]

    architecture: str = "softcam_resnet50"
    model_args: dict[str, Any] | None = None
    pretrained_cfg: dict[str, Any] | None = None
    output_maps: bool = True
    freeze_backbone: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if "num_classes" in kwargs:
            raise ValueError(
                f"num_classes={kwargs['num_classes']} is timm's word: configurations take num_labels, or id2label"
            )
        super().__post_init__(**kwargs)
        if self.problem_type is None and (self.model_args or {}).get("multi_label"):
            self.problem_type = MULTI_LABEL
        family, architecture = split_name(self.architecture)
        if family != self.model_type:
            raise ValueError(
                f"a {self.model_type} configuration describes {self.model_type}_* architectures, got "
                f"{self.architecture!r}: use {self.model_type}_{architecture}, or the configuration of {family}"
            )
        self._check_labels()
        if self.model_args:
            self.model_args = {k: v for k, v in self.model_args.items() if k not in _NOT_MODEL_ARGS}
        if self.pretrained_cfg:
            self.pretrained_cfg = self.without_sources(self.pretrained_cfg)

    def _check_labels(self) -> None:
        if not self.num_labels:
            raise ValueError("num_labels must be at least 1: a model that shows evidence has classes to show it for")
        if sorted(self.id2label) != list(range(self.num_labels)):
            raise ValueError(f"id2label must name the classes 0 to {self.num_labels - 1}, got {sorted(self.id2label)}")
        self.label2id = self.label2id or {name: index for index, name in self.id2label.items()}
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(
                f"problem_type={self.problem_type!r} is not possible, evidence maps are maps of classes: expected "
                f"{' or '.join(PROBLEM_TYPES)}"
            )
        if self.num_labels == 1 and self.problem_type != MULTI_LABEL:
            raise ValueError(
                "num_labels=1 can neither predict nor learn, as a softmax over one class is always 1: name two "
                f"classes, or for SoftCAM set problem_type={MULTI_LABEL!r}, which asks for each class by itself"
            )

    @staticmethod
    def without_sources(pretrained_cfg: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in pretrained_cfg.items() if key not in _NOT_PREPROCESSING}

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As read from disk or the Hub; transformers calls timm's own exports, which name no type, `timm_wrapper`."""
        config_dict, kwargs = super().get_config_dict(*args, **kwargs)
        if not config_dict:
            raise OSError(f"{args[0] if args else 'the model'} holds no config.json, so what to build is not known")
        if config_dict.get("model_type") == "timm_wrapper":
            config_dict = {**config_dict, "model_type": cls.model_type}
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read our own config.json, or the one that timm's export of our model wrote."""
        config_dict = dict(config_dict)
        classes, names = config_dict.pop("num_classes", None), config_dict.pop("label_names", None)
        _check_written(config_dict, classes)
        check_classes(classes, names)
        labelled = "id2label" in config_dict or {"num_labels", "id2label"} & kwargs.keys()
        if not labelled and names:
            config_dict["id2label"] = dict(enumerate(names))
            config_dict["label2id"] = {name: index for index, name in enumerate(names)}
        elif not labelled and classes is not None:
            config_dict["num_labels"] = classes
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output["num_classes"] = self.num_labels
        output["label_names"] = [self.id2label[index] for index in sorted(self.id2label)]
        output["image_processor_type"] = "TimmWrapperImageProcessor"
        output["auto_map"] = self._auto_map()
        if self.problem_type == MULTI_LABEL:
            output["model_args"] = {**(output.get("model_args") or {}), "multi_label": True}  # for timm's loader
        for key in ("model_args", "pretrained_cfg"):
            if not output.get(key):
                output.pop(key, None)
        return output

    @classmethod
    def _auto_map(cls) -> dict[str, str]:
        """Where the classes stand in the code that travels with the weights."""
        family = cls.__name__.removesuffix("Config")
        return {
            "AutoConfig": f"configuration.{cls.__name__}",
            "AutoModel": f"modeling.{family}Model",
            "AutoModelForImageClassification": f"modeling.{family}ForImageClassification",
        }


def _check_written(config_dict: dict[str, Any], classes: int | None) -> None:
    """Refuse a config.json that does not say what to build, or contradicts itself."""
    if "architecture" not in config_dict:
        raise ValueError("config.json names no architecture: expected one such as 'softcam_resnet50'")
    labels = config_dict.get("id2label")
    if labels is not None and not isinstance(labels, dict):
        raise ValueError(f"id2label must map class indices to names, got a {type(labels).__name__}")
    written_multi_label(config_dict)  # refuses a contradiction
    if labels is not None and classes is not None and len(labels) != classes:
        raise ValueError(f"config.json says num_classes={classes}, but its id2label names {len(labels)}")


@strict
class SoftCAMConfig(EvidenceConfig):
    """SoftCAM: logits are the mean of the maps, trained with cross-entropy and ElasticNet on the maps.

    Args:
        l1: weight of mean|M'|; above zero makes maps sparse.
        l2: weight of mean M'².
    """

    model_type = "softcam"

    architecture: str = "softcam_resnet50"
    l1: float | int = 0.0
    l2: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("l1", "l2"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} weighs a penalty and must be at least 0 and finite, got {getattr(self, name)}"
                )


@strict
class CAPEConfig(EvidenceConfig):
    """CAPE: maps are probabilities that sum to the prediction.

    Args:
        mode: `direct`, `from-scratch` or `post-fit` (`losses.Bootstrap`); the last two hold a teacher.
        alpha: weight of the cross-entropy; the mode's own by default.
        beta: weight of the divergence from the teacher; the mode's own by default.
        temperature: T of the teacher.
        selective: the divergence counts only where model and teacher disagree (eq. 11).
    """

    model_type = "cape"

    architecture: str = "cape_resnet50"
    mode: str = "direct"
    alpha: float | int | None = None
    beta: float | int | None = None
    temperature: float | int = 2.0
    selective: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.bootstrap  # noqa: B018, refuses contradictory values
        if self.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"CAPE's class probabilities sum to one, so problem_type={self.problem_type!r} is not possible: "
                "use SoftCAM for several labels per image"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As written; a `mode` chosen at loading brings its own weights of the two terms."""
        if kwargs.get("mode", config_dict.get("mode")) != config_dict.get("mode"):
            config_dict = {key: value for key, value in config_dict.items() if key not in ("alpha", "beta")}
        return super().from_dict(config_dict, **kwargs)

    def for_inference(self) -> "CAPEConfig":
        """The same model without its training mode, which would ask for a teacher."""
        config = copy.deepcopy(self)
        config.mode, config.alpha, config.beta = "direct", None, None
        return config

    @property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(self.mode, self.alpha, self.beta, self.temperature, self.selective)
