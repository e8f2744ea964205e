"""What the heads are trained with: ElasticNet on SoftCAM's maps, and CAPE's bootstrap (eq. 10 and 11).

- ElasticNet takes means over classes and locations, then over the batch, so that λ means the same at every map size.
  The SoftCAM authors sum over the first image of the batch and do not square the L2 norm: their λ1 is ours divided by
  C·H·W, and their λ2 has no counterpart here.
- The bootstrap's KL is KL(teacher ‖ student) times T², and its cross-entropy is the teacher's: so do the CAPE authors'
  code and eq. 11. Eq. 10 writes KL(p̂, p) without T² and the cross-entropy of p̂.
- Both students' and teachers' distributions stay in log space, so that evidence of any size has a finite loss.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .heads import CAPEHead, at_least_float32


def elastic_net(maps: Tensor, l1: float = 0.0, l2: float = 0.0) -> Tensor:
    """l1·mean|M'| + l2·mean M'², over classes and locations of each image, then over the batch.

    Args:
        maps: evidence (B, C, H, W).
        l1: weight of the absolute values; more than zero makes maps sparse.
        l2: weight of the squares.
    """
    maps = at_least_float32(maps)
    return l1 * maps.abs().mean() + l2 * maps.square().mean()


def zeroing_l1(num_classes: int, multi_label: bool = False) -> float:
    """The l1 from which on maps of zero have the least loss, for every image and label.

    A logit away from zero costs at least l1 / C of its size. It gains at most 1 - 1 / C of it with a softmax, 1 / 2C
    with sigmoids, and both losses are convex.
    """
    return 0.5 if multi_label else num_classes - 1.0


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    multi_label: bool = False,
) -> Tensor:
    """Cross-entropy, batch mean; one binary cross-entropy per class where an image may have several labels.

    The weighted sum is divided by the number of images, not by the sum of their weights, so that processes that see
    other classes agree.

    Args:
        logits: (B, C).
        targets: (B,) labels or (B, C) probabilities; multi-hot (B, C) with `multi_label`.
        label_smoothing: share of the target that is spread over all classes.
        class_weights: (C,) weight of an image by its class; with `multi_label`, of a class where it is present.
        multi_label: classes do not exclude one another.
    """
    logits = at_least_float32(logits)
    if multi_label:
        targets = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=class_weights)
    if class_weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    losses = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
    weights = targets @ class_weights if targets.is_floating_point() else class_weights[targets.clamp_min(0)]
    return (weights * losses).mean()


def distillation(student: Tensor, teacher: Tensor, temperature: float, selective: bool = False) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ p̂), batch mean; T softens the teacher only, as CAPE learns its own temperature.

    Args:
        student: CAPE's logits log p̂ (B, C).
        teacher: the vanilla classifier's logits (B, C); no gradient reaches them.
        temperature: T.
        selective: count only images on which student and teacher disagree (eq. 11). The sum is still divided by the
            whole batch, so that processes agree, and it keeps its graph when none disagrees.
    """
    target = (at_least_float32(teacher.detach()) / temperature).log_softmax(dim=1)
    divergence = F.kl_div(student, target, reduction="none", log_target=True).sum(dim=1)
    if selective:
        divergence = torch.where(student.argmax(dim=1) != target.argmax(dim=1), divergence, 0.0)
    return temperature**2 * divergence.mean()


class Trained(NamedTuple):
    """A loss, and the student's logits that it was computed on."""

    loss: Tensor
    logits: Tensor


MODES: dict[str, tuple[float, float]] = {"direct": (1.0, 0.0), "from-scratch": (1.0, 1.0), "post-fit": (0.0, 1.0)}
"""Mode -> (alpha, beta) of eq. 10, the paper's."""


