"""Score the result of a run on images that were held out, and write it."""

import logging
import platform
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from ..data.samples import ImageDataset
from ..data.splits import Splits
from ..data.transforms import make_transforms, mask_transform
from ..models.evaluation_mode import evaluation_mode
from ..temperature import candidate_losses, set_temperature
from .checkpoint import delete_best
from .folder import METRICS
from .loaders import prepare_loader
from .loop import Training
from .metrics import score_model
from .model import save_vanilla
from .reporting import complete_model_folder, draw_pictures, format_scores, write_metrics

logger = logging.getLogger(__name__)

MAY_LOSE, FEW_IMAGES = 0.02, 2
"""Share of the images by which CAPE may fall behind its teacher, and number of images by which it may, without a
warning."""


def data_config(model: nn.Module) -> dict[str, Any]:
    """Return size, crop, interpolation, mean and deviation of the images of a model, as timm's transforms take them."""
    return resolve_data_config({}, pretrained_cfg=dict(model.pretrained_cfg))


@torch.no_grad()
def fit_temperature(training: Training, result: nn.Module) -> float:
    """Fit T' of CAPE to the validation images of all processes, and return it."""
    accelerator, losses = training.accelerator, []
    with evaluation_mode(result):
        for batch in training.validation:
            with accelerator.autocast():
                if "features" not in batch:
                    batch["features"] = result.forward_features(batch["pixel_values"])
                _, evidence = result.head(batch["features"], kind="evidence")
            losses_of_batch = candidate_losses(result.head, evidence, batch["labels"])
            losses.append(accelerator.gather_for_metrics(losses_of_batch))
    return set_temperature(result.head, torch.cat(losses))


def score_result(training: Training, result: nn.Module, splits: Splits) -> dict[str, Any]:
    """Return the epoch that was chosen, and all scores on the test split or, without one, on the validation split."""
    accelerator, best = training.accelerator, training.best
    name = f"validation_{training.config.run.select}"
    scores = (
        {"epoch": training.config.optimization.epochs}
        if best is None
        else {name: best["value"], "epoch": best["epoch"]}
    )
    if splits.test is not None:
        if (
            best is not None and training.config.model.calibrate
        ):  # T' has changed the score by which the epoch was chosen
            scores[name] = score_model(result, training.validation, accelerator)[training.config.run.select]
        split, loader = "test", prepare_loader(_held_out_images(training, splits, result), training.config, accelerator)
    elif training.validation is not None:
        split, loader = "validation", training.validation
    else:
        accelerator.print("no image was held out, so that the result has no scores: set --hold-out, such as 0.2")
        return scores
    measured = score_model(result, loader, accelerator)
    training.check_finite(f"the {split} loss", measured["loss"])
    if accelerator.is_main_process:
        labels = training.config.model.learns_from_labels
        warn_of_lost_accuracy(measured, split, len(splits.test or splits.validation), labels)
    return scores | {f"{split}_{name}": value for name, value in measured.items()}


def warn_of_lost_accuracy(measured: dict[str, float], split: str, count: int, learns_from_labels: bool) -> None:
    """Warn if CAPE is right less often than the vanilla classifier from which it learnt, and say what may help.

    Args:
        measured: Scores of CAPE on a split, with those of its teacher if it had one.
        split: Name of the split.
        count: Number of its images.
        learns_from_labels: CAPE's loss has a cross-entropy with the labels already.
    """
    if "teacher_accuracy" not in measured:
        return
    lost = measured["teacher_accuracy"] - measured["accuracy"]
    if lost > MAY_LOSE and lost * count > FEW_IMAGES:
        logger.warning(
            "CAPE classifies %.1f %% of the %s images correctly, and its teacher %.1f %%: more --epochs%s may help",
            100 * measured["accuracy"],
            split,
            100 * measured["teacher_accuracy"],
            "" if learns_from_labels else ", or --alpha 1 for a cross-entropy with the labels,",
        )


def _held_out_images(training: Training, splits: Splits, model: nn.Module, with_masks: bool = False) -> ImageDataset:
    """Return the test images or, without some, the validation images, prepared for the model."""
    images, augmentation = data_config(model), training.config.augmentation
    samples = splits.test or splits.validation
    masks = mask_transform(images, augmentation) if with_masks and samples.has_masks else None
    return ImageDataset(samples, make_transforms(images, augmentation)[1], masks=masks)


def describe_machine() -> dict[str, str]:
    """Return device and versions of libraries, for the metrics."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {"device": device, "torch": torch.__version__, "timm": timm.__version__}


def write_results(
    training: Training, result: nn.Module, splits: Splits, metrics: dict[str, Any], best_folder: Path
) -> None:
    """Write models, pictures and card. The metrics of the run come last, and say that the run is finished."""
    output, accelerator = training.output, training.accelerator
    if getattr(result, "teacher", None) is not None:
        if result.anatomy.exact:
            save_vanilla(result, best_folder, output / "vanilla", splits.classes)
        result.drop_teacher()
    result.save_pretrained(output / "model")
    write_metrics(metrics, output / "model" / METRICS)
    has_examples = training.config.model.family is not None and (splits.test or splits.validation)
    examples = _held_out_images(training, splits, result, with_masks=True) if has_examples else None
    draw_pictures(output, result, examples, splits.classes)
    complete_model_folder(output, training.config.model.family is not None)
    write_metrics(metrics, output / METRICS)
    delete_best(training.checkpoints.best)
    split = "test" if splits.test else "validation"
    if scores := {name: value for name, value in metrics.items() if name.startswith(split)}:
        accelerator.print(format_scores(scores))
    accelerator.print(f"model in {output / 'model'}, metrics in {output / METRICS}")
