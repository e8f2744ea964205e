"""Attributions of pixels: Guided Backprop, and Integrated Gradients by captum, summed over colour channels.

- Guided Backprop is not captum's, which hooks the model's ReLUs: other threads would get its gradients too.
- A ReLU that is called as a function is refused, as it was with captum, which would have missed it.
"""

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
    leaf = images.clone().requires_grad_()
    logits = _guided_logits(subject, leaf).gather(1, classes).sum(dim=0)
    found = [torch.autograd.grad(column, leaf, retain_graph=True)[0] for column in logits]
    return torch.stack([at_least_float32(one).sum(dim=1) for one in found], dim=1)


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


def _guided_logits(subject: Subject, images: Tensor) -> Tensor:
    """Logits (B, C) whose gradient passes every ReLU only where it is positive."""
    runs: list[nn.Module] = []
    relus = [module for module in subject.model.modules() if isinstance(module, nn.ReLU)]
    with hooked(relus, lambda module, *_: runs.append(module)), _GuidedReLUs() as calls:
        logits = subject.logits(images)
    if not runs or calls.count != len(runs):
        what = f"{calls.count - len(runs)} ReLUs are functions" if calls.count > len(runs) else "there are none"
        raise ValueError(
            "guided-backprop changes the backward pass of nn.ReLU modules, and in "
            f"{type(subject.model).__name__} {what}: take integrated-gradients or grad-cam"
        )
    return logits


class _GuidedReLUs(TorchFunctionMode):
    """Inside the `with`, ReLUs that this thread calls let positive gradients through only, and are counted."""

    functions = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
    count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in self.functions:
            return func(*args, **(kwargs or {}))
        self.count += 1
        inputs = args[0].clone()  # a ReLU may write in place
        if inputs.requires_grad:
            inputs.register_hook(lambda slope: slope.clamp_min(0))
        return func(inputs, *args[1:], **(kwargs or {}))
