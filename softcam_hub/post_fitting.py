"""Post-fit CAPE in one call: its head learns to predict what the vanilla classifier on the same backbone predicts.

- The mathematics are those of `softcam-hub train --mode post-fit`, and the settings those of the recipe
  `lesions-cape-pf` with T = 2, but for two guards: few images get more passes, and gradients are clipped. The recipe is
  made for 3,000 images and one small network. Where features are larger, or warm-up is a few updates, its steps can
  lead to a head that predicts all classes alike and learns no more.
- The backbone only computes features, once, in eval mode. A copy of the head learns. The model changes when the copy
  has learnt to the end, and is as it was after an error.
- Loaders draw random numbers. They draw them from the seed, and the random state of the caller is restored.
"""

import copy
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .data.batches import read_batches
from .data.samples import fixed_random_state
from .models.evaluation_mode import evaluation_mode
from .models.inputs import ImageInput
from .models.losses import Bootstrap
from .models.modeling import CAPEForImageClassification, model_class
from .models.pretrained import EvidencePreTrainedModel
from .models.self_explaining import SelfExplaining

if TYPE_CHECKING:
    from .training.config import OptimizationConfig
    from .training.feature_cache import CachedFeatures
    from .training.head_fit import HeadFit

logger = logging.getLogger(__name__)

EPOCHS, WARMUP = 30, 1 / 30
"""Passes over the features, and the share of them in which the learning rate rises, as in the recipe."""

FEWEST_UPDATES, LARGEST_GRADIENT = 1000, 1.0
"""Updates below which there are more passes, and norm above which a gradient is scaled down."""

MAY_DIFFER, FEW_IMAGES = 0.05, 2
"""Share of the images for which CAPE may predict another class than the vanilla classifier, and number of images
for which it may, without a warning."""

LARGEST_PASS = 32
"""Images that the backbone computes at once, however many make an update: these few bound its memory."""


