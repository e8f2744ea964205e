"""The losses that heads are trained with: ElasticNet on SoftCAM's maps, and CAPE's bootstrap (eq. 10 and 11).

- ElasticNet takes means over classes and locations, then over the batch, so that λ means the same at every map size.
  The SoftCAM authors sum over the first image of the batch and do not square the L2 norm: our λ1 is theirs times
  C·H·W, and their λ2 has no counterpart here.
- An L1 on evidence makes it smaller, not sparser: `elastic_net` has the proof.
- The bootstrap's KL is KL(teacher ‖ student) times T², and its cross-entropy is the teacher's: so do the CAPE authors'
  code and eq. 11. Eq. 10 writes KL(p̂, p) without T² and the cross-entropy of p̂.
- In post-fit the teacher is frozen, so that its cross-entropy would be a constant. With `alpha` above 0, which the
  paper does not have, the cross-entropy there is that of p̂.
- Both students' and teachers' distributions stay in log space, so that evidence of any size has a finite loss.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .heads import at_least_float32
from .modes import MODES, Mode

NO_LABEL = -100
"""Class index that leaves an image out of a cross-entropy, as in torch."""


def elastic_net(maps: Tensor, l1: float = 0.0, l2: float = 0.0) -> Tensor:
    """Compute l1·mean|M'| + l2·mean M'², over classes and locations of each image, then over the batch.

    Neither term prefers maps with few active locations, as the lasso prefers few coefficients:

    - A map of logit z has mean|M'| ≥ |mean M'| = |z|, with equality for every map of one sign. At the same
      logit a flat map, a half-empty map and a single spike cost the same.
    - Cross-entropy and L1 give all cells of one sign the same gradient, (∂CE/∂z + l1·sign / C) / HW, so that
      the loss moves no evidence from one location to another.

    L1 takes away evidence of opposite signs that cancels, and is beyond that an L1 on the logits: some logits,
    and their whole maps, may become zero. L2 prefers flat maps, since mean M'² ≥ z² with equality for a
    constant map.

    Args:
        maps: Evidence, (B, C, H, W).
        l1: Weight of the absolute values. A larger weight makes evidence smaller.
        l2: Weight of the squares. A larger weight makes evidence smaller and maps flatter.
    """
    maps = at_least_float32(maps)
    return l1 * maps.abs().mean() + l2 * maps.square().mean()


def zeroing_l1(num_classes: int, multi_label: bool = False) -> float:
    """Return the l1 from which on maps of zero have the least loss, for every image and label.

    A logit away from zero costs at least l1 / C of its size. It gains at most 1 - 1 / C of it with a softmax, 1 / 2C
    with sigmoids, and both losses are convex.

    Args:
        num_classes: Number C of classes.
        multi_label: Classes do not exclude one another.
    """
    return 0.5 if multi_label else num_classes - 1.0


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    multi_label: bool = False,
) -> Tensor:
    """Compute the cross-entropy, batch mean; one binary cross-entropy per class with several labels per image.

    The weighted sum is divided by the number of images, not by the sum of their weights, so that processes that see
    other classes agree.

    Args:
        logits: Logits, (B, C).
        targets: Labels (B,) or probabilities (B, C); multi-hot (B, C) with `multi_label`.
        label_smoothing: Share of the target that is spread over all classes.
        class_weights: Weight (C,) of an image by its class; with `multi_label`, weight of a class where it is present.
        multi_label: Classes do not exclude one another.
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
    """Compute T²·KL(softmax(teacher/T) ‖ p̂), batch mean; T softens the teacher only, as CAPE learns its own.

    Args:
        student: Logits log p̂ of CAPE, (B, C).
        teacher: Logits of the vanilla classifier, (B, C); no gradient reaches them.
        temperature: Temperature T of the teacher.
        selective: Count only images on which student and teacher disagree (eq. 11). The sum is still divided by the
            whole batch, so that processes agree, and it keeps its graph when none disagrees.
    """
    target = (at_least_float32(teacher.detach()) / temperature).log_softmax(dim=1)
    divergence = F.kl_div(student, target, reduction="none", log_target=True).sum(dim=1)
    if selective:
        divergence = torch.where(student.argmax(dim=1) != target.argmax(dim=1), divergence, 0.0)
    return temperature**2 * divergence.mean()


