"""An experiment: the logit of a class-token transformer as a sum over patches, plus a rest that belongs to none.

- Above a layer, a transformer is affine in that layer's tokens once its attention weights, the scales of its norms and
  the gates of its activations are held fixed. The share of a token is then its value times the gradient, and what is
  left without tokens is a constant.
- The rest is that constant (biases, class tokens, positional embeddings that are added later) and the shares of class
  tokens and registers in the layer. Shares and rest add up to the logit, and this is checked: the network runs on the
  tokens and on zeros side by side, with whatever is held fixed taken from the tokens.
- What is held fixed depends on the image, too. Shares therefore say how the logit was added up, and not what would
  happen without a patch; `docs/explainers.md` says what that is worth.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..models.classes import Classes
from ..models.heads import at_least_float32
from ..models.pooled_layers import gelu_gate, gelu_tanh_gate, hardswish_gate, relu_gate, tanh_gate
from .deep_lift import ELEMENTWISE
from .explained_model import ExplainedModel
from .methods import checked_images, chosen_classes, differentiable

Function = Callable[..., Any]


@dataclass(frozen=True)
class PatchShares:
    """The parts of the logits of k classes.

    Args:
        maps: Share of every patch, (B, k, H, W).
        rest: What belongs to no patch, (B, k).
        logits: Logits, which maps and rest add up to, (B, k).
        classes: Explained classes, (B, k).
    """

    maps: Tensor
    rest: Tensor
    logits: Tensor
    classes: Tensor

    @property
    def share_of_rest(self) -> Tensor:
        """Size of the rest beside that of the sum over all patches, from 0 to 1, (B, k)."""
        rest, patches = self.rest.abs(), self.maps.sum(dim=(2, 3)).abs()
        return rest / (rest + patches).clamp_min(torch.finfo(rest.dtype).tiny)


def patch_shares(
    model: nn.Module, images: Tensor, classes: Classes | None = None, layer: str | nn.Module = "patch_embed"
) -> PatchShares:
    """Divide the logits of a class-token transformer among patches.

        shares = patch_shares(timm.create_model("vit_base_patch16_224", pretrained=True), images)
        shares.maps, shares.rest  # they add up to shares.logits

    Args:
        model: Vision transformer of timm, or a module that computes with the same functions.
        images: Images (B, 3, H, W), normalised as for the model.
        classes: Class index for all images, one per image (B,), or several per image (B, k). The default is the
            predicted class.
        layer: Module whose tokens are divided, or its dotted path: the embeddings of the patches, or a block, whose
            tokens have seen one another already (`blocks.8`).
    """
    explained = ExplainedModel(model, layer)
    with differentiable(explained.classifier):
        images = checked_images(images, explained.classifier)
        activations = explained.record(images)
        chosen = chosen_classes(classes, activations.logits, len(images)).to(images.device)
        tokens = activations.output.detach()
        leaf = tokens.clone().requires_grad_()
        with torch.no_grad(), ExitStack() as stack:

            def beside_zeros(_: Tensor) -> Tensor:
                torch.set_grad_enabled(True)
                stack.enter_context(_HeldFixed(len(images)))
                return torch.cat([leaf, torch.zeros_like(leaf)])

            logits = explained.edited_logits(torch.cat([images, images]), beside_zeros)
        reached, constant = (half.gather(1, chosen) for half in logits.chunk(2))
        slopes = [torch.autograd.grad(column, leaf, retain_graph=True)[0] for column in reached.sum(dim=0)]
    shares = [at_least_float32(tokens) * at_least_float32(slope) for slope in slopes]
    maps = torch.stack([activations.layout.to_maps(share).sum(dim=1) for share in shares], dim=1)
    all_tokens = torch.stack([share.flatten(1).sum(dim=1) for share in shares], dim=1)
    reached, constant = (at_least_float32(values.detach()) for values in (reached, constant))
    rest = constant + all_tokens - maps.sum(dim=(2, 3))
    size = sum(share.abs().flatten(1).sum(dim=1).max() for share in shares)
    _check_sum(constant + all_tokens, reached, size, model, torch.finfo(logits.dtype).eps)
    return PatchShares(maps, rest, reached, chosen)


def _check_sum(total: Tensor, logits: Tensor, size: Any, model: nn.Module, precision: float) -> None:
    """Raise ValueError unless the shares and the constant add up to the logits.

    Args:
        total: Sum of the shares and the constant, (B, k).
        logits: Logits, (B, k).
        size: Sum of the absolute shares.
        model: Model, for the message.
        precision: Machine epsilon of the model's dtype.
    """
    missed = (total - logits).abs().max()
    allowed = max(1e-4, 8 * precision) * logits.abs().max() + max(1e-5, precision) * size
    if not bool(missed <= allowed):
        _refuse(f"the shares miss the logits of this {type(model).__name__} by {float(missed):.2g}")


def _refuse(reason: str) -> NoReturn:
    raise ValueError(
        f"patch shares are not defined for this model: {reason}. Maps that are exact come from softcam_hub.convert, "
        "with a head over the average of the patches to train"
    )


class _HeldFixed(TorchFunctionMode):
    """Hold attention weights, scales of norms, and gates fixed, inside the `with` block.

    Every batch consists of inputs, followed by as many zeros, for which the same is held fixed.

    Args:
        batch: Number of inputs.
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.gates: list[Tensor] = []

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, *others = args
            return func(self.fixed(query), self.fixed(key), *others, **kwargs)
        if func in _SOFTMAXES or func in _SIGMOIDS:
            return self.fixed(func(*args, **kwargs))
        if func in _NORMS:
            return self.norm(*args, centred=func not in (F.rms_norm, torch.rms_norm), **kwargs)
        if func in _GATES:
            gate = gelu_tanh_gate if kwargs.get("approximate") == "tanh" else _GATES[func]
            output = args[0] * self.fixed(gate(args[0]))
            self.gates.append(output)  # of a gated linear unit, perhaps
            return output
        if func in ELEMENTWISE:
            _refuse(f"nobody has said how {func.__name__} is linear with a gate that is held fixed")
        if func in _PRODUCTS and all(isinstance(factor, Tensor) and factor.requires_grad for factor in args[:2]):
            one, other = args[:2]
            if one.shape == other.shape and len(one) == 2 * self.batch:
                other_is_gate = any(other is activation for activation in self.gates)
                return one * self.fixed(other) if other_is_gate else self.fixed(one) * other
        return func(*args, **kwargs)

    def fixed(self, values: Tensor) -> Tensor:
        """Return the values of the inputs as constants, and the same values for the zeros."""
        half = values.detach()[: self.batch]
        return torch.cat([half, half]) if len(values) == 2 * self.batch else values.detach()

    def norm(
        self,
        values: Tensor,
        shape: Any = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float | None = 1e-5,
        *_: Any,
        centred: bool = True,
        **named: Any,
    ) -> Tensor:
        """Apply a layer norm or an RMS norm with a scale that is held fixed."""
        axes = tuple(range(-len(named.get("normalized_shape", shape)), 0))
        weight, bias, eps = named.get("weight", weight), named.get("bias", bias), named.get("eps", eps)
        values_in = at_least_float32(values)
        if centred:
            values_in = values_in - values_in.mean(dim=axes, keepdim=True)
        summand = torch.finfo(values.dtype).eps if eps is None else eps
        scale = self.fixed(torch.rsqrt(values_in.square().mean(dim=axes, keepdim=True) + summand))
        output = values_in * scale
        output = output if weight is None else output * weight
        output = output if bias is None else output + bias
        return output.to(values.dtype)


_NORMS = {F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm}
_SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax}
_SIGMOIDS = {torch.sigmoid, F.sigmoid, Tensor.sigmoid}
_PRODUCTS = {torch.mul, Tensor.mul, Tensor.__mul__}
_GATES: dict[Function, Callable[[Tensor], Tensor]] = {
    F.gelu: gelu_gate,
    F.silu: torch.sigmoid,
    F.relu: relu_gate,
    torch.relu: relu_gate,
    F.hardswish: hardswish_gate,
    torch.tanh: tanh_gate,
    F.tanh: tanh_gate,
}
"""Activation -> its gate, the function h -> a(h)/h."""
