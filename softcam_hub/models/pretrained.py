"""Base of the Hugging Face models: building, loading, converting from timm, and saving.

- transformers builds on the meta device and initialises what a checkpoint lacks; buffers that timm does not save are
  rebuilt there, and weights that timm drew or loaded are never drawn again.
- A checkpoint that lacks weights is refused, where transformers would draw them at random.
"""

import copy
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import Self

from .alignment import Alignment
from .backbone import TimmModule
from .classes import name_classes
from .classifier import Classifier, build
from .configuration import EvidenceConfig
from .conversion import convert
from .heads import EvidenceHead
from .label_kind import MULTI_LABEL
from .saving import save_in_one_go
from .scales import pack
from .self_explaining import SelfExplaining
from .weights import off_the_shelf_is_intended, warn_off_the_shelf


class EvidencePreTrainedModel(SelfExplaining, PreTrainedModel):
    """Base of the Hugging Face models of all families.

    Args:
        config: Configuration of the model to build.
        classifier: timm model of this package to take over instead of building one.
    """

    config: EvidenceConfig
    config_class: type[EvidenceConfig]
    teacher: nn.Linear | None
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # a tuple as in the models of transformers
    gradient_checkpointing = False
    accepts_loss_kwargs = False  # with **kwargs in forward, Trainer would multiply the loss by the accumulation steps
    _no_split_modules: list[str] = []  # noqa: RUF012, transformers reads these class attributes
    _keys_to_ignore_on_load_unexpected = [r"^teacher\."]  # noqa: RUF012

    def __init__(self, config: EvidenceConfig, classifier: Classifier | None = None) -> None:
        config = copy.copy(config)  # the alignment is kept in it, and the caller's one stays as it is
        super().__init__(config)
        config.validate_settings()
        if classifier is not None and classifier.num_classes != config.num_labels:
            raise ValueError(
                f"the configuration has {config.num_labels} classes, but the model that is taken over has "
                f"{classifier.num_classes}: leave num_labels and id2label out, or give the model a new head first "
                f"with reset_classifier({config.num_labels})"
            )
        self._saved_alignment = None if classifier else self._alignment  # that of weights which `from_pretrained` loads
        if classifier is None:
            cfg = dict(config.pretrained_cfg or {})
            args = dict(config.model_args or {})
            if config.problem_type == MULTI_LABEL:
                args["multi_label"] = True
            classifier = build(config.architecture, num_classes=config.num_labels, pretrained_cfg=cfg, **args)
        self.family, self.architecture, self.anatomy = classifier.family, classifier.architecture, classifier.anatomy
        self.backbone, self.head = classifier.backbone, classifier.head
        self.num_classes, self.in_chans = classifier.num_classes, classifier.in_chans
        self.drop_rate, self.backbone_args = classifier.drop_rate, classifier.backbone_args
        self.measures_on_first_use, self.alignment = classifier.measures_on_first_use, classifier.alignment
        config.pretrained_cfg = self.pretrained_cfg = _preprocessing(classifier)
        self.supports_gradient_checkpointing = _can_checkpoint(self.backbone)
        self.teacher = self._make_teacher()
        for module in self.modules():
            if not any(tensor.is_meta for tensor in (*module.parameters(False), *module.buffers(False))):
                module._is_hf_initialized = True  # type: ignore[assignment]  # timm has drawn these weights
        self._freeze()
        self.post_init()

    def _freeze(self) -> None:
        for module in self._frozen:
            module.requires_grad_(False)

    def _make_teacher(self) -> nn.Linear | None:
        """Make the vanilla classifier that the head learns from, in the modes that have one."""
        return None

    @property
    def multi_label(self) -> bool:  # type: ignore[override]  # asks the configuration, where timm models keep it
        """Whether an image may have several labels."""
        return self.config.problem_type == MULTI_LABEL

    @property
    def _alignment(self) -> Alignment | None:  # kept in the configuration, to be saved
        content = (self.config.model_args or {}).get("alignment")
        return None if content is None else Alignment.from_dict(content)

    @_alignment.setter
    def _alignment(self, alignment: Alignment | None) -> None:
        args = {name: value for name, value in (self.config.model_args or {}).items() if name != "alignment"}
        self.config.model_args = args if alignment is None else {**args, "alignment": alignment.as_dict()}

    @property
    def timm_name(self) -> str:
        return self.config.architecture

    @property
    def labels(self) -> tuple[str, ...]:
        return name_classes(self.num_classes, self.config.class_names())

    @property
    def _frozen(self) -> list[nn.Module]:
        """The modules that do not learn; their batch statistics do not move either."""
        return [self.backbone] if self.config.freeze_backbone else []

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def _init_weights(self, module: TimmModule) -> None:
        """Initialise what neither timm nor a checkpoint has: a new head, and buffers lost to the meta device."""
        if isinstance(module, EvidenceHead):
            module.reset_parameters()
        elif hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
        else:
            super()._init_weights(module)

    def _set_gradient_checkpointing(self, enable: bool = True, *_: Any, **__: Any) -> None:
        self.backbone.set_grad_checkpointing(enable)
        self.gradient_checkpointing = enable  # read by transformers and PEFT

    @overload
    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: Literal[False] = ..., **kwargs: Any) -> Self: ...
    @overload
    @classmethod
    def from_pretrained(
        cls, *args: Any, output_loading_info: Literal[True], **kwargs: Any
    ) -> tuple[Self, dict[str, Any]]: ...
    @classmethod
    def from_pretrained(
        cls, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Self | tuple[Self, dict[str, Any]]:
        """Load a model as transformers does, from safetensors only, and refuse weights that are not whole."""
        kwargs["use_safetensors"] = True  # a pickled file can run code
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, report = loaded
        missing = sorted(report["missing_keys"])
        if any(key.startswith("teacher.") for key in missing):
            raise ValueError(
                f"mode {model.config.mode!r} learns from a teacher, but this checkpoint holds none: it was made for "
                "inference. Load it with mode='direct', or start again with from_timm(..., mode=...)"
            )
        lost = [key for key in missing if key.startswith("backbone.")]
        if lost:
            raise ValueError(
                f"this checkpoint is not whole: it lacks {len(lost)} weights of the backbone, among them {lost[0]}"
            )
        lost = [key for key in missing if key.startswith("head.")]
        if lost and cls._saved_classes(*args[:1], **kwargs) in (None, model.num_classes):
            raise ValueError(
                f"this checkpoint is not whole: it lacks {', '.join(lost)}. Expected all that save_pretrained writes; "
                "for a new head, give a num_labels other than the saved one"
            )
        if "head.fine_weight" in report["unexpected_keys"]:
            raise ValueError(
                "this checkpoint reads finer features, and the model that is to load it does not: leave the scales in "
                "model_args as they were saved"
            )
        model.alignment = model._saved_alignment
        model.measures_on_first_use = model.alignment is None and not lost
        model._freeze()  # loading puts new parameters in place of the frozen ones
        return (model, report) if output_loading_info else model

    @classmethod
    def _saved_classes(cls, source: str | Path | None = None, **kwargs: Any) -> int | None:
        """Return the number of classes in the config.json beside the weights, or None without a source."""
        source = kwargs.get("pretrained_model_name_or_path", source)
        if source is None:
            return None
        options = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
        chosen = {name: kwargs[name] for name in options if name in kwargs}
        return cls.config_class.from_pretrained(source, **chosen).num_labels

    @classmethod
    def from_timm(
        cls,
        source: str | nn.Module,
        pretrained: bool = True,
        model_args: dict[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        **config: Any,
    ) -> Self:
        """Make the Hugging Face model of a timm model, with its weights.

        Args:
            source: Name with or without tag (`cape_resnet50.a1_in1k`), timm model of this package, or anything that
                `softcam_hub.convert` takes.
            pretrained: Load the weights of a named model.
            model_args: Arguments of the timm architecture, and options of the head.
            cache_dir: Folder of downloads.
            config: Fields of the configuration (`num_labels`, `id2label`, `l1`, `mode`, ...).
        """
        if isinstance(source, str):
            args = {"cache_dir": cache_dir, **(model_args or {})}
            labels = config.get("id2label") or range(config.get("num_labels") or 0)
            if labels:
                args["num_classes"] = len(labels)
            if config.get("problem_type") == MULTI_LABEL:
                args["multi_label"] = True
            with off_the_shelf_is_intended():  # whether it is used as it is depends on the teacher, see below
                classifier = build(source, pretrained, **args)
            has_trained_head = pretrained and classifier.num_classes == classifier.pretrained_cfg.get("num_classes")
        else:
            with off_the_shelf_is_intended():
                classifier = (
                    source
                    if isinstance(source, Classifier)
                    else convert(source, cls.config_class.model_type, scales=(model_args or {}).get("scales", 1))
                )
            if model_args and model_args != {"scales": classifier.scales}:
                raise ValueError(
                    f"model_args={model_args} have no effect on a network that is made already: leave them out; scales "
                    "alone are taken for a vanilla classifier"
                )
            model_args = classifier.made_with
            # a teacher that is frozen must be a vanilla classifier, and neither fresh nor a head that has learnt
            is_frozen = config.get("mode") == "post-fit" and isinstance(source, Classifier)
            has_trained_head = classifier.head.is_off_the_shelf if is_frozen else True
        if "id2label" not in config:
            config = {**_labels(classifier, has_trained_head), **config}
        architecture = f"{classifier.family}_{classifier.architecture}"
        model = cls(cls.config_class(architecture=architecture, model_args=model_args, **config), classifier)
        model._init_teacher(has_trained_head and classifier.exact)
        if model.teacher is None:
            warn_off_the_shelf(model)
        return model

    def _init_teacher(self, has_trained_head: bool) -> None:
        """Give the teacher its first weights.

        Args:
            has_trained_head: The head was taken over from a trained vanilla classifier.
        """

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write weights and configuration, and the code of families that bring their own models.

        Files that are there stay as they are until all new ones are written.

        Args:
            save_directory: Folder of the model.
            args: Further arguments of `transformers.PreTrainedModel.save_pretrained`.
            kwargs: Further arguments of `transformers.PreTrainedModel.save_pretrained`.
        """
        self._forget_if_trained()  # a place that is not true any more is not saved
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", target.name)
        save_in_one_go(
            lambda draft: super(EvidencePreTrainedModel, self).save_pretrained(draft, *args, **kwargs), target
        )

    def _features(
        self, pixel_values: Any, output_hidden_states: bool | Sequence[int]
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Compute the features, and the backbone's hidden states: none, all, or those at the given indices."""
        if not output_hidden_states:
            return self.forward_features(pixel_values), None
        chosen = list(output_hidden_states) if isinstance(output_hidden_states, Sequence) else None
        images = self.prepare_images(pixel_values)
        finer = self.anatomy.finer
        wanted = None if finer else chosen  # the head reads some, too
        raw, hidden = self.backbone(images, indices=wanted, stop_early=False, method="forward_intermediates")
        features = self.anatomy.localise(self.backbone, raw, pixel_values.shape[-2:])
        if finer:
            features = pack(features, dict(enumerate(hidden)), finer)
            numbers = range(len(hidden))
            hidden = [hidden[number] for number in sorted({numbers[index] for index in chosen or numbers})]
        self._watch_training(features)
        return features, tuple(hidden)

    def _predict(self, features: Tensor, output_maps: bool) -> tuple[Tensor, Tensor | None]:
        """Compute the logits, and the maps where they are asked for."""
        if output_maps:
            return self.head(features, kind=self.head_class.kinds[0])
        return self.head(features), None


def _can_checkpoint(backbone: TimmModule) -> bool:
    """Tell whether timm can recompute activations of this architecture; those that cannot raise when asked to."""
    before = getattr(backbone, "grad_checkpointing", False)
    try:
        backbone.set_grad_checkpointing(True)
        backbone.set_grad_checkpointing(before)
    except (AssertionError, AttributeError, NotImplementedError):
        return False
    return True


def _preprocessing(classifier: Classifier) -> dict[str, Any]:
    """Return timm's description of the input, for the channels and size that the classifier was made for."""
    cfg = {**classifier.pretrained_cfg, "input_size": classifier.input_size}
    cfg.pop("num_classes", None)
    return EvidenceConfig.without_sources(cfg)


def _labels(classifier: Classifier, pretrained: bool) -> dict[str, Any]:
    """Return the class names that a classifier carries or, with timm's weights, timm knows; otherwise their number.

    Args:
        classifier: Classifier whose classes are to be named.
        pretrained: The classifier holds timm's weights, whose classes timm may know.
    """
    names = classifier.pretrained_cfg.get("label_names")
    if (not names or len(names) != classifier.num_classes) and pretrained:
        subset = infer_imagenet_subset(classifier)
        names = subset and ImageNetInfo(subset).label_descriptions()
    if not names or len(names) != classifier.num_classes:
        return {"num_labels": classifier.num_classes}
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
