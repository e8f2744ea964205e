"""Every explanation under one signature: `explainer(images, classes) -> maps (B, k, H, W)`.

- Several methods asked for at once share one forward pass, and one backward pass per class where they need any.
- Frozen models and callers under `no_grad` or `inference_mode` are fine. Modes, hooks, gradients and random state are
  left as they were, also after an exception.
- Maps are the positive part, at the layer's resolution (pixel methods: the image's). Upsampling and scaling to [0, 1]
  are left to `Explanation.heatmaps`.
"""

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, overload
from zlib import crc32

import torch
from torch import Tensor, nn

from ..models.evaluation_mode import evaluation_mode
from ..models.heads import HEADS, at_least_float32, select
from ..models.self_explaining import SelfExplaining, check_images, choose_classes
from .cams import cam, fd_cam, grad_cam, grad_cam_pp, layer_cam, lift_cam, score_cam, smooth_grad_cam_pp
from .pixels import guided_backprop, integrated_gradients
from .recording import Recording
from .subject import Subject


def native(recording: Recording, kind: str) -> Tensor:
    """The maps that a model of ours predicts with."""
    model = recording.subject.model
    if not isinstance(model, SelfExplaining) or kind not in HEADS[model.family].kinds:
        raise ValueError(f"{kind!r} maps need a {kind.removeprefix('mu-')} model: see softcam_hub.convert and build")
    if recording.subject.layer is not None:
        raise ValueError(f"{kind!r} maps are those of the head and have no layer: leave layer out")
    with torch.no_grad():
        _, maps = model.head(recording.raw.detach(), kind=kind)
    return select(maps, recording.classes)


def random_maps(recording: Recording, seed: int = 0) -> Tensor:
    """Uniform noise, another one for every image and class, but the same again for the same image: the lowest bar."""
    prints = [crc32(image.float().cpu().numpy().tobytes(), seed) for image in recording.images]
    pairs = zip(prints, recording.classes.tolist(), strict=True)
    seeds = [crc32(str(label).encode(), one) for one, classes in pairs for label in classes]
    size = recording.features.shape[2:]
    drawn = [torch.rand(size, generator=torch.Generator().manual_seed(one)) for one in seeds]
    return torch.stack(drawn).view(_map_shape(recording)).to(recording.features)


def centre(recording: Recording) -> Tensor:
    """A Gaussian in the middle, its deviation a quarter of each side: the bar where objects are centred."""
    height, width = recording.features.shape[2:]
    rows, columns = (((torch.arange(n) + 0.5) / n - 0.5) / 0.25 for n in (height, width))
    bump = torch.exp(-(rows[:, None] ** 2 + columns**2) / 2)
    return bump.expand(_map_shape(recording)).to(recording.features)


def _map_shape(recording: Recording) -> tuple[int, ...]:
    return (*recording.classes.shape, *recording.features.shape[2:])


AT_A_LAYER: dict[str, Callable[..., Tensor]] = {
    "cam": cam,
    "grad-cam": grad_cam,
    "grad-cam++": grad_cam_pp,
    "smooth-grad-cam++": smooth_grad_cam_pp,
    "layer-cam": layer_cam,
    "lift-cam": lift_cam,
    "fd-cam": fd_cam,
    "score-cam": score_cam,
    **{kind: partial(native, kind=kind) for kind in ("softcam", "cape", "mu-cape")},
    "random": random_maps,
    "centre": centre,
}
"""name -> maps of a recording."""

OF_PIXELS: dict[str, Callable[..., Tensor]] = {
    "guided-backprop": guided_backprop,
    "integrated-gradients": integrated_gradients,
}
"""name -> maps of a subject, images (B, 3, H, W) and classes (B, k)."""


def list_explainers() -> list[str]:
    """The names that `create_explainer` takes."""
    return [*AT_A_LAYER, *OF_PIXELS]


class Explainers:
    """Several methods for one model, which share their work: `explainers(images, classes) -> {name: maps}`.

    Args:
        names: of the methods.
        subject: the model, and the layer to look at.
        signed: leave the negative part of the maps.
        options: of the methods, each to those that take it.
    """

    def __init__(self, names: Sequence[str], subject: Subject, signed: bool, options: dict[str, Any]) -> None:
        self.names, self.subject, self.signed = tuple(names), subject, signed
        self.options = _options_of(self.names, options)

    @property
    def note(self) -> str:
        """What one should know of the features that the maps are made of; often nothing."""
        return self.subject.note

    def __call__(self, images: Tensor, classes: int | Tensor | Sequence[Any] | None = None) -> dict[str, Tensor]:
        """Maps (B, k, H, W) by method.

        Args:
            images: (B, 3, H, W), normalised as for the model.
            classes: a class index for all images, (B,) one per image, or (B, k); the predicted class by default.
        """
        with _differentiable(self.subject.model):
            images = _checked_images(images, self.subject.model)
            return {name: self._finish(maps) for name, maps in self._maps(images, classes)}

    def _maps(self, images: Tensor, classes: Any) -> Iterator[tuple[str, Tensor]]:
        layered = any(name in AT_A_LAYER for name in self.names)
        recording = self.subject.record(images) if layered else None
        if layered:
            chosen = _chosen(classes, recording.logits, len(images))
        else:  # given classes are only checked, for which one image is enough
            with torch.no_grad():
                logits = self.subject.logits(images if classes is None else images[:1])
            chosen = _chosen(classes, logits, len(images))
        asked = recording.of(chosen) if layered else None
        for name in self.names:
            if name in AT_A_LAYER:
                yield name, AT_A_LAYER[name](asked, **self.options[name])
            else:
                yield name, OF_PIXELS[name](self.subject, images, chosen, **self.options[name])

    def _finish(self, maps: Tensor) -> Tensor:
        maps = at_least_float32(maps.detach())
        return maps if self.signed else maps.relu()


