"""Attributions of pixels, by captum: Guided Backprop and Integrated Gradients, summed over colour channels.

- captum's Guided Backprop changes `nn.ReLU` modules only. Where there are none, or a ReLU is called as a function, it
  silently gives the plain gradient or a mixture: refused here.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..models.heads import at_least_float32
from .layers import hooked
from .subject import Subject


def guided_backprop(subject: Subject, images: Tensor, classes: Tensor) -> Tensor:
    """Guided Backprop (Springenberg et al., 2015), signed, (B, k, H, W).

    Args:
        subject: the classifier; its ReLUs must be modules.
        images: (B, 3, H, W).
        classes: (B, k).
    """
    explain = _captum("GuidedBackprop")(_GuidedLogits(subject)).attribute
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU")
        return _per_class(explain, images, classes)


def integrated_gradients(subject: Subject, images: Tensor, classes: Tensor, steps: int = 50, batch: int = 32) -> Tensor:
    """Integrated Gradients (Sundararajan et al., 2017) from a zero image, signed, (B, k, H, W).

    Args:
        subject: the classifier.
        images: (B, 3, H, W).
        classes: (B, k).
        steps: points on the path.
        batch: how many points run through the network at a time.
    """
    explain = _captum("IntegratedGradients")(subject.logits).attribute
    size = max(batch, len(images))  # captum takes at least one point of every image at a time
    return _per_class(explain, images, classes, n_steps=steps, internal_batch_size=size)


def _per_class(explain: Callable[..., Tensor], images: Tensor, classes: Tensor, **options: Any) -> Tensor:
    leaf = images.clone().requires_grad_()
    found = [explain(leaf, target=column, **options) for column in classes.unbind(1)]
    return torch.stack([at_least_float32(one.detach()).sum(dim=1) for one in found], dim=1)


def _captum(name: str) -> Callable[..., Any]:
    try:
        from captum import attr
    except ImportError as error:
        raise ImportError(f"{name} needs captum: pip install 'softcam-hub[baselines]'") from error
    return getattr(attr, name)


class _GuidedLogits(nn.Module):
    """The subject as the module that captum wants; it refuses a network whose ReLUs captum would miss."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.model, self.logits = subject.model, subject.logits
        self.training = subject.model.training

    def forward(self, images: Tensor) -> Tensor:
        runs: list[nn.Module] = []
        relus = [module for module in self.model.modules() if isinstance(module, nn.ReLU)]
        with hooked(relus, lambda module, *_: runs.append(module)), _ReLUCalls() as calls:
            logits = self.logits(images)
        if not runs or calls.count != len(runs):
            what = f"{calls.count - len(runs)} ReLUs are functions" if calls.count > len(runs) else "there are none"
            raise ValueError(
                "guided-backprop changes the backward pass of nn.ReLU modules, and in "
                f"{type(self.model).__name__} {what}: take integrated-gradients or grad-cam"
            )
        return logits


class _ReLUCalls(TorchFunctionMode):
    """Counts the ReLUs that are called inside the `with`, as modules or not."""

    functions = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
    count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func in self.functions
        return func(*args, **(kwargs or {}))
