"""Forward hooks that exist inside a `with` block only, and act in one thread only."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from ..models.heads import SoftCAMHead

Edit = Callable[[Tensor], Tensor]
"""Function that replaces the output of a layer before the network goes on."""

_REGISTRATION = threading.Lock()
"""Held while hooks are added or removed: without it, torch may give two hooks one number, and lose one."""


LinearLayer: TypeAlias = nn.Linear | nn.Conv2d | SoftCAMHead
"""Layer that multiplies its input by one matrix; a convolution has a kernel of one pixel."""


@dataclass
class LinearCall:
    """A linear layer that has run.

    Args:
        layer: Linear layer, or None before any has run.
        inputs: Input of the layer.
    """

    layer: LinearLayer | None = None
    inputs: Tensor | None = None


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Run `hook` after the forward of each of `modules`, inside the `with` block and in this thread only."""
    owner = threading.get_ident()

    def run_in_this_thread(*call: Any) -> Any:
        return hook(*call) if threading.get_ident() == owner else None  # another thread may run the same model

    with _REGISTRATION:
        handles = [module.register_forward_hook(run_in_this_thread) for module in modules]
    try:
        yield
    finally:
        with _REGISTRATION:
            for handle in handles:
                handle.remove()


@contextmanager
def edited(layer: nn.Module, edit: Edit, name: str) -> Iterator[None]:
    """Pass the output of a layer through `edit` inside the `with` block.

    Args:
        layer: Layer that runs exactly once in the block.
        edit: Function from the layer's output to its replacement.
        name: Name of the layer for error messages.
    """
    runs = 0

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        nonlocal runs
        runs += 1
        tensor = first_tensor(output)
        if tensor is None:
            raise TypeError(f"layer {name!r} gives no tensor but {type(output).__name__}: choose another layer")
        return edit(tensor) if isinstance(output, Tensor) else type(output)((edit(tensor), *output[1:]))

    with hooked([layer], hook):
        yield
    if runs != 1:
        raise ValueError(f"layer {name!r} ran {runs} times in one forward pass: choose a layer that runs once")


@contextmanager
def last_linear(model: nn.Module) -> Iterator[LinearCall]:
    """Record the last linear layer that runs inside the `with` block, and its input."""
    call = LinearCall()

    def record(layer: LinearLayer, inputs: tuple[Tensor, ...], _: Any) -> None:
        call.layer, call.inputs = layer, inputs[0].detach()

    with hooked([layer for layer in model.modules() if _is_linear(layer)], record):
        yield call


def _is_linear(layer: nn.Module) -> bool:
    pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    return pointwise or isinstance(layer, nn.Linear | SoftCAMHead)


def first_tensor(output: Any) -> Tensor | None:
    """Return the tensor that a module gives, alone or first in a tuple, or None."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None
