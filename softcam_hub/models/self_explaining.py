"""Base of the timm models and the Hugging Face models: `backbone`, `head`, and `explain`."""

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import Anatomy, input_size
from .evaluation_mode import evaluation_mode
from .explanation import Explanation
from .heads import HEADS, EvidenceHead, select
from .label_kind import class_probabilities


class SelfExplaining(nn.Module):
    """A classifier that holds `backbone` and `head` and explains itself."""

    family: str
    anatomy: Anatomy
    backbone: nn.Module
    head: nn.Module
    num_classes: int
    in_chans: int
    drop_rate: float
    pretrained_cfg: dict[str, Any]
    backbone_args: dict[str, Any]
    multi_label: bool

    @property
    def head_class(self) -> type[EvidenceHead]:
        """Class of the head, also where a wrapper such as PEFT's stands in the place of `head`."""
        return HEADS[self.family]

    @property
    def exact(self) -> bool:
        """Whether the vanilla classifier's weights serve here unchanged; otherwise the head must be trained."""
        return self.anatomy.exact

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that the model was made for."""
        return input_size(self, self.backbone_args)

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute the features that the head reads at every location, (B, K, H, W)."""
        return self.anatomy.features(self.backbone, self.prepare_images(images))

    def prepare_images(self, images: Tensor) -> Tensor:
        """Check images (B, C, H, W), and cast them to the dtype of the backbone, as transformers' models do."""
        check_images(images, self.in_chans)
        weights = (weight.dtype for weight in self.backbone.parameters() if weight.is_floating_point())
        return images.to(next(weights, images.dtype))

    def drop_features(self, features: Tensor) -> Tensor:
        """Apply the classifier's dropout: dropping channels of F is dropping entries of the pooled vector."""
        return F.dropout2d(features, self.drop_rate, self.training) if self.drop_rate else features

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits (B, C) into probabilities: a softmax, or a sigmoid where an image may have several labels."""
        return class_probabilities(logits, self.multi_label)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that weight decay must spare."""
        names = self.backbone.no_weight_decay() if hasattr(self.backbone, "no_weight_decay") else set()
        own = {"head.log_temperature"} if self.head_class.has_temperature else set()
        return {f"backbone.{name}" for name in names} | own

    @property
    def group_matcher(self) -> Callable[..., Any]:
        """timm's layer groups of the backbone, for layer-wise learning rates; the head comes last."""
        theirs = self.backbone.group_matcher  # where there is none, timm finds that we have none either

        def group_matcher(coarse: bool = False) -> Any:
            matcher = theirs(coarse=coarse)
            if callable(matcher):
                return lambda name: matcher(name.removeprefix("backbone.")) if "backbone." in name else float("inf")
            return {group: _below_backbone(spec) for group, spec in matcher.items()}

        return group_matcher

    @torch.no_grad()
    def explain(
        self, images: Tensor, classes: int | Tensor | None = None, top_k: int = 1, kind: str | None = None
    ) -> Explanation:
        """Return the maps of the given classes, or of the `top_k` most probable ones.

        The model computes in eval mode, and its modes are restored afterwards. Several threads may share one model.

        Args:
            images: Images (B, C, H, W), normalised as for `forward`.
            classes: A class index for all images, one per image (B,), or several per image (B, k).
            top_k: Number of classes to explain when `classes` is not given.
            kind: One of `head.kinds`. The default is the kind that the prediction is made of.
        """
        if not self.num_classes:
            raise ValueError("explain() needs classes: this model has num_classes=0; call reset_classifier(n) first")
        kind = self.head_class.check_kind(kind)
        check_images(images, self.in_chans)
        if not torch.isfinite(images).all():
            raise ValueError("explain() got images with NaN or infinite values: check the preprocessing")
        chosen = choose_classes(classes, top_k, len(images), self.num_classes)
        with evaluation_mode(self):
            logits, maps = self.head(self.forward_features(images), kind=kind)
        if not (torch.isfinite(logits).all() and torch.isfinite(maps).all()):
            raise ValueError(
                "explain() got NaN or infinite evidence for finite images: the model's weights are broken, or its "
                "precision overflows; check the weights for NaN, or compute in float32"
            )
        probabilities = self.probabilities(logits)
        index = probabilities.topk(chosen, dim=1).indices if isinstance(chosen, int) else chosen.to(logits.device)
        return Explanation(select(maps, index), index, probabilities.gather(1, index), kind)


