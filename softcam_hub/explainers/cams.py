"""Compute class activation maps `map_c = Σ_k weight_kc · A_k`; the methods differ in the weights.

`A` (B, K, H, W) is the layer's output, `w` the classifier's weights, `g = ∂logit_c/∂A`.

- Where the logit is linear in mean(A), g is `w / HW` everywhere and the maps need no backward pass.
  Everywhere else one backward pass per class serves all methods.
- Maps are signed here; the caller takes the positive part.
- Grad-CAM++ and Smooth Grad-CAM++ divide by a sum that may vanish where features are negative: the weight is
  0 there.
- Smooth Grad-CAM++ averages the derivatives over noisy images and applies them to the *clean* A. Every image
  gets the same noise, so that a map does not depend on the other images of its batch.
- FD-CAM and Score-CAM work on logits. Score-CAM's baseline cancels in its softmax and is not computed.
- FD-CAM compares channels in float32 at least, under autocast too: in half precision rounding decides the
  quantile.
"""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..models.heads import EvidenceHead, at_least_float32
from .deep_lift import deep_lift
from .explained_model import Activations

_BLOCK = 256
"""Number of channels that a thread of FD-CAM compares at a time; they fit into the processor's cache."""

_NUMBER_OF_THREADS = threading.Lock()
"""Held while torch's number of threads, a setting of the whole process, is changed for a moment."""


def cam(activations: Activations) -> Tensor:
    """CAM (Zhou et al., 2016): weight_kc = w_kc. The bias is left out (eq. 2 of CAPE)."""
    return combine(_classifier_weights(activations), activations.features)


def _classifier_weights(activations: Activations) -> Tensor:
    model = activations.model
    head = getattr(model.classifier, "head", None)
    if activations.linear is not None:
        return activations.weights
    if model.layer is None and isinstance(head, EvidenceHead) and not head.finer:
        return at_least_float32(head.weight.detach())[activations.classes]
    raise ValueError(
        f"cam needs logits that are linear in the average of layer {model.layer_name!r}, and they are not: "
        "use grad-cam, or the maps of softcam_hub.convert(model)"
    )