@dataclass(frozen=True)
class Bootstrap:
    """CAPE's training: alpha·CE + beta·T²·KL(teacher/T ‖ p̂), and which part learns from which term.

    - `direct`: cross-entropy on p̂, gradient everywhere, no teacher.
    - `from-scratch` (TS): the backbone and the teacher learn from the teacher's cross-entropy, CAPE from the teacher.
    - `post-fit` (PF): only CAPE learns; the caller keeps backbone and teacher frozen.

    Args:
        mode: one of the above.
        alpha: weight of the cross-entropy; the mode's own by default.
        beta: weight of the divergence; the mode's own by default.
        temperature: T of the teacher.
        selective: the divergence counts only where student and teacher disagree.
    """

    mode: str = "direct"
    alpha: float | None = None
    beta: float | None = None
    temperature: float = 2.0
    selective: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"unknown mode {self.mode!r} for CAPE: expected one of {', '.join(MODES)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, got {self.temperature}")
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {value}")
        if self.mode == "direct" and self.beta:
            raise ValueError(f"mode 'direct' has no teacher, so beta must be 0, got {self.beta}")
        if not self._weight(0) and not self._weight(1):
            raise ValueError(f"mode {self.mode!r} with alpha and beta both 0 trains nothing")

    @property
    def needs_teacher(self) -> bool:
        return self.mode != "direct"

    @property
    def learns_from_labels(self) -> bool:
        return self._weight(0) > 0

    def __call__(
        self,
        head: CAPEHead,
        teacher: nn.Linear | None,
        features: Tensor,
        targets: Tensor | None,
        **cross_entropy_options: Any,
    ) -> Trained:
        """Loss and CAPE's logits of one batch.

        Args:
            head: the student.
            teacher: the vanilla linear classifier, on pooled features.
            features: (B, K, H, W), with the backbone's graph.
            targets: (B,) labels or (B, C) probabilities; may be missing where alpha is 0.
            cross_entropy_options: `label_smoothing` and `class_weights` of `cross_entropy`.
        """
        if self.needs_teacher and teacher is None:
            raise ValueError(f"mode {self.mode!r} learns from a teacher, but the model has none")
        logits = head(self.student_features(features))
        teacher_logits = teacher(features.mean(dim=(2, 3))) if self.needs_teacher else None
        return Trained(self.loss(logits, teacher_logits, targets, **cross_entropy_options), logits)

    def student_features(self, features: Tensor) -> Tensor:
        """What CAPE sees: with a teacher, the backbone does not learn from CAPE."""
        return features.detach() if self.needs_teacher else features

    def loss(
        self, logits: Tensor, teacher_logits: Tensor | None, targets: Tensor | None, **cross_entropy_options: Any
    ) -> Tensor:
        """The loss of CAPE's `logits` (B, C) on `student_features`, and of the teacher's where the mode has one."""
        if teacher_logits is None:
            return self._cross_entropy(logits, targets, cross_entropy_options)
        loss = self._weight(1) * distillation(logits, teacher_logits, self.temperature, self.selective)
        return loss + self._cross_entropy(teacher_logits, targets, cross_entropy_options) if self._weight(0) else loss

    def _cross_entropy(self, logits: Tensor, targets: Tensor | None, options: dict[str, Any]) -> Tensor:
        if targets is None:
            raise ValueError(f"mode {self.mode!r} with alpha above 0 needs labels, got none")
        return self._weight(0) * cross_entropy(logits, targets, **options)

    def _weight(self, term: int) -> float:
        given = (self.alpha, self.beta)[term]
        return MODES[self.mode][term] if given is None else given


def check_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Class indices (B,) as int64, or class probabilities (B, C); -100 leaves an image out.

    Values are looked at on the CPU only: elsewhere it would make the device wait at every step.
    """
    batch, classes = logits.shape
    indices = labels.ndim == 1 and not labels.is_floating_point()
    if labels.shape[:1] != (batch,) or not (indices or (labels.shape == logits.shape and labels.is_floating_point())):
        several = labels.shape == logits.shape
        hint = (
            ": several labels per image need SoftCAM with problem_type='multi_label_classification'" if several else ""
        )
        raise ValueError(
            f"expected labels as integer class indices ({batch},) or probabilities ({batch}, {classes}), got "
            f"{labels.dtype} of shape {tuple(labels.shape)}{hint}"
        )
    if not indices:
        return labels
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = labels[((labels < 0) & (labels != -100)) | (labels >= classes)]
        if outside.numel():
            known = f"this model has {classes} classes, 0 to {classes - 1}"
            raise ValueError(f"label {int(outside[0])} is out of range: {known}")
    return labels.long()


def check_multi_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """Multi-hot labels (B, C)."""
    if labels.shape != logits.shape:
        hint = ": for one class per image use problem_type='single_label_classification'" if labels.ndim == 1 else ""
        raise ValueError(
            f"expected multi-hot labels of shape {tuple(logits.shape)}, a 0 or 1 for each class, got shape "
            f"{tuple(labels.shape)}{hint}"
        )
    return labels
