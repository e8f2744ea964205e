"""Maps of which it is known beforehand whether they are right, all on one grid, which gives none of them away.

- *causal* is right by experiment: every part of a generated image is taken out, and the drop of the logit is spread
  evenly over the place where the part was.
- The others are wrong: *random* noise; a bump in the *centre*; the *edges* of the image; the causal map of *another
  image* of the same class; the model's own map with a *randomised head*; and the causal map, *shifted* by half a cell
  down and right.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import softcam_hub
from softcam_hub.data.lesions import draw_twins
from softcam_hub.explainers.uninformed import bump
from softcam_hub.explanation_scores.maps import heat
from softcam_hub.explanation_scores.randomisation import randomise
from softcam_hub.models.modeling import EvidencePreTrainedModel

GOOD = "causal"
BAD = ("random", "centre", "edges", "another image", "randomised head", "shifted")
SIDE = 128


@dataclass(frozen=True)
class Cases:
    """Images with what is known of them.

    Args:
        images: Images as the model takes them, (B, 3, H, W).
        labels: Their classes, which the model predicts, (B,).
        masks: Masks of the lesions, (B, H, W).
        maps: Heat maps (B, H, W) in [0, 1] by name.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    maps: dict[str, Tensor]


def load_model() -> EvidencePreTrainedModel:
    """Return the shipped model."""
    return softcam_hub.CAPEForImageClassification.from_pretrained(softcam_hub.CAPE_LESIONS).eval()


@torch.no_grad()
def make_cases(model: EvidencePreTrainedModel, count: int) -> Cases:
    """Make the maps of the first test images with lesions whose class the model predicts.

    Args:
        model: Model of the classes of `lesions`.
        count: Number of images.
    """
    pictures, labels, masks, causal, index = [], [], [], [], 0
    while len(pictures) < count:
        drawn, twins = draw_twins(index, "test", SIDE)
        index += 1
        batch = model.as_batch([drawn.image, *twins.values()])
        logits = model(pixel_values=batch).logits
        if not drawn.label or int(logits[0].argmax()) != drawn.label:  # healthy, or mistaken
            continue
        drops = logits[0, drawn.label] - logits[1:, drawn.label]
        pictures.append(batch[0])
        labels.append(drawn.label)
        masks.append(torch.from_numpy(drawn.mask))
        causal.append(spread([torch.from_numpy(drawn.part_masks[part]) for part in twins], drops))
    images, classes, pixels = torch.stack(pictures), torch.tensor(labels), torch.stack(causal)
    cells = model.explain(images[:1]).maps.shape[-2:]
    step = SIDE // cells[0]
    drawings = {
        GOOD: pixels,
        "edges": edges(images),
        "another image": pixels[others(classes)],
        "shifted": F.pad(pixels, (step // 2, 0, step // 2, 0))[:, :SIDE, :SIDE],
    }
    maps = {name: F.adaptive_avg_pool2d(drawing[:, None], cells)[:, 0] for name, drawing in drawings.items()}
    maps |= {"random": torch.rand(len(images), *cells, generator=torch.Generator().manual_seed(0))}
    maps |= {"centre": bump(*cells).expand(len(images), *cells)}
    maps |= {"randomised head": map_of_randomised_head(model, images, classes)}
    return Cases(images, classes, torch.stack(masks), {name: heat(drawn, SIDE) for name, drawn in maps.items()})


def spread(masks: list[Tensor], drops: Tensor) -> Tensor:
    """Spread every positive drop evenly over its mask, and add them up, (H, W)."""
    shares = [
        mask.float() * drop.clamp_min(0) / mask.sum().clamp_min(1) for mask, drop in zip(masks, drops, strict=True)
    ]
    return torch.stack(shares).sum(dim=0)


def edges(images: Tensor) -> Tensor:
    """Compute the size of the gradient of the brightness by Sobel's filter, (B, H, W)."""
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    grey = F.pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(grey, torch.stack([kernel, kernel.T])[:, None]).norm(dim=1)


def others(labels: Tensor) -> Tensor:
    """Return for every image the index of the next one of the same class, the first after the last, (B,)."""
    chosen = torch.empty_like(labels)
    for label in labels.unique():
        same = (labels == label).nonzero().flatten()
        chosen[same] = same.roll(-1)
    return chosen


def map_of_randomised_head(model: EvidencePreTrainedModel, images: Tensor, labels: Tensor) -> Tensor:
    """Compute the maps of the model after its head has lost what it learnt, (B, h, w)."""
    head = copy.deepcopy(model.head)
    randomise(head, torch.Generator().manual_seed(0))
    _, maps = head(model.forward_features(images), kind=head.kinds[0])
    return maps[torch.arange(len(images)), labels]
