"""The Hugging Face models: the same `backbone` and `head` as the timm model, so one state dict serves both.

- transformers builds on the meta device and initialises what a checkpoint lacks; buffers that timm does not save are
  rebuilt there, and weights that timm drew or loaded are never drawn again.
- `AutoModel` gives the features first, `AutoModelForImageClassification` the logits; both give the maps.
- A saved folder holds the code of this package's `models/` too, so that it loads where softcam_hub is not installed.
"""

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .classifier import Classifier, build
from .configuration import CAPEConfig, EvidenceConfig, SoftCAMConfig
from .conversion import convert
from .heads import EvidenceHead
from .label_kind import MULTI_LABEL
from .losses import check_labels, check_multi_hot, cross_entropy, elastic_net
from .self_explaining import SelfExplaining

SAVED_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""Names under which transformers saves weights."""


@dataclass
class EvidenceModelOutput(ModelOutput):
    """Features and what was made of them.

    Args:
        last_hidden_state: features (B, K, H, W), which the evidence is linear in.
        logits: (B, C).
        maps: (B, C, H, W).
        hidden_states: the backbone's intermediate features.
    """

    last_hidden_state: Tensor | None = None
    logits: Tensor | None = None
    maps: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class EvidenceClassifierOutput(ModelOutput):
    """A prediction with its evidence.

    Args:
        loss: scalar, when labels were given.
        logits: (B, C).
        maps: (B, C, H, W); their mean is the logits (SoftCAM), or their sum softmax(logits) (CAPE).
        hidden_states: the backbone's intermediate features.
        teacher_logits: (B, C), of the vanilla classifier that CAPE learns from.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    maps: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    teacher_logits: Tensor | None = None


