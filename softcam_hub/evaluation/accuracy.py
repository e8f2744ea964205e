"""What explaining itself costs a model in accuracy: the CAPE paper's Table 2, as far as its variants are there.

- Trained variants are read from the `metrics.json` and `settings.yaml` of their runs.
- *naive* (every location counts the same, eq. 4) and *off-the-shelf* need no training: they are the vanilla weights
  in CAPE's head, and are measured here from the twin, all three from one look at each image.
- Disagreement is with the vanilla classifier on the same backbone: the twin, or the teacher that a run trained beside.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..data.samples import Samples
from ..files import read_mapping
from ..loading import LoadedClassifier
from ..models.conversion import convert
from ..models.heads import HEADS
from ..models.modeling import model_class
from .models import ONE_LABEL
from .report import markdown
from .results import Row
from .shards import make_dataset

MODES = {"direct": "direct", "post-fit": "post-fit (PF)", "from-scratch": "from scratch (TS)"}
ORDER = ("vanilla", "naive", "off-the-shelf", *MODES.values())
REMEDY = "leave this run out, or train it again"
COLUMNS = ("accuracy", "disagreement", "confidence", "teacher_accuracy", "teacher_confidence")


def rows_of_runs(runs: list[str]) -> list[Row]:
    """A row for each trained variant."""
    return [_row_of_run(Path(run)) for run in runs]


def _row_of_run(run: Path) -> Row:
    try:
        metrics = read_mapping(run / "metrics.json", REMEDY)
        settings = {"mode": "direct", "data": None, **read_mapping(run / "settings.yaml", REMEDY)}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{run} is no finished run: it has no {Path(error.filename).name}") from error
    if not isinstance(settings.get("model"), str) or settings["mode"] not in MODES:
        raise ValueError(f"{run / 'settings.yaml'} names no model, or an unknown mode: {REMEDY}")
    for name in COLUMNS:
        value = metrics.get(f"test_{name}")
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"{run / 'metrics.json'} says test_{name}={value!r}, which is no number: {REMEDY}")
    variant = _variant(settings["model"].partition("_")[0], settings["mode"])
    scores = {name: 100 * metrics[f"test_{name}"] for name in COLUMNS if metrics.get(f"test_{name}") is not None}
    return {"variant": variant, "model": settings["model"], "data": settings["data"], "run": str(run), **scores}


def _variant(family: str, mode: str) -> str:
    """Return the name of a trained variant in the table: its mode where the family has several, or the family."""
    if family not in HEADS:
        return "vanilla"
    return MODES[mode] if "mode" in model_class(family).config_class.loss_settings else family


@torch.no_grad()
def rows_of_twin(
    twin: LoadedClassifier, samples: Samples, data: str, batch_size: int, device: torch.device, limit: int | None = None
) -> list[Row]:
    """Rows of the vanilla classifier, and of CAPE with its weights, naive and off the shelf.

    Args:
        twin: a vanilla timm model whose head CAPE can take over.
        samples: Images with one label each.
        data: what they are called.
        batch_size: images per forward pass.
        device: to compute on.
        limit: the first so many images only.
    """
    if samples.labels.ndim == 2:
        raise ValueError(ONE_LABEL)
    cape = convert(twin.model, "cape").to(device).eval()
    images, found = make_dataset(twin.preprocessing, samples), []
    count = min(len(images), limit or len(images))
    for first in tqdm(range(0, count, batch_size), desc="accuracy"):
        some = [images[index] for index in range(first, min(first + batch_size, count))]
        pixels, labels = (torch.stack([sample[name] for sample in some]) for name in ("pixel_values", "labels"))
        found.append(_answers(cape, pixels.to(device)) | {"label": labels})
    columns = {name: torch.cat([part[name].cpu() for part in found]) for name in found[0]}
    common = {"model": twin.model.pretrained_cfg["architecture"], "data": data, "images": count}
    return [{"variant": name, **common, **_scores(columns, name)} for name in ORDER[:3]]


def _answers(cape: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Probabilities (B, C) of the three variants."""
    features, head = cape.forward_features(images), cape.head
    vanilla = F.linear(features.mean(dim=(2, 3)), head.weight, head.bias)
    found = {"vanilla": vanilla}
    for name, naive in (("naive", True), ("off-the-shelf", False)):
        head.naive = naive
        found[name] = head(features)
    return {name: logits.float().softmax(dim=1) for name, logits in found.items()}


def _scores(columns: dict[str, Tensor], variant: str) -> Row:
    confidence, predicted = columns[variant].max(dim=1)
    scores: dict[str, Any] = {"accuracy": predicted == columns["label"], "confidence": confidence}
    if variant != "vanilla":
        teacher_confidence, teacher = columns["vanilla"].max(dim=1)
        scores |= {"disagreement": predicted != teacher, "teacher_accuracy": teacher == columns["label"]}
        scores["teacher_confidence"] = teacher_confidence
    return {name: 100 * float(values.double().mean()) for name, values in scores.items()}


def table2(rows: list[Row]) -> str:
    """One line per variant, in the paper's order."""
    header = ["variant", "accuracy", "disagreement", "mean confidence", "vanilla accuracy", "vanilla confidence"]
    ordered = sorted(rows, key=lambda row: ORDER.index(row["variant"]) if row["variant"] in ORDER else len(ORDER))
    body = [
        [f"{row['variant']} (`{row['model']}`)", *(f"{row[name]:.2f}" if name in row else "-" for name in COLUMNS)]
        for row in ordered
    ]
    names = sorted({f"`{row['data']}`" for row in rows})
    return (
        markdown(header, body) + f"\nPercent, on the test images of {', '.join(names)}. Disagreement is with vanilla.\n"
    )
