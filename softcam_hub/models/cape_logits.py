"""The logits of CAPE with a backward pass in closed form, which holds a third of the memory that autograd does.

- With z = M'/T', the log of eq. 8 is log P = z - lse_c z + log s, where s is the softmax of the mean of z over the
  locations, and the logits are log p̂ = lse_ij log P. Autograd keeps a tensor (B, C, H, W) for almost every step.
- Here only M' is kept. The backward pass computes log P again, and works in its place:
  dL/d log P = g·P/p̂ =: G, dL/dz = G - softmax_c(z)·Σ_c G + (S - s·Σ_ij S)/C with S = Σ_c G.
- Second derivatives go through autograd.
"""

from typing import Any

import torch
from torch import Tensor


class CAPELogits(torch.autograd.Function):
    """Compute log p̂ (B, C) from evidence, log T' and `naive`, the arguments of `log_parts`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(evidence: Tensor, log_temperature: Tensor, naive: bool) -> Tensor:
        parts, _ = log_parts(evidence, log_temperature, naive)
        largest = parts.amax(dim=(2, 3))
        return parts.sub_(largest[:, :, None, None]).exp_().sum(dim=(2, 3)).log_().add_(largest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        evidence, log_temperature, ctx.naive = inputs
        ctx.save_for_backward(evidence, log_temperature, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        evidence, log_temperature, logits = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            parts, _ = log_parts(evidence, log_temperature, ctx.naive)
            again = parts.flatten(2).logsumexp(dim=2)
            needed = ctx.needs_input_grad[:2]  # a head that is frozen has a temperature that is
            inputs = [one for one, needs in zip((evidence, log_temperature), needed, strict=True) if needs]
            found = iter(torch.autograd.grad(again, inputs, gradients, create_graph=True))
            first, second = (next(found) if needs else None for needs in needed)
            return first, second, None
        parts, log_saliency = log_parts(evidence, log_temperature, ctx.naive)
        shares = (parts - log_saliency).exp_()  # softmax over the classes
        along = parts.sub_(logits[:, :, None, None]).exp_().mul_(gradients[0][:, :, None, None])
        sums = along.sum(dim=1, keepdim=True)
        along.sub_(shares.mul_(sums))
        if not ctx.naive:
            total = sums.sum(dim=(2, 3), keepdim=True)
            along.add_((sums - log_saliency.exp() * total) / evidence.shape[1])
        along.mul_((-log_temperature).exp())
        products = [(a * b).sum() for a, b in zip(along, evidence, strict=True)]  # one by one: a batch is another map
        return along, -torch.stack(products).sum().reshape(1), None


def log_parts(evidence: Tensor, log_temperature: Tensor, naive: bool) -> tuple[Tensor, Tensor]:
    """Compute log P (B, C, H, W), the product of eq. 8, and the log of the saliency (B, 1, H, W), in log space.

    Args:
        evidence: M' in float32, or more precise, (B, C, H, W).
        log_temperature: Vector of one element.
        naive: Weigh all locations equally (eq. 4) instead of by their saliency (eq. 7).
    """
    scaled = evidence * (-log_temperature).exp()
    mean = scaled.mean(dim=1, keepdim=True)
    mean = torch.zeros_like(mean) if naive else mean
    log_saliency = mean.flatten(2).log_softmax(dim=2).reshape(mean.shape)
    # torch's log_softmax over a strided dimension adds up serially on a CPU, which costs digits with many classes;
    # with the maximum taken off, the sum is at least 1 and large evidence keeps its digits
    scaled = scaled - scaled.detach().amax(dim=1, keepdim=True)
    log_sum = scaled.exp().sum(dim=1, keepdim=True).log()
    return scaled - (log_sum - log_saliency), log_saliency
