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
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.classes import Classes
from ..models.heads import at_least_float32
from ..models.pooled_layers import gelu_gate, gelu_tanh_gate, hardswish_gate, relu6_gate, relu_gate, tanh_gate
from ..models.self_explaining import SelfExplaining
from .deep_lift import ELEMENTWISE
from .explained_model import ExplainedModel
from .inputs import checked_images, chosen_classes, differentiable

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
    if isinstance(model, SelfExplaining):
        raise TypeError(
            f"patch_shares() takes a vision transformer as timm makes it, and the maps of {model.timm_name} add up to "
            "its prediction already: call its explain()"
        )
    if getattr(model, "num_classes", None) == 0:
        raise ValueError("patch_shares() needs classes: this model has num_classes=0")
    explained = ExplainedModel(model, layer)
    with differentiable(explained.classifier):
        images = checked_images(images, explained.classifier)
        activations = explained.record(images)
        chosen = chosen_classes(classes, activations.logits, len(images)).to(images.device)
        tokens = activations.output.detach()
        leaf = tokens.clone().requires_grad_()
        with torch.no_grad():

            def beside_zeros(_: Tensor) -> Tensor:
                torch.set_grad_enabled(True)
                return _Held.start(torch.cat([leaf, torch.zeros_like(leaf)]))

            logits = explained.edited_logits(torch.cat([images, images]), beside_zeros)
        reached, constant = _Held.end(logits, explained.layer_name).gather(1, torch.cat([chosen, chosen])).chunk(2)
        slopes = [torch.autograd.grad(column, leaf, retain_graph=True)[0] for column in reached.sum(dim=0)]
    shares = [at_least_float32(tokens) * at_least_float32(slope) for slope in slopes]
    maps = torch.stack([activations.layout.to_maps(share).sum(dim=1) for share in shares], dim=1)
    if not any(activations.layout.to_maps(slope).any() for slope in slopes):
        raise ValueError(
            f"the logits depend on no patch in layer {explained.layer_name!r}, as where only class tokens are read, so "
            "that no patch has a share: name an earlier layer, such as 'patch_embed'"
        )
    whole = torch.stack([share.flatten(1).sum(dim=1) for share in shares], dim=1)
    constant, given = at_least_float32(constant.detach()), at_least_float32(activations.logits.detach())
    rest = constant + whole - maps.sum(dim=(2, 3))
    size = max(float(share.abs().flatten(1).sum(dim=1).max()) for share in shares)
    _check_sum(constant + whole, given.gather(1, chosen), size, torch.finfo(logits.dtype).eps)
    return PatchShares(maps, rest, given.gather(1, chosen), chosen)


def _check_sum(total: Tensor, logits: Tensor, size: float, precision: float) -> None:
    """Raise ValueError unless the shares and the constant add up to the logits.

    Args:
        total: Sum of the shares and the constant, (B, k).
        logits: Logits of the model as it is, (B, k).
        size: Largest sum of the absolute shares of an image.
        precision: Machine epsilon of the model's dtype.
    """
    missed = float((total - logits).abs().max())
    allowed = max(5e-6, 2 * precision) * float(logits.abs().max()) + max(1e-4, precision) * size
    if not missed <= allowed:
        _refuse(f"they miss its logits by {missed:.2g}")


def _refuse(reason: str) -> NoReturn:
    raise ValueError(
        f"patch shares are not defined for this model: {reason}. Maps that are exact come from softcam_hub.convert, "
        "with a head over the average of the patches to train"
    )


LINEAR, GATED, CURVED, FIXED = "linear", "gated", "curved", "fixed"
"""What a value is: linear in the tokens; the output of an activation, which is linear too; not linear; held fixed."""

LIKELY_GATES = (LINEAR, GATED, CURVED)
"""Roles of factors in order: in a product of two, the later one is the gate that is held fixed."""


