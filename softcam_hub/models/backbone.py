"""Any timm backbone as evidence features `F` (B, K, H, W).

- A classifier whose logits are linear in the average-pooled features loses nothing: `W·F + b` averages to its logits.
- Where a norm stands between pool and linear layer, the norm divides by a statistic of the *pooled* vector. Dividing
  every location by that same statistic keeps the equality; normalising each location by itself does not.
- Backbone and norm are called as modules, never by another method: hooks, and with them offloading by accelerate, act
  on the call of a module alone.
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

from .heads import at_least_float32
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
            (pool, norm, linear layer), `vgg` or `tokens` (a class token or attention pool: patches need a new head).
        channels: Number K of feature channels.
        tokens: The features are (B, L, K) rather than maps.
        channels_last: The features are (B, H, W, K).
        prefix_tokens: Number of tokens before the patches (class token, registers).
        norm: Path of the norm between pool and linear layer.
        linear: Path of the linear layer.
        stride: Pixels of the image for one cell of a map, or 0 where they were never counted.
    """

    head_type: str
    channels: int = 0
    tokens: bool = False
    channels_last: bool = False
    prefix_tokens: int = 0
    norm: str | None = None
    linear: str | None = None
    stride: float = 0

    @property
    def exact(self) -> bool:
        """Whether the classifier's own weights give evidence that averages to its own logits."""
        return self.head_type in ("linear", "affine", "norm")

    def features(self, backbone: TimmModule, images: Tensor) -> Tensor:
        """Compute the evidence features (B, K, H, W) of images, with a backbone from `make_backbone`."""
        return self.localise(backbone, backbone(images), images.shape[-2:])

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
        if self.norm is not None:
            return backbone.get_submodule(self.norm)(features)
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


def pooled_norm(norm: TimmModule, features: Tensor) -> Tensor:
    """Apply a norm of the pooled vector at every location, see `normalise_by_pooled`.

    Args:
        norm: A LayerNorm, RMSNorm or SimpleNorm over K, of torch or timm.
        features: Features, (B, K, H, W).
    """
    centred = isinstance(norm, nn.LayerNorm)
    from_zero = not centred and "rms" in type(norm).__name__.lower()
    return normalise_by_pooled(features, norm.weight, getattr(norm, "bias", None), norm.eps, centred, from_zero)


@torch.fx.wrap
def normalise_by_pooled(
    features: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float | None, centred: bool, from_zero: bool
) -> Tensor:
    """Normalise every location by the statistic of the pooled vector, so that the mean over locations is `norm(mean)`.

    With m the mean of F over locations: γ·(F - mean_K F)·rsqrt(var_K m + eps) + β for LayerNorm. RMSNorm and SimpleNorm
    do not centre; SimpleNorm divides by the unbiased variance. The statistic is float32 at least.

    Args:
        features: Features, (B, K, H, W).
        weight: Scale of the norm, (K).
        bias: Shift of the norm, (K).
        eps: Summand of the variance. torch's RMSNorm may leave it open.
        centred: True for LayerNorm.
        from_zero: True for RMSNorm, whose statistic is the mean square.
    """
    values = at_least_float32(features)
    summand = _machine_epsilon(features) if eps is None else eps
    pooled = values.mean(dim=(2, 3), keepdim=True)
    if centred:
        scale = torch.rsqrt(pooled.var(dim=1, correction=0, keepdim=True) + summand)
        values = values - values.mean(dim=1, keepdim=True)
    elif from_zero:
        scale = torch.rsqrt(pooled.square().mean(dim=1, keepdim=True) + summand)
    else:
        scale = torch.rsqrt(pooled.var(dim=1, keepdim=True) + summand)
    if weight is not None:
        scale = scale * weight[:, None, None]
    values = values * scale
    if bias is not None:
        values = values + bias[:, None, None]
    return values.to(features.dtype)


@torch.jit.unused
def _machine_epsilon(values: Tensor) -> float:
    return torch.finfo(values.dtype).eps


def make_backbone(architecture: str, anatomy: Anatomy, **model_args: Any) -> TimmModule:
    """Make the timm model without classifier, whose state-dict keys are the vanilla model's.

    Calling it returns unpooled features, or what another of its methods returns, and calling the norm of its head
    normalises every location by the statistic of the pooled vector. What only a discarded head used is removed, so that
    every parameter takes part in training. VGG gets the SoftCAM authors' two hidden 1x1 layers in place of its 7x7 one,
    which would leave a single location at 224 px.
    """
    backbone: TimmModule = timm.create_model(architecture, **{**model_args, "num_classes": 0})
    if anatomy.head_type == "vgg":
        old = backbone.pre_logits
        like = {"device": old.fc1.weight.device, "dtype": old.fc1.weight.dtype}
        ratio = old.fc1.out_channels / old.fc2.out_channels
        backbone.pre_logits = ConvMlp(old.fc1.in_channels, old.fc2.out_channels, 1, ratio, old.drop.p, **like)
    if getattr(backbone, "attn_pool", None) is not None:
        backbone.reset_classifier(0, global_pool="avg")
    if anatomy.norm is not None:
        replace_forward(backbone.get_submodule(anatomy.norm), pooled_norm)
    keep_functions_whole(backbone)
    return replace_forward(backbone, run_method)


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


def _blank(original: type[nn.Module], forward: Callable[..., Any]) -> nn.Module:
    made = _with_forward(original, forward)  # type: ignore[arg-type]
    return made.__new__(made)
