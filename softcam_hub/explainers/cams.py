"""Class activation maps: `map_c = Σ_k weight_kc · A_k` for k classes at once; the methods differ in the weights.

`A` (B, K, H, W) is the layer's output, `w` the classifier's weights, `g = ∂logit_c/∂A`.

- Where the logit is linear in mean(A), g is `w / HW` everywhere and the maps need no backward pass. Everywhere else one
  backward pass per class serves all methods.
- Maps are signed here; the positive part is taken by the caller.
- Grad-CAM++ and Smooth Grad-CAM++ divide by a sum that may vanish where features are negative: the weight is 0 there.
- Smooth Grad-CAM++ averages the derivatives over noisy images and applies them to the *clean* A; the noise is the same
  for every image, so that a map does not depend on the batch around it.
- FD-CAM and Score-CAM work on logits. Score-CAM's baseline cancels in its softmax and is not computed.
- FD-CAM compares channels in float32 at least, under autocast too: in half precision the quantile is a matter of ties.
"""

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
from .recording import Recording

_ROWS = 256
"""Rows of FD-CAM's similarities that a thread compares at a time: few, for its cache, but worth its while."""

_NUMBER_OF_THREADS = threading.Lock()
"""Held while torch's number of threads, which belongs to the whole process, is not what it was."""


def cam(recording: Recording) -> Tensor:
    """CAM (Zhou et al., 2016): weight_kc = w_kc. The bias is left out (eq. 2 of CAPE)."""
    return combine(_classifier_weights(recording), recording.features)


def _classifier_weights(recording: Recording) -> Tensor:
    head = getattr(recording.subject.model, "head", None)
    if recording.linear is not None:
        return recording.weights
    if recording.subject.layer is None and isinstance(head, EvidenceHead):
        return at_least_float32(head.weight.detach())[recording.classes]
    raise ValueError(
        f"cam needs logits that are linear in the average of layer {recording.subject.layer_name!r}, and they are not: "
        "take grad-cam, or the maps of softcam_hub.convert(model)"
    )


