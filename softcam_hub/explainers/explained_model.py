"""An image classifier cut at a layer, and the activations that one forward pass leaves there.

- Models that keep features and classifier apart, as timm's and ours do, are cut there when no layer is named.
  All others are cut by a forward hook, which exists only while the model runs.
- The layer's output is a leaf of its own graph: only what stands above it is differentiated, frozen or not,
  and no `.grad` of the model changes.
- Whether the logits are linear in the average of the features is observed, not looked up: the last linear
  layer that ran must have read exactly that average and given exactly these logits.
"""

import copy
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..models.alignment import Alignment
from ..models.anatomy import weights_of
from ..models.heads import at_least_float32
from ..models.label_kind import is_multi_label
from ..models.self_explaining import SelfExplaining
from .hooks import Edit, LinearCall, edited, last_linear
from .layer_search import find_last_map, find_last_read_by_class_tokens, get_layer
from .layouts import Layout, LayoutName, find_layout, hints_of


class ExplainedModel:
    """A classifier, cut at the layer whose output is explained.

    Args:
        classifier: timm model, model of this package, transformers classifier, or any module from images to
            logits.
        layer: Module or its dotted path. The default is the features before pooling.
        layout: Layout of the layer's output, where its shape does not tell.
        prefix_tokens: Number of class tokens and registers in the layer's output, where its shape does not
            tell.
    """

    def __init__(
        self,
        classifier: nn.Module,
        layer: str | nn.Module | None = None,
        layout: LayoutName | None = None,
        prefix_tokens: int | None = None,
    ) -> None:
        if not isinstance(classifier, nn.Module):
            raise TypeError(f"expected a model as a torch.nn.Module, got {type(classifier).__name__}")
        self.layer = None if layer is None else get_layer(classifier, layer)
        self.classifier: Any = getattr(classifier, "timm_model", classifier)  # transformers' wrapper changes no logits
        of_wrapper, of_model = (is_multi_label(one, None) for one in (classifier, self.classifier))
        self.multi_label = bool(of_model if of_wrapper is None else of_wrapper)
        self.hints = hints_of(self.classifier, layout, prefix_tokens)
        self.settled = layer is not None
        self._settling = threading.RLock()
        self.layer_name = layer if isinstance(layer, str) else self._name_of(self.layer)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_settling": None}  # locks can be neither copied nor pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _settling=threading.RLock())

    def _name_of(self, layer: nn.Module | None) -> str:
        names = [name for name, module in self.classifier.named_modules() if module is layer]
        return names[0] if names else "forward_features"

    @property
    def halves(self) -> tuple[Callable[..., Any], Callable[..., Tensor]] | None:
        """The functions from images to features and from features to logits, if the model keeps them apart."""
        model = self.classifier
        if isinstance(model, SelfExplaining):
            return model.forward_features, model.head
        if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
            return model.forward_features, model.forward_head
        return None

    @property
    def alignment(self) -> Alignment | None:
        """Where the features before pooling look, if the classifier tells; other layers were not measured."""
        alignment = getattr(self.classifier, "alignment", None)
        return alignment if self.layer is None and isinstance(alignment, Alignment) else None

    @property
    def note(self) -> str:
        """A remark on the features that the maps are made of; usually empty."""
        model = self.classifier
        if self.layer is None and isinstance(model, SelfExplaining) and model.anatomy.hidden:
            return "what the head's hidden layers compute from the pooled features counts as a constant"
        if self.layer is None and self._reads_finer:
            return "maps are made of the last features, and finer features count as a constant"
        return ""

    def logits(self, images: Tensor) -> Tensor:
        """Compute the logits (B, C) of images (B, 3, H, W)."""
        if self.halves is not None:
            features, head = self.halves
            return _logits_of(head(features(images)))
        output = self.classifier(images)
        return _logits_of(getattr(output, "logits", output))

    def edited_logits(self, images: Tensor, edit: Edit) -> Tensor:
        """Compute the logits (B, C) with `edit` applied to the layer's output."""
        if self.layer is not None:
            with edited(self.layer, edit, self.layer_name):
                return self.logits(images)
        assert self.halves is not None  # `record` chooses a layer of a model that does not keep them apart
        features, head = self.halves
        whole = _check_features(features(images))
        if not self._reads_finer:
            return _logits_of(head(edit(whole)))
        last = edit(self.classifier.last_features(whole))
        finer = whole[:, last.shape[1] :].expand(len(last), -1, -1, -1)  # a branch beside them, which stays as it is
        return _logits_of(head(torch.cat([last, finer], dim=1)))

    @property
    def _reads_finer(self) -> bool:
        """Whether the head reads finer features beside the last ones, of which class activation maps are made."""
        return isinstance(self.classifier, SelfExplaining) and bool(self.classifier.anatomy.finer)

    @torch.no_grad()
    def resume(self, image: Tensor, outputs: Tensor) -> Tensor:
        """Compute the logits (N, C) that follow from N different outputs of the layer.

        Args:
            image: Image that the part of the network beside the layer sees, (1, 3, H, W).
            outputs: Outputs of the layer, (N, ...).
        """
        if self.layer is None and self.halves is not None and not self._reads_finer:
            return _logits_of(self.halves[1](outputs))
        try:
            logits = self.edited_logits(image, lambda _: outputs)
            if len(logits) == len(outputs):
                return logits
        except RuntimeError:  # a branch beside the layer has kept the batch size of one
            pass
        return self.edited_logits(image.expand(len(outputs), -1, -1, -1), lambda _: outputs)

    def record(self, images: Tensor) -> "Activations":
        """Run the model once and return its activations at the layer.

        The first call settles the layer where none was named: the last whose output has locations or, where
        the logits read class tokens only, the last that attention reads.
        """
        # threads wait for one another only until the layer is settled
        with self._settling if not self.settled else nullcontext():
            if self.settled:
                return self._record(images)
            if self.halves is None:
                self._use_layer(find_last_map(self.classifier, self.logits, images[:1], self.hints))
            activations = self._record(images)
            if activations.layout.prefix_tokens and not activations.reads_locations():
                self._use_layer(find_last_read_by_class_tokens(self.classifier))
                activations = self._record(images)
            self.settled = True
            return activations

    def _record(self, images: Tensor) -> "Activations":
        leaves: list[Tensor] = []

        def cut(output: Tensor) -> Tensor:
            leaves.append(output.detach().requires_grad_())
            torch.set_grad_enabled(True)  # for the layers above; `no_grad` below restores the mode
            return leaves[0].clone()  # the next layer may write in place

        with torch.no_grad(), last_linear(self.classifier) as call:
            logits = self.edited_logits(images, cut)
        return Activations(self, images, leaves[0], self._layout_of(leaves[0], images), logits, call)

    def _layout_of(self, output: Tensor, images: Tensor) -> Layout:
        if len(output) != len(images):
            raise ValueError(
                f"layer {self.layer_name!r} gives {tuple(output.shape)} for {len(images)} images: "
                "its first dimension is not the batch; choose another layer"
            )
        if self.layer is None and output.ndim == 4:  # timm names the layout of what forward_features gives
            if isinstance(self.classifier, SelfExplaining):
                return Layout("NCHW")
            if self.hints.layout is None:
                return Layout("NHWC" if self.hints.expected_layout == "NHWC" else "NCHW")
        hints = self.hints.of_layer(self.layer)
        if self.layer is None and output.ndim == 3:  # no timm model gives channels before tokens
            hints = replace(hints, expected_layout="NLC")
        try:
            return find_layout(output.detach(), images.shape[-2:], hints)
        except ValueError as error:
            raise ValueError(f"layer {self.layer_name!r}: {error}") from error

    def _use_layer(self, name: str) -> None:
        self.layer, self.layer_name = self.classifier.get_submodule(name), name


