"""Any image classifier, cut in two at a layer: it runs up to there, and goes on with what it is given.

Models that keep features and classifier apart (timm's and ours) are cut there when no layer is named; all others by a
forward hook, which is there only while the model runs.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.heads import SoftCAMHead
from ..models.self_explaining import SelfExplaining
from .layers import Layout, find_layout, first_tensor, hints_of, hooked, with_first_tensor
from .recording import Recording

Edit = Callable[[Tensor], Tensor]
"""What is done to the layer's output before the network goes on."""

_READ_BY_CLASS_TOKENS = ("norm1", "layernorm_before", "layer_norm1")
"""The norm before a transformer's attention, as timm and transformers name it; the last one is the last to be read."""

_FEW = 4
"""Locations along a side, of which the next stage of a network may leave one."""


class _Lock:
    """A re-entrant lock that a copy or a pickle of its owner replaces by a new one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Lock, ()


class Subject:
    """The classifier that is explained, and the layer at which it is looked at.

    Args:
        model: a timm model, one of ours, a transformers classifier or any module from images to logits.
        layer: module or its dotted path; by default the features before pooling.
        layout: of the layer's output, where its shape does not say.
        prefix_tokens: class tokens and registers in the layer's output, where its shape does not say.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | None = None,
        layout: str | None = None,
        prefix_tokens: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected a model as a torch.nn.Module, got {type(model).__name__}")
        self.layer = None if layer is None else _find_layer(model, layer)
        self.model = getattr(model, "timm_model", model)  # transformers' wrapper adds nothing to the logits
        self.hints = hints_of(self.model, layout, prefix_tokens)
        self.settled = layer is not None
        self._settling = _Lock()
        self.layer_name = str(layer) if isinstance(layer, str) else self._name_of(self.layer)

    def _name_of(self, layer: nn.Module | None) -> str:
        names = [name for name, module in self.model.named_modules() if module is layer]
        return names[0] if names else "forward_features"

    @property
    def halves(self) -> tuple[Callable[..., Any], Callable[..., Tensor]] | None:
        """Images to features and features to logits, where the model has them apart."""
        if isinstance(self.model, SelfExplaining):
            return self.model.forward_features, self.model.head
        if hasattr(self.model, "forward_features") and hasattr(self.model, "forward_head"):
            return self.model.forward_features, self.model.forward_head
        return None

    @property
    def note(self) -> str:
        """What one should know of the features that the maps are made of; often nothing."""
        if self.layer is None and isinstance(self.model, SelfExplaining) and self.model.anatomy.norm is not None:
            return "the norm's statistic of the pooled features counts as a constant"
        return ""

    def logits(self, images: Tensor) -> Tensor:
        """(B, C)."""
        if self.halves is not None:
            features, head = self.halves
            return _checked_logits(head(features(images)))
        output = self.model(images)
        return _checked_logits(getattr(output, "logits", output))

    def run(self, images: Tensor, edit: Edit) -> Tensor:
        """Logits (B, C), with `edit` applied to the layer's output."""
        if self.layer is None and self.halves is not None:
            features, head = self.halves
            return _checked_logits(head(edit(_single(features(images)))))
        with edited(self.layer, edit, self.layer_name):
            return self.logits(images)

    @torch.no_grad()
    def resume(self, image: Tensor, raws: Tensor) -> Tensor:
        """Logits (n, C) of one image (1, 3, H, W), if the layer gave `raws` (n, ...) instead."""
        if self.layer is None:
            return _checked_logits(self.halves[1](raws))
        try:
            logits = self.run(image, lambda _: raws)
            if len(logits) == len(raws):
                return logits
        except RuntimeError:  # something beside the layer has kept the batch size
            pass
        return self.run(image.expand(len(raws), -1, -1, -1), lambda _: raws)

    def record(self, images: Tensor) -> Recording:
        """One forward pass; the first one also settles the layer, where none was named.

        It is the last whose output has locations, and where the logits read class tokens only, the last that attention
        reads.
        """
        with self._settling if not self.settled else nullcontext():
            return self._record_and_settle(images)

    def _record_and_settle(self, images: Tensor) -> Recording:
        if not self.settled and self.halves is None:
            self._look_at(_last_map_of_any_size(self, images[:1]))
        recording = self._record(images)
        if not self.settled and recording.layout.prefix_tokens and not recording.reads_locations():
            self._look_at(_last_read_by_class_tokens(self.model))
            recording = self._record(images)
        self.settled = True
        return recording

    def _record(self, images: Tensor) -> "Recording":
        kept: list[Tensor] = []

        def keep(raw: Tensor) -> Tensor:
            kept.append(raw.detach().requires_grad_())
            torch.set_grad_enabled(True)  # from here on up; the block below sets it back
            return kept[0].clone()  # what follows may write in place

        with torch.no_grad(), last_linear(self.model) as seen:
            logits = self.run(images, keep)
        return Recording(self, images, kept[0], self._layout_of(kept[0], images), logits, seen)

    def _layout_of(self, raw: Tensor, images: Tensor) -> Layout:
        if len(raw) != len(images):
            raise ValueError(
                f"layer {self.layer_name!r} gives {tuple(raw.shape)} for {len(images)} images: "
                "its first dimension is not the batch; choose another layer"
            )
        trusted = self.layer is None and raw.ndim == 4  # timm names the format of what forward_features gives
        if isinstance(self.model, SelfExplaining) and trusted:
            return Layout("NCHW")
        if trusted and self.hints.layout is None:
            return Layout("NHWC" if self.hints.expected_layout == "NHWC" else "NCHW")
        hints = self.hints.of_layer(self.layer)
        if self.layer is None and raw.ndim == 3:  # timm has no channels before tokens
            hints = replace(hints, expected_layout="NLC")
        try:
            return find_layout(raw.detach(), tuple(images.shape[-2:]), hints)
        except ValueError as error:
            raise ValueError(f"layer {self.layer_name!r}: {error}") from error

    def _look_at(self, name: str) -> None:
        self.layer, self.layer_name = self.model.get_submodule(name), name


