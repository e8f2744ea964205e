"""What the end of a run leaves: metrics, a training curve, and the model folder with its card."""

import logging
from pathlib import Path
from typing import Any

import torch

from ..data.loading import Images
from ..figures import column, outlined, overlay, picture, row
from ..figures.charts import curves
from ..files import copy_file, draft_of, write_json
from ..hub.cards import PICTURES, RECIPE, write_card
from ..models.modeling import EvidenceForImageClassification
from . import log

logger = logging.getLogger(__name__)

CURVES = {
    "accuracy": ("train_accuracy", "train_teacher_accuracy", "validation_accuracy", "validation_teacher_accuracy"),
    "loss": ("train_loss", "validation_loss"),
}


def write_metrics(values: dict[str, Any], file: Path) -> None:
    """Write metrics as JSON, with null for NaN and infinity."""
    write_json(file, log.finite(values))


def draw_curve(log_file: Path, picture: Path) -> None:
    """Accuracies and losses of every epoch, of both heads where there are two (the CAPE paper's Fig. 4)."""
    epochs = [line for line in log.read(log_file) if "epoch" in line]
    panels = {}
    for title, names in CURVES.items():
        series = {
            name.replace("_", " "): [(row["epoch"], row[name]) for row in epochs if row.get(name) is not None]
            for name in names
        }
        panels[title] = {name: points for name, points in series.items() if points}
    with draft_of(picture) as draft:
        curves(panels, "epoch").save(draft)


def draw_examples(
    model: EvidenceForImageClassification, samples: Images, classes: list[str], file: Path, count: int = 4
) -> None:
    """Explained images of `count` classes: the image, and the maps of its two most probable classes.

    The ground truth is outlined where there is any.
    """
    labels = samples.rows.labels
    first = [int((labels == label).argmax()) for label in range(len(classes)) if (labels == label).any()][:count]
    data, rows = model.pretrained_cfg, []
    for sample in (samples[index] for index in first):
        pixels = sample["pixel_values"]
        found = model.explain(pixels[None].to(model.device), top_k=min(2, len(classes)))
        seen, mask = picture(pixels, data["mean"], data["std"]), sample.get("mask", torch.zeros(pixels.shape[1:]))
        panels = [(f"{classes[sample['labels']]}\n(ground truth outlined)", outlined(seen, mask))]
        shown = zip(found.classes[0], found.probabilities[0], found.heatmaps(pixels.shape[-2:])[0], strict=True)
        for index, probability, heat in shown:
            panels.append(
                (f"evidence for {classes[index]}\n{float(probability):.1%}", outlined(overlay(seen, heat), mask))
            )
        rows.append(row(panels))
    with draft_of(file) as draft:
        column(rows).save(draft)


def complete_model_folder(output: Path, explained: bool) -> None:
    """Put what a reader of the model needs beside it and its scores: recipe, pictures, and if it has maps a card."""
    model = output / "model"
    for source, target in {"settings.yaml": RECIPE, **{name: name for name in PICTURES}}.items():
        if (output / source).exists():
            copy_file(output / source, model / target)
    if not explained:
        return
    try:
        write_card(model, overwrite=True)
    except ValueError as error:  # a card that its own check refuses costs the card, not the run
        logger.warning("no card was written for %s: %s", model, error)
