"""Check images and classes, and make gradients possible, for explainers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models.classes import choose_classes
from ..models.evaluation_mode import evaluation_mode
from ..models.self_explaining import check_images


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Keep the model in eval mode, and make gradients possible whatever the caller has switched off."""
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "the model's weights were made under torch.inference_mode(), where no gradient can be computed: "
            "build or load it outside of it"
        )
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model):
        yield


def checked_images(images: Tensor, model: nn.Module) -> Tensor:
    check_images(images, getattr(model, "in_chans", images.shape[1] if getattr(images, "ndim", 0) == 4 else 3))
    if not len(images):
        raise ValueError(f"expected at least one image, got none: their shape is {tuple(images.shape)}")
    if not torch.isfinite(images).all():
        raise ValueError("images have NaN or infinite values: check the preprocessing")
    return images.detach().clone() if images.is_inference() else images.detach()


def chosen_classes(classes: Any, logits: Tensor, batch: int) -> Tensor:
    """Return the classes to explain (B, k): those that the caller names, or the predicted ones."""
    chosen = choose_classes(classes, 1, batch, logits.shape[1])
    return logits.argmax(dim=1, keepdim=True) if isinstance(chosen, int) else chosen.to(logits.device).clone()
