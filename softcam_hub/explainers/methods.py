"""The explainers by their names: class activation maps, maps of pixels, a model's own maps, and uninformed ones."""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ..models.alignment import Grid, sides_of
from ..models.heads import native_kinds, select
from ..models.self_explaining import SelfExplaining
from .cams import cam, fd_cam, grad_cam, grad_cam_pp, layer_cam, lift_cam, score_cam, smooth_grad_cam_pp
from .explained_model import Activations, ExplainedModel
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
        features = activations.output.detach()
        if model.classifier.anatomy.finer:  # the output holds the last features alone
            features = model.classifier.forward_features(activations.images)
        _, maps = model.classifier.head(features, kind=kind)
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


def methods() -> dict[str, Callable[..., Tensor]]:
    """Return every method by its name; a head that a user registers adds its kinds of maps."""
    own = {kind: partial(own_maps, kind=kind) for kind in native_kinds()}
    return {**CLASS_ACTIVATION, **own, **UNINFORMED, **PIXELS}


def list_explainers() -> list[str]:
    """Return the names that `create_explainer` accepts: post-hoc methods, and the map kinds of registered heads."""
    return list(methods())


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