class _Held(Tensor):
    """A value that depends on the tokens, in a network whose attention, scales of norms and gates are held fixed.

    Every batch consists of inputs, followed by as many zeros, for which the same is held fixed.
    """

    role: str
    reason: str

    @classmethod
    def start(cls, tokens: Tensor) -> Tensor:
        """Return the tokens of inputs and zeros, from where on values are followed."""
        return cls._follow(tokens, LINEAR, "")

    @classmethod
    def end(cls, logits: Tensor, layer: str) -> Tensor:
        """Return logits as a plain tensor, if they are linear in the tokens."""
        if not isinstance(logits, cls):
            raise ValueError(f"the logits do not depend on layer {layer!r}: name another layer")
        if logits.role not in (LINEAR, GATED):
            _refuse(logits.reason or "it predicts from attention weights alone")
        return logits.as_subclass(Tensor)

    @classmethod
    def _follow(cls, result: Any, role: str, reason: str) -> Any:
        """Give a result, or each of several, its role."""
        if isinstance(result, tuple | list):
            return type(result)(cls._follow(one, role, reason) for one in result)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        followed = result.as_subclass(cls)
        followed.role, followed.reason = role, reason
        return followed

    @classmethod
    def __torch_function__(
        cls, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            plain = _plain((args, kwargs))
            values = [value for value in _leaves((args, kwargs)) if isinstance(value, cls)]
            name = getattr(func, "__name__", str(func))
            if name.startswith("__set") or name == "__get__":
                return func(*args, **kwargs)
            result, role, reason = cls._compute(func, name, args, kwargs, plain, values)
            return cls._follow(result, role, reason)

    @classmethod
    def _compute(
        cls, func: Function, name: str, args: Any, kwargs: Any, plain: tuple[Any, Any], values: "list[_Held]"
    ) -> tuple[Any, str, str]:
        """Return the result of a function, its role, and why it is not linear."""
        roles = {value.role for value in values}
        reason = next((value.reason for value in values if value.reason), "")
        first, named = plain

        def run() -> Any:
            return func(*first, **named)

        if func in _SOFTMAXES or func in _SIGMOIDS:
            return _fixed(run()), FIXED, ""
        if CURVED in roles and func not in _QUOTIENTS and func not in _PRODUCTS and func not in _ATTENTIONS:
            return run(), CURVED, reason
        if roles == {FIXED}:
            return run(), FIXED, ""
        if func in _NORMS:
            return _norm(func, *first, **named), LINEAR, ""
        if func in _GATES:
            inputs = named.get("input", first[0] if first else None)
            gate = gelu_tanh_gate if named.get("approximate") == "tanh" else _GATES[func]
            return inputs * _fixed(gate(inputs)), GATED, ""
        if func in _ATTENTIONS:
            return cls._attend(func, args, kwargs)
        if func in _PRODUCTS or func in _MATRIX_PRODUCTS or func in _QUOTIENTS:
            return cls._multiply(func, args, plain, values)
        if func in ELEMENTWISE or func in _CURVES:
            return run(), CURVED, f"nobody has said how {name} is linear with a gate that is held fixed"
        if FIXED in roles:
            _refuse(f"{name} mixes values that are held fixed with others")
        return run(), GATED if roles == {GATED} and func not in _MIXING else LINEAR, ""

    @classmethod
    def _multiply(
        cls, func: Function, args: Any, plain: tuple[Any, Any], values: "list[_Held]"
    ) -> tuple[Any, str, str]:
        """Multiply or divide two values, of which one is held fixed."""
        first, named = plain
        factors = [value for value in args[:2] if isinstance(value, cls)]
        if len(values) == 1:
            (value,) = values
            divides = func in _QUOTIENTS and (len(factors) < 1 or value is not args[0])
            role = CURVED if divides or value.role == CURVED else GATED if value.role == GATED else LINEAR
            role = LINEAR if func in _MATRIX_PRODUCTS and role == GATED else role
            return func(*first, **named), role, value.reason or ("it divides by its tokens" if divides else "")
        product = "it multiplies two functions of its tokens"
        if len(factors) != 2:  # arguments by name
            return func(*first, **named), CURVED, product
        one, other = (factor.role for factor in factors)
        left, right = first[:2]
        if FIXED in (one, other) and not (func in _QUOTIENTS and other != FIXED):
            role = other if one == FIXED else one
            return func(*first, **named), LINEAR if role == GATED else role, factors[0].reason or factors[1].reason
        if func in _MATRIX_PRODUCTS:
            return func(*first, **named), CURVED, product
        if func in _QUOTIENTS:
            if one in (LINEAR, GATED) and other == CURVED:  # a norm that is written out
                return func(left, _fixed(right), *first[2:], **named), LINEAR, ""
            return func(*first, **named), CURVED, "it divides by its tokens"
        if one == other:
            return func(*first, **named), CURVED, product
        right_is_gate = LIKELY_GATES.index(other) > LIKELY_GATES.index(one)
        pair = (left, _fixed(right)) if right_is_gate else (_fixed(left), right)
        return func(*pair, *first[2:], **named), LINEAR, ""

    @classmethod
    def _attend(cls, func: Function, args: Any, kwargs: Any) -> tuple[Any, str, str]:
        """Apply attention with weights that are held fixed."""
        names = ("query", "key", "value")
        given = dict(zip(names, args, strict=False)) | {name: kwargs[name] for name in names if name in kwargs}
        value = given["value"]
        others = {name: option for name, option in _plain(kwargs).items() if name not in names}
        query, key = (_fixed(given[name].as_subclass(Tensor)) for name in ("query", "key"))
        role = value.role if isinstance(value, cls) else FIXED
        attended = func(query, key, value.as_subclass(Tensor), *_plain(args[3:]), **others)
        return attended, LINEAR if role == GATED else role, getattr(value, "reason", "")


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, tuple | list):
        return [leaf for one in tree for leaf in _leaves(one)]
    return _leaves(list(tree.values())) if isinstance(tree, dict) else [tree]


