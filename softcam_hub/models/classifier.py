"""The timm model: backbone, then head. `build` is the only way one is made.

- `forward_features` always gives (B, K, H, W), and for every exact architecture the evidence is `W·F + b` on it.
- Vanilla timm weights are accepted wherever weights are loaded.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, overload

import torch
from timm.models import build_model_with_cfg, get_pretrained_cfg
from torch import Tensor, nn

from .alignment import Alignment
from .anatomy import examine_or_explain, examine_pruned
from .backbone import make_backbone
from .features import OPTIONS, extract_features
from .heads import BUILT_IN, HEADS
from .label_kind import check_class_count, recorded_multi_label
from .names import split_name
from .preprocessing import check_model_args, check_pretrained_cfg
from .saved_format import plain_args, read_saved_args, written_args
from .scales import check_scales
from .self_explaining import SelfExplaining
from .tracing import trace
from .weights import SOURCES, adopt, below_backbone, checkpoint_filter_fn, derive_cfg, warn_off_the_shelf


class UnsupportedPool(ValueError, AssertionError):
    """Pooling other than the average; an AssertionError too, as timm raises for a pool that a model cannot take."""


class Classifier(SelfExplaining):
    """A timm model whose prediction is composed of class maps: what `build`, `convert` and `timm.create_model` return.

        model = softcam_hub.build("cape_resnet50", pretrained=True)
        logits = model(images)  # (B, C), as any timm model
        model.explain("eye.jpg", top_k=2).save("why.png")

    Args:
        family: Family of the head, such as `softcam` or `cape`.
        architecture: timm name of the backbone.
        num_classes: Number C of classes; 0 gives pooled features instead of logits.
        in_chans: Number of channels of the images.
        drop_rate: Dropout before the head. The default is that of the architecture.
        global_pool: `avg`, as evidence is always averaged; with `num_classes=0` also "", for features (B, K, H, W).
        multi_label: An image may have several labels, so that each class has a probability of its own.
        device: Device of the parameters.
        dtype: Data type of the parameters.
        alignment: Places of the cells of the maps in the image, as a saved model tells them.
        scales: Number of depths of the backbone whose features give evidence. With 3, the maps have four times as many
            rows and columns. The weights of the finer features are zero at first, so that the logits stay the same.
        other_args: Options of the head (`naive` of CAPE, eq. 4) and arguments of the timm architecture (`img_size`,
            `output_stride`, `drop_path_rate`, ...).
    """

    num_prefix_tokens = 0
    """Tokens before the patches: `forward_features` gives none, whatever the backbone has."""

    def __init__(
        self,
        family: str,
        architecture: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float | None = None,
        global_pool: str | None = None,
        multi_label: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        alignment: Mapping[str, Any] | None = None,
        scales: int = 1,
        **other_args: Any,
    ) -> None:
        super().__init__()
        self.scales = check_scales(scales)
        if multi_label and not HEADS[family].multi_label:
            raise ValueError(
                f"{HEADS[family].title}'s class probabilities sum to one, so multi_label=True is not possible: use "
                "SoftCAM for several labels per image"
            )
        self.family, self.architecture = family, architecture
        self.multi_label = multi_label
        self.measures_on_first_use = False
        self.num_classes, self.in_chans = num_classes, in_chans
        self.head_args, backbone_args = split_head_args(family, other_args)
        self.made_with = dict(self.head_args)
        self.backbone_args = {"in_chans": in_chans, **backbone_args}
        if drop_rate is not None:
            self.backbone_args["drop_rate"] = drop_rate
        self.anatomy = examine_or_explain(f"{family}_{architecture}", architecture, self.backbone_args, scales)
        self.backbone = make_backbone(architecture, self.anatomy, device=device, dtype=dtype, **self.backbone_args)
        self.alignment = None if alignment is None else Alignment.from_dict(alignment)
        self.drop_rate = getattr(self.backbone, "drop_rate", 0.0) if drop_rate is None else drop_rate
        self.num_features = self.head_hidden_size = self.anatomy.channels
        traits = getattr(self.backbone, "_traits", {})  # what timm itself notes of a model, for loading and saving
        self._traits = {**traits, "first_conv": below_backbone(traits.get("first_conv"))}
        self.global_pool = "avg"
        self.reset_classifier(num_classes, global_pool)

    @property
    def _model_args(self) -> dict[str, Any]:
        """The arguments that timm's `save_for_hf` writes to config.json, and hands back when it loads the folder."""
        args = written_args(self.made_with, self.family)
        if self.multi_label:
            args["multi_label"] = True
        if self.scales > 1:
            args["scales"] = self.scales
        if self.alignment is not None:
            args["alignment"] = self.alignment.as_dict()
        return args

    @_model_args.setter
    def _model_args(self, model_args: dict[str, Any]) -> None:
        self.made_with = {name: value for name, value in plain_args(model_args).items() if name != "alignment"}

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Compute the logits (B, C) of features (B, K, H, W), or their pooled vector (B, K)."""
        features = self.drop_features(features)
        if self.num_classes and not pre_logits:
            return self.head(features)
        features = self.last_features(features)
        return features.mean(dim=(2, 3)) if self.global_pool else features

    def forward_intermediates(self, images: Tensor, indices: int | list[int] | None = None, **options: Any) -> Any:
        """Compute timm's intermediate features; the final ones, where returned, are those of `forward_features`."""
        images = self.prepare_images(images)
        if not hasattr(self.backbone, "forward_intermediates"):
            raise ValueError(f"timm's {self.architecture} gives no intermediate features")
        options.setdefault("stop_early", False)  # timm's Hieras end at the last index by default
        output = self.backbone(images, indices=indices, method="forward_intermediates", **options)
        if options.get("intermediates_only") or options.get("stop_early"):
            return output
        size = images.shape[-2:]
        if isinstance(output, dict):
            return {**output, "image_features": self.anatomy.localise(self.backbone, output["image_features"], size)}
        final, intermediates = output
        if self.anatomy.finer:  # the caller may want the intermediate features in another form than the head
            return self.forward_features(images), intermediates
        features = self.anatomy.localise(self.backbone, final, size)
        self._watch_training(features)
        return features, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True, **options: Any
    ) -> Any:
        """Drop the layers that the intermediate features at `indices` do not need."""
        kept = indices
        if hasattr(self.backbone, "prune_intermediate_layers"):
            kept = self.backbone.prune_intermediate_layers(
                indices, prune_norm=prune_norm, prune_head=prune_head, **options
            )
        self.alignment = None
        if prune_head:
            self.anatomy = examine_pruned(self.backbone, self.input_size, self.anatomy)
            self.num_features = self.head_hidden_size = self.anatomy.channels
            self.reset_classifier(0)
        return kept

    @property
    def feature_info(self) -> Any:
        """timm's description of the intermediate features, with module paths as they are here."""
        info = copy.deepcopy(self.backbone.feature_info)
        for entry in getattr(info, "info", info):
            if "module" in entry:
                entry["module"] = f"backbone.{entry['module']}"
        return info

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one, or by none when `num_classes` is 0.

        Args:
            num_classes: Number of classes, or 0 for features.
            global_pool: `avg`, or "" for features that are not pooled. The default keeps what features are now.
        """
        check_pool(global_pool, num_classes)
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        check_class_count(num_classes, self.multi_label, "num_classes=1", "multi_label=True")
        self.num_classes = num_classes
        if num_classes == 0:
            self.global_pool = self.global_pool if global_pool is None else global_pool
            self.head = nn.Identity()  # type: ignore[assignment]  # no classes, no evidence
            return
        self.global_pool = "avg"
        weight = next(self.backbone.parameters())
        self.head = HEADS[self.family](
            self.num_features, num_classes, **self.head_args, device=weight.device, dtype=weight.dtype
        )
        if self.anatomy.finer:
            self.head.read_finer(self.anatomy.finer)
        self.head.train(self.training)
        if hasattr(self, "pretrained_cfg"):  # not while the model is made
            self.pretrained_cfg.update(label_names=None, label_descriptions=None)  # they named other classes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.set_grad_checkpointing(enable)

    @property
    def init_weights(self) -> Callable[..., None]:
        """timm's initialisation of the backbone, and that of the head; only where the backbone has one."""
        theirs = self.backbone.init_weights

        def init_weights(*args: Any, **options: Any) -> None:
            theirs(*args, **options)
            if self.num_classes:
                self.head.reset_parameters()

        return init_weights

    @property
    def set_input_size(self) -> Callable[..., None]:
        """Change the image size of an architecture that fixes it (ViT, Swin, ...); the others have no such method."""
        theirs = self.backbone.set_input_size

        def set_input_size(img_size: int | tuple[int, int] | None = None, **options: Any) -> None:
            before = dict(self.backbone._model_args)
            theirs(img_size=img_size, **options)
            changed = {key: v for key, v in self.backbone._model_args.items() if before.get(key) != v}
            self._traits = {**self._traits, "img_size": self.backbone._traits["img_size"]}
            self._model_args = {**self._model_args, **changed}
            self.backbone_args |= changed

        return set_input_size

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the graph that `torch.jit.script` compiles, as TorchScript has no keyword-only arguments."""
        return trace(self)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Load weights of this model, or of the vanilla timm model, whose classifier an exact head adopts."""
        return super().load_state_dict(adopt(state_dict, self), strict=strict, assign=assign)