def _below_backbone(spec: Any) -> Any:
    """Rewrite a timm group specification for names that begin with `backbone.`.

    Args:
        spec: A pattern, or a list of (pattern, suffix).
    """
    if isinstance(spec, str):
        unanchored = re.sub(r"(?<!\[)\^", "", spec)
        return rf"^backbone\.(?:{unanchored})"
    return None if spec is None else [(_below_backbone(pattern), suffix) for pattern, suffix in spec]


@torch.fx.wrap  # a tracer has no images yet
def check_images(images: Tensor, channels: int) -> None:
    """Refuse anything but a floating-point batch (B, `channels`, H, W).

    Shape and dtype alone are checked, not values, so that export stays whole.

    Args:
        images: Batch of images.
        channels: Number of channels that the model expects.
    """
    if not isinstance(images, Tensor):
        hint = "maps need whole images, NaFlex patches have no grid" if isinstance(images, dict) else ""
        raise TypeError(
            f"expected images as a torch.Tensor (B, {channels}, H, W), got {type(images).__name__}: "
            f"{hint or 'convert them with timm.data.create_transform'}"
        )
    if images.ndim != 4:
        hint = ": add the batch dimension with images[None]" if images.ndim == 3 else ""
        raise ValueError(f"expected images of shape (B, {channels}, H, W), got {tuple(images.shape)}{hint}")
    if images.shape[1] != channels:
        raise ValueError(
            f"expected images with {channels} channels, got {images.shape[1]} in shape {tuple(images.shape)}: "
            f"convert them, or build the model with in_chans={images.shape[1]}"
        )
    if not images.is_floating_point():
        raise TypeError(f"expected floating-point images, got {images.dtype}: scale to [0, 1] and normalise them first")


def choose_classes(classes: int | Tensor | None, top_k: int, batch: int, num_classes: int) -> int | Tensor:
    """Return checked class indices (B, k), or the number of the most probable classes to explain.

    Args:
        classes: A class index for all images, one per image (B,), or several per image (B, k).
        top_k: Number of classes to explain when `classes` is None.
        batch: Number B of images.
        num_classes: Number C of classes of the model.
    """
    if classes is None:
        if not isinstance(top_k, int) or not 1 <= top_k <= num_classes:
            raise ValueError(
                f"top_k must be a whole number from 1 to the number of classes {num_classes}, got {top_k!r}"
            )
        return top_k
    try:
        index = torch.as_tensor(classes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"classes must be integer class indices, got {classes!r}") from error
    if index.numel() and (index.is_floating_point() or index.dtype == torch.bool):
        raise TypeError(f"classes must be integer class indices, got {index.dtype}")
    outside = index[(index < 0) | (index >= num_classes)]
    if outside.numel():
        bad = int(outside[0])
        raise ValueError(
            f"class index {bad} is out of range: this model has {num_classes} classes, 0 to {num_classes - 1}"
        )
    if index.ndim == 0:
        index = index.expand(batch)
    if index.ndim == 1 and len(index) == batch:
        index = index[:, None]
    if index.ndim == 2 and len(index) in (1, batch) and index.shape[1]:
        return index.long().expand(batch, -1)
    raise ValueError(
        f"classes must be an int, ({batch},) or ({batch}, k) for {batch} images, got shape {tuple(index.shape)}: "
        "to explain several classes of every image pass [[3, 5]]"
    )
