"""SoftCAM and CAPE whose evidence is the sum of that of several depths, and their training.

A 1x1 convolution on finer features adds its evidence to that of the last ones, on the finest grid. The coarse evidence
is enlarged to equal squares, so that the mean of the sum is the logit as ever. The fine weights are zero at the start,
where the logits are those of the plain network, and the fine features are normalised without parameters.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tasks import Task

TAUGHT_AFTER = 2
"""Number of epochs after which a network begins to learn from its own maps of larger images."""

STRIDE = 32
"""Stride of the last features of a network that nothing makes finer."""


@dataclass(frozen=True)
class Variant:
    """A way to finer maps.

    Args:
        fine: Whether there is evidence of strides 16 and 8 as well.
        norm: How features of these strides are normalised, one of `NORMS`.
        dropped: Share of the images of a batch whose coarse evidence a second term of the loss leaves out.
        taught: Whether maps learn from those of the same network for larger images.
        after: Name of the variant that is trained first, and from whose weights the network begins; none by default.
        trained_teacher: Whether it also learns from the maps of that first network for larger images.
        stride: Stride of the last features.
        enlarged: Whether the network is trained and explained with larger images.
        cape: Whether evidence becomes CAPE's probabilities.
        classes: Depths whose evidence tells CAPE's classes apart: `all`, `fine` or `coarse`.
        saliency: Depths whose evidence says how much a place counts in CAPE.
    """

    fine: bool = False
    norm: str = "batch"
    dropped: float = 0.0
    taught: bool = False
    after: str = ""
    trained_teacher: bool = False
    stride: int = STRIDE
    enlarged: bool = False
    cape: bool = False
    classes: str = "all"
    saliency: str = "all"


PLAIN = Variant()
VARIANTS = {
    "plain": PLAIN,
    "scales": Variant(fine=True),
    "scales, channel norm": Variant(fine=True, norm="channels"),
    "scales, image norm": Variant(fine=True, norm="image"),
    "scales, coarse dropped": Variant(fine=True, dropped=0.5),
    "self-taught": Variant(taught=True),
    "scales, self-taught": Variant(fine=True, taught=True),
    "scales, taught": Variant(fine=True, after="plain", trained_teacher=True),
    "scales, coarse dropped, taught": Variant(fine=True, dropped=0.5, after="plain", trained_teacher=True),
    "scales, taught by scales": Variant(fine=True, after="scales", trained_teacher=True),
    "scales, image norm, taught": Variant(fine=True, norm="image", after="scales, image norm", trained_teacher=True),
    "plain, taught": Variant(after="plain", trained_teacher=True),
    "scales, continued": Variant(fine=True, after="plain"),
    "plain, continued": Variant(after="plain"),
    "stride 16": Variant(stride=16),
    "stride 8": Variant(stride=8),
    "larger images": Variant(enlarged=True),
    "CAPE": Variant(cape=True),
    "CAPE, scales": Variant(fine=True, norm="image", cape=True),
    "CAPE, fine classes": Variant(fine=True, norm="image", cape=True, classes="fine", saliency="coarse"),
    "CAPE, fine saliency": Variant(fine=True, norm="image", cape=True, classes="coarse", saliency="fine"),
}


class ChannelNorm(nn.Module):
    """Give the channels of every location a mean of 0 and a variance of 1."""

    def forward(self, features: Tensor) -> Tensor:
        return F.layer_norm(features.permute(0, 2, 3, 1), features.shape[1:2]).permute(0, 3, 1, 2)


class ImageNorm(nn.Module):
    """Give all numbers of an image a mean square of 1."""

    def forward(self, features: Tensor) -> Tensor:
        return features * features.square().mean(dim=(1, 2, 3), keepdim=True).add(1e-6).rsqrt()


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": lambda channels: nn.BatchNorm2d(channels, affine=False),
    "channels": lambda channels: ChannelNorm(),
    "image": lambda channels: ImageNorm(),
}
"""Name -> function from a number of channels to a norm of features."""


class ScaledEvidence(nn.Module):
    """SoftCAM or CAPE whose evidence is the sum of that of several depths.

    Args:
        model: SoftCAM of timm.
        strides: Strides of the finer features, the finest first; none for the plain network.
        variant: Norm of the finer features, and what becomes of evidence.
    """

    def __init__(self, model: nn.Module, strides: tuple[int, ...] = (), variant: Variant = PLAIN) -> None:
        super().__init__()
        self.model, self.variant = model, variant
        self.log_temperature = nn.Parameter(torch.zeros(1)) if variant.cape else None
        found = {entry["reduction"]: number for number, entry in enumerate(model.backbone.feature_info)}
        self.indices = [found[stride] for stride in strides]
        channels = [model.backbone.feature_info[index]["num_chs"] for index in self.indices]
        self.norms = nn.ModuleList(NORMS[variant.norm](count) for count in channels)
        self.heads = nn.ModuleList(nn.Conv2d(count, model.num_classes, 1, bias=False) for count in channels)
        for head in self.heads:
            nn.init.zeros_(head.weight)

    def terms(self, pixels: Tensor) -> list[Tensor]:
        """Return the evidence (B, C, H, W) of every depth, the finest first and the coarse one last."""
        if not self.indices:
            return [self.model.head(self.model.forward_features(pixels), kind="evidence")[1]]
        last, finer = self.model.backbone.forward_intermediates(pixels, indices=self.indices)
        fine = [head(norm(one)) for head, norm, one in zip(self.heads, self.norms, finer, strict=True)]
        return [*fine, self.model.head(last, kind="evidence")[1]]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the evidence (B, C, H, W) of all depths."""
        return add(self.terms(pixels))

    def compose(self, terms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and maps (B, C, H, W): SoftCAM's evidence and its mean, or CAPE's probabilities and the
        logarithms of their sums.

        Args:
            terms: Evidence of every depth, the finest first.
        """
        if self.log_temperature is None:
            evidence = add(terms)
            return evidence.mean(dim=(2, 3)), evidence
        scale = self.log_temperature.exp()
        classes = choose(terms, self.variant.classes) / scale
        saliency = choose(terms, self.variant.saliency).mean(dim=1, keepdim=True) / scale
        parts = classes.log_softmax(dim=1) + saliency.flatten(2).log_softmax(dim=2).view_as(saliency)
        return parts.flatten(2).logsumexp(dim=2), parts.exp()


def choose(terms: list[Tensor], depths: str) -> Tensor:
    """Add the evidence of some depths on the finest grid.

    Args:
        terms: Evidence of every depth, the finest first.
        depths: `all`, `fine` for all but the last features, or `coarse` for these alone.
    """
    if depths == "coarse":
        return F.interpolate(terms[-1], size=terms[0].shape[-2:], mode="nearest")
    return add(terms if depths == "all" else terms[:-1])


def add(terms: list[Tensor], kept: Tensor | None = None) -> Tensor:
    """Add evidence on the finest grid.

    Args:
        terms: Evidence of every depth, the coarse one last.
        kept: Weight (B, 1, 1, 1) of the coarse evidence of every image; 1 by default.
    """
    size = terms[0].shape[-2:]
    *finer, coarse = (F.interpolate(term, size=size, mode="nearest") for term in terms)
    return sum(finer, coarse if kept is None else coarse * kept)


def make_network(task: Task, variant: Variant) -> ScaledEvidence:
    """Make the network of a variant, which begins with the weights of its task."""
    strides = task.fine_strides if variant.fine else ()
    network = ScaledEvidence(task.make_model(variant.stride), strides, variant)
    return network.to(memory_format=torch.channels_last)


def begin_from(network: ScaledEvidence, first: ScaledEvidence) -> None:
    """Give a network the weights of one that was trained before; finer strides that this one lacks stay as they are."""
    if first.indices:
        network.load_state_dict(first.state_dict())
    else:
        network.model.load_state_dict(first.model.state_dict())


def enlarge(pixels: Tensor, side: int) -> Tensor:
    """Enlarge images (B, 3, H, W) to a side; images of that side are returned as they are."""
    if pixels.shape[-1] == side:
        return pixels
    return F.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False)


def difference_to_larger(teacher: ScaledEvidence, evidence: Tensor, larger: Tensor) -> Tensor:
    """Compare maps with those of a network for larger images, relative to the variance of these.

    Means are left out, so that the logits learn nothing from the larger images.

    Args:
        teacher: Network that explains the larger images. Its mode stays.
        evidence: Evidence (B, C, H, W).
        larger: The same images, larger.
    """
    training = teacher.training
    teacher.eval()  # larger images change no statistics
    with torch.no_grad():
        target = F.interpolate(teacher(larger), size=evidence.shape[-2:], mode="area")
    teacher.train(training)
    target, ours = (maps - maps.mean(dim=(2, 3), keepdim=True) for maps in (target, evidence))
    return (ours - target).square().mean() / target.square().mean().clamp_min(1e-12)


def loss_of(
    network: ScaledEvidence,
    task: Task,
    variant: Variant,
    pixels: Tensor,
    labels: Tensor,
    epoch: int,
    teacher: ScaledEvidence | None = None,
) -> Tensor:
    """Return the loss of a batch.

    Args:
        network: Network in training mode.
        task: Images and settings.
        variant: Way to finer maps.
        pixels: Images (B, 3, H, W).
        labels: Labels (B,).
        epoch: Number of the epoch.
        teacher: Trained network, where the variant has one.
    """
    seen = enlarge(pixels, task.larger_side) if variant.enlarged else pixels
    terms = network.terms(seen)
    logits, evidence = network.compose(terms)
    loss = F.cross_entropy(logits, labels)
    if variant.dropped:
        kept = (torch.rand(len(labels), 1, 1, 1) >= variant.dropped).float()
        loss = 0.5 * loss + 0.5 * F.cross_entropy(add(terms, kept).mean(dim=(2, 3)), labels)
    if variant.taught and epoch >= TAUGHT_AFTER:
        teacher = network
    if teacher is not None:
        loss = loss + difference_to_larger(teacher, evidence, enlarge(pixels, task.larger_side))
    return loss


def make_optimizer(network: ScaledEvidence, task: Task) -> torch.optim.Optimizer:
    """Make AdamW with the learning rates of a task."""
    groups = [
        {"params": [*network.model.parameters()], "lr": task.lr},
        {"params": [*network.heads.parameters()], "lr": task.fine_lr},
    ]
    if network.log_temperature is not None:
        groups.append({"params": [network.log_temperature], "lr": task.fine_lr, "weight_decay": 0.0})
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.02)


def train(
    network: ScaledEvidence,
    task: Task,
    variant: Variant,
    batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]],
    steps: int,
    teacher: ScaledEvidence | None = None,
) -> None:
    """Train all weights with AdamW and a cosine.

    Args:
        network: Network, which is changed.
        task: Images and settings.
        variant: Way to finer maps.
        batches: Function from the number of an epoch to its images and labels.
        steps: Number of updates of an epoch.
        teacher: Trained network, where the variant has one.
    """
    optimizer = make_optimizer(network, task)
    total, warmup = task.epochs * steps, task.warmup_epochs * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(step, total) / total))
    )
    network.train()
    for epoch in range(task.epochs):
        for pixels, labels in batches(epoch):
            loss = loss_of(network, task, variant, pixels, labels, epoch, teacher)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
