"""Say what a run is about to do, before it does it, and what a user may not expect of it."""

import logging

from accelerate import Accelerator
from torch import nn

from ..data.config import AUTOMATIC_HOLD_OUT
from ..data.lesions import VARIANTS
from ..data.samples import Samples
from ..data.splits import Splits
from .config import Config
from .start import Start

logger = logging.getLogger(__name__)

FEW_PER_CLASS = 1000
"""Number of training images per class below which random weights are a poor start.

ImageNet has 1,281 images per class, and the networks of timm are made to be trained on that many from random weights.
"""


def describe_run(config: Config, splits: Splits, model: nn.Module, start: Start, accelerator: Accelerator) -> str:
    """Return one line with images, classes, device, initial weights, trained parameters and number of updates."""
    counts = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    images = [f"{len(samples):,} {name}" for name, samples in counts.items() if isinstance(samples, Samples)]
    if not isinstance(splits.train, Samples):
        images = ["a stream of training", *images]
    processes = f" x {accelerator.num_processes}" if accelerator.num_processes > 1 else ""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    return (
        f"{' + '.join(images)} images, {len(splits.classes)} classes, {accelerator.device}{processes}; "
        f"{config.model.model} from {start}; {trained:,} of {sum(size for size, _ in sizes):,} parameters are trained "
        f"in {count_updates(config, splits, accelerator.num_processes):,} updates"
    )


def count_updates(config: Config, splits: Splits, processes: int) -> int:
    """Return the number of updates of a run."""
    settings = config.optimization
    if not isinstance(splits.train, Samples):
        return settings.epochs * (settings.steps_per_epoch or 0)
    return settings.epochs * (len(splits.train) // (settings.batch_size * settings.accumulation * processes))


def warn_of_surprises(config: Config, splits: Splits, start: Start) -> None:
    """Warn of random weights with few images, and of a validation split that the data do not have."""
    if not isinstance(splits.train, Samples):
        return
    count, classes = len(splits.train), len(splits.classes)
    if start.is_random and config.data.data not in VARIANTS and count < FEW_PER_CLASS * classes:
        logger.warning(
            "WARNING: %s starts from random weights, and %d images of %d classes are few for that (ImageNet has "
            "1,281 per class). Expect a poor classifier, whose maps mean little. Start from trained weights: "
            "--pretrained (timm's), or --init with a model folder, a Hub id or a file of weights",
            *(config.model.model, count, classes),
        )
    if config.data.hold_out is None and splits.held_out:
        logger.warning(
            "%r has no validation split: %d of its %d training images are held out for validation (%d %% of every "
            "class, chosen by data_seed=%d). --hold-out sets the share, and 0 holds none out",
            *(config.data.data, len(splits.validation), count + len(splits.validation)),
            *(round(100 * AUTOMATIC_HOLD_OUT), config.data.data_seed),
        )
