"""Pair the weights of two models that compute the same, whatever their libraries call them.

- Libraries name the layers of one architecture differently, but a forward pass uses them in the same order. So weights
  are paired by the order of their first use, and by their shapes.
- Two branches of a block may come in another order. A convolution is therefore told by its stride, too, and the batch
  norm after it belongs to it.
- Where one library has three projections of the same input, query, key and value, another has a single one. A bias that
  is put together before such a projection belongs to it. Swin V2 has none for the keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Signature: TypeAlias = tuple[Any, ...]

STATISTICS = ("running_mean", "running_var")
"""Last part of the names of the buffers that a batch norm learns."""

_ROLES = ("weight", "bias", *STATISTICS)


@dataclass
class Use:
    """Weights that a model uses together.

    Args:
        function: Name of the function of torch that takes them.
        weights: Role of a tensor -> its name in the state dict; several names where they are rows of one tensor.
        source: Identity of the function's first argument.
        stride: Stride of a convolution if it is not 1, as a convolution of one pixel with stride 1 is a linear layer.
        eps: Constant that a batch norm adds to the variance.
    """

    function: str
    weights: dict[str, list[str]]
    source: int
    stride: int | tuple[int, ...] = 1
    eps: float | None = None


class _Recorder(TorchFunctionMode):
    """Record the first use of every weight inside the `with`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        statistics = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith(STATISTICS)]
        self.names = {id(tensor): name for name, tensor in [*model.named_parameters(), *statistics]}
        self.uses: list[Use] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name != "__get__":  # reading the dtype of a weight is no use
            self._record(name, args, kwargs)
        return function(*args, **kwargs)

    def _record(self, function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        weights: dict[str, list[str]] = {}
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                name = self.names.pop(id(tensor), None)
                if name is not None:
                    role = name.rpartition(".")[2]
                    weights.setdefault(role if role in _ROLES else "other", []).append(name)
        if not weights:
            return
        use = Use(function, weights, id(args[0]) if args else 0)
        if function == "conv2d" and len(args) > 3 and args[3] not in (1, (1, 1)):
            use.stride = args[3]
        if function == "batch_norm":
            use.eps = kwargs.get("eps")
        self.uses.append(use)


@torch.no_grad()
def uses(model: nn.Module, image: Tensor) -> list[Use]:
    """Return the weights of a model in the order in which a forward pass uses them.

    Args:
        model: Model in eval mode.
        image: (1, C, H, W).
    """
    with _Recorder(model) as recorder:
        model(image)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    joined: list[Use] = []
    for use in recorder.uses:
        last = joined[-1] if joined else None
        if last and last.function == "conv2d" and use.function == "batch_norm" and "norm weight" not in last.weights:
            last.weights |= {f"norm {role}": names for role, names in use.weights.items()}
            last.eps = use.eps
        elif last and _are_projections_of_one_input(last, use, shapes):
            for role, names in use.weights.items():
                last.weights.setdefault(role, []).extend(names)
        elif last and last.function in ("cat", "clone") and use.function == "linear" and "bias" not in use.weights:
            use.weights["bias"] = [name for names in last.weights.values() for name in names]
            joined[-1] = use
        else:
            joined.append(use)
    return joined


def _are_projections_of_one_input(first: Use, second: Use, shapes: Mapping[str, torch.Size]) -> bool:
    if not first.function == second.function == "linear" or first.source != second.source:
        return False
    return shapes[first.weights["weight"][0]] == shapes[second.weights["weight"][0]]


def pair(theirs: nn.Module, ours: nn.Module, image: Tensor) -> list[tuple[Use, Use]] | None:
    """Pair the weights of two models, or return None where a weight has no partner.

    Args:
        theirs: Model in eval mode.
        ours: Another model in eval mode, for the same images.
        image: (1, C, H, W).
    """
    ours_left = uses(ours, image)
    pairs = []
    for use in uses(theirs, image):
        wanted = _signature(use, theirs)
        found = next((mine for mine in ours_left if _signature(mine, ours) == wanted), None)
        if found is None:
            return None
        ours_left.remove(found)
        pairs.append((use, found))
    return None if ours_left else pairs


def _signature(use: Use, model: nn.Module) -> Signature:
    """Return what two uses of the same weights have in common: roles, sizes without those of 1, and stride."""
    state = model.state_dict()
    shapes = []
    for role in sorted(use.weights):
        tensors = [state[name] for name in use.weights[role]]
        rows = (
            (sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:])
            if len(tensors) > 1
            else tensors[0].shape
        )
        known_by_weight = role == "bias" and "weight" in use.weights  # and keys may have none
        shapes.append((role, () if known_by_weight else tuple(size for size in rows if size != 1)))
    return (*shapes, use.stride)


def translate(pairs: list[tuple[Use, Use]], theirs: nn.Module, ours: nn.Module) -> dict[str, Tensor]:
    """Return the weights of one model under the names of another.

    Args:
        pairs: Uses of both models, from `pair`.
        theirs: Model that has the weights.
        ours: Model that is to load them.
    """
    source, target = theirs.state_dict(), ours.state_dict()
    translated = {}
    for use, mine in pairs:
        for role, names in mine.weights.items():
            rows = target[mine.weights["weight"][0]].shape[0] if role == "bias" and "weight" in mine.weights else None
            whole = _joined([source[name] for name in use.weights[role]], rows)
            for name, part in zip(names, _split(whole, len(names)), strict=True):
                translated[name] = part.reshape(target[name].shape)
        counts = [_count_of(one) for one in (use, mine)]  # of the batches that a norm has seen
        if counts[0] in source and counts[1] in target:
            translated[counts[1]] = source[counts[0]]
    return translated


def _joined(parts: list[Tensor], rows: int | None) -> Tensor:
    """Join the rows of a tensor; a bias for queries and values has none for the keys between them."""
    if len(parts) == 2 and rows is not None and 3 * parts[0].numel() == rows:
        parts = [parts[0], torch.zeros_like(parts[0]), parts[1]]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _split(whole: Tensor, count: int) -> list[Tensor]:
    """Split the rows of a tensor: two parts are those of queries and values."""
    if count == 1:
        return [whole]
    thirds = list(whole.chunk(3))
    return thirds[::2] if count == 2 else thirds


def _count_of(use: Use) -> str:
    """Return the name of the number of batches that a batch norm has seen, or an empty name."""
    names = use.weights.get("norm running_var") or use.weights.get("running_var") or [""]
    return names[0].removesuffix("running_var") + "num_batches_tracked" if names[0] else ""
