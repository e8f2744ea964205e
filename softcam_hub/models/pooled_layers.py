"""Layers between the pool and the linear classifier, applied at every location instead of to the pooled vector.

- Every such layer is affine once what it computes from the pooled vector h is held fixed: an activation a multiplies h
  by its gate a(h)/h, and a norm by its own scale. Applied with the same gates and scales at every location, the mean
  over locations is what the layer makes of h, so that the next layer finds its pooled vector as that mean again.
- Gates and scales stay in the graph of autograd. With them detached, gradients would not be those of the vanilla model.
- Gates are written in closed form, as a(h)/h is 0/0 where h is 0.
- Functions that read dtypes are leaves for `torch.fx`, which traces with dtypes still unknown, and are written so that
  `torch.jit.script` compiles them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from timm.layers import AttentionPool2d, BatchNormAct2d, FrozenBatchNormAct2d, resample_abs_pos_embed
from torch import Tensor, nn

from .heads import at_least_float32

Layer: TypeAlias = Any
"""A layer of torch or timm, with attributes such as `eps` that the type `nn.Module` does not declare."""

Everywhere: TypeAlias = Callable[[Any, Tensor], Tensor]
"""Function from a layer and maps (B, K, H, W) to its output at every location."""


def everywhere(layer: nn.Module) -> Everywhere | None:
    """Return how a layer of the pooled vector is applied at every location, or None where nobody has found out."""
    if isinstance(layer, nn.Linear):
        return linear
    if isinstance(layer, nn.Conv2d):
        one_point = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and not any(layer.padding)
        return convolution if one_point else None
    if isinstance(layer, BatchNormAct2d | FrozenBatchNormAct2d):
        return batch_norm_act if gate_of(layer.act) else None
    if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
        return batch_norm
    if isinstance(layer, nn.Dropout):
        return drop
    if isinstance(layer, AttentionPool2d):
        return attention_pool if layer.cls_token is None else None
    name = type(layer).__name__
    if name == "LearnableAffineBlock":  # of HGNet: a number times the features, plus a number
        return affine
    if isinstance(layer, nn.LayerNorm) or name.lower().startswith(("layernorm", "rmsnorm", "simplenorm")):
        return pooled_norm
    return gated if gate_of(layer) else None


def linear(layer: Layer, maps: Tensor) -> Tensor:
    """Apply a linear layer at every location."""
    return F.conv2d(maps, layer.weight[:, :, None, None], layer.bias)


def convolution(layer: Layer, maps: Tensor) -> Tensor:
    """Apply a 1x1 convolution, which takes maps as they are."""
    return F.conv2d(maps, layer.weight, layer.bias, groups=layer.groups)


def affine(layer: Layer, maps: Tensor) -> Tensor:
    """Multiply by a number and add another."""
    return layer.scale * maps + layer.bias


def drop(layer: Layer, maps: Tensor) -> Tensor:
    """Drop channels, which is dropping entries of the pooled vector."""
    return F.dropout2d(maps, layer.p, layer.training)


def batch_norm(norm: Layer, maps: Tensor) -> Tensor:
    """Apply a batch norm of the pooled vectors; in training mode their statistics over the batch count.

    Args:
        norm: A batch norm over K.
        maps: Features, (B, K, H, W).
    """
    values = at_least_float32(maps)
    training = norm.training and not isinstance(norm, FrozenBatchNormAct2d)
    if training or norm.running_mean is None:
        pooled = values.mean(dim=(2, 3))
        factor = 0.0 if norm.momentum is None else norm.momentum
        if training and norm.running_mean is not None:
            norm.num_batches_tracked.add_(1)
            factor = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else factor
            batch = pooled.detach().to(norm.running_mean.dtype)  # torch wants one precision
            F.batch_norm(batch, norm.running_mean, norm.running_var, None, None, True, factor, norm.eps)
        mean, variance = pooled.mean(dim=0), pooled.var(dim=0, correction=0)
    else:
        mean, variance = at_least_float32(norm.running_mean), at_least_float32(norm.running_var)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return (values * scale[:, None, None] + shift[:, None, None]).to(maps.dtype)


def batch_norm_act(norm: Layer, maps: Tensor) -> Tensor:
    """Apply timm's batch norm with its activation."""
    return gated(norm.act, batch_norm(norm, maps))


def pooled_norm(norm: Layer, maps: Tensor) -> Tensor:
    """Apply a norm of the pooled vector at every location, see `normalise_by_pooled`.

    Args:
        norm: A LayerNorm, RMSNorm or SimpleNorm over K, of torch or timm.
        maps: Features, (B, K, H, W).
    """
    centred = isinstance(norm, nn.LayerNorm)
    from_zero = not centred and "rms" in type(norm).__name__.lower()
    return normalise_by_pooled(maps, norm.weight, getattr(norm, "bias", None), norm.eps, centred, from_zero)


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


def attention_pool(pool: Layer, maps: Tensor) -> Tensor:
    """Give every location its share of what CLIP's pool makes of them all, with its attention held fixed.

    The query is the mean of all locations, which also is a token. With n locations x_l, weights a_l, and positions p_l,
    the mean over locations of n·a_l·V(x_l + p_l) + a_0·V(x_l + p_0) is what the pool returns.

    Args:
        pool: An AttentionPool2d without class token.
        maps: Features, (B, K, H, W).
    """
    from_features, from_positions = attention_parts(pool, maps)
    return from_features + from_positions


