"""Measure where the cells of a run's result lie in the image.

- A backbone that was trained is measured on images that were not used for the test. A frozen backbone keeps the place
  that it brought, unless its head has learnt from finer features for the first time.
- A place that cannot be measured, because of an image that training has not read, is left unknown with a warning: it
  must not cost the run.
- The main process measures. Nothing is drawn at random, so that a repeated or resumed run gives the same place.
"""

import logging
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ..data.samples import ImageDataset, Samples, Transform
from ..data.splits import Splits
from ..data.streaming import StreamedImageDataset
from ..models.flip_registration import IMAGES, measure_alignment
from ..models.pretrained import EvidencePreTrainedModel
from .loop import Training

logger = logging.getLogger(__name__)


def align_result(
    training: Training, result: EvidencePreTrainedModel, splits: Splits, transform: Transform
) -> dict[str, Any]:
    """Measure the result of a run unless its frozen backbone has been measured before, and return what metrics say.

    Args:
        training: Training that has ended.
        result: Model as it was loaded from its folder; the main process keeps the alignment with it.
        splits: Data of the run.
        transform: Transform of images in evaluation.

    Returns:
        `map_offset`, (down, right) in cells or None where it is not known, and `map_offset_correlation`, by which it
        was accepted or not; None where nothing was measured now.
    """
    entries: dict[str, Any] = {}
    if training.accelerator.is_main_process:
        correlation = None
        if training.config.model.frozen and result.map_offset() is not None:
            training.accelerator.print("the backbone was frozen: its cells look where they looked before")
        else:
            correlation = _measure(training, result, splits, transform)
        offset = result.map_offset()
        entries["map_offset"] = None if offset is None else [one and round(one, 4) for one in offset]
        entries["map_offset_correlation"] = correlation
    return broadcast_object_list([entries])[0]


def _measure(
    training: Training, result: EvidencePreTrainedModel, splits: Splits, transform: Transform
) -> list[float] | None:
    """Measure the result, print what was found, and return its correlations; None where nothing could be measured."""
    try:
        measurement = measure_alignment(result, _choose_images(splits, transform))
    except (OSError, ValueError, RuntimeError) as error:
        result.alignment = None
        logger.warning("where the cells of the maps look could not be measured: %s", error)
        return None
    training.accelerator.print(measurement.describe())
    return list(measurement.correlation)


def _choose_images(splits: Splits, transform: Transform) -> Tensor:
    """Return images that are spread evenly over the validation split or, without one, over the training split."""
    samples = splits.validation or splits.train
    if isinstance(samples, Samples):
        dataset = ImageDataset(samples, transform)
        chosen = np.linspace(0, len(dataset) - 1, min(IMAGES, len(dataset))).round().astype(int).tolist()
        return torch.stack([dataset[index]["pixel_values"] for index in chosen])
    stream = StreamedImageDataset(samples, transform, buffer=0)
    return torch.stack([sample["pixel_values"] for sample in islice(stream, IMAGES)])
