"""How well the evidence of a network follows what the removal of parts of generated images changes."""

import math
from typing import Any

import torch

from softcam_hub.data.samples import Samples
from softcam_hub.evaluation.causal import Twins
from softcam_hub.evaluation.shards import make_dataset
from softcam_hub.explanation_scores.causal import causal_correlations, log_odds, removal_effects, signed_evidence
from softcam_hub.models.alignment import sides_of

from ..timing import rounded
from .network import ScaledEvidence, enlarge
from .places import Places
from .tasks import Task

IMAGES = 100
"""Number of test images, of which three in four have lesions."""


@torch.no_grad()
def causal_agreement(
    network: ScaledEvidence, task: Task, samples: Samples, preprocessing: dict[str, Any], side: int, places: Places
) -> list[float | None]:
    """Correlate evidence and effects over the parts of every image; None where no part speaks for the class.

    Args:
        network: Network in eval mode.
        task: Generated images.
        samples: Test images.
        preprocessing: How images are prepared.
        side: Side of the images that the network sees.
        places: Where the cells of its maps look.
    """
    images, twins = make_dataset(preprocessing, samples), Twins(task.data, samples, preprocessing)
    found: list[float | None] = []
    for index in range(min(IMAGES, len(images))):
        parts = twins.read(index)
        numbers = list(parts.twins)
        pictures = torch.stack([images[index]["pixel_values"], *parts.twins.values()])
        terms = network.terms(enlarge(pictures, side))
        logits, maps = network.compose(terms)
        odds = log_odds(logits)
        predicted = odds[:1].argmax(dim=1)
        count = max(numbers, default=0) + 1
        effects = torch.full((1, count), torch.nan).double()
        owners = torch.zeros(len(numbers), dtype=torch.long)
        effects[0, numbers] = removal_effects(odds[:1], odds[1:], owners, predicted).double()
        large = places.draw(maps[:1, predicted], side, sides_of(parts.regions))[:, 0]
        of_parts = signed_evidence(large, parts.regions[None], count)
        _, linear = causal_correlations(of_parts.masked_fill(effects.isnan(), torch.nan), effects, effects)
        value = float(linear)
        found.append(None if math.isnan(value) else rounded(value))
    return found