@dataclass(frozen=True)
class PostFit:
    """What `post_fit` did, measured on the images that were held out, or on those it learnt from where none were.

    Args:
        images: Number of images that the head learnt from.
        held_out: Number of images that were held out.
        divergence_before: Loss before, T²·KL from CAPE to the vanilla classifier.
        divergence: Loss afterwards.
        disagreement_before: Share of the images for which the two predicted different classes before.
        disagreement: Share of the images for which they do so afterwards.
    """

    images: int
    held_out: int
    divergence_before: float
    divergence: float
    disagreement_before: float
    disagreement: float

    def describe(self) -> str:
        """Say what was done in a sentence."""
        measured = _count(self.held_out, "held-out image") if self.held_out else "the same images"
        return (
            f"fitted to {_count(self.images, 'image')}; on {measured}, it differs from the vanilla classifier in "
            f"{self.disagreement:.1%} of the predicted classes ({self.disagreement_before:.1%} before), with a "
            f"divergence of {self.divergence:.4f} ({self.divergence_before:.4f} before)"
        )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def post_fit(
    model: nn.Module,
    images: ImageInput | Iterable[Any],
    teacher: nn.Module | str | Path | None = None,
    *,
    temperature: float = 2.0,
    epochs: int | None = None,
    lr: float = 0.1,
    batch_size: int = 32,
    hold_out: float = 0.1,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> PostFit:
    """Fit CAPE to the vanilla classifier on its own backbone, so that it predicts the same classes.

        model = softcam_hub.convert(vanilla, "cape")
        print(softcam_hub.post_fit(model, loader).describe())

    The head starts with the weights of the vanilla classifier, and learns from what that predicts: unlabelled images of
    the kind that the model will see are enough. The backbone stays as it is, and so does the place of the maps' cells.
    Its features are computed once, into a temporary file with four bytes for each number. It is what
    `softcam-hub train --mode post-fit` does, which also chooses T and the best epoch where there are labels.

    Args:
        model: CAPE model for timm or transformers, which is changed in place.
        images: Loader or other iterable of images or batches: tensors (B, 3, H, W) or (3, H, W) normalised as for the
            model, pairs of these and labels, dictionaries with `pixel_values` or `image`, or pictures in any form that
            `model.explain` takes. Lists of paths and data sets of `datasets` and torch are such iterables, and a folder
            stands for all images in it, at any depth.
        teacher: Vanilla classifier with the backbone of the model: timm model, folder, timm name or Hub id. Needed
            where the head has learnt already; a head fresh from `convert` or `pretrained=True` is the classifier still.
        temperature: Temperature T of the teacher.
        epochs: Number of passes over the features. The default is 30, or as many as make 1,000 updates.
        lr: Largest learning rate of SGD. It rises for a thirtieth of the updates, and then falls along a cosine.
        batch_size: Number of images per update.
        hold_out: Share of the images that are not learnt from, on which the result is measured.
        seed: Seed of the division, of the order of images, and of what a loader draws at random.
        cache_dir: Folder for the temporary file of features. The default is that of the system.

    Returns:
        Numbers of images, and divergence and disagreement before and afterwards.
    """
    from .training.config import OptimizationConfig  # brings transformers' Trainer, which takes a second to import
    from .training.head_fit import HeadFit
    from .training.teacher import find_teacher

    # everything that can be refused is refused before the pass over the images
    cape = _check_model(model)
    bootstrap = Bootstrap("post-fit", temperature=temperature)
    settings = OptimizationConfig(
        epochs=EPOCHS if epochs is None else epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=0.0,
        clip_grad=LARGEST_GRADIENT,
    )
    if not 0 <= hold_out < 1:
        raise ValueError(f"hold_out is a share of the images, from 0 to below 1: got {hold_out}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if cache_dir is not None and not Path(cache_dir).is_dir():
        raise FileNotFoundError(f"there is no folder {cache_dir} for the features: create it, or leave cache_dir out")
    with fixed_random_state(seed), _gradients(cape.head.weight.device):
        linear = find_teacher(cape, teacher)  # timm draws weights before it loads others
        head = copy.deepcopy(cape.head).float().requires_grad_(True)
    with TemporaryDirectory(prefix="softcam-hub-", dir=cache_dir) as folder:
        features = _store_features(cape, images, batch_size, seed, Path(folder))
        with _gradients(head.weight.device):
            result = _fit(HeadFit(head, linear, features, bootstrap), settings, epochs, hold_out, seed)
        del features  # closes their file, without which some systems do not delete it
    cape.head.load_state_dict(head.state_dict())
    _record(cape, temperature)
    logger.info("%s: %s", cape.timm_name, result.describe())
    if result.divergence > result.divergence_before or result.disagreement > result.disagreement_before:
        logger.warning(
            "post-fitting has not brought %s closer to the vanilla classifier: %s. More images, more epochs or a lower "
            "lr may help",
            *(cape.timm_name, result.describe()),
        )
    elif result.disagreement > MAY_DIFFER and result.disagreement * (result.held_out or result.images) > FEW_IMAGES:
        logger.warning(
            "post-fitted %s still differs from the vanilla classifier: %s. More images or more epochs may help; where "
            "there are labels, `softcam-hub train --mode post-fit --alpha 1` learns from them as well",
            *(cape.timm_name, result.describe()),
        )
    return result


def _check_model(model: nn.Module) -> SelfExplaining:
    """Return a model whose head can be fitted to a vanilla classifier, or raise an error that says what it lacks."""
    if not isinstance(model, SelfExplaining):
        raise TypeError(
            f"post_fit() takes a CAPE model, got {type(model).__name__}: make one of a timm classifier with "
            "softcam_hub.convert(model, 'cape'), and take a wrapped model out of its wrapper"
        )
    name, title = model.timm_name, model.head_class.title
    if not model.num_classes:
        raise ValueError("post_fit() needs classes: this model has num_classes=0; call reset_classifier(n) first")
    if "mode" not in model_class(model.family).config_class.loss_settings:
        reason = (
            "gives its logits anyway" if model.head_class.keeps_logits else "has no such loss: train it with labels"
        )
        raise ValueError(
            f"post_fit() fits a head to a vanilla classifier, as CAPE learns from one, and {title} {reason}"
        )
    if getattr(model.head, "naive", False):
        raise ValueError(f"naive {title} weighs all locations alike, and is not fitted: make {name} without naive=True")
    if not model.anatomy.exact:
        raise ValueError(
            f"{name} has no vanilla classifier that can be applied at each location (model.exact is False): train it "
            "with labels"
        )
    if type(model.head) is not model.head_class:
        raise TypeError(f"post_fit() takes a plain head, got {type(model.head).__name__}: take it out of its wrapper")
    return model


def _store_features(model: SelfExplaining, images: Any, batch_size: int, seed: int, folder: Path) -> "CachedFeatures":
    """Compute the features of all images, and return them memory-mapped."""
    from .training.feature_cache import store_features

    with fixed_random_state(seed), torch.no_grad(), evaluation_mode(model):
        features = store_features(_compute_features(model, images, batch_size), folder)
    logger.info("computed the features of %d images", len(features))
    return features


def _compute_features(model: SelfExplaining, images: Any, batch_size: int) -> Iterator[Tensor]:
    """Yield features (B, K, H, W) in float32."""
    seen = 0
    batches = read_batches(images, model.as_batch, min(batch_size, LARGEST_PASS))
    for batch in chain.from_iterable(batch.split(LARGEST_PASS) for batch in batches):
        try:
            features = model.forward_features(batch).float()
        except AssertionError as error:  # of timm's architectures that take one size
            height, width = batch.shape[2:]
            raise ValueError(f"{model.timm_name} takes no images of {height}x{width}: {error}") from error
        if not features.isfinite().all():
            broken = int((~features.flatten(1).isfinite().all(dim=1)).nonzero()[0]) + seen
            raise ValueError(
                f"the features of image {broken} are NaN or infinite: check the weights of the model, or compute in "
                "float32"
            )
        seen += len(batch)
        yield features


@contextmanager
def _gradients(device: torch.device) -> Iterator[None]:
    """Compute gradients, and in the precision of the weights, whatever the caller has switched on.

    Within one autocast, all updates would see the bias of the first, of which torch keeps a cast copy to its end.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


def _fit(fit: "HeadFit", settings: "OptimizationConfig", epochs: int | None, hold_out: float, seed: int) -> PostFit:
    """Train the head of a fit, from the weights of its teacher on, and compare the two before and afterwards."""
    learnt, held_out = _divide(len(fit.features), hold_out, seed)
    size = min(settings.batch_size, len(learnt))
    epochs = epochs or max(EPOCHS, math.ceil(FEWEST_UPDATES / (len(learnt) // size)))
    before = fit.compare(held_out or learnt, size)
    fit.start_from_teacher()
    updates = epochs * (len(learnt) // size)
    warmup_epochs = WARMUP * epochs if WARMUP * updates >= 1 else 0.0  # the first update of a warm-up has no effect
    fit.run(learnt, replace(settings, batch_size=size, epochs=epochs, warmup_epochs=warmup_epochs), seed)
    after = fit.compare(held_out or learnt, size)
    measured = (before.divergence, after.divergence, before.disagreement, after.disagreement)
    return PostFit(len(learnt), len(held_out), *measured)


def _divide(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide the indices of images into those to learn from and those that are held out; both are in order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
    held_out = min(round(share * count), count - 1)
    return sorted(order[held_out:]), sorted(order[:held_out])


def _record(model: SelfExplaining, temperature: float) -> None:
    """Write into the configuration what that of a post-fitted run says; the teacher has served."""
    if isinstance(model, CAPEForImageClassification) and model.teacher is not None:
        model.drop_teacher()
    if isinstance(model, EvidencePreTrainedModel):
        model.config.temperature, model.config.selective = temperature, False
