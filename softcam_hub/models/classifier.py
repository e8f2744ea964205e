"""The timm model: backbone, then head. `build` is the only way one is made.

- `forward_features` always gives (B, K, H, W), and for every exact architecture the evidence is `W·F + b` on it.
- Vanilla timm weights are accepted wherever weights are loaded.
"""

import copy
import difflib
from dataclasses import replace
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import PretrainedCfg, build_model_with_cfg, get_pretrained_cfg
from torch import Tensor, nn

from .anatomy import examine
from .backbone import Anatomy, NoEvidenceMap, make_backbone
from .evaluation_mode import evaluation
from .heads import HEADS
from .label_kind import is_multi_label, recorded_multi_label
from .preprocessing import check_model_args, check_pretrained_cfg
from .self_explaining import SelfExplaining, check_images
from .weights import (
    adopt,
    below_backbone,
    converted_weights,
    derive_cfg,
    filter_pretrained,
    restore_cfg,
    set_linear_classifier,
)

ALIASES = {"swinv2_b": "swinv2_base_window8_256"}
"""Short names of timm architectures."""


def split_name(name: str) -> tuple[str, str]:
    """Split `cape_resnet50` into its family and timm architecture, with aliases resolved."""
    family, _, architecture = name.partition("_")
    if family not in HEADS:
        near = [f"{head}_{name}" for head in HEADS] if timm.is_model(name) else []
        expected = f"did you mean {' or '.join(near)}?" if near else "expected softcam_<timm name> or cape_<timm name>"
        raise ValueError(f"unknown architecture {name!r}: {expected}")
    architecture = ALIASES.get(architecture, architecture)
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(f'{family}_{n}' for n in near)}?" if near else "see timm.list_models()"
        raise ValueError(f"unknown architecture {name!r}: timm {timm.__version__} has no {architecture!r}; {hint}")
    return family, architecture