class Activations:
    """The layer's output and the logits of one forward pass, and what follows from them for some classes.

    Args:
        model: Model that was run.
        images: Images, (B, 3, H, W).
        output: Output of the layer, the leaf of the graph.
        layout: Layout of the output.
        logits: Logits, (B, C).
        last_linear: Last linear layer that ran.
    """

    def __init__(
        self,
        model: ExplainedModel,
        images: Tensor,
        output: Tensor,
        layout: Layout,
        logits: Tensor,
        last_linear: LinearCall,
    ) -> None:
        self.model, self.images, self.output, self.layout, self.logits = model, images, output, layout, logits
        self.features = at_least_float32(layout.to_maps(output.detach()))  # (B, K, H, W)
        self.pooled = self.features.mean(dim=(2, 3))  # (B, K)
        self.linear = self._linear_in_average(last_linear)
        self.classes = logits.detach().argmax(dim=1, keepdim=True)  # (B, 1)

    def for_classes(self, classes: Tensor) -> "Activations":
        """Return a view of these activations for other classes (B, k), which shares the forward pass."""
        classes = classes.to(self.logits.device)
        if torch.equal(classes, self.classes):
            return self
        view = copy.copy(self)
        vars(view).pop("gradient", None)  # computed for the previous classes
        view.classes = classes
        return view

    def _linear_in_average(self, call: LinearCall) -> tuple[Tensor, Tensor] | None:
        """Return weight (C, K) and bias (C,) if a call of a linear layer gave the logits `W·mean(A) + b`."""
        layer, inputs = call.layer, call.inputs
        if layer is None or inputs is None or layer.weight.shape[:2] != (self.logits.shape[1], self.features.shape[1]):
            return None
        weight, bias = (at_least_float32(values.detach()) for values in weights_of(layer))
        # nn.Linear reads channels in the last dimension, convolutions and heads in the second one
        channels = inputs.ndim - 1 if isinstance(layer, nn.Linear) else 1
        locations = tuple(axis for axis in range(1, inputs.ndim) if axis != channels)
        average = at_least_float32(inputs.mean(dim=locations) if locations else inputs)
        tolerance = min(100 * torch.finfo(self.logits.dtype).eps, 0.02)
        if _close(average, self.pooled, tolerance) and _close(self.logits, average @ weight.T + bias, tolerance):
            return weight, bias
        return None

    @property
    def weights(self) -> Tensor:
        """Weights of the linear classifier for the chosen classes, (B, k, K), where `linear` is not None."""
        assert self.linear is not None
        return self.linear[0][self.classes]

    @cached_property
    def gradient(self) -> Tensor:
        """Gradient g = ∂logit_c/∂A for the chosen classes, (B, k, K, H, W)."""
        columns = self.logits.gather(1, self.classes).sum(dim=0)
        gradient = torch.stack([self.layout.to_maps(self._gradient_of(column)) for column in columns], dim=1)
        if self.layout.prefix_tokens and not gradient.any():
            raise ValueError(
                f"the logits read class tokens only at layer {self.model.layer_name!r}, so that no location "
                "counts: name an earlier layer, such as the norm before the last attention"
            )
        return at_least_float32(gradient)

    def reads_locations(self) -> bool:
        """Tell whether the logits depend on any location, and not on class tokens only."""
        return bool(self.layout.to_maps(self._gradient_of(self.logits.sum())).any())

    def _gradient_of(self, value: Tensor) -> Tensor:
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, self.output, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise ValueError(f"the logits do not depend on layer {self.model.layer_name!r}: name another layer")
        return gradient


def _close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    actual, expected = at_least_float32(actual.detach()), at_least_float32(expected)
    return actual.shape == expected.shape and bool((actual - expected).abs().max() <= tolerance * expected.abs().max())


def _check_features(features: Any) -> Tensor:
    """Return features that are one tensor with locations or tokens, and refuse anything else."""
    if isinstance(features, Tensor) and features.ndim in (3, 4):
        return features
    what = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
    raise ValueError(f"forward_features gives {what}, which has no spatial features: pass layer=...")


def _logits_of(output: Any) -> Tensor:
    """Return the logits (B, C) in the output of a classifier, and refuse anything else."""
    output = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(output, Tensor) or output.ndim != 2:
        what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"expected a classifier that gives logits (B, C), got {what}")
    return output
