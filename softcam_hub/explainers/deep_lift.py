"""DeepLIFT's rescale rule (Shrikumar et al., 2017) for the part of a network above a layer, baseline 0.

- The layer's output and the baseline run side by side, and every elementwise nonlinearity passes on Δout / Δin instead
  of its derivative. It is caught where it is *called*, so functional and in-place activations count like modules.
- A maximum over a window shares Δout between the winner of the input and the winner of the baseline, so that nothing of
  it is lost.
- Products, softmaxes and norms have no such rule. The contributions then miss f(A) - f(0), and the network is refused.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .recording import Recording

_SMALLEST_CHANGE = 1e-6
"""Below it Δout / Δin is rounding noise, and the derivative stands in for it."""

_ELEMENTWISE = {
    *(F.relu, F.relu6, F.hardtanh, F.elu, F.leaky_relu, F.gelu, F.silu, F.hardswish, F.hardsigmoid, F.mish, F.softplus),
    *(torch.relu, torch.relu_, torch.sigmoid, torch.sigmoid_, torch.tanh, torch.tanh_, F.sigmoid, F.tanh),
    *(Tensor.relu, Tensor.relu_, Tensor.sigmoid, Tensor.sigmoid_, Tensor.tanh, Tensor.tanh_),
}
_MAX_POOLS = {F.max_pool2d, torch.max_pool2d}


def deep_lift(recording: Recording) -> Tensor:
    """Contribution of every channel to logit_c(A) - logit_c(0), summed over locations, (B, k, K).

    Args:
        recording: of the layer whose output is A, asked about k classes.
    """
    leaf = recording.features.clone().requires_grad_()
    images = torch.cat([recording.images, recording.images])
    with torch.no_grad(), ExitStack() as stack:

        def pair(raw: Tensor) -> Tensor:
            torch.set_grad_enabled(True)
            stack.enter_context(_RescaleRule())
            return recording.layout.from_maps(torch.cat([leaf, torch.zeros_like(leaf)]), raw)

        logits = recording.subject.run(images, pair)
    reached, baseline = (half.gather(1, recording.classes) for half in logits.chunk(2))
    slopes = [torch.autograd.grad(column, leaf, retain_graph=True)[0] for column in reached.sum(dim=0)]
    contributions = (torch.stack(slopes, dim=1) * recording.features[:, None]).sum(dim=(3, 4))
    _check_complete(contributions, (reached - baseline).detach(), recording.subject.layer_name)
    return contributions


def _check_complete(contributions: Tensor, change: Tensor, layer: str) -> None:
    missed = (contributions.sum(dim=2) - change).abs()
    precision = torch.finfo(change.dtype).eps  # that of the model, whose half precision loses digits on the way
    rounding = max(1e-5, precision / 2) * contributions.abs().sum(dim=2)
    if (missed > max(1e-3, 8 * precision) * change.abs() + rounding).any() or not torch.isfinite(missed).all():
        worst = float((missed / change.abs().clamp_min(torch.finfo(change.dtype).tiny)).max())
        rounded = f", or {change.dtype} rounds too much (take float32)" if precision > 1e-5 else ""
        raise ValueError(
            f"lift-cam is not defined at layer {layer!r}: DeepLIFT's contributions miss the change of the logit by "
            f"{worst:.1%}, because a norm, an attention or a product stands above the layer{rounded}; name a later "
            "layer, or take the maps of softcam_hub.convert(model), where it is exact"
        )


class _RescaleRule(TorchFunctionMode):
    """Inside the `with`, activations of a batch [input, baseline] have the slope between the two as their gradient."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ELEMENTWISE:
            return _rescaled(lambda values: func(values, *args[1:], **kwargs), args[0])
        if func in _MAX_POOLS:
            return _shared_maximum(*args, **{**kwargs, "return_indices": True})
        return func(*args, **kwargs)


def _rescaled(activation: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The activation's values, with slope Δout / Δin."""
    outputs = activation(inputs.clone())  # it may write in place
    reached, baseline = inputs.detach().chunk(2)
    change = reached - baseline
    still = change.abs() < _SMALLEST_CHANGE
    upper, lower = outputs.detach().chunk(2)
    slope = ((upper - lower) / change.masked_fill(still, 1)).repeat(2, *[1] * (inputs.ndim - 1))
    line = outputs.detach() + slope * (inputs - inputs.detach())
    return torch.where(still.repeat(2, *[1] * (inputs.ndim - 1)), outputs, line)


def _shared_maximum(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The maxima's values; with o the maximum of the input and o0 of the baseline, max(o, o0) - o0 is the share of the
    input's winner and o - max(o, o0) that of the baseline's winner, each over the Δin of its location.
    """
    outputs, winners = F.max_pool2d(inputs, *args, **kwargs)
    reached, baseline = inputs.chunk(2)
    upper, lower = outputs.detach().chunk(2)
    top = torch.maximum(upper, lower)
    line = upper
    for share, places in zip((top - lower, upper - top), winners.chunk(2), strict=True):
        there, base = (half.flatten(2).gather(2, places.flatten(2)).view_as(upper) for half in (reached, baseline))
        change = (there - base).detach()
        still = change.abs() < _SMALLEST_CHANGE
        slope = (share / change.masked_fill(still, 1)).masked_fill(still, 0)
        line = line + slope * (there - there.detach())
    return torch.cat([line, lower])