class Explainer:
    """One method for one model: `explainer(images, classes) -> maps (B, k, H, W)`.

    Args:
        explainers: the same, under its name.
    """

    def __init__(self, explainers: Explainers) -> None:
        (self.name,) = explainers.names
        self.explainers = explainers

    @property
    def note(self) -> str:
        """What one should know of the features that the maps are made of; often nothing."""
        return self.explainers.note

    def __call__(self, images: Tensor, classes: int | Tensor | Sequence[Any] | None = None) -> Tensor:
        """Maps (B, k, H, W) of `classes` (an int, (B,) or (B, k)) for `images` (B, 3, H, W)."""
        return self.explainers(images, classes)[self.name]


@overload
def create_explainer(name: str, model: nn.Module, *args: Any, **options: Any) -> Explainer: ...
@overload
def create_explainer(name: Sequence[str], model: nn.Module, *args: Any, **options: Any) -> Explainers: ...
def create_explainer(
    name: str | Sequence[str],
    model: nn.Module,
    layer: str | nn.Module | None = None,
    *,
    layout: str | None = None,
    prefix_tokens: int | None = None,
    signed: bool = False,
    **options: Any,
) -> Explainer | Explainers:
    """A baseline, or the model's own maps, for any image classifier.

    `create_explainer("grad-cam", model)(images, classes)` gives maps; a list of names gives `{name: maps}`, from shared
    work.

    Args:
        name: one of `list_explainers()`, or several.
        model: a timm model, one of ours, a transformers classifier or any module from images to logits.
        layer: module or its dotted path; by default the features before pooling. Not for maps of pixels or of a head.
        layout: `NCHW`, `NHWC` or `NLC` (tokens), where the shape of the layer's output does not say.
        prefix_tokens: class tokens and registers in the layer's output, where its shape does not say.
        signed: leave the negative part of the maps.
        options: of the methods: `n`, `sigma`, `seed`, `batch`, `progress`, `steps`.
    """
    names = [name] if isinstance(name, str) else list(name)
    for one in names:
        if one not in list_explainers():
            near = difflib.get_close_matches(str(one), list_explainers(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(list_explainers())}"
            raise ValueError(f"unknown explainer {one!r}: {hint}")
    without_layer = [one for one in names if one in OF_PIXELS and layer is not None]
    if without_layer:
        raise ValueError(f"{without_layer[0]!r} maps are of the image's pixels and have no layer: leave layer out")
    explainers = Explainers(names, Subject(model, layer, layout, prefix_tokens), signed, options)
    return Explainer(explainers) if isinstance(name, str) else explainers


def _options_of(names: Sequence[str], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each method's own options; what none of them takes is refused."""
    taken = {name: _parameters({**AT_A_LAYER, **OF_PIXELS}[name]) for name in names}
    unknown = sorted(set(options) - {option for known in taken.values() for option in known})
    if unknown:
        known = ", ".join(sorted({option for known in taken.values() for option in known})) or "none"
        raise TypeError(f"{', '.join(names)}: unknown option {unknown[0]!r}, expected {known}")
    return {name: {option: value for option, value in options.items() if option in taken[name]} for name in names}


def _parameters(method: Callable[..., Tensor]) -> set[str]:
    optional = (p for p in inspect.signature(method).parameters.values() if p.default is not inspect.Parameter.empty)
    return {parameter.name for parameter in optional} - {"kind"}


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Eval mode, in which gradients can be taken whatever the caller has switched off."""
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "the model's weights were made under torch.inference_mode(), where no gradient can be taken: "
            "build or load it outside of it"
        )
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model):
        yield


def _checked_images(images: Tensor, model: nn.Module) -> Tensor:
    check_images(images, getattr(model, "in_chans", images.shape[1] if getattr(images, "ndim", 0) == 4 else 3))
    if not len(images):
        raise ValueError(f"expected at least one image, got none: their shape is {tuple(images.shape)}")
    if not torch.isfinite(images).all():
        raise ValueError("images have NaN or infinite values: check the preprocessing")
    return images.detach().clone() if images.is_inference() else images.detach()


def _chosen(classes: Any, logits: Tensor, batch: int) -> Tensor:
    chosen = choose_classes(classes, 1, batch, logits.shape[1])
    return logits.argmax(dim=1, keepdim=True) if isinstance(chosen, int) else chosen.to(logits.device).clone()
