"""Create explainers, and call them by one signature: `explainer(images, classes) -> maps (B, k, H, W)`.

- Several methods for one model share one forward pass, and one backward pass per class where any of them
  needs it.
- Frozen models work, and so do callers under `no_grad` or `inference_mode`. Modes, hooks, gradients and
  random state are restored afterwards, also after an exception.
- Maps are the positive part, at the resolution of the layer or, for methods of pixels, of the image.
- `explain` gives them as an `Explanation`, which draws their cells where the network looks. There a model's own maps
  keep their sign, and are those of `model.explain`.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..arguments import check_names
from ..models.classes import Classes
from ..models.evaluation_mode import evaluation_mode
from ..models.explanation import Explanation
from ..models.flip_registration import measure_on_first_use
from ..models.heads import at_least_float32, native_kinds
from ..models.label_kind import class_probabilities
from ..models.overlays import restore_pixels
from ..models.self_explaining import SelfExplaining
from .explained_model import Activations, ExplainedModel
from .inputs import checked_images, chosen_classes, differentiable
from .layouts import LayoutName
from .methods import (
    CLASS_ACTIVATION,
    PIXELS,
    ExplainerName,
    find_grid,
    list_explainers,
    methods as all_methods,
    reads_features,
)


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
        methods = all_methods()
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
        return self._compute(images, classes, self.names if self.signed else ())

    def _compute(self, images: Tensor, classes: Classes | None, signed: Collection[str]) -> dict[str, Tensor]:
        """Compute the maps of every method, with their negative part where the name is among `signed`."""
        with differentiable(self.model.classifier):
            images = checked_images(images, self.model.classifier)
            activations = None
            if set(self.names) <= PIXELS.keys():
                chosen = chosen_classes(classes, self._logits_to_choose_from(images, classes), len(images))
            else:
                activations = self.model.record(images)
                chosen = chosen_classes(classes, activations.logits, len(images))
                activations = activations.for_classes(chosen)
            return {
                name: self._finish(name, self.maps(name, images, chosen, activations), name in signed)
                for name in self.names
            }

    def explain(self, images: Tensor, classes: Classes | None = None) -> dict[str, Explanation]:
        """Explain images by every method, with probabilities, heat maps and pictures as `model.explain` gives them.

        The cells of class activation maps are drawn where the network looks, if that was measured for the classifier. A
        model's own maps are whole, as their cells make up the prediction; others are the positive part.

        Args:
            images: Images (B, 3, H, W), normalised as for the model.
            classes: As for a call.
        """
        classifier = self.model.classifier
        if isinstance(classifier, SelfExplaining) and self.model.layer is None and any(map(reads_features, self.names)):
            measure_on_first_use(classifier)
        with torch.no_grad(), evaluation_mode(classifier):
            images = checked_images(images, classifier)
            logits = self.model.logits(images)
        index = chosen_classes(classes, logits, len(images))
        shares = class_probabilities(logits, self.model.multi_label).gather(1, index)
        known: dict[str, Any] = {}
        if isinstance(classifier, SelfExplaining):
            known["names"] = classifier.labels
            if classifier.in_chans in (1, 3):
                known["pixels"] = restore_pixels(
                    images, classifier.preprocessing["mean"], classifier.preprocessing["std"]
                )
        own = native_kinds().keys() - CLASS_ACTIVATION.keys()
        return {
            name: Explanation(
                maps,
                index,
                shares,
                name if name in own else f"post-hoc {name}",
                grid=find_grid(name, self.model, images, maps),
                **known,
            )
            for name, maps in self._compute(images, index, self.names if self.signed else own).items()
        }

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

    def _finish(self, name: str, maps: Tensor, signed: bool) -> Tensor:
        maps = at_least_float32(maps)
        if not maps.isfinite().all():
            raise ValueError(
                f"{name} gives maps with NaN or infinity for finite images: check the model's weights for NaN, or "
                "compute in float32"
            )
        return maps if signed else maps.relu()


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

    def explain(self, images: Tensor, classes: Classes | None = None) -> Explanation:
        """Explain images, with probabilities, heat maps and pictures as `model.explain` gives them."""
        return self.explainers.explain(images, classes)[self.name]


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
    maps}`, and the methods share their work. `create_explainer("grad-cam", model).explain(images)` returns an
    `Explanation`, as `model.explain` does.

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
    methods = all_methods()
    known = sorted(set().union(*(_accepted_options(methods[name]) for name in names)))
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"{', '.join(names)}: unknown option {unknown[0]!r}, expected {', '.join(known) or 'none'}")


def _accepted_options(method: Callable[..., Tensor]) -> set[str]:
    """Return the names of the optional arguments of a method."""
    parameters = inspect.signature(method).parameters.values()
    return {one.name for one in parameters if one.default is not one.empty} - {"kind"}