def split_head_args(family: str, args: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split arguments into those of the head and those of the backbone.

    An option that only another head of this package has is refused, as timm's message would not say whose it is.

    Args:
        family: Family of the head.
        args: Options of the head, and arguments of the timm architecture.
    """
    own = HEADS[family].options()
    others = {option: head for head in BUILT_IN for option in head.options() if option not in own}
    for option, head in others.items():
        if args.get(option):
            raise ValueError(
                f"{option} is an option of {head.title}, and {HEADS[family].title} has no such option: leave it out, "
                f"or build {head.family}_<timm name>"
            )
    head_args = {name: value for name, value in args.items() if name in own}
    HEADS[family].check_options(head_args)
    return head_args, {name: value for name, value in args.items() if name not in (*own, *others)}


def check_pool(global_pool: str | None, num_classes: int) -> None:
    """Raise UnsupportedPool for any pooling but the average; a model without classes need not pool at all."""
    if global_pool not in (None, "avg") and not (global_pool == "" and num_classes == 0):
        also = "" if num_classes else ", or '' for features that are not pooled"
        raise UnsupportedPool(
            f"global_pool={global_pool!r} is not possible: evidence is averaged into logits, expected 'avg'{also}"
        )


@overload
def build(
    architecture: str, pretrained: bool = ..., *, features_only: Literal[False] = ..., **options: Any
) -> Classifier: ...
@overload
def build(architecture: str, pretrained: bool = ..., *, features_only: Literal[True], **options: Any) -> nn.Module: ...
def build(
    architecture: str, pretrained: bool = False, *, features_only: bool = False, **options: Any
) -> Classifier | nn.Module:
    """Make a self-explaining classifier, such as `softcam_resnet50` or `cape_resnet50`.

        model = softcam_hub.build("cape_resnet50", pretrained=True, num_classes=5)

    `timm.create_model` makes the same model, with a type that type checkers do not know.

    Args:
        architecture: Family and timm name, such as `cape_resnet50`; a tag may follow (`cape_resnet50.a1_in1k`).
        pretrained: Load timm's weights, and for an exact architecture timm's classifier.
        features_only: Make timm's feature extractor of the backbone instead of a classifier.
        options: Arguments that `timm.create_model` passes on, options of the head (`naive`), and arguments of the timm
            architecture.
    """
    name, _, tag = architecture.partition(".")
    family, timm_name = split_name(name)
    options = read_saved_args(options, name)
    cfg: Any = options.pop("pretrained_cfg", None) or tag
    if isinstance(cfg, str):  # a tag, or none; anything else describes our own weights already
        cfg = derive_cfg(get_pretrained_cfg(f"{timm_name}.{cfg}" if cfg else timm_name), f"{family}_{timm_name}")
    check_pretrained_cfg(cfg)
    check_pretrained_cfg(options.get("pretrained_cfg_overlay"))
    check_model_args(options)
    if (recorded := recorded_multi_label(cfg, options.get("cache_dir"))) is not None:
        options.setdefault("multi_label", recorded)
    if features_only:
        return _build_features(f"{family}_{timm_name}", pretrained, cfg, options)
    model: Classifier = build_model_with_cfg(
        partial(Classifier, family, timm_name),
        f"{family}_{timm_name}",
        pretrained,
        pretrained_cfg=cfg,
        pretrained_filter_fn=checkpoint_filter_fn,
        **options,
    )
    # as timm.create_model records what a model was made with
    model._model_args = {name: value for name, value in options.items() if name not in SOURCES}
    # weights that were drawn at random have no place, and those that were loaded have the place that came with them
    model.alignment = Alignment.from_dict(place) if pretrained and (place := options.get("alignment")) else None
    model.measures_on_first_use = pretrained and model.alignment is None
    if pretrained:
        warn_off_the_shelf(model)
    return model


def _build_features(name: str, pretrained: bool, cfg: Any, options: dict[str, Any]) -> nn.Module:
    """Make a feature extractor, from a model without classes; without weights to load, that model needs no memory."""
    extraction = {key: options.pop(key) for key in (*OPTIONS, "device", "dtype") if key in options}
    placement: dict[str, Any] = {key: extraction[key] for key in ("device", "dtype") if key in extraction}
    if not pretrained:
        placement["device"] = "meta"
    model: Classifier = build(name, pretrained, pretrained_cfg=cfg, **{**options, **placement, "num_classes": 0})
    return extract_features(model, pretrained, **extraction)
