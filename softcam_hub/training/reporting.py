"""Write what a run reports: its log, its metrics, its pictures, and the card of its model.

- The log has one JSON object per line. Trackers such as TensorBoard get the same values.
- A picture or card that cannot be made is skipped with a warning: it must not cost the run.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers, on_main_process
from accelerate.utils import LoggerType

from ..arguments import check_names
from ..data.samples import ImageDataset
from ..figures import captioned_row, denormalise, outline, overlay, stack_vertically
from ..figures.charts import curves
from ..files import copy_file, draft_of, write_json, write_text
from ..hub.cards import PICTURES, RECIPE, write_card
from ..models.modeling import EvidenceForImageClassification
from ..models.text import format_share

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"

TRACKER_FOLDER = "softcam_hub"
"""Folder, below the output folder, in which trackers such as TensorBoard keep their logs."""

PACKAGES = {"comet_ml": "comet-ml"}
"""Tracker -> name of its package for pip, where that is another one."""

CURVES = {
    "accuracy": ("train_accuracy", "train_teacher_accuracy", "validation_accuracy", "validation_teacher_accuracy"),
    "loss": ("train_loss", "validation_loss"),
}
"""Panels of the training curve, with the logged values that they show."""


class JSONLines(GeneralTracker):
    """Tracker that appends one line for each call of `log`, with the number of the update.

    Args:
        file: File to which lines are appended.
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
        """Do nothing: the settings have a file of their own."""

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **finite(values)}) + "\n")
        except OSError as error:
            raise OSError(
                f"the log {self.file} could not be written ({error.strerror}): make room, and continue with --resume"
            ) from error

    @on_main_process
    def rewind(self, step: int) -> None:
        """Delete the lines after an update, which a run that continues from there will log again."""
        if self.file.exists():
            kept = [line for line in read_log(self.file) if line["step"] <= step]
            write_text(self.file, "".join(json.dumps(line) + "\n" for line in kept))


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def read_log(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a log, except for lines that a kill has cut off."""
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def check_trackers(names: str) -> list[str]:
    """Return the trackers that a setting names, or refuse trackers that are unknown or not installed."""
    chosen, known = names.replace(",", " ").split(), sorted(LOGGER_TYPE_TO_CLASS)
    check_names(chosen, known, "tracker")
    for name in chosen:
        if name in LoggerType and LoggerType(name) not in get_available_trackers():
            raise ImportError(f"tracker {name!r} is not installed: pip install {PACKAGES.get(name, name)}")
    return chosen


def start_trackers(accelerator: Accelerator, settings: dict[str, Any]) -> None:
    """Begin the log with the settings of the run."""
    # TensorBoard refuses None
    values = {name: value for name, value in settings.items() if value is not None}
    accelerator.init_trackers(TRACKER_FOLDER, values)


def write_metrics(values: dict[str, Any], file: Path) -> None:
    """Write metrics as JSON, with null for NaN and infinity."""
    write_json(file, finite(values))


def format_scores(values: dict[str, float]) -> str:
    """Return scores in one line, such as `test loss 0.312  test accuracy 0.915`."""
    return "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items())


def draw_pictures(output: Path, model: Any, examples: ImageDataset | None, classes: list[str]) -> None:
    """Draw the pictures of a run, as far as they can be drawn.

    Masks and boxes are first read here, so that a wrong one costs a picture, and not the run.

    Args:
        output: Output folder of the run.
        model: Model to explain.
        examples: Images to explain, with masks where they have some, or None to draw the curve only.
        classes: Names of the classes.
    """
    try:
        draw_curve(output / LOG_FILE, output / "curve.png")
        if examples is not None:
            draw_examples(model, examples, classes, output / "examples.png")
    except Exception as error:
        logger.warning("not all pictures of %s could be drawn: %s", output, error)


def draw_curve(log_file: Path, file: Path) -> None:
    """Draw accuracy and loss of every epoch, for CAPE and its teacher as in Fig. 4 of the CAPE paper.

    Args:
        log_file: Log of the run.
        file: Picture to write.
    """
    epochs = [line for line in read_log(log_file) if "epoch" in line]
    panels = []
    for title, names in CURVES.items():
        lines = {}
        for name in names:
            points = [(line["epoch"], line[name]) for line in epochs if line.get(name) is not None]
            if points:
                lines[name.removesuffix(f"_{title}").replace("_", " ")] = points
        panels.append((title, lines))
    with draft_of(file) as draft:
        curves(panels, "epoch").save(draft)


EXAMPLES = 4
"""Largest number of images in the picture of examples."""


def draw_examples(model: EvidenceForImageClassification, images: ImageDataset, classes: list[str], file: Path) -> None:
    """Draw one image of each of the first classes, with the maps of its two most probable classes.

    The ground truth is outlined where there is any.

    Args:
        model: Model to explain.
        images: Images, with masks where they have some.
        classes: Names of the classes.
        file: Picture to write.
    """
    labels = images.samples.labels
    has_class = labels.T == 1 if labels.ndim == 2 else labels == np.arange(len(classes))[:, None]  # (C, N)
    first = dict.fromkeys(int(row.argmax()) for row in has_class if row.any())
    data, rows = model.pretrained_cfg, []
    for index in list(first)[:EXAMPLES]:
        sample = images[index]
        pixels = sample["pixel_values"]
        image = denormalise(pixels, data["mean"], data["std"])
        mask = sample.get("mask", torch.zeros(pixels.shape[1:]))
        truth = ", ".join(classes[label] for label in np.flatnonzero(has_class[:, index]))
        title = f"image of {truth or 'no class'}" + ("\n(annotation outlined)" if mask.any() else "")
        panels = [(title, outline(image, mask))]
        explanation = model.explain(pixels[None].to(model.device), top_k=min(2, len(classes)))
        heatmaps = explanation.heatmaps(pixels.shape[-2:])[0]
        for label, probability, heatmap in zip(
            explanation.classes[0], explanation.probabilities[0], heatmaps, strict=True
        ):
            title = f"evidence for {classes[label]}\n{format_share(float(probability))}"
            panels.append((title, outline(overlay(image, heatmap), mask)))
        rows.append(captioned_row(panels))
    with draft_of(file) as draft:
        stack_vertically(rows).save(draft)


def complete_model_folder(output: Path, self_explaining: bool) -> None:
    """Add recipe and pictures to the model folder of a run, and a card if the model explains itself."""
    model = output / "model"
    for source, target in {"settings.yaml": RECIPE, **{name: name for name in PICTURES}}.items():
        if (output / source).exists():
            copy_file(output / source, model / target)
    if not self_explaining:
        return
    try:
        write_card(model, overwrite=True)
    except ValueError as error:
        logger.warning("no card was written for %s: %s", model, error)
