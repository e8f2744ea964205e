"""The log of a run: JSON lines always, and the trackers that were asked for."""

import importlib.util
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process

from ..data.samples import ImageDataset
from ..figures import captioned_row, denormalise, outline, overlay, stack_vertically
from ..figures.charts import curves
from ..files import copy_file, draft_of, write_json, write_text
from ..hub.cards import PICTURES, RECIPE, write_card
from ..models.modeling import EvidenceForImageClassification

logger = logging.getLogger(__name__)

TRACKER_FOLDER = "softcam_hub"
"""Folder in which trackers such as TensorBoard keep their logs."""

LOG_FILE = "log.jsonl"
HINTS = {"tensorboard": "pip install tensorboard", "wandb": "pip install wandb"}

CURVES = {
    "accuracy": ("train_accuracy", "train_teacher_accuracy", "validation_accuracy", "validation_teacher_accuracy"),
    "loss": ("train_loss", "validation_loss"),
}


class JSONLines(GeneralTracker):
    """One line per `log` call, with its update number.

    Args:
        file: that lines are appended to.
    """

    name = "json"
    requires_logging_directory = False

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    @property
    def tracker(self) -> Path:
        return self.file

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """The settings are in a file of their own."""

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        try:
            with self.file.open("a") as file:
                file.write(json.dumps({"step": step, **finite(values)}) + "\n")
        except OSError as error:
            raise OSError(
                f"the log {self.file} could not be written ({error.strerror}): make room, and go on with --resume"
            ) from error

    @on_main_process
    def rewind(self, step: int) -> None:
        """Forget what a run that goes on from `step` will log again."""
        if self.file.exists():
            kept = [line for line in read_log(self.file) if line["step"] <= step]
            write_text(self.file, "".join(json.dumps(line) + "\n" for line in kept))


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """The same with None for NaN and infinity, which JSON has not."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut off in the middle is left out."""
    lines = []
    for line in file.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def check_trackers(names: str) -> list[str]:
    """The trackers asked for, all of them installed."""
    chosen = names.replace(",", " ").split()
    for name in chosen:
        if name not in HINTS:
            raise ValueError(f"unknown tracker {name!r}: expected {' or '.join(HINTS)}")
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"tracker {name!r} is not installed: {HINTS[name]}")
    return chosen


def start_trackers(accelerator: Accelerator, settings: dict[str, Any]) -> None:
    """Begin logging; settings that are unset are left out, as TensorBoard takes no None."""
    accelerator.init_trackers(TRACKER_FOLDER, {k: v for k, v in settings.items() if v is not None})


def write_metrics(values: dict[str, Any], file: Path) -> None:
    """Write metrics as JSON, with null for NaN and infinity."""
    write_json(file, finite(values))


def draw_curve(log_file: Path, picture: Path) -> None:
    """Accuracies and losses of every epoch, of both heads where there are two (the CAPE paper's Fig. 4)."""
    epochs = [line for line in read_log(log_file) if "epoch" in line]
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
    model: EvidenceForImageClassification, images: ImageDataset, classes: list[str], file: Path, count: int = 4
) -> None:
    """Explained images of `count` classes: the image, and the maps of its two most probable classes.

    The ground truth is outlined where there is any.
    """
    labels = images.samples.labels
    first = [int((labels == label).argmax()) for label in range(len(classes)) if (labels == label).any()][:count]
    data, rows = model.pretrained_cfg, []
    for sample in (images[index] for index in first):
        pixels = sample["pixel_values"]
        found = model.explain(pixels[None].to(model.device), top_k=min(2, len(classes)))
        seen, mask = denormalise(pixels, data["mean"], data["std"]), sample.get("mask", torch.zeros(pixels.shape[1:]))
        panels = [(f"{classes[sample['labels']]}\n(ground truth outlined)", outline(seen, mask))]
        shown = zip(found.classes[0], found.probabilities[0], found.heatmaps(pixels.shape[-2:])[0], strict=True)
        for index, probability, heat in shown:
            panels.append(
                (f"evidence for {classes[index]}\n{float(probability):.1%}", outline(overlay(seen, heat), mask))
            )
        rows.append(captioned_row(panels))
    with draft_of(file) as draft:
        stack_vertically(rows).save(draft)


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