class EvidencePreTrainedModel(SelfExplaining, PreTrainedModel):
    """What the Hugging Face models of both families share.

    Args:
        config: what to build.
        classifier: the timm model to take over instead of building one.
    """

    config: EvidenceConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    gradient_checkpointing = False
    accepts_loss_kwargs = False  # with **kwargs in forward, Trainer would multiply the loss by the accumulation steps
    _no_split_modules: list[str] = []  # noqa: RUF012, transformers reads these class attributes
    _keys_to_ignore_on_load_unexpected = [r"^teacher\."]  # noqa: RUF012

    def __init__(self, config: EvidenceConfig, classifier: Classifier | None = None) -> None:
        super().__init__(config)
        config.validate_settings()
        if classifier is not None and classifier.num_classes != config.num_labels:
            raise ValueError(
                f"the configuration has {config.num_labels} classes, but the model that is taken over has "
                f"{classifier.num_classes}: leave num_labels and id2label out, or give the model a new head first "
                f"with reset_classifier({config.num_labels})"
            )
        classifier = classifier or build(
            config.architecture,
            num_classes=config.num_labels,
            pretrained_cfg=dict(config.pretrained_cfg or {}),
            **(config.model_args or {}),
        )
        self.family, self.anatomy = classifier.family, classifier.anatomy
        self.backbone, self.head = classifier.backbone, classifier.head
        self.num_classes, self.in_chans = classifier.num_classes, classifier.in_chans
        self.drop_rate, self.backbone_args = classifier.drop_rate, classifier.backbone_args
        config.pretrained_cfg = self.pretrained_cfg = _preprocessing(classifier)
        self.supports_gradient_checkpointing = _can_checkpoint(self.backbone)
        self.teacher = self._make_teacher()
        for module in self.modules():
            if not any(tensor.is_meta for tensor in (*module.parameters(False), *module.buffers(False))):
                module._is_hf_initialized = True  # timm has drawn these weights
        self._freeze()
        self.post_init()

    def _freeze(self) -> None:
        for module in self._frozen:
            module.requires_grad_(False)

    def _make_teacher(self) -> nn.Linear | None:
        return None

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.config.problem_type == MULTI_LABEL

    @property
    def _frozen(self) -> list[nn.Module]:
        """The modules that do not learn; their batch statistics do not move either."""
        return [self.backbone] if self.config.freeze_backbone else []

    def train(self, mode: bool = True) -> "EvidencePreTrainedModel":
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what neither timm nor a checkpoint has: a new head, and buffers lost to the meta device."""
        if isinstance(module, EvidenceHead):
            module.reset_parameters()
        elif hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
        else:
            super()._init_weights(module)

    def _set_gradient_checkpointing(self, enable: bool = True, **_: Any) -> None:
        self.backbone.set_grad_checkpointing(enable)
        self.gradient_checkpointing = enable  # read by transformers and PEFT

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        kwargs["use_safetensors"] = True  # nothing that was pickled is read
        model, report = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if any(key.startswith("teacher.") for key in report["missing_keys"]):
            raise ValueError(
                f"mode {model.config.mode!r} learns from a teacher, but this checkpoint holds none: it was made for "
                "inference. Load it with mode='direct', or start again with from_timm(..., mode=...)"
            )
        lost = sorted(key for key in report["missing_keys"] if key.startswith("backbone."))
        if lost:
            raise ValueError(
                f"this checkpoint is not whole: it lacks {len(lost)} weights of the backbone, among them {lost[0]}"
            )
        lost = sorted(key for key in report["missing_keys"] if key.startswith("head."))
        if lost and cls._saved_classes(*args[:1], **kwargs) in (None, model.num_classes):
            raise ValueError(
                f"this checkpoint is not whole: it lacks {', '.join(lost)}. Expected all that save_pretrained writes; "
                "for a new head, give a num_labels other than the saved one"
            )
        model._freeze()  # loading puts new parameters in place of the frozen ones
        return (model, report) if output_loading_info else model

    @classmethod
    def _saved_classes(cls, source: str | Path | None = None, **kwargs: Any) -> int | None:
        """Return the number of classes in the config.json beside the weights, or None without a source."""
        source = kwargs.get("pretrained_model_name_or_path", source)
        where = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
        found = {name: kwargs[name] for name in where if name in kwargs}
        return None if source is None else cls.config_class.from_pretrained(source, **found).num_labels

    @classmethod
    def from_timm(
        cls,
        source: str | nn.Module,
        pretrained: bool = True,
        model_args: dict[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        **config: Any,
    ) -> "EvidencePreTrainedModel":
        """The Hugging Face model of a timm one, with its weights.

        Args:
            source: a name with or without tag (`cape_resnet50.a1_in1k`), a vanilla timm classifier, or our timm model.
            pretrained: load the weights of a named model.
            model_args: what the timm architecture takes.
            cache_dir: where downloads are kept.
            config: fields of the configuration (`num_labels`, `id2label`, `l1`, `mode`, ...).
        """
        family = cls.config_class.model_type
        if isinstance(source, str):
            labels = config.get("id2label") or range(config.get("num_labels") or 0)
            chosen = {"num_classes": len(labels)} if labels else {}
            classifier = build(source, pretrained, **{"cache_dir": cache_dir, **(model_args or {})}, **chosen)
            carried = pretrained and classifier.num_classes == classifier.pretrained_cfg.get("num_classes")
        else:
            classifier = source if isinstance(source, Classifier) else convert(source, family)
            model_args, carried = getattr(classifier, "_model_args", None), True
        config = {**({} if "id2label" in config else _labels(classifier, carried)), **config}
        name = f"{classifier.family}_{classifier.architecture}"
        settings = cls.config_class(architecture=name, model_args=model_args, **config)
        model = cls(settings, classifier)
        model._teach(carried and classifier.exact)
        return model

    def _teach(self, trained: bool) -> None:
        """Called with a head that was just taken over; says whether it is a trained classifier."""

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write weights, configuration and code; what is there stays as it was until all of it is written."""
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", target.name)
        with tempfile.TemporaryDirectory(dir=target, prefix=".unfinished-") as draft:
            super().save_pretrained(draft, **kwargs)
            written = sorted(file.name for file in Path(draft).iterdir())
            for name in written:
                _flush(Path(draft, name))
            for name in written:
                os.replace(Path(draft, name), target / name)
        if any(name.endswith(".safetensors") for name in written):
            for old in target.iterdir():  # shards of an earlier save would be found beside the new
                if SAVED_WEIGHTS.fullmatch(old.name) and old.name not in written:
                    old.unlink()

    def _features(
        self, pixel_values: Tensor, output_hidden_states: bool | Sequence[int]
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Return the features, and the backbone's hidden states: none, all, or those at the given indices."""
        if not output_hidden_states:
            return self.forward_features(pixel_values), None
        chosen = list(output_hidden_states) if isinstance(output_hidden_states, Sequence) else None
        images = self.prepare_images(pixel_values)
        raw, hidden = self.backbone(images, indices=chosen, method="forward_intermediates")
        return self.anatomy.localise(self.backbone, raw, pixel_values.shape[-2:]), tuple(hidden)

    def _predict(self, features: Tensor, output_maps: bool) -> tuple[Tensor, Tensor | None]:
        if output_maps:
            return self.head(features, kind=self.head_class.kinds[0])
        return self.head(features), None


class EvidenceModel(EvidencePreTrainedModel):
    """Return features first, then the maps and logits made of them."""

    config_class = EvidenceConfig

    def forward(
        self,
        pixel_values: Tensor,
        output_maps: bool | None = None,
        output_hidden_states: bool | Sequence[int] | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> EvidenceModelOutput | tuple[Tensor, ...]:
        """Features (B, K, H, W), logits (B, C) and maps (B, C, H, W) of `pixel_values` (B, 3, H, W)."""
        features, hidden = self._features(pixel_values, _given(output_hidden_states, self.config.output_hidden_states))
        logits, maps = self._predict(self.drop_features(features), _given(output_maps, self.config.output_maps))
        output = EvidenceModelOutput(last_hidden_state=features, logits=logits, maps=maps, hidden_states=hidden)
        return output if _given(return_dict, self.config.return_dict) else output.to_tuple()


class EvidenceForImageClassification(EvidencePreTrainedModel):
    """Return loss, logits and maps; the loss is the cross-entropy, and the penalty of a head that has one."""

    config_class = EvidenceConfig

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_maps: bool | None = None,
        output_hidden_states: bool | Sequence[int] | None = None,
        return_dict: bool | None = None,
        features: Tensor | None = None,
        **kwargs: Any,
    ) -> EvidenceClassifierOutput | tuple[Tensor, ...]:
        """Logits (B, C) and maps (B, C, H, W) of `pixel_values` (B, 3, H, W), and the loss when `labels` are given.

        `features` (B, K, H, W) of `forward_features` may be given instead of the images.
        """
        hidden = None
        if features is None:
            wanted = _given(output_hidden_states, self.config.output_hidden_states)
            features, hidden = self._features(pixel_values, wanted)
        features = self.drop_features(features)
        output_maps = _given(output_maps, self.config.output_maps)
        wanted = output_maps or (labels is not None and self.penalises_maps)
        logits, maps = self._predict(self._student_features(features), wanted)
        teacher_logits = self._teacher_logits(features)
        loss = None if labels is None else self.loss(logits, labels, maps, teacher_logits)
        output = EvidenceClassifierOutput(loss, logits, maps if output_maps else None, hidden, teacher_logits)
        return output if _given(return_dict, self.config.return_dict) else output.to_tuple()

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        maps: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        **cross_entropy_options: Any,
    ) -> Tensor:
        """The loss of what `forward` gave.

        Args:
            logits: (B, C).
            labels: (B,) or (B, C).
            maps: (B, C, H, W), needed where `penalises_maps`.
            teacher_logits: (B, C), needed where there is a teacher.
            cross_entropy_options: `label_smoothing` and `class_weights` of `losses.cross_entropy`.
        """
        labels = check_multi_hot(labels, logits) if self.multi_label else check_labels(labels, logits)
        return self._loss(logits, labels, maps, teacher_logits, cross_entropy_options)

    @property
    def penalises_maps(self) -> bool:
        """Whether the loss needs the maps."""
        return self.head_class.penalty is not EvidenceHead.penalty

    def _loss(
        self, logits: Tensor, labels: Tensor, maps: Tensor | None, teacher_logits: Tensor | None, options: dict
    ) -> Tensor:
        loss = cross_entropy(logits, labels, multi_label=self.multi_label, **options)
        return loss + self.head_class.penalty(maps) if self.penalises_maps else loss

    def _student_features(self, features: Tensor) -> Tensor:
        return features

    def _teacher_logits(self, features: Tensor) -> Tensor | None:
        return None