@dataclass(frozen=True)
class Bootstrap:
    """CAPE's loss, alpha·CE + beta·T²·KL(teacher/T ‖ p̂), and the part of the network that learns from each term.

    - `direct`: cross-entropy on p̂, gradient everywhere, no teacher.
    - `from-scratch` (TS): the backbone and the teacher learn from the teacher's cross-entropy, CAPE from the teacher.
    - `post-fit` (PF): only CAPE learns; the caller keeps backbone and teacher frozen.

    Args:
        mode: `direct`, `from-scratch` or `post-fit`.
        alpha: Weight of the cross-entropy. The default is that of the mode.
        beta: Weight of the divergence. The default is that of the mode.
        temperature: Temperature T of the teacher.
        selective: Count the divergence only where student and teacher disagree.
    """

    mode: Mode = "direct"
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
        if self.weights == (0, 0):
            raise ValueError(f"mode {self.mode!r} with alpha and beta both 0 trains nothing")

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of the cross-entropy and of the divergence: those given, or those of the mode."""
        alpha, beta = MODES[self.mode]
        return alpha if self.alpha is None else self.alpha, beta if self.beta is None else self.beta

    @property
    def needs_teacher(self) -> bool:
        """Whether CAPE learns from the vanilla classifier beside it."""
        return self.mode != "direct"

    @property
    def learns_from_labels(self) -> bool:
        """Whether the loss has a cross-entropy."""
        return self.weights[0] > 0

    def student_features(self, features: Tensor) -> Tensor:
        """Return the features that CAPE reads: with a teacher, the backbone does not learn from CAPE."""
        return features.detach() if self.needs_teacher else features

    def loss(
        self, logits: Tensor, teacher_logits: Tensor | None, targets: Tensor | None, **cross_entropy_options: Any
    ) -> Tensor:
        """Compute the loss of one batch.

        Args:
            logits: Logits of CAPE on `student_features`, (B, C).
            teacher_logits: Logits of the teacher, (B, C), in the modes that have one.
            targets: Labels (B,) or probabilities (B, C); not needed where alpha is 0.
            cross_entropy_options: `label_smoothing` and `class_weights` of `cross_entropy`.
        """
        alpha, beta = self.weights
        learner, loss = logits, logits.new_zeros(())
        if self.needs_teacher:
            if teacher_logits is None:
                raise ValueError(f"mode {self.mode!r} learns from a teacher, but the model has none")
            learner = logits if self.mode == "post-fit" else teacher_logits
            loss = beta * distillation(logits, teacher_logits, self.temperature, self.selective)
        if alpha:
            if targets is None:
                raise ValueError(f"mode {self.mode!r} with alpha above 0 needs labels, got none")
            loss = loss + alpha * cross_entropy(learner, targets, **cross_entropy_options)
        return loss


def check_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Return class indices (B,) as int64, or class probabilities (B, C); raise ValueError for anything else.

    Values are looked at on the CPU only: elsewhere it would make the device wait at every step.

    Args:
        labels: Labels; the class index `NO_LABEL` leaves an image out.
        logits: Logits of the images, (B, C).
    """
    batch, classes = logits.shape
    indices = labels.ndim == 1 and not labels.is_floating_point()
    if labels.shape[:1] != (batch,) or not (indices or (labels.shape == logits.shape and labels.is_floating_point())):
        hint = ""
        if labels.shape == logits.shape:
            hint = ": several labels per image need SoftCAM with problem_type='multi_label_classification'"
        raise ValueError(
            f"expected labels as integer class indices ({batch},) or probabilities ({batch}, {classes}), got "
            f"{labels.dtype} of shape {tuple(labels.shape)}{hint}"
        )
    if not indices:
        return labels
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = labels[((labels < 0) & (labels != NO_LABEL)) | (labels >= classes)]
        if outside.numel():
            known = f"this model has {classes} classes, 0 to {classes - 1}"
            raise ValueError(f"label {int(outside[0])} is out of range: {known}")
    return labels.long()


def check_multi_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """Return multi-hot labels (B, C), or raise ValueError for labels of another shape.

    Args:
        labels: A 0 or 1 for each class of each image.
        logits: Logits of the images, (B, C).
    """
    if labels.shape != logits.shape:
        hint = ": for one class per image use problem_type='single_label_classification'" if labels.ndim == 1 else ""
        raise ValueError(
            f"expected multi-hot labels of shape {tuple(logits.shape)}, a 0 or 1 for each class, got shape "
            f"{tuple(labels.shape)}{hint}"
        )
    return labels
