"""Eval mode for as long as it is needed, shared by threads.

Modes are attributes of modules, and so common to all threads. A thread that restored the modes by itself at its end
would switch the model back to training under the other threads, which would then compute with batch statistics and
change them. So the threads share one switch: the first one in records the modes, the last one out restores them, and
between the two nobody waits. It is counted per module, because a wrapper and the model inside it share modules.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn


@dataclass
class _Hold:
    """One module that is kept in eval mode.

    Args:
        training: Mode of the module before.
        count: Number of `evaluation_mode` blocks that hold the module.
    """

    training: bool
    count: int = 0


_LOCK = threading.RLock()
"""Guards `_HOLDS` and every change of modes here, which takes milliseconds; models run without it."""

_HOLDS: dict[int, _Hold] = {}
"""id of a module -> its hold, while there is one. Models have no attribute for it, so that they copy and pickle."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Keep every submodule in eval mode inside the `with`, and restore all modes afterwards, also after an exception.

    Any number of threads may be inside for one model. A thread that trains the model meanwhile is not protected.

    Args:
        model: Model to evaluate.
    """
    modules = list(model.modules())
    with _LOCK:
        for module in modules:
            _HOLDS.setdefault(id(module), _Hold(module.training)).count += 1
    try:
        with _LOCK:
            if any(module.training for module in modules):
                model.eval()  # not by the flags alone: timm models drop cached attention biases in train() and eval()
        yield
    finally:
        with _LOCK:
            _restore([module for module in modules if _release(module)])


def _release(module: nn.Module) -> bool:
    """Give up one hold of a module, and tell whether it was the last."""
    hold = _HOLDS[id(module)]
    hold.count -= 1
    return hold.count == 0


def _restore(modules: list[nn.Module]) -> None:
    """Give modules without a hold their former modes back; parents stand before their children."""
    before = [(module, _HOLDS.pop(id(module)).training) for module in modules]
    try:
        for module, training in before:
            if training and not module.training and not any(id(child) in _HOLDS for child in module.modules()):
                module.train()
    finally:
        for module, training in before:
            module.training = training