class SoftCAMModel(EvidenceModel):
    """SoftCAM without a loss."""

    config_class = SoftCAMConfig
    _auto_class = "AutoModel"  # so that transformers saves this code beside the weights


class CAPEModel(EvidenceModel):
    """CAPE without a loss, and so without a teacher."""

    config_class = CAPEConfig
    _auto_class = "AutoModel"

    def __init__(self, config: CAPEConfig, classifier: Classifier | None = None) -> None:
        super().__init__(config.for_inference(), classifier)


class SoftCAMForImageClassification(EvidenceForImageClassification):
    """SoftCAM: maps whose mean is the logits; cross-entropy plus ElasticNet on the maps."""

    config_class = SoftCAMConfig
    _auto_class = "AutoModelForImageClassification"

    @property
    def penalises_maps(self) -> bool:
        return self.config.l1 > 0 or self.config.l2 > 0

    def _loss(
        self, logits: Tensor, labels: Tensor, maps: Tensor | None, teacher_logits: Tensor | None, options: dict
    ) -> Tensor:
        loss = cross_entropy(logits, labels, multi_label=self.multi_label, **options)
        return loss + elastic_net(maps, self.config.l1, self.config.l2) if self.penalises_maps else loss


class CAPEForImageClassification(EvidenceForImageClassification):
    """CAPE: maps that sum to the prediction; in the bootstrap modes a vanilla linear `teacher` is trained or kept."""

    config_class = CAPEConfig
    _auto_class = "AutoModelForImageClassification"

    def _make_teacher(self) -> nn.Linear | None:
        if not self.config.bootstrap.needs_teacher:
            return None
        weight = self.head.weight
        return nn.Linear(self.head.in_features, self.num_classes, device=weight.device, dtype=weight.dtype)

    @property
    def _frozen(self) -> list[nn.Module]:
        return [self.backbone, self.teacher] if self.config.mode == "post-fit" else super()._frozen

    def _teach(self, trained: bool) -> None:
        """The teacher is the vanilla classifier, which an exact head holds when it is taken over."""
        if self.config.mode == "post-fit" and not trained:
            raise ValueError(
                f"mode 'post-fit' fits CAPE to a trained classifier, but {self.config.architecture} has none for these "
                f"{self.num_classes} classes: fine-tune the vanilla timm model first and pass it to from_timm, or use "
                "mode='from-scratch'"
            )
        if self.teacher is not None and trained:
            self.teacher.weight.data.copy_(self.head.weight.data)
            self.teacher.bias.data.copy_(self.head.bias.data)

    def drop_teacher(self) -> "CAPEForImageClassification":
        """Leave only what inference needs, for `save_pretrained` and `push_to_hub` after training."""
        self.teacher = None
        self.config = self.config.for_inference()
        return self

    def _student_features(self, features: Tensor) -> Tensor:
        return self.config.bootstrap.student_features(features)

    def _teacher_logits(self, features: Tensor) -> Tensor | None:
        return None if self.teacher is None else self.teacher(features.mean(dim=(2, 3)))

    def _loss(
        self, logits: Tensor, labels: Tensor, maps: Tensor | None, teacher_logits: Tensor | None, options: dict
    ) -> Tensor:
        return self.config.bootstrap.loss(logits, teacher_logits, labels, **options)


