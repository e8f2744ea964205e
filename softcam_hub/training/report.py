"""What the end of a run leaves: metrics, a training curve, and the model folder with the beginning of a card."""

import json
import math
from pathlib import Path
from typing import Any

from ..charts import curves
from . import log
from .config import Config

CURVES = {
    "accuracy": ("train_accuracy", "train_teacher_accuracy", "validation_accuracy", "validation_teacher_accuracy"),
    "loss": ("train_loss", "validation_loss"),
}


def write_json(values: dict[str, Any], file: Path) -> None:
    """JSON, with null for what is not finite."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    file.write_text(json.dumps(clean, indent=2) + "\n")


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