def attention_parts(pool: Layer, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `attention_pool` gives every location for its features, and for its position.

    The second part depends on the image through the weights of the attention alone.
    """
    size, heads = maps.shape[2:], pool.num_heads
    locations = maps.flatten(2).mT
    tokens = torch.cat([locations.mean(dim=1, keepdim=True), locations], dim=1)
    positions = resample_abs_pos_embed(pool.pos_embed[None], size, old_size=pool.feat_size, num_prefix_tokens=1)
    query, key, value = _query_key_value(pool)
    asked = query((tokens + positions)[:, :1]).unflatten(2, (heads, -1)).transpose(1, 2)  # (B, heads, 1, d)
    keys = key(tokens + positions).unflatten(2, (heads, -1)).transpose(1, 2)
    weights = (asked * pool.scale @ keys.mT).softmax(dim=-1)[:, :, 0, :, None]  # (B, heads, n + 1, 1)
    own, of_mean = locations.shape[1] * weights[:, :, 1:], weights[:, :, :1]

    def share(of_locations: Tensor, of_pool: Tensor) -> Tensor:
        """Weigh values at every location, (B or 1, n or 1, K), those of its own token and those in the mean."""
        apart = (value(part).unflatten(2, (heads, -1)).transpose(1, 2) for part in (of_locations, of_pool))
        weighed = own * next(apart) + of_mean * next(apart)
        return weighed.transpose(2, 3).flatten(1, 2).unflatten(2, size)

    bias = share(torch.zeros_like(locations), torch.zeros_like(locations))
    return share(locations, locations), share(positions[:, 1:], positions[:, :1]) - bias


def _query_key_value(pool: Layer) -> list[Callable[[Tensor], Tensor]]:
    """Return the three projections of an attention pool, which has them together or apart."""
    if pool.qkv is None:
        return [pool.q, pool.k, pool.v]
    weights = pool.qkv.weight.chunk(3)
    biases = [None] * 3 if pool.qkv.bias is None else pool.qkv.bias.chunk(3)
    return [functools.partial(F.linear, weight=weight, bias=bias) for weight, bias in zip(weights, biases, strict=True)]


def gated(activation: nn.Module, maps: Tensor) -> Tensor:
    """Multiply every location by the gate of the pooled vector.

    Args:
        activation: An activation that `gate_of` knows.
        maps: Features, (B, K, H, W).
    """
    gate = gate_of(activation)
    assert gate is not None
    return multiply_by_gate(maps, gate)


def multiply_by_gate(maps: Tensor, gate: Callable[[Tensor], Tensor]) -> Tensor:
    """Multiply maps (B, K, H, W) by the gate of their mean, in float32 at least."""
    values = at_least_float32(maps)
    return (values * gate(values.mean(dim=(2, 3), keepdim=True))).to(maps.dtype)


def gate_of(activation: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return the function h -> a(h)/h of an activation, with its limit where h is 0; None for an unknown one."""
    if isinstance(activation, nn.LeakyReLU):
        slope = activation.negative_slope
        return lambda pooled: slope + (1 - slope) * relu_gate(pooled)
    if isinstance(activation, nn.GELU) and activation.approximate == "tanh":
        return gelu_tanh_gate
    return GATES.get(type(activation).__name__)


def one(pooled: Tensor) -> Tensor:
    return torch.ones_like(pooled)


def relu_gate(pooled: Tensor) -> Tensor:
    return (pooled > 0).to(pooled.dtype)


def relu6_gate(pooled: Tensor) -> Tensor:
    return relu_gate(pooled) * 6 / pooled.clamp_min(6)


def squared_relu_gate(pooled: Tensor) -> Tensor:
    return pooled.relu()


def hardswish_gate(pooled: Tensor) -> Tensor:
    return F.relu6(pooled + 3) / 6


def gelu_gate(pooled: Tensor) -> Tensor:
    return (1 + torch.erf(pooled / math.sqrt(2))) / 2


def gelu_tanh_gate(pooled: Tensor) -> Tensor:
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (pooled + 0.044715 * pooled**3))) / 2


def quick_gelu_gate(pooled: Tensor) -> Tensor:
    return torch.sigmoid(1.702 * pooled)


def tanh_gate(pooled: Tensor) -> Tensor:
    """Compute tanh(h)/h; near 0, where the quotient loses digits and its gradient, by its series."""
    small = pooled.abs() < 1e-2
    apart = torch.where(small, 1.0, pooled)
    square = pooled * pooled
    return torch.where(small, 1 - square / 3 + 2 * square * square / 15, torch.tanh(apart) / apart)


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": one,
    "ReLU": relu_gate,
    "ReLU6": relu6_gate,
    "SquaredReLU": squared_relu_gate,
    "SiLU": torch.sigmoid,
    "Swish": torch.sigmoid,
    "SwishMe": torch.sigmoid,
    "Hardswish": hardswish_gate,
    "HardSwish": hardswish_gate,
    "HardSwishMe": hardswish_gate,
    "GELU": gelu_gate,
    "GELUTanh": gelu_tanh_gate,
    "QuickGELU": quick_gelu_gate,
    "Tanh": tanh_gate,
}
"""Class of an activation of torch or timm -> its gate."""