MODELS: dict[str, type[EvidenceForImageClassification]] = {
    model.config_class.model_type: model for model in (SoftCAMForImageClassification, CAPEForImageClassification)
}
"""Family -> its model with a loss. `softcam_hub.register_head` adds models of other packages."""


def model_class(family: str) -> type[EvidenceForImageClassification]:
    """Return the model with a loss that trains a family: its own, or the one that serves every head."""
    return MODELS.get(family, EvidenceForImageClassification)


def _flush(file: Path) -> None:
    """Wait until a file is on the disk: a rename may otherwise overtake its content."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _can_checkpoint(backbone: nn.Module) -> bool:
    """Return whether timm can recompute activations of this architecture; those that cannot raise when asked to."""
    before = getattr(backbone, "grad_checkpointing", False)
    try:
        backbone.set_grad_checkpointing(True)
        backbone.set_grad_checkpointing(before)
    except (AssertionError, AttributeError, NotImplementedError):
        return False
    return True


def _preprocessing(classifier: Classifier) -> dict[str, Any]:
    """timm's description of the input, for the channels and size that the classifier was made for."""
    cfg = {**classifier.pretrained_cfg, "input_size": classifier.input_size}
    cfg.pop("num_classes", None)
    return EvidenceConfig.without_sources(cfg)


def _labels(classifier: Classifier, pretrained: bool) -> dict[str, Any]:
    """Names of the classes that a pretrained classifier knows, where timm has them; otherwise their number."""
    subset = infer_imagenet_subset(classifier) if pretrained else None
    if subset is None:
        return {"num_labels": classifier.num_classes}
    info = ImageNetInfo(subset)
    names = [info.index_to_description(index) for index in range(classifier.num_classes)]
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