class Classifier(SelfExplaining):
    """A timm model whose prediction is composed of class maps.

    Args:
        family: `softcam` or `cape`.
        architecture: timm name of the backbone.
        num_classes: C; 0 gives pooled features instead of logits.
        in_chans: channels of the images.
        drop_rate: dropout before the head; the architecture's own by default.
        global_pool: for compatibility; evidence is always averaged (`avg`).
        naive: CAPE with uniform saliency (eq. 4).
        multi_label: An image may have several labels, so that each class has a probability of its own.
        backbone_args: what the timm architecture takes (`img_size`, `output_stride`, `drop_path_rate`, ...).
    """

    def __init__(
        self,
        family: str,
        architecture: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float | None = None,
        global_pool: str | None = None,
        naive: bool = False,
        multi_label: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **backbone_args: Any,
    ) -> None:
        super().__init__()
        check_pool(global_pool)
        if naive and family != "cape":
            raise ValueError(f"naive is a variant of CAPE (eq. 4), {family} has none: build cape_{architecture}")
        if multi_label and family == "cape":
            raise ValueError(
                "CAPE's class probabilities sum to one, so multi_label=True is not possible: use SoftCAM for several "
                "labels per image"
            )
        self.family, self.architecture = family, architecture
        self.multi_label = multi_label
        if multi_label:
            self._model_args = {"multi_label": True}  # timm's save_for_hf writes these arguments to config.json
        self.num_classes, self.in_chans = num_classes, in_chans
        self.backbone_args = {"in_chans": in_chans, **backbone_args}
        if drop_rate is not None:
            self.backbone_args["drop_rate"] = drop_rate
        self.head_args = {"naive": True} if naive else {}
        self.anatomy = examine_or_explain(f"{family}_{architecture}", architecture, self.backbone_args)
        self.backbone = make_backbone(architecture, self.anatomy, device=device, dtype=dtype, **self.backbone_args)
        self.drop_rate = getattr(self.backbone, "drop_rate", 0.0) if drop_rate is None else drop_rate
        self.num_features = self.head_hidden_size = self.anatomy.channels
        traits = getattr(self.backbone, "_traits", {})  # what timm itself notes of a model, for loading and saving
        self._traits = {**traits, "first_conv": below_backbone(traits.get("first_conv"))}
        self.reset_classifier(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, C) of features (B, K, H, W), or their pooled vector (B, K)."""
        features = self.drop_features(features)
        if pre_logits or self.num_classes == 0:
            return features.mean(dim=(2, 3))
        return self.head(features)

    def forward_intermediates(self, images: Tensor, indices: int | list[int] | None = None, **options: Any) -> Any:
        """timm's intermediate features; the final ones, where returned whole, are those of `forward_features`."""
        check_images(images, self.in_chans)
        if not hasattr(self.backbone, "forward_intermediates"):
            raise ValueError(f"timm's {self.architecture} gives no intermediate features")
        found = self.backbone(images, indices, method="forward_intermediates", **options)
        if options.get("intermediates_only") or options.get("stop_early"):
            return found
        size = images.shape[-2:]
        if isinstance(found, dict):
            return {**found, "image_features": self.anatomy.localise(self.backbone, found["image_features"], size)}
        return self.anatomy.localise(self.backbone, found[0], size), found[1]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> Any:
        """Drop the layers that the intermediate features at `indices` do not need."""
        if prune_head:
            self.reset_classifier(0)
            self.anatomy = replace(self.anatomy, norm=None)  # timm's head goes, and with it the norm of pooled features
        if hasattr(self.backbone, "prune_intermediate_layers"):
            return self.backbone.prune_intermediate_layers(indices, prune_norm, prune_head)
        return indices

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
        """Replace the head by a fresh one, or by none when `num_classes` is 0."""
        check_pool(global_pool)
        self.num_classes = num_classes
        if num_classes == 0:
            self.head = nn.Identity()
            return
        weight = next(self.backbone.parameters())
        like = {"device": weight.device, "dtype": weight.dtype}
        self.head = HEADS[self.family](self.num_features, num_classes, **self.head_args, **like)
        self.head.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.set_grad_checkpointing(enable)

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, **options: Any) -> None:
        """Change the image size of an architecture that fixes it (ViT, Swin, ...)."""
        if not hasattr(self.backbone, "set_input_size"):
            raise ValueError(f"{self.architecture} takes images of any size: there is nothing to set")
        before = dict(self.backbone._model_args)
        self.backbone.set_input_size(img_size=img_size, **options)
        changed = {key: v for key, v in self.backbone._model_args.items() if before.get(key) != v}
        self._traits = {**self._traits, "img_size": self.backbone._traits["img_size"]}
        self._model_args = {**getattr(self, "_model_args", {}), **changed}
        self.backbone_args |= changed

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Load our weights, or those of the vanilla timm model, from which an exact head takes its classifier."""
        return super().load_state_dict(adopt(state_dict, self), strict=strict, assign=assign)


def check_pool(global_pool: str | None) -> None:
    if global_pool not in (None, "avg"):
        raise ValueError(
            f"global_pool={global_pool!r} is not possible: evidence is averaged into logits, expected 'avg'"
        )


def examine_or_explain(name: str, architecture: str, model_args: dict[str, Any]) -> Anatomy:
    try:
        return examine(architecture, **model_args)
    except NoEvidenceMap as error:
        raise NoEvidenceMap(
            f"{name} is not possible: {architecture} admits no evidence map, because {error}. "
            f"Use one that timm.list_models('{name.split('_')[0]}_*') lists, such as resnet50, efficientnet_b0, "
            "convnext_tiny or swinv2_tiny_window8_256"
        ) from error


def build(architecture: str, pretrained: bool = False, **options: Any) -> nn.Module:
    """Make a `softcam_*` or `cape_*` classifier.

    Args:
        architecture: family and timm name, such as `cape_resnet50`; a tag may follow (`cape_resnet50.a1_in1k`).
        pretrained: load timm's weights, and for an exact architecture timm's classifier.
        options: what `timm.create_model` passes on, and what the timm architecture takes.
    """
    name, _, tag = architecture.partition(".")
    family, timm_name = split_name(name)
    cfg = options.pop("pretrained_cfg", None) or tag
    if isinstance(cfg, str):  # a tag, or none; anything else describes our own weights already
        cfg = derive_cfg(get_pretrained_cfg(f"{timm_name}.{cfg}" if cfg else timm_name), f"{family}_{timm_name}")
    check_pretrained_cfg(cfg)
    check_pretrained_cfg(options.get("pretrained_cfg_overlay"))
    check_model_args(options)
    if (recorded := recorded_multi_label(cfg, options.get("cache_dir"))) is not None:
        options.setdefault("multi_label", recorded)
    if options.get("features_only"):
        options = {"num_classes": 0, "out_indices": _default_indices(timm_name), **options}
    return build_model_with_cfg(
        partial(Classifier, family, timm_name),
        f"{family}_{timm_name}",
        pretrained,
        pretrained_cfg=cfg,
        pretrained_filter_fn=filter_pretrained,
        feature_cfg={"feature_cls": "getter"},
        **options,
    )


def _default_indices(architecture: str) -> tuple[int, ...]:
    """The intermediate features that timm gives of an architecture when none are named."""
    with torch.device("meta"):
        return tuple(timm.create_model(architecture, features_only=True).feature_info.out_indices)


def convert(vanilla: nn.Module, kind: str = "softcam") -> Classifier:
    """A timm classifier, made self-explaining with its own weights.

    Args:
        vanilla: a model from `timm.create_model`.
        kind: `softcam` (the same logits) or `cape` (the paper's off-the-shelf configuration).
    """
    if kind not in HEADS:
        raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(HEADS)}")
    architecture = getattr(vanilla, "pretrained_cfg", {}).get("architecture")
    if architecture is None or not timm.is_model(architecture):
        raise TypeError(f"convert() takes a model from timm.create_model, got {type(vanilla).__name__}")
    if not vanilla.num_classes:
        raise ValueError(f"{architecture} has num_classes=0: there is no classifier to convert")
    recorded = getattr(vanilla, "_model_args", {})
    args = {**recorded, "num_classes": vanilla.num_classes, "global_pool": None}
    if is_multi_label(vanilla):
        args["multi_label"] = True
    cfg = PretrainedCfg(**{k: v for k, v in vanilla.pretrained_cfg.items() if k != "state_dict"})
    model = build(f"{kind}_{architecture}", pretrained_cfg=derive_cfg(cfg, f"{kind}_{architecture}"), **args)
    _refuse_inexact(model, f"{architecture} cannot be converted with its classifier")
    weight = next(vanilla.parameters())
    model = model.to(weight.device, weight.dtype).train(vanilla.training)
    model.load_state_dict(converted_weights(vanilla, model))
    _check_conversion(vanilla, model)
    model._model_args = args  # what timm records when it makes a model, so that it can be saved and rebuilt
    return model


@torch.no_grad()
def _check_conversion(vanilla: nn.Module, model: Classifier) -> None:
    """Refuse a timm model that is not what its name says any more: another pool, or layers exchanged."""
    weight = model.head.weight
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *model.input_size, generator=generator).to(weight.device, weight.dtype)
    with evaluation(vanilla), evaluation(model):
        expected = vanilla(image)
        found = F.linear(model.forward_features(image).mean(dim=(2, 3)), weight, model.head.bias)
    error = (found - expected).abs().max() / expected.abs().max()
    if not error < max(1e-3, 16 * torch.finfo(weight.dtype).eps):
        raise ValueError(
            f"this {model.architecture} does not average its features and multiply once, as timm's does (its logits "
            f"differ by {float(error):.1e}): another global_pool, or an exchanged layer, admits no evidence map"
        )


def to_vanilla(model: Classifier) -> nn.Module:
    """The plain timm model with this classifier's weights; from SoftCAM its logits are the same."""
    if not isinstance(model, Classifier) or not model.num_classes:
        raise TypeError(f"to_vanilla() takes a softcam_* or cape_* timm model with classes, got {type(model).__name__}")
    _refuse_inexact(model, f"{model.family}_{model.architecture} has no vanilla counterpart")
    args = {**model.backbone_args, "num_classes": model.num_classes}
    vanilla = timm.create_model(model.architecture, pretrained_cfg=restore_cfg(model), **args)
    weight = next(model.parameters())
    vanilla = vanilla.to(weight.device, weight.dtype).train(model.training)
    own = {key.removeprefix("backbone."): v for key, v in model.state_dict().items() if key.startswith("backbone.")}
    unexpected = vanilla.load_state_dict(own, strict=False).unexpected_keys
    if unexpected:
        raise RuntimeError(f"timm's {model.architecture} has no place for {', '.join(unexpected)}")
    set_linear_classifier(vanilla, model.anatomy, model.head.weight.detach(), model.head.bias.detach())
    vanilla.multi_label = model.multi_label  # timm's own models have no such attribute
    return vanilla


def _refuse_inexact(model: Classifier, what: str) -> None:
    if model.exact:
        return
    reasons = {
        "vgg": "its 7x7 fully connected layers cannot be applied per location",
        "tokens": "its classifier reads a class token or attention pool, not the patches",
    }
    raise ValueError(f"{what}: {reasons[model.anatomy.kind]}")
