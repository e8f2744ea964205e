"""DeepLIFT's rescale rule (Shrikumar et al., 2017) for the part of a network above a layer, baseline 0.

- The layer's output and the baseline run side by side, and every elementwise nonlinearity passes on Δout /
  Δin instead of its derivative. Calls are intercepted, so that functional and in-place activations count like
  modules.
- A maximum over a window shares Δout between the winner of the input and the winner of the baseline, so that
  the shares add up to Δout.
- Products, softmaxes and norms have no such rule. The contributions then miss f(A) - f(0), and the network is
  refused.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .explained_model import Activations

_SMALLEST_CHANGE = 1e-6
"""Smallest Δin for which Δout / Δin is more than rounding noise; below it the derivative takes its place."""

ELEMENTWISE = {
    *(F.relu, F.relu6, F.hardtanh, F.elu, F.leaky_relu, F.gelu, F.silu, F.hardswish, F.hardsigmoid, F.mish, F.softplus),
    *(torch.relu, torch.relu_, torch.sigmoid, torch.sigmoid_, torch.tanh, torch.tanh_, F.sigmoid, F.tanh),
    *(Tensor.relu, Tensor.relu_, Tensor.sigmoid, Tensor.sigmoid_, Tensor.tanh, Tensor.tanh_),
}
"""Activations, as functions of torch."""

_MAX_POOLS = {F.max_pool2d, torch.max_pool2d}


def deep_lift(activations: Activations) -> Tensor:
    """Compute the contribution of every channel to logit_c(A) - logit_c(0), summed over locations, (B, k, K).

    Args:
        activations: Activations A for k classes.
    """
    leaf = activations.features.clone().requires_grad_()
    images = torch.cat([activations.images, activations.images])
    with torch.no_grad(), ExitStack() as stack:

        def with_baseline(output: Tensor) -> Tensor:
            torch.set_grad_enabled(True)
            stack.enter_context(_RescaleRule())
            return activations.layout.from_maps(torch.cat([leaf, torch.zeros_like(leaf)]), output)

        logits = activations.model.edited_logits(images, with_baseline)
    reached, baseline = (half.gather(1, activations.classes) for half in logits.chunk(2))
    slopes = [torch.autograd.grad(column, leaf, retain_graph=True)[0] for column in reached.sum(dim=0)]
    contributions = (torch.stack(slopes, dim=1) * activations.features[:, None]).sum(dim=(3, 4))
    _check_complete(contributions, (reached - baseline).detach(), activations.model.layer_name)
    return contributions


def _check_complete(contributions: Tensor, change: Tensor, layer: str) -> None:
    """Raise ValueError unless the contributions add up to the change of the logit."""
    missed = (contributions.sum(dim=2) - change).abs()
    precision = torch.finfo(change.dtype).eps  # a model in half precision loses digits on the way
    rounding = max(1e-5, precision / 2) * contributions.abs().sum(dim=2)
    if (missed > max(1e-3, 8 * precision) * change.abs() + rounding).any() or not torch.isfinite(missed).all():
        worst = float((missed / change.abs().clamp_min(torch.finfo(change.dtype).tiny)).max())
        rounded = f", or {change.dtype} rounds too much (use float32)" if precision > 1e-5 else ""
        raise ValueError(
            f"lift-cam is not defined at layer {layer!r}: DeepLIFT's contributions miss the change of the "
            f"logit by {worst:.1%}, because a norm, an attention or a product stands above the "
            f"layer{rounded}; name a later layer, or use the maps of softcam_hub.convert(model), where it is "
            "exact"
        )


class _RescaleRule(TorchFunctionMode):
    """Use the slope between input and baseline as the gradient of activations, inside the `with` block.

    Every batch consists of inputs, followed by as many baselines.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in ELEMENTWISE:
            return _rescaled(lambda values: func(values, *args[1:], **kwargs), args[0])
        if func in _MAX_POOLS:
            return _shared_maximum(*args, **{**kwargs, "return_indices": True})
        return func(*args, **kwargs)


def _rescaled(activation: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return the values of an activation, with slope Δout / Δin."""
    outputs = activation(inputs.clone())  # an activation may write in place
    reached, baseline = inputs.detach().chunk(2)
    change = reached - baseline
    still = change.abs() < _SMALLEST_CHANGE
    upper, lower = outputs.detach().chunk(2)
    slope = ((upper - lower) / change.masked_fill(still, 1)).repeat(2, *[1] * (inputs.ndim - 1))
    line = outputs.detach() + slope * (inputs - inputs.detach())
    return torch.where(still.repeat(2, *[1] * (inputs.ndim - 1)), outputs, line)


def _shared_maximum(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return the maxima over windows, with Δout shared between two locations.

    With o the maximum of the input and o0 that of the baseline, the winner of the input gets max(o, o0) - o0
    and the winner of the baseline o - max(o, o0), each divided by Δin at its location.
    """
    outputs, winners = F.max_pool2d(inputs, *args, **kwargs)
    reached, baseline = inputs.chunk(2)
    upper, lower = outputs.detach().chunk(2)
    top = torch.maximum(upper, lower)
    line = upper
    for share, locations in zip((top - lower, upper - top), winners.chunk(2), strict=True):
        index = locations.flatten(2)
        winner, base = (half.flatten(2).gather(2, index).view_as(upper) for half in (reached, baseline))
        change = (winner - base).detach()
        still = change.abs() < _SMALLEST_CHANGE
        slope = (share / change.masked_fill(still, 1)).masked_fill(still, 0)
        line = line + slope * (winner - winner.detach())
    return torch.cat([line, lower])
