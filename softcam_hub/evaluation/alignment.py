"""Find where the maps of a benchmark's classifiers lie in the images, before any map is measured.

- A self-explaining model brings its alignment. Where it has none, it is measured on the first 32 images of the
  split, whatever the `limit`, and kept with the model.
- A vanilla classifier with the backbone of the model has the alignment of the model. Any other is measured in
  the same way, as the SoftCAM model with its weights, whose evidence is its CAM. Where there is no such model,
  nothing is measured, and the maps of the vanilla classifier are drawn as squares that fill the image.
- The main process measures for all, so that every process draws a map in the same place.
"""

import logging
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from ..data.samples import Samples
from ..loading import LoadedClassifier
from ..models.alignment import Alignment
from ..models.conversion import convert
from ..models.flip_registration import IMAGES, measure_alignment
from ..models.self_explaining import SelfExplaining
from ..output_folder import in_main_process
from .models import ModelPair, has_same_backbone
from .shards import make_dataset

logger = logging.getLogger(__name__)


def align_classifiers(pair: ModelPair, roles: Sequence[str], samples: Samples, state: Accelerator) -> None:
    """Give the classifiers of a benchmark their alignment, as the attribute `alignment` of their models.

    Args:
        pair: Classifiers of the benchmark, on their device.
        roles: Roles whose maps are made of features.
        samples: Images of the split.
        state: Accelerator of this process.
    """
    found: dict[str, Alignment | None] = {}
    in_main_process(state, lambda: found.update({role: _find_alignment(pair, role, samples) for role in roles}))
    (found,) = broadcast_object_list([found])
    for role, alignment in found.items():
        _keep(getattr(pair, role).model, alignment)


def _find_alignment(pair: ModelPair, role: str, samples: Samples) -> Alignment | None:
    """Return the alignment of a classifier, and measure it if nobody has."""
    classifier: LoadedClassifier = getattr(pair, role)
    known: Alignment | None = getattr(classifier.model, "alignment", None)
    if known is not None and known.is_known:
        return known
    if (
        pair.model is not None
        and classifier is not pair.model
        and has_same_backbone(pair.model.model, classifier.model)
    ):
        return _find_alignment(pair, "model", samples)
    model = classifier.model
    if not isinstance(model, SelfExplaining):
        try:
            with torch.random.fork_rng(devices=[]):  # a model is made with random weights, on the CPU
                model = convert(model, "softcam")
        except (TypeError, ValueError, RuntimeError) as error:
            logger.warning(
                "the places of the %s's maps cannot be measured, and they are drawn as squares that fill the image: %s",
                *(role, error),
            )
            return None
    measurement = measure_alignment(model, _first_images(classifier, samples))
    logger.info("%s: %s", role, measurement.describe())
    _keep(classifier.model, measurement.alignment)
    return measurement.alignment


def _keep(model: nn.Module, alignment: Alignment | None) -> None:
    """Keep an alignment with a model, which then need not be measured again."""
    if alignment is not None:
        model.alignment = alignment
        if isinstance(model, SelfExplaining):
            model.measures_on_first_use = False


def _first_images(classifier: LoadedClassifier, samples: Samples) -> Tensor:
    """Prepare the first images of a split as a classifier takes them, (B, C, H, W)."""
    images = make_dataset(classifier.preprocessing, samples)
    return torch.stack([images[index]["pixel_values"] for index in range(min(IMAGES, len(samples)))])