def _plain(tree: Any) -> Any:
    """Replace followed values by plain tensors."""
    if isinstance(tree, tuple | list) and type(tree) in (tuple, list):
        return type(tree)(_plain(one) for one in tree)
    if isinstance(tree, dict):
        return {name: _plain(one) for name, one in tree.items()}
    return tree.as_subclass(Tensor) if isinstance(tree, _Held) else tree


def _fixed(values: Tensor) -> Tensor:
    """Return the values of the inputs as constants, and the same values for the zeros."""
    half = values.detach()[: len(values) // 2]
    return torch.cat([half, half])


def _norm(
    func: Function,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = 1e-5,
    *_: Any,
) -> Tensor:
    """Apply a layer norm or an RMS norm with a scale that is held fixed."""
    axes = tuple(range(-len(normalized_shape), 0))
    values = at_least_float32(input)
    if func in _CENTRED:
        values = values - values.mean(dim=axes, keepdim=True)
    summand = torch.finfo(input.dtype).eps if eps is None else eps
    values = values * _fixed(torch.rsqrt(values.square().mean(dim=axes, keepdim=True) + summand))
    values = values if weight is None else values * weight
    return (values if bias is None else values + bias).to(input.dtype)


_CENTRED = {F.layer_norm, torch.layer_norm}
_NORMS = {*_CENTRED, F.rms_norm, torch.rms_norm}
_SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax}
_SIGMOIDS = {torch.sigmoid, F.sigmoid, Tensor.sigmoid}
_ATTENTIONS = {F.scaled_dot_product_attention}
_PRODUCTS = {torch.mul, torch.multiply, Tensor.mul, Tensor.mul_, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
_PRODUCTS |= {Tensor.__imul__}
_QUOTIENTS = {torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.div_, Tensor.__truediv__}
_QUOTIENTS |= {Tensor.__itruediv__, Tensor.__rtruediv__}
_MATRIX_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.bmm, Tensor.bmm}
_MIXING = {F.linear, F.conv1d, F.conv2d, *_MATRIX_PRODUCTS}
_CURVES = {torch.pow, Tensor.pow, Tensor.__pow__, torch.square, Tensor.square, torch.exp, Tensor.exp, torch.erf}
_CURVES |= {Tensor.erf, torch.sin, torch.cos, torch.sqrt, Tensor.sqrt, torch.rsqrt, Tensor.rsqrt, F.normalize, F.selu}
_CURVES |= {F.celu, F.logsigmoid, F.softsign, F.threshold, F.hardshrink, F.softshrink, F.tanhshrink, torch.selu}
_GATES: dict[Function, Callable[[Tensor], Tensor]] = {
    F.gelu: gelu_gate,
    F.silu: torch.sigmoid,
    F.hardswish: hardswish_gate,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), relu_gate),
    **dict.fromkeys((F.relu6,), relu6_gate),
    **dict.fromkeys((F.tanh, torch.tanh, Tensor.tanh), tanh_gate),
}
"""Activation -> its gate, the function h -> a(h)/h."""
