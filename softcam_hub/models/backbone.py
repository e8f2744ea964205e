"""Any timm backbone as evidence features `F` (B, K, H, W).

- A classifier whose logits are linear in the average-pooled features loses nothing: `W·F + b` averages to its logits.
- Layers between pool and linear layer are applied at every location with the gates and scales that they have for the
  *pooled* vector, which keeps the equality (see `pooled_layers.py`); with those of each location they would not.
- Backbone and these layers are called as modules, never by another method: hooks, and with them offloading by
  accelerate, act on the call of a module alone.
- Functions that read shapes or dtypes are leaves for `torch.fx`, which traces with shapes and dtypes still unknown, and
  are written so that `torch.jit.script` compiles them.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, SupportsIndex, TypeAlias

import timm
import torch
from timm.models.vgg import ConvMlp
from torch import Tensor, nn

from .head_types import EXACT
from .pooled_layers import everywhere
from .scales import FinerFeatures, pack
from .tracing import keep_functions_whole

TimmModule: TypeAlias = Any
"""A model or layer of timm, with attributes such as `pretrained_cfg` that the type `nn.Module` does not declare."""


class NoEvidenceMap(ValueError):
    """The architecture's head cannot be applied at every location; the message says why."""


@dataclass(frozen=True)
class Anatomy:
    """How the head of a timm classifier reads its features.

    Args:
        head_type: `linear` (pool, linear layer), `affine` (pool, then layers that fold into one linear layer), `norm`
            (pool, norm, linear layer), `gated` (further layers before, between or behind these), `vgg` or `tokens` (a
            class token or attention pool: patches need a new head).
        channels: Number K of feature channels.
        tokens: The features are (B, L, K) rather than maps.
        channels_last: The features are (B, H, W, K).
        prefix_tokens: Number of tokens before the patches (class token, registers).
        before: Paths of the layers of the head that stand before the pool.
        hidden: Paths of the layers between pool and linear layer.
        linear: Path of the linear layer.
        stride: Pixels of the image for one cell of the last features, or 0 where they were never counted.
        finer: Features with more cells that are packed behind the last ones, the coarsest first (see `scales.py`).
    """

    head_type: str
    channels: int = 0
    tokens: bool = False
    channels_last: bool = False
    prefix_tokens: int = 0
    before: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    linear: str | None = None
    stride: float = 0
    finer: tuple[FinerFeatures, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the classifier's own weights give evidence that averages to its own logits."""
        return self.head_type in EXACT

    @property
    def finest_ratio(self) -> int:
        """Number of cells of the maps for one cell of the last features, along each axis."""
        return self.finer[-1].ratio if self.finer else 1

    def features(self, backbone: TimmModule, images: Tensor) -> Tensor:
        """Compute the evidence features (B, K, H, W) of images, with a backbone from `make_backbone`.

        Finer features are packed behind the K channels of the last ones.
        """
        if not self.finer:
            return self.localise(backbone, backbone(images), images.shape[-2:])
        indices = sorted(each.index for each in self.finer)
        raw, hidden = backbone(images, indices=indices, stop_early=False, method="forward_intermediates")
        features = self.localise(backbone, raw, images.shape[-2:])
        return pack(features, dict(zip(indices, hidden, strict=True)), self.finer)

    def localise(self, backbone: TimmModule, raw: Tensor, image_size: Sequence[int]) -> Tensor:
        """Bring the output of the backbone to (B, K, H, W), and apply what its head does before the linear layer.

        Args:
            backbone: Backbone from `make_backbone`.
            raw: Output of the backbone.
            image_size: Height and width of the images.
        """
        features = self.to_maps(in_spatial_order(backbone, raw), image_size)
        if self.head_type == "vgg":
            return backbone.pre_logits(features)
        for path in self.before:
            features = backbone.get_submodule(path)(features)
        for path in self.hidden:
            features = apply_hidden(backbone, path, features)
        return features

    def to_maps(self, raw: Tensor, image_size: Sequence[int]) -> Tensor:
        """Drop prefix tokens and lay the rest out as (B, K, H, W), in the shape of the image."""
        if self.channels_last:
            return raw.permute(0, 3, 1, 2)
        if not self.tokens:
            return raw
        patches = raw[:, self.prefix_tokens :]
        height = grid_height(patches.shape[1], image_size[0], image_size[1])
        return patches.transpose(1, 2).unflatten(2, (height, patches.shape[1] // height))


def in_spatial_order(backbone: TimmModule, raw: Tensor) -> Tensor:
    """Return the tokens of a Hiera whose last layers were pruned row by row; other features are returned unchanged.

    Hiera keeps the tokens of a window together until its last pooling, and timm reorders intermediate features only.
    """
    reroll, last = getattr(backbone, "reroll", None), len(getattr(backbone, "blocks", ())) - 1
    if reroll is None or not reroll.schedule[last][0]:
        return raw
    return reroll(raw, last).flatten(1, 2)


@torch.fx.wrap
def grid_height(tokens: int, height: int, width: int) -> int:
    """Return the number of rows of the token grid that comes closest to the image's shape, which padding may change.

    Args:
        tokens: Number of patch tokens, all of which the grid holds.
        height: Height of the image.
        width: Width of the image.
    """
    if not isinstance(tokens, int):  # symbolic while an export traces
        return int((tokens * height / width) ** 0.5 + 0.5)  # round() breaks tracing
    best, smallest = 1, math.inf
    for rows in range(1, tokens + 1):
        if tokens % rows == 0:
            distance = abs(math.log(rows * rows * width / (tokens * height)))
            if distance < smallest:
                best, smallest = rows, distance
    return best


def input_size(model: TimmModule, model_args: dict[str, Any]) -> tuple[int, int, int]:
    """Return the (channels, height, width) that a timm model takes by default.

    Another `patch_size` may not divide the architecture's own size, which is then rounded down to whole patches, unless
    the model takes images of that size only.

    Args:
        model: Any model with a `pretrained_cfg`.
        model_args: Arguments that the model was made with.
    """
    channels, height, width = model.pretrained_cfg.get("input_size", (3, 224, 224))
    size = model_args.get("img_size") or (height, width)
    height, width = (size, size) if isinstance(size, int) else size
    patches = getattr(getattr(model, "backbone", model), "patch_embed", None)
    one_size_only = getattr(patches, "strict_img_size", False)
    patch_size = 1 if one_size_only else model_args.get("patch_size") or 1
    rows, columns = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    return model_args.get("in_chans") or channels, height // rows * rows, width // columns * columns


def make_backbone(architecture: str, anatomy: Anatomy, **model_args: Any) -> TimmModule:
    """Make the timm model without classifier, whose state-dict keys are the vanilla model's.

    Calling it returns unpooled features, or what another of its methods returns, and calling a hidden layer of its head
    applies it at every location. What only a discarded head used is removed, so that
    every parameter takes part in training. VGG gets the SoftCAM authors' two hidden 1x1 layers in place of its 7x7 one,
    which would leave a single location at 224 px.
    """
    backbone: TimmModule = timm.create_model(architecture, **{**model_args, "num_classes": 0})
    if any(not _has(backbone, path) for path in anatomy.hidden):  # timm drops them together with the classifier
        assert anatomy.linear is not None
        backbone = timm.create_model(architecture, **{**model_args, "num_classes": 1})
        backbone.set_submodule(anatomy.linear, nn.Identity())
        backbone.num_classes = 0
    if anatomy.head_type == "vgg":
        old = backbone.pre_logits
        like = {"device": old.fc1.weight.device, "dtype": old.fc1.weight.dtype}
        ratio = old.fc1.out_channels / old.fc2.out_channels
        backbone.pre_logits = ConvMlp(old.fc1.in_channels, old.fc2.out_channels, 1, ratio, old.drop.p, **like)
    if getattr(backbone, "attn_pool", None) is not None:
        backbone.reset_classifier(0, global_pool="avg")
    for path in anatomy.hidden:
        layer = backbone.get_submodule(path)
        forward = everywhere(layer)
        assert forward is not None, f"the probe accepted {path}"
        replace_forward(layer, forward)
    keep_functions_whole(backbone)
    return replace_forward(backbone, run_method)


def _has(backbone: nn.Module, path: str) -> bool:
    """Tell whether a backbone has a layer that does something at this path."""
    try:
        return not isinstance(backbone.get_submodule(path), nn.Identity)
    except AttributeError:
        return False


def run_method(
    backbone: TimmModule, images: Tensor, *args: Any, method: str = "forward_features", **options: Any
) -> Any:
    return getattr(backbone, method)(images, *args, **options)


def replace_forward(module: TimmModule, forward: Callable[..., Any]) -> TimmModule:
    """Make calls of `module` run `forward(module, ...)`, with the module's parameters and children as they are.

    The class of the module changes rather than its attribute `forward`: copies and replicas of the module then compute
    with their own parameters, and accelerate may still put a wrapper of its own in the attribute's place.

    Args:
        module: Module to change in place.
        forward: Function of the top level of a file, so that the module can be pickled.
    """
    module.__class__ = _with_forward(type(module), forward)  # type: ignore[arg-type]  # mypy takes it for unhashable
    return module


class _Replaced:
    """Base of the classes that `replace_forward` makes; pickles name the original class, which can be imported."""

    replaced: ClassVar[type[nn.Module]]
    forward: ClassVar[Callable[..., Any]]

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return _blank, (self.replaced, type(self).forward), self.__dict__


@functools.cache
def _with_forward(original: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__}
    return type(original.__name__, (_Replaced, original), {"forward": forward, "replaced": original, **names})


def apply_hidden(backbone: TimmModule, path: str, features: Tensor) -> Tensor:
    """Apply a hidden layer at every location, also where another stands in the place of the one from `make_backbone`.

    Programs exchange layers for others of the same purpose, as timm's `freeze` and `convert_sync_batchnorm` do. These
    bring their own forward, which reads one vector.

    Args:
        backbone: Backbone from `make_backbone`.
        path: Path of the layer.
        features: Features, (B, K, H, W).
    """
    layer = backbone.get_submodule(path)
    if any(isinstance(part, _Replaced) for part in layer.modules()):  # the layer, or what a wrapper holds
        return layer(features)
    forward = everywhere(layer)
    if forward is None:
        raise NoEvidenceMap(
            f"{path} stands between the pool and the classifier, and was exchanged for a {type(layer).__name__}, which "
            "cannot be applied at every location: put the layer back with which the model was made"
        )
    return forward(layer, features)


def _blank(original: type[nn.Module], forward: Callable[..., Any]) -> nn.Module:
    made = _with_forward(original, forward)  # type: ignore[arg-type]
    return made.__new__(made)