def grad_cam(recording: Recording) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017): weight_kc = mean_ij g. In closed form w_kc / HW."""
    if recording.linear is not None:
        return combine(recording.weights / _locations(recording), recording.features)
    return combine(recording.gradient.mean(dim=(3, 4)), recording.features)


def grad_cam_pp(recording: Recording) -> Tensor:
    """Grad-CAM++ (Chattopadhyay et al., 2018): weight_kc = Σ_ij α·ReLU(g) with α = g² / (2g² + Σ_ab A·g³).

    In closed form ReLU(w_kc) / (2 + w_kc·mean(A_k)).
    """
    if recording.linear is not None:
        weights = recording.weights
        return combine(_divide(weights.relu(), 2 + weights * recording.pooled[:, None]), recording.features)
    gradient = recording.gradient
    return combine(_pp_weights(gradient, gradient.square(), gradient.pow(3), recording.features), recording.features)


def smooth_grad_cam_pp(recording: Recording, n: int = 10, sigma: float = 0.3, seed: int = 0) -> Tensor:
    """Smooth Grad-CAM++ (Omeiza et al., 2019): D_p = mean_m g(x_m)^p, α = D2 / (2·D2 + Σ_ab A·D3), Σ_ij α·ReLU(D1).

    In closed form it is Grad-CAM++, since g does not depend on the image.

    Args:
        recording: of the clean images.
        n: number of noisy images.
        sigma: standard deviation of the noise, in the units of the normalised image.
        seed: of the noise; torch's global random state is left alone.
    """
    if n < 1:
        raise ValueError(f"n is the number of noisy images and must be at least 1, got {n}")
    if recording.linear is not None:
        return grad_cam_pp(recording)
    sums = [torch.zeros_like(recording.gradient) for _ in range(3)]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        noise = sigma * torch.randn(recording.images.shape[1:], generator=generator)
        noisy = recording.images + noise.to(recording.images)
        gradient = recording.subject.record(noisy).of(recording.classes).gradient
        for power, total in enumerate(sums, start=1):
            total += gradient.pow(power)
    return combine(_pp_weights(*(total / n for total in sums), recording.features), recording.features)


def _pp_weights(first: Tensor, second: Tensor, third: Tensor, features: Tensor) -> Tensor:
    """Σ_ij α·ReLU(D1) with α = D2 / (2·D2 + Σ_ab A·D3), (B, k, K), of derivatives (B, k, K, H, W)."""
    shift = (features[:, None] * third).sum(dim=(3, 4), keepdim=True)
    return (_divide(second, 2 * second + shift) * first.relu()).sum(dim=(3, 4))


def layer_cam(recording: Recording) -> Tensor:
    """Layer-CAM (Jiang et al., 2021): Σ_k ReLU(g)·A, element by element. In closed form weights are ReLU(w) / HW."""
    if recording.linear is not None:
        return combine(recording.weights.relu() / _locations(recording), recording.features)
    return (recording.gradient.relu() * recording.features[:, None]).sum(dim=2)


def lift_cam(recording: Recording) -> Tensor:
    """LIFT-CAM (Jung & Oh, 2021): weight_kc = Σ_ij DeepLIFT of A_k, baseline 0. In closed form w_kc·mean(A_k)."""
    if recording.linear is not None:
        return combine(recording.weights * recording.pooled[:, None], recording.features)
    return combine(deep_lift(recording), recording.features)


def fd_cam(recording: Recording, batch: int = 32) -> Tensor:
    """FD-CAM (Li et al., 2022): weight = exp(minmax_k(score))·minmax_k(mean_ij g) - 0.5.

    score_k = f_c(A⊙S_k) + f_c(A) - f_c(A⊙S̄_k), where S_k are the channels whose cosine with channel k is above the
    0.95-quantile of row k, and S̄_k the others. In closed form score_k = b_c + 2·Σ_{j in S_k} w_jc·mean(A_j).

    Args:
        recording: of the images.
        batch: how many masked copies run through the rest of the network at a time.
    """
    if recording.linear is not None:
        slopes = recording.weights / _locations(recording)
        shares = recording.weights * recording.pooled[:, None]  # (B, k, K)
        scores = recording.linear[1][recording.classes][..., None] + 2 * _sums_over_similar(recording.features, shares)
    else:
        slopes = recording.gradient.mean(dim=(3, 4))
        scores = torch.stack([_group_scores(recording, index, batch) for index in range(len(recording.features))])
    return combine(_minmax(scores).exp() * _minmax(slopes) - 0.5, recording.features)


def _directions(features: Tensor) -> Tensor:
    """Channels (..., K, H, W) as unit vectors (..., K, HW)."""
    return F.normalize(features.flatten(-2), dim=-1)


def _similar_channels(directions: Tensor, rows: slice) -> Tensor:
    """S of the channels in `rows` as ones and zeros, (rows, K), of one image's directions (K, HW)."""
    with torch.autocast(directions.device.type, enabled=False):
        cosines = directions[rows] @ directions.T
    return _mark_similar(cosines, torch.empty_like(cosines))


def _mark_similar(cosines: Tensor, scratch: Tensor) -> Tensor:
    """The cosines (rows, K) turned into ones and zeros where they are; `scratch` is another tensor of their shape."""
    rank = 19 * (cosines.shape[1] - 1) // 20  # above the 0.95-quantile is above this order statistic, ties included
    return cosines.gt_(_order_statistic(scratch.copy_(cosines), rank))


def _order_statistic(rows: Tensor, rank: int) -> Tensor:
    """The value that comes at `rank` (from 0) when a row is sorted, (N, 1); numpy, faster on a CPU, reorders `rows`."""
    if rows.device.type != "cpu":
        return rows.kthvalue(rank + 1, dim=1, keepdim=True).values
    rows.numpy().partition(rank, axis=1)
    return rows[:, rank, None]


def _sums_over_similar(features: Tensor, shares: Tensor) -> Tensor:
    """Σ_{j in S_k} shares_j, (B, k, K), of features (B, K, H, W) and shares (B, k, K)."""
    directions, channels = _directions(features), features.shape[1]
    sums = shares.new_empty(len(features), channels, shares.shape[1])
    blocks = list(product(range(len(features)), range(0, channels, _ROWS)))

    @torch.no_grad()  # of each thread, and so is autocast
    @torch.autocast(features.device.type, enabled=False)
    def fill(blocks: list[tuple[int, int]], buffers: Tensor) -> None:
        for image, start in blocks:
            rows = slice(start, start + _ROWS)
            cosines, scratch = buffers[:, : channels - start]
            torch.mm(directions[image, rows], directions[image].T, out=cosines)
            torch.mm(_mark_similar(cosines, scratch), shares[image].T, out=sums[image, rows])

    with _NUMBER_OF_THREADS:
        _fill_in_threads(fill, blocks, features, directions)
    return sums.transpose(1, 2)


