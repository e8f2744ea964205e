"""What the end of a run leaves: metrics, a training curve, and the model folder with the beginning of a card."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from ..charts import curves
from ..data.loading import Images
from ..figures import column, outlined, overlay, picture, row
from ..models.modeling import EvidenceForImageClassification
from . import log
from .config import Config

CURVES = {
    "accuracy": ("train_accuracy", "train_teacher_accuracy", "validation_accuracy", "validation_teacher_accuracy"),
    "loss": ("train_loss", "validation_loss"),
}


def write_json(values: dict[str, Any], file: Path) -> None:
    """JSON, with null for what is not finite."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    draft = file.with_suffix(".unfinished")
    draft.write_text(json.dumps(clean, indent=2) + "\n")
    draft.replace(file)


def draw_curve(log_file: Path, picture: Path) -> None:
    """Accuracies and losses of every epoch, of both heads where there are two (the CAPE paper's Fig. 4)."""
    epochs = [line for line in log.read(log_file) if "epoch" in line]
    panels = {}
    for title, names in CURVES.items():
        series = {
            name.replace("_", " "): [(row["epoch"], row[name]) for row in epochs if name in row] for name in names
        }
        panels[title] = {name: points for name, points in series.items() if points}
    curves(panels, "epoch").save(picture)


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
    column(rows).save(file)


def card_stub(config: Config, metrics: dict[str, Any]) -> str:
    """A model card with what the run itself knows."""
    settings = config.flat()
    tags = "\n".join(f"- {tag}" for tag in ("softcam-hub", "explainability", config.model.family or "timm"))
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in metrics.items() if _is_score(value)
    )
    used = "\n".join(f"{name}: {json.dumps(value)}" for name, value in settings.items() if value not in (None, ""))
    return (
        f"---\nlibrary_name: timm\npipeline_tag: image-classification\ntags:\n{tags}\n---\n"
        f"# {config.model.model}\n\nTrained on `{config.data.data}` with `train_accelerate.py`.\n\n"
        f"| score | value |\n| --- | ---: |\n{rows}\n\n## Settings\n\n```yaml\n{used}\n```\n"
    )


def _is_score(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)
