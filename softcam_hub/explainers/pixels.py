"""Attributions of pixels: Guided Backprop, and Integrated Gradients by captum, summed over colour channels.

- Guided Backprop is computed here, as captum's hooks on the model's ReLUs would change the gradients of other
  threads.
- A model that calls ReLU as a function is refused: Guided Backprop is defined on modules here, as in captum.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..models.heads import at_least_float32
from .explained_model import ExplainedModel
from .hooks import hooked


def guided_backprop(model: ExplainedModel, images: Tensor, classes: Tensor) -> Tensor:
    """Guided Backprop (Springenberg et al., 2015), signed, (B, k, H, W).

    Args:
        model: Classifier whose ReLUs are modules.
        images: Images, (B, 3, H, W).
        classes: Classes to explain, (B, k).
    """
    leaf = images.clone().requires_grad_()
    logits = _guided_logits(model, leaf).gather(1, classes).sum(dim=0)
    gradients = [torch.autograd.grad(column, leaf, retain_graph=True)[0] for column in logits]
    return _sum_channels(gradients)


def integrated_gradients(
    model: ExplainedModel, images: Tensor, classes: Tensor, steps: int = 50, batch: int = 32
) -> Tensor:
    """Integrated Gradients (Sundararajan et al., 2017) from a zero image, signed, (B, k, H, W).

    Args:
        model: Classifier.
        images: Images, (B, 3, H, W).
        classes: Classes to explain, (B, k).
        steps: Number of points on the path.
        batch: Number of points that run through the network at a time.
    """
    try:
        from captum import attr
    except ImportError as error:
        raise ImportError("IntegratedGradients needs captum: pip install 'softcam-hub[baselines]'") from error
    attribute = attr.IntegratedGradients(model.logits).attribute
    options = {"n_steps": steps, "internal_batch_size": max(batch, len(images))}  # captum needs a point of every image
    leaf = images.clone().requires_grad_()
    return _sum_channels([attribute(leaf, target=column, **options).detach() for column in classes.unbind(1)])


def _sum_channels(attributions: list[Tensor]) -> Tensor:
    """Sum attributions (B, 3, H, W) of k classes over the colour channels, (B, k, H, W)."""
    return torch.stack([at_least_float32(one).sum(dim=1) for one in attributions], dim=1)


def _guided_logits(model: ExplainedModel, images: Tensor) -> Tensor:
    """Compute logits (B, C) whose gradient passes every ReLU only where it is positive."""
    runs: list[nn.Module] = []
    relus = [module for module in model.classifier.modules() if isinstance(module, nn.ReLU | nn.ReLU6)]
    with hooked(relus, lambda module, *_: runs.append(module)), _GuidedReLUs() as calls:
        logits = model.logits(images)
    if not runs or calls.count != len(runs):
        what = f"{calls.count - len(runs)} ReLUs are functions" if calls.count > len(runs) else "there are none"
        raise ValueError(
            "guided-backprop changes the backward pass of nn.ReLU and nn.ReLU6 modules, and in "
            f"{type(model.classifier).__name__} {what}: use integrated-gradients or grad-cam"
        )
    return logits


class _GuidedReLUs(TorchFunctionMode):
    """Let ReLUs pass positive gradients only, and count them, inside the `with` block and in this thread.

    nn.ReLU6 calls F.hardtanh.
    """

    functions = (F.relu, F.relu6, F.hardtanh, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
    count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in self.functions:
            return func(*args, **(kwargs or {}))
        self.count += 1
        inputs = args[0].clone() if args[0].is_leaf else args[0]  # a ReLU may write in place, but not into a leaf
        output = func(inputs, *args[1:], **(kwargs or {}))
        if output.requires_grad:
            # the slope of a ReLU is 0 or 1, so that the gradient may lose its negative part before or after it
            output.register_hook(lambda gradient: gradient.clamp_min(0))
        return output
