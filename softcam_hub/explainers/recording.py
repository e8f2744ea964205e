"""What one forward pass left at a layer, and what follows from it: features, gradients, the linear case.

- The layer's output is a leaf of its own: only what stands above it is differentiated, frozen or not, and no `.grad` of
  the model is touched.
- Whether the logits are linear in the average of the features is seen, not looked up: the last linear layer that ran
  must have read exactly that average and given exactly these logits.
"""

import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..models.anatomy import weights_of
from ..models.heads import at_least_float32
from .layers import Layout

if TYPE_CHECKING:
    from .subject import Subject


class Recording:
    """What one forward pass left: the layer's output, the logits, and what follows from them.

    Args:
        subject: what was run.
        images: (B, 3, H, W).
        raw: the layer's output, the leaf of the graph.
        layout: how to read it.
        logits: (B, C).
        seen: the last linear layer that ran, and its input.
    """

    def __init__(
        self, subject: "Subject", images: Tensor, raw: Tensor, layout: Layout, logits: Tensor, seen: dict[str, Any]
    ) -> None:
        self.subject, self.images, self.raw, self.layout, self.logits = subject, images, raw, layout, logits
        self.features = at_least_float32(layout.to_maps(raw.detach()))  # (B, K, H, W)
        self.pooled = self.features.mean(dim=(2, 3))  # (B, K)
        self.linear = self._linear_in_average(**seen)
        self.classes = logits.detach().argmax(dim=1, keepdim=True)  # (B, 1)

    def of(self, classes: Tensor) -> "Recording":
        """Return a view of this recording that is asked about `classes` (B, k) and shares its forward pass."""
        classes = classes.to(self.logits.device)
        if torch.equal(classes, self.classes):
            return self
        view = copy.copy(self)
        vars(view).pop("gradient", None)  # that of the other classes
        view.classes = classes
        return view

    def _linear_in_average(self, layer: nn.Module | None = None, inputs: Tensor | None = None) -> Any:
        """(C, K) weight and (C,) bias, if the logits are `W·mean(A) + b` with this linear layer; otherwise None."""
        if layer is None or layer.weight.shape[:2] != (self.logits.shape[1], self.features.shape[1]):
            return None
        weight, bias = (at_least_float32(values.detach()) for values in weights_of(layer))
        places = range(1, inputs.ndim - 1) if isinstance(layer, nn.Linear) else range(2, inputs.ndim)
        average = at_least_float32(inputs.mean(dim=tuple(places)) if len(places) else inputs)
        tolerance = min(100 * torch.finfo(self.logits.dtype).eps, 0.02)
        if _close(average, self.pooled, tolerance) and _close(self.logits, average @ weight.T + bias, tolerance):
            return weight, bias
        return None

    @property
    def weights(self) -> Tensor:
        """The classifier's weights of the classes asked for, (B, k, K)."""
        return self.linear[0][self.classes]

    @cached_property
    def gradient(self) -> Tensor:
        """g = ∂logit_c/∂A of the classes asked for, (B, k, K, H, W)."""
        columns = self.logits.gather(1, self.classes).sum(dim=0)
        found = torch.stack([self.layout.to_maps(self._gradient_of(column)) for column in columns], dim=1)
        if self.layout.prefix_tokens and not found.any():
            raise ValueError(
                f"the logits read class tokens only at layer {self.subject.layer_name!r}, so that no location counts: "
                "name an earlier layer, such as the norm before the last attention"
            )
        return at_least_float32(found)

    def reads_locations(self) -> bool:
        """Whether the logits depend on the locations at all, and not on class tokens only."""
        return bool(self.layout.to_maps(self._gradient_of(self.logits.sum())).any())

    def _gradient_of(self, value: Tensor) -> Tensor:
        found = (
            torch.autograd.grad(value, self.raw, retain_graph=True, allow_unused=True)[0]
            if value.requires_grad
            else None
        )
        if found is None:
            raise ValueError(f"the logits do not depend on layer {self.subject.layer_name!r}: name another layer")
        return found


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    found, expected = at_least_float32(found.detach()), at_least_float32(expected)
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())