def grad_cam(activations: Activations) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017): weight_kc = mean_ij g. In closed form w_kc / HW."""
    if activations.linear is not None:
        return combine(activations.weights / _locations(activations), activations.features)
    return combine(activations.gradient.mean(dim=(3, 4)), activations.features)


def grad_cam_pp(activations: Activations) -> Tensor:
    """Grad-CAM++ (Chattopadhyay et al., 2018): weight_kc = Σ_ij α·ReLU(g) with α = g² / (2g² + Σ_ab A·g³).

    In closed form ReLU(w_kc) / (2 + w_kc·mean(A_k)).
    """
    features = activations.features
    if activations.linear is not None:
        weights = activations.weights
        return combine(_divide(weights.relu(), 2 + weights * activations.pooled[:, None]), features)
    gradient = activations.gradient
    return combine(_pp_weights(gradient, gradient.square(), gradient.pow(3), features), features)


def check_batch(batch: int | None) -> None:
    """Raise ValueError for a number of images at a time that is none."""
    if batch is not None and batch < 1:
        raise ValueError(
            f"batch is the number of images that run through the network at a time, at least 1, got {batch}"
        )


def smooth_grad_cam_pp(activations: Activations, n: int = 10, sigma: float = 0.3, seed: int = 0) -> Tensor:
    """Smooth Grad-CAM++ (Omeiza et al., 2019): Grad-CAM++ with the mean of derivatives over noisy images x_m.

    weight_kc = Σ_ij α·ReLU(D1) with D_p = mean_m g(x_m)^p and α = D2 / (2·D2 + Σ_ab A·D3). In closed form it
    is Grad-CAM++, since g does not depend on the image.

    Args:
        activations: Activations of the clean images.
        n: Number of noisy images.
        sigma: Standard deviation of the noise, in the units of the normalised image.
        seed: Seed of the noise; torch's global random state does not change.
    """
    if n < 1:
        raise ValueError(f"n is the number of noisy images and must be at least 1, got {n}")
    if not (sigma >= 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma is the standard deviation of the noise and must be a number from 0 on, got {sigma}")
    if activations.linear is not None:
        return grad_cam_pp(activations)
    images = activations.images
    sums = [torch.zeros_like(activations.gradient) for _ in range(3)]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        noise = sigma * torch.randn(images.shape[1:], generator=generator)
        noisy = activations.model.record(images + noise.to(images))
        gradient = noisy.for_classes(activations.classes).gradient
        for power, total in enumerate(sums, start=1):
            total += gradient.pow(power)
    first, second, third = (total / n for total in sums)
    return combine(_pp_weights(first, second, third, activations.features), activations.features)


def _pp_weights(first: Tensor, second: Tensor, third: Tensor, features: Tensor) -> Tensor:
    """Compute Σ_ij α·ReLU(D1) with α = D2 / (2·D2 + Σ_ab A·D3), (B, k, K), of derivatives (B, k, K, H, W)."""
    shift = (features[:, None] * third).sum(dim=(3, 4), keepdim=True)
    return (_divide(second, 2 * second + shift) * first.relu()).sum(dim=(3, 4))


def layer_cam(activations: Activations) -> Tensor:
    """Layer-CAM (Jiang et al., 2021): Σ_k ReLU(g)·A, element by element. In closed form ReLU(w) / HW."""
    if activations.linear is not None:
        return combine(activations.weights.relu() / _locations(activations), activations.features)
    return (activations.gradient.relu() * activations.features[:, None]).sum(dim=2)


def lift_cam(activations: Activations) -> Tensor:
    """LIFT-CAM (Jung & Oh, 2021): weight_kc = Σ_ij DeepLIFT(A_k), baseline 0. In closed form w_kc·mean(A_k)."""
    if activations.linear is not None:
        return combine(activations.weights * activations.pooled[:, None], activations.features)
    return combine(deep_lift(activations), activations.features)


def fd_cam(activations: Activations, batch: int = 32) -> Tensor:
    """FD-CAM (Li et al., 2022): weight = exp(minmax_k(score))·minmax_k(mean_ij g) - 0.5.

    score_k = f_c(A⊙S_k) + f_c(A) - f_c(A⊙S̄_k), where S_k are the channels whose cosine with channel k is
    above the 0.95-quantile of row k, and S̄_k the others. In closed form score_k = b_c + 2·Σ_{j in S_k}
    w_jc·mean(A_j).

    Args:
        activations: Activations of the images.
        batch: Number of masked copies that run through the rest of the network at a time.
    """
    check_batch(batch)
    features = activations.features
    if activations.linear is not None:
        slopes = activations.weights / _locations(activations)
        shares = activations.weights * activations.pooled[:, None]  # (B, k, K)
        bias = activations.linear[1][activations.classes][..., None]
        scores = bias + 2 * _sums_over_similar(features, shares)
    else:
        slopes = activations.gradient.mean(dim=(3, 4))
        scores = torch.stack([_group_scores(activations, index, batch) for index in range(len(features))])
    return combine(_minmax(scores).exp() * _minmax(slopes) - 0.5, features)


def _directions(features: Tensor) -> Tensor:
    """Return channels (..., K, H, W) as unit vectors (..., K, HW)."""
    return F.normalize(features.flatten(-2), dim=-1)


def _similar_channels(directions: Tensor, rows: slice) -> Tensor:
    """Return S_k of the channels in `rows` as ones and zeros, (rows, K), from the directions (K, HW)."""
    with torch.autocast(directions.device.type, enabled=False):
        cosines = directions[rows] @ directions.T
    return _mark_similar(cosines, torch.empty_like(cosines))


def _mark_similar(cosines: Tensor, scratch: Tensor) -> Tensor:
    """Replace cosines (rows, K) in place by 1 above the 0.95-quantile of their row, and by 0 elsewhere.

    Args:
        cosines: Cosines of channels.
        scratch: Another tensor of the same shape, which is overwritten.
    """
    rank = 19 * (cosines.shape[1] - 1) // 20  # above the 0.95-quantile is above this order statistic, ties included
    return cosines.gt_(_order_statistic(scratch.copy_(cosines), rank))


def _order_statistic(rows: Tensor, rank: int) -> Tensor:
    """Return the value at `rank` (from 0) of every sorted row, (N, 1); on a CPU the rows are reordered."""
    if rows.device.type != "cpu":
        return rows.kthvalue(rank + 1, dim=1, keepdim=True).values
    rows.numpy().partition(rank, axis=1)  # faster than torch's kthvalue on a CPU
    return rows[:, rank, None]


def _sums_over_similar(features: Tensor, shares: Tensor) -> Tensor:
    """Compute Σ_{j in S_k} shares_j, (B, k, K), from features (B, K, H, W) and shares (B, k, K)."""
    directions, channels = _directions(features), features.shape[1]
    sums = shares.new_empty(len(features), channels, shares.shape[1])
    blocks = list(product(range(len(features)), range(0, channels, _BLOCK)))

    @torch.no_grad()  # gradients and autocast are settings of each thread
    @torch.autocast(features.device.type, enabled=False)  # type: ignore[untyped-decorator]
    def fill(blocks: list[tuple[int, int]], buffers: Tensor) -> None:
        for image, start in blocks:
            rows = slice(start, start + _BLOCK)
            cosines, scratch = buffers[:, : channels - start]
            torch.mm(directions[image, rows], directions[image].T, out=cosines)
            torch.mm(_mark_similar(cosines, scratch), shares[image].T, out=sums[image, rows])

    with _NUMBER_OF_THREADS:
        _fill_in_threads(fill, blocks, directions)
    return sums.transpose(1, 2)


def _fill_in_threads(
    fill: Callable[[list[tuple[int, int]], Tensor], None], blocks: list[tuple[int, int]], directions: Tensor
) -> None:
    """Share blocks among threads that each compute with one thread of torch's.

    The quantiles, most of the work, use one thread only: without this pool two threads lose a sixth of a
    forward pass of ResNet-50 to them.
    """
    before, default = torch.get_num_threads(), _in_new_thread(torch.get_num_threads)
    threads = before if directions.device.type == "cpu" else 1
    # buffers serve all blocks, as allocating new memory takes as long as the sums
    buffers = directions.new_empty(threads, 2, _BLOCK, directions.shape[1])
    work = [(blocks[first::threads], buffers[first]) for first in range(threads)]
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            others = [pool.submit(fill, *part) for part in work[1:]]
            fill(*work[0])  # in this thread, which has nothing to set up
            for other in others:
                other.result()
    finally:
        torch.set_num_threads(before)
        # any thread that sets the number also sets it for all threads to come
        _in_new_thread(torch.set_num_threads, default)


def _in_new_thread(function: Callable[..., Any], *args: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def _group_scores(activations: Activations, index: int, batch: int) -> Tensor:
    """Compute f_c(A⊙S_k) + f_c(A) - f_c(A⊙S̄_k) for one image, (k, K)."""
    image = activations.images[index : index + 1]
    output = activations.output[index : index + 1].detach()
    features, classes = activations.features[index], activations.classes[index]
    directions, gaps = _directions(features), []

    def masked_logits(masks: Tensor) -> Tensor:
        masked = activations.layout.from_maps(features * masks, output)
        return at_least_float32(activations.model.resume(image, masked)[:, classes])

    for start in range(0, len(features), batch):
        masks = _similar_channels(directions, slice(start, start + batch))[:, :, None, None]
        gaps.append(masked_logits(masks) - masked_logits(1 - masks))
    return (torch.cat(gaps) + at_least_float32(activations.logits[index, classes].detach())).T


def score_cam(activations: Activations, batch: int | None = None, progress: bool = False) -> Tensor:
    """Score-CAM (Wang et al., 2020): weight_kc = softmax_k(f_c(x ⊙ m_k)).

    m_k is A_k, upsampled to the image and min-max scaled.

    Args:
        activations: Activations of the images.
        batch: Number of masked images per forward pass. The default is 8 on a CPU, because of its cache, and
            64 elsewhere.
        progress: Show a progress bar over the images.
    """
    check_batch(batch)
    batch = batch or (8 if activations.images.device.type == "cpu" else 64)
    indices = tqdm(range(len(activations.images)), desc="score-cam", disable=not progress)
    scores = torch.stack([_masked_logits(activations, index, batch) for index in indices])  # (B, k, K)
    return combine(scores.softmax(dim=2), activations.features)


@torch.no_grad()
def _masked_logits(activations: Activations, index: int, batch: int) -> Tensor:
    """Compute the logits of one image under the mask of every channel, (k, K)."""
    image, classes = activations.images[index], activations.classes[index]
    logits = []
    for channels in activations.features[index].split(batch):
        large = F.interpolate(channels[None], size=image.shape[1:], mode="bilinear", align_corners=False)[0]
        masks = _minmax(large.flatten(1)).view_as(large)[:, None].to(image.dtype)
        logits.append(at_least_float32(activations.model.logits(image * masks)[:, classes]))
    return torch.cat(logits).T


def combine(weights: Tensor, features: Tensor) -> Tensor:
    """Compute Σ_k weight_kc·A_k: (B, k, K) and (B, K, H, W) -> (B, k, H, W)."""
    return torch.einsum("bck,bkhw->bchw", weights, features)


def _locations(activations: Activations) -> int:
    return activations.features.shape[2] * activations.features.shape[3]


def _minmax(values: Tensor) -> Tensor:
    """Scale the last dimension to [0, 1], or to 0 where all values are equal."""
    low, high = values.amin(dim=-1, keepdim=True), values.amax(dim=-1, keepdim=True)
    return _divide(values - low, high - low)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, and return 0 where the denominator is 0."""
    return torch.where(denominator == 0, 0, numerator / denominator.where(denominator != 0, 1))