@contextmanager
def edited(layer: nn.Module, edit: Edit, name: str) -> Iterator[None]:
    """The layer's output passes through `edit` inside the `with`; the layer must run exactly once."""
    runs = 0

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        nonlocal runs
        runs += 1
        tensor = first_tensor(output)
        if tensor is None:
            raise TypeError(f"layer {name!r} gives no tensor but {type(output).__name__}: choose another layer")
        return with_first_tensor(output, edit(tensor))

    with hooked([layer], hook):
        yield
    if runs != 1:
        raise ValueError(f"layer {name!r} ran {runs} times in one forward pass: choose a layer that runs once")


@contextmanager
def last_linear(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Inside the `with`, note the last linear layer that runs, and what it reads."""
    seen: dict[str, Any] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        seen.update(layer=layer, inputs=inputs[0].detach())

    with hooked([layer for layer in model.modules() if _is_linear(layer)], note):
        yield seen


def _is_linear(layer: nn.Module) -> bool:
    pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    return pointwise or isinstance(layer, nn.Linear | SoftCAMHead)


def _find_layer(model: nn.Module, layer: str | nn.Module) -> nn.Module:
    modules = dict(model.named_modules())
    if isinstance(layer, str):
        if layer not in modules:
            top = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"{type(model).__name__} has no layer {layer!r}: expected a dotted path below {top}")
        return modules[layer]
    if not any(layer is module for module in modules.values()):
        raise ValueError("layer is no module of this model: pass its dotted path, such as 'layer3'")
    return layer


def _last_map_of_any_size(subject: Subject, image: Tensor) -> str:
    """Path of the last module whose output has locations; an image so small that the last features are 1x1 is refused,
    as an earlier layer would stand in for them.
    """
    name, side = _last_map(subject, image)
    if side > _FEW:
        return name
    try:
        last, _ = _last_map(subject, F.interpolate(image, scale_factor=2))
    except Exception:  # of any kind, from a network that takes one size only
        return name
    if last != name:
        size = f"{image.shape[2]}x{image.shape[3]}"
        raise ValueError(
            f"images of {size} pixels are too small: the last features, those of {last!r}, have one location at this "
            f"size; take larger images, or pass layer=..., such as {name!r}"
        )
    return name


@torch.no_grad()
def _last_map(subject: Subject, image: Tensor) -> tuple[str, int]:
    """Path of the last module whose output has locations, and the shorter side of their grid."""
    names = {module: name for name, module in subject.model.named_modules() if name}
    found: list[tuple[str, int, ValueError | None]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is None or tensor.ndim not in (3, 4) or len(tensor) != len(image) or 1 in tensor.shape[1:]:
            return
        try:
            layout = find_layout(tensor, tuple(image.shape[-2:]), subject.hints.of_layer(module))
            found.append((names[module], min(layout.to_maps(tensor).shape[2:]), None))
        except ValueError as error:
            found.append((names[module], 0, error))

    with hooked(names, note):
        subject.logits(image)
    if not any(error is None for *_, error in found):
        kind = type(subject.model).__name__
        raise ValueError(f"{kind} has no spatial features to explain: pass layer=... and layout=..., or larger images")
    name, side, error = found[-1]
    if error is not None:
        raise ValueError(f"the last features are unclear, pass layer=...; at {name!r}: {error}") from error
    return name, side


def _last_read_by_class_tokens(model: nn.Module) -> str:
    names = [name for name, _ in model.named_modules() if name.split(".")[-1] in _READ_BY_CLASS_TOKENS]
    if not names:
        raise ValueError(
            f"{type(model).__name__} classifies by its class tokens alone, which have no locations: "
            "pass layer=..., such as the norm before the last attention"
        )
    return names[-1]


def _single(features: Any) -> Tensor:
    if isinstance(features, Tensor) and features.ndim in (3, 4):
        return features
    what = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
    raise ValueError(f"forward_features gives {what}, which has no spatial features: pass layer=...")


def _checked_logits(output: Any) -> Tensor:
    output = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(output, Tensor) or output.ndim != 2:
        what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"expected a classifier that gives logits (B, C), got {what}")
    return output
