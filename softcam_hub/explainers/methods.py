"""List all explainers, and call them by one signature: `explainer(images, classes) -> maps (B, k, H, W)`.

- Several methods for one model share one forward pass, and one backward pass per class where any of them
  needs it.
- Frozen models work, and so do callers under `no_grad` or `inference_mode`. Modes, hooks, gradients and
  random state are restored afterwards, also after an exception.
- Maps are the positive part, at the resolution of the layer or, for methods of pixels, of the image.
  `Explanation.heatmaps` upsamples them and scales them to [0, 1].
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor, nn

from ..arguments import check_names
from ..models.alignment import Grid, sides_of
from ..models.classes import Classes, choose_classes
from ..models.evaluation_mode import evaluation_mode
from ..models.heads import at_least_float32, native_kinds, select
from ..models.self_explaining import SelfExplaining, check_images
from .cams import cam, fd_cam, grad_cam, grad_cam_pp, layer_cam, lift_cam, score_cam, smooth_grad_cam_pp
from .explained_model import Activations, ExplainedModel
from .layouts import LayoutName
from .pixels import guided_backprop, integrated_gradients
from .uninformed import centre, random_maps

ExplainerName: TypeAlias = (
    Literal["cam", "grad-cam", "grad-cam++", "smooth-grad-cam++", "layer-cam", "lift-cam", "fd-cam", "score-cam"]
    | Literal["softcam", "cape", "mu-cape", "random", "centre", "guided-backprop", "integrated-gradients"]
    | str
)
"""Name of an explainer. Editors complete those of this package, and a registered head brings its map kinds."""


def own_maps(activations: Activations, kind: str) -> Tensor:
    """Return the maps that a self-explaining model predicts with, of one kind."""
    model = activations.model
    if not isinstance(model.classifier, SelfExplaining) or kind not in model.classifier.head_class.kinds:
        family = native_kinds()[kind].family
        raise ValueError(f"{kind!r} maps need a {family} model: see softcam_hub.convert and build")
    if model.layer is not None:
        raise ValueError(f"{kind!r} maps are those of the head and have no layer: leave layer out")
    with torch.no_grad():
        _, maps = model.classifier.head(activations.output.detach(), kind=kind)
    return select(maps, activations.classes)


CLASS_ACTIVATION: dict[str, Callable[..., Tensor]] = {
    "cam": cam,
    "grad-cam": grad_cam,
    "grad-cam++": grad_cam_pp,
    "smooth-grad-cam++": smooth_grad_cam_pp,
    "layer-cam": layer_cam,
    "lift-cam": lift_cam,
    "fd-cam": fd_cam,
    "score-cam": score_cam,
}
"""Post-hoc methods that read `Activations`."""

UNINFORMED: dict[str, Callable[..., Tensor]] = {"random": random_maps, "centre": centre}
"""Maps that do not depend on the model, which a method must surpass; objects are often in the `centre`."""

PIXELS: dict[str, Callable[..., Tensor]] = {
    "guided-backprop": guided_backprop,
    "integrated-gradients": integrated_gradients,
}
"""Post-hoc methods that read an `ExplainedModel`, images (B, 3, H, W) and classes (B, k)."""


def _methods() -> dict[str, Callable[..., Tensor]]:
    """Return every method by its name; a head that a user registers adds its kinds of maps."""
    own = {kind: partial(own_maps, kind=kind) for kind in native_kinds()}
    return {**CLASS_ACTIVATION, **own, **UNINFORMED, **PIXELS}


def list_explainers() -> list[str]:
    """Return the names that `create_explainer` accepts: post-hoc methods, and the map kinds of registered heads."""
    return list(_methods())


def reads_features(name: str) -> bool:
    """Tell whether the maps of a method are made of features, and lie where these look.

    Methods of pixels give every pixel its own value, and maps that do not depend on the model look at nothing.
    """
    return name not in PIXELS and name not in UNINFORMED


def find_grid(name: str, model: ExplainedModel, images: Tensor, maps: Tensor) -> Grid:
    """Return where the cells of the maps of a method lie in the images.

    Args:
        name: Name of the method.
        model: Model that the maps explain.
        images: Images, (B, 3, H, W).
        maps: Maps of the method, (B, k, h, w).
    """
    return Grid(sides_of(images), sides_of(maps), model.alignment if reads_features(name) else None)


class Explainers:
    """Several methods for one model, which share their work: `explainers(images, classes) -> {name: maps}`.

    Args:
        names: Names of the methods.
        model: Model to explain, cut at a layer.
        signed: Keep the negative part of the maps.
        options: Options, of which every method gets those that it accepts.
    """

    def __init__(self, names: Sequence[str], model: ExplainedModel, signed: bool, options: dict[str, Any]) -> None:
        self.names, self.model, self.signed = tuple(names), model, signed
        methods = _methods()
        self._bound = {}
        for name in self.names:
            accepted = _accepted_options(methods[name])
            chosen = {option: value for option, value in options.items() if option in accepted}
            self._bound[name] = partial(methods[name], **chosen)

    @property
    def note(self) -> str:
        """A remark on the features that the maps are made of; usually empty."""
        return self.model.note

    def __call__(self, images: Tensor, classes: Classes | None = None) -> dict[str, Tensor]:
        """Compute the maps (B, k, H, W) of every method.

        Args:
            images: Images (B, 3, H, W), normalised as for the model.
            classes: Class index for all images, one per image (B,), or several per image (B, k). The default
                is the predicted class.
        """
        with differentiable(self.model.classifier):
            images = checked_images(images, self.model.classifier)
            activations = None
            if set(self.names) <= PIXELS.keys():
                chosen = chosen_classes(classes, self._logits_to_choose_from(images, classes), len(images))
            else:
                activations = self.model.record(images)
                chosen = chosen_classes(classes, activations.logits, len(images))
                activations = activations.for_classes(chosen)
            return {name: self._finish(name, self.maps(name, images, chosen, activations)) for name in self.names}

    def maps(self, name: str, images: Tensor, classes: Tensor, activations: Activations | None) -> Tensor:
        """Compute the signed maps (B, k, H, W) of one method.

        Args:
            name: Name of the method.
            images: Images, (B, 3, H, W).
            classes: Classes to explain, (B, k).
            activations: Activations of these images for these classes; methods of pixels need none.
        """
        inputs = (self.model, images, classes) if name in PIXELS else (activations,)
        return self._bound[name](*inputs).detach()

    @torch.no_grad()
    def _logits_to_choose_from(self, images: Tensor, classes: Classes | None) -> Tensor:
        """Return logits (B, C), or as little of them as the check of classes takes that the caller names."""
        if classes is None:
            return self.model.logits(images)
        count = getattr(self.model.classifier, "num_classes", None)
        return images.new_empty(0, count) if isinstance(count, int) and count else self.model.logits(images[:1])

    def _finish(self, name: str, maps: Tensor) -> Tensor:
        maps = at_least_float32(maps)
        if not maps.isfinite().all():
            raise ValueError(
                f"{name} gives maps with NaN or infinity for finite images: check the model's weights for NaN, or "
                "compute in float32"
            )
        return maps if self.signed else maps.relu()


class Explainer:
    """One method for one model: `explainer(images, classes) -> maps (B, k, H, W)`.

    Args:
        explainers: The method as the only one of an `Explainers`.
    """

    def __init__(self, explainers: Explainers) -> None:
        (self.name,) = explainers.names
        self.explainers = explainers

    @property
    def note(self) -> str:
        """A remark on the features that the maps are made of; usually empty."""
        return self.explainers.note

    def __call__(self, images: Tensor, classes: Classes | None = None) -> Tensor:
        """Compute the maps (B, k, H, W) of `classes` (an int, (B,) or (B, k)) for `images` (B, 3, H, W)."""
        return self.explainers(images, classes)[self.name]


@overload
def create_explainer(
    name: ExplainerName,
    model: nn.Module,
    layer: str | nn.Module | None = ...,
    *,
    layout: LayoutName | None = ...,
    prefix_tokens: int | None = ...,
    signed: bool = ...,
    **options: Any,
) -> Explainer: ...
@overload
def create_explainer(
    name: Sequence[ExplainerName],
    model: nn.Module,
    layer: str | nn.Module | None = ...,
    *,
    layout: LayoutName | None = ...,
    prefix_tokens: int | None = ...,
    signed: bool = ...,
    **options: Any,
) -> Explainers: ...
def create_explainer(
    name: ExplainerName | Sequence[ExplainerName],
    model: nn.Module,
    layer: str | nn.Module | None = None,
    *,
    layout: LayoutName | None = None,
    prefix_tokens: int | None = None,
    signed: bool = False,
    **options: Any,
) -> Explainer | Explainers:
    """Create a post-hoc explainer, or one that returns the model's own maps, for any image classifier.

    `create_explainer("grad-cam", model)(images, classes)` returns maps. A list of names returns `{name:
    maps}`, and the methods share their work.

    Args:
        name: One of `list_explainers()`, or several.
        model: timm model, model of this package, transformers classifier, or any module from images to
            logits.
        layer: Module or its dotted path. The default is the features before pooling. Methods of pixels and a
            model's own maps have no layer.
        layout: `NCHW`, `NHWC` or `NLC` (tokens), where the shape of the layer's output does not tell.
        prefix_tokens: Number of class tokens and registers in the layer's output, where its shape does not
            tell.
        signed: Keep the negative part of the maps.
        options: Options of the methods: `n`, `sigma`, `seed`, `batch`, `progress`, `steps`.
    """
    if not isinstance(name, Iterable):
        raise TypeError(
            f"expected the name of an explainer, or a list of names, got {type(name).__name__}: call "
            "create_explainer('grad-cam', model)"
        )
    names = [name] if isinstance(name, str) else list(name)
    check_names(names, list_explainers(), "explainer")
    for one in names:
        if one in PIXELS and layer is not None:
            raise ValueError(f"{one!r} maps are of the image's pixels and have no layer: leave layer out")
    _check_options(names, options)
    explainers = Explainers(names, ExplainedModel(model, layer, layout, prefix_tokens), signed, options)
    return Explainer(explainers) if isinstance(name, str) else explainers


def _check_options(names: Sequence[str], options: dict[str, Any]) -> None:
    """Raise TypeError for an option that none of the methods accepts."""
    methods = _methods()
    known = sorted(set().union(*(_accepted_options(methods[name]) for name in names)))
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"{', '.join(names)}: unknown option {unknown[0]!r}, expected {', '.join(known) or 'none'}")


def _accepted_options(method: Callable[..., Tensor]) -> set[str]:
    """Return the names of the optional arguments of a method."""
    parameters = inspect.signature(method).parameters.values()
    return {one.name for one in parameters if one.default is not one.empty} - {"kind"}


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