def _fill_in_threads(
    fill: Callable[[list[tuple[int, int]], Tensor], None],
    blocks: list[tuple[int, int]],
    features: Tensor,
    directions: Tensor,
) -> None:
    """Share `blocks` among threads that each compute with one thread of torch's."""
    channels = features.shape[1]
    before, default = torch.get_num_threads(), _in_new_thread(torch.get_num_threads)
    threads = before if features.device.type == "cpu" else 1
    buffers = directions.new_empty(threads, 2, _ROWS, channels)  # for all blocks: new memory costs as much as the sums
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
        _in_new_thread(torch.set_num_threads, default)  # what any thread sets is the default of all threads to come


def _in_new_thread(function: Callable[..., Any], *args: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def _group_scores(recording: Recording, index: int, batch: int) -> Tensor:
    """f_c(A⊙S_k) + f_c(A) - f_c(A⊙S̄_k) of one image, (k, K)."""
    image, raw = recording.images[index : index + 1], recording.raw[index : index + 1].detach()
    features, classes = recording.features[index], recording.classes[index]
    directions, gaps = _directions(features), []
    for start in range(0, len(features), batch):
        masks = _similar_channels(directions, slice(start, start + batch))[:, :, None, None]
        alone, without = (
            recording.subject.resume(image, recording.layout.from_maps(features * kept, raw))[:, classes]
            for kept in (masks, 1 - masks)
        )
        gaps.append(at_least_float32(alone) - at_least_float32(without))
    return (torch.cat(gaps) + at_least_float32(recording.logits[index, classes].detach())).T


def score_cam(recording: Recording, batch: int | None = None, progress: bool = False) -> Tensor:
    """Score-CAM (Wang et al., 2020): weight_kc = softmax_k(f_c(x ⊙ m_k)), m_k = A_k upsampled and min-max scaled.

    Args:
        recording: of the images.
        batch: how many masked images run through the network at a time; by default 8 on a CPU, for its cache, else 64.
        progress: show a progress bar over the images.
    """
    batch = batch or (8 if recording.images.device.type == "cpu" else 64)
    images = tqdm(recording.images, desc="score-cam", disable=not progress)
    pairs = zip(images, recording.features, recording.classes, strict=True)
    scores = torch.stack([_masked_logits(recording, *one, batch) for one in pairs])  # (B, k, K)
    return combine(scores.softmax(dim=2), recording.features)


@torch.no_grad()
def _masked_logits(recording: Recording, image: Tensor, features: Tensor, classes: Tensor, batch: int) -> Tensor:
    """Logits of one image (3, H, W) under the mask of every channel, (k, K)."""
    found = []
    for channels in features.split(batch):
        large = F.interpolate(channels[None], size=image.shape[1:], mode="bilinear", align_corners=False)[0]
        masks = _minmax(large.flatten(1)).view_as(large)[:, None].to(image.dtype)
        found.append(at_least_float32(recording.subject.logits(image * masks)[:, classes]))
    return torch.cat(found).T


def combine(weights: Tensor, features: Tensor) -> Tensor:
    """Σ_k weight_kc·A_k: (B, k, K) and (B, K, H, W) -> (B, k, H, W)."""
    return torch.einsum("bck,bkhw->bchw", weights, features)


def _locations(recording: Recording) -> int:
    return recording.features.shape[2] * recording.features.shape[3]


def _minmax(values: Tensor) -> Tensor:
    """The last dimension scaled to [0, 1]; 0 where it has no contrast."""
    low, high = values.amin(dim=-1, keepdim=True), values.amax(dim=-1, keepdim=True)
    return _divide(values - low, high - low)


def _divide(above: Tensor, below: Tensor) -> Tensor:
    """The quotient, and 0 where `below` is 0."""
    return torch.where(below == 0, 0, above / below.where(below != 0, 1))
