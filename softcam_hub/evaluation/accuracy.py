"""Measure the accuracy that self-explanation costs: the CAPE paper's Table 2, for the variants that exist.

- Trained variants are read from the `metrics.json` and `settings.yaml` of their runs.
- *naive* (every location counts the same, eq. 4) and *off-the-shelf* need no training: CAPE's head holds the
  vanilla weights. Both are measured here together with the vanilla classifier, in one pass over the images.
- Disagreement is with the vanilla classifier on the same backbone, which for a run is the teacher trained
  with it.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from ..data.config import DataConfig
from ..data.samples import Samples
from ..data.splits import load_splits
from ..files import read_mapping, write_json_lines, write_text
from ..loading import LoadedClassifier, load_classifier
from ..models.conversion import convert
from ..models.heads import HEADS
from ..models.modeling import model_class
from ..models.weights import off_the_shelf_is_intended
from ..output_folder import in_main_process
from .config import OF_ACCURACIES, make_settings
from .folder import TABLE2, TABLE2_ROWS, benchmark_folder
from .models import VANILLA, one_label_message
from .report import markdown
from .results import Row
from .run import choose_split, without_unused_images
from .shards import make_dataset, stack_samples

MODES = {"direct": "direct", "post-fit": "post-fit (PF)", "from-scratch": "from scratch (TS)"}
"""Mode of training -> variant in the table."""

MEASURED = (VANILLA, "naive", "off-the-shelf")
"""Variants that are measured with the weights of a vanilla classifier."""

ORDER = (*MEASURED, *MODES.values())
"""Variants in the order of the paper's table."""

REMEDY = "leave this run out, or train it again"

COLUMNS = ("accuracy", "disagreement", "confidence", "teacher_accuracy", "teacher_confidence")
"""Scores in the table."""


def accuracy(
    runs: Sequence[str | Path], output: str | Path, vanilla: str | Path | None = None, **settings: Any
) -> list[Row]:
    """Write a table of the accuracies of runs, and of CAPE with vanilla weights, and return its rows.

    Args:
        runs: Folders of finished training runs.
        output: Folder for the table.
        vanilla: Model folder, timm name or Hub id of a vanilla classifier to measure.
        settings: `split`, `limit` and `batch_size` of `BenchmarkConfig`, and fields of `DataConfig`.
    """
    unknown = settings.keys() - set(OF_ACCURACIES) - {field.name for field in fields(DataConfig)}
    if unknown:
        raise TypeError(
            f"accuracy() takes no {', '.join(sorted(unknown))}: expected {', '.join(OF_ACCURACIES)}, and fields "
            "of DataConfig"
        )
    config, data = make_settings(output=str(output), **settings)
    if not runs and vanilla is None:
        raise ValueError("there is nothing to measure: name training runs, or a classifier with vanilla")
    state, folder = Accelerator(), benchmark_folder(config.output)
    with ExitStack() as stack:
        in_main_process(state, lambda: stack.enter_context(folder.locked("continue")))
        rows = [read_run(Path(run)) for run in runs]
        if vanilla is not None:
            classifier, splits = load_classifier(vanilla), load_splits(without_unused_images(data, config.split))
            classifier.check_classes(splits.classes, "the vanilla classifier")
            split = choose_split(splits, data, config.split)
            options = (data.data, config.batch_size, state.device, config.limit)
            measured = measure_vanilla(classifier, getattr(splits, split), *options)
            rows += [{**row, "split": split} for row in measured]
        if state.is_main_process:
            folder.claim("continue")
            write_json_lines(folder.path / TABLE2_ROWS, rows)
            write_text(folder.path / TABLE2, table2(rows))
    return rows


def read_run(run: Path) -> Row:
    """Read the row of a trained variant from the folder of its run."""
    try:
        metrics = read_mapping(run / "metrics.json", REMEDY)
        settings = {"mode": "direct", "data": None, **read_mapping(run / "settings.yaml", REMEDY)}
    except FileNotFoundError as error:
        is_model = (run.parent / "settings.yaml").is_file()
        reason = f"did you mean {run.parent}?" if is_model else f"it has no {Path(error.filename).name}"
        raise FileNotFoundError(f"{run} is no finished run: {reason}") from error
    if not isinstance(settings.get("model"), str) or settings["mode"] not in MODES:
        raise ValueError(f"{run / 'settings.yaml'} names no model, or an unknown mode: {REMEDY}")
    scores, split = {}, "test" if "test_accuracy" in metrics else "validation"
    for name in COLUMNS:
        value = metrics.get(f"{split}_{name}")
        if value is not None:
            if not isinstance(value, int | float):
                raise ValueError(f"{run / 'metrics.json'} says {split}_{name}={value!r}, which is no number: {REMEDY}")
            scores[name] = 100 * value
    variant = _variant(settings["model"].partition("_")[0], settings["mode"])
    common = {"model": settings["model"], "data": settings["data"], "split": split, "run": str(run)}
    return {"variant": variant, **common, **scores}


def _variant(family: str, mode: str) -> str:
    """Return the name of a trained variant: its mode if the family has several modes, otherwise the family."""
    if family not in HEADS:
        return VANILLA
    return MODES[mode] if "mode" in model_class(family).config_class.loss_settings else family


@torch.no_grad()
def measure_vanilla(
    classifier: LoadedClassifier,
    samples: Samples,
    data: str,
    batch_size: int,
    device: torch.device,
    limit: int | None = None,
) -> list[Row]:
    """Measure a vanilla classifier, and CAPE with its weights, naive and off the shelf.

    Args:
        classifier: Vanilla classifier whose weights fit CAPE's head.
        samples: Images with one label each.
        data: Name of the data set, as shown in the table.
        batch_size: Images per forward pass.
        device: Device to compute on.
        limit: Number of images to measure, from the first one on; None for all.
    """
    if samples.labels.ndim == 2:
        raise ValueError(one_label_message(HEADS["cape"]))
    with off_the_shelf_is_intended():
        cape = convert(classifier.model, "cape").to(device).eval()
    images = make_dataset(classifier.preprocessing, samples)
    count = min(len(images), limit or len(images))
    parts = []
    for first in tqdm(range(0, count, batch_size), desc="accuracy"):
        some = [images[index] for index in range(first, min(first + batch_size, count))]
        pixels, labels = stack_samples(some, ("pixel_values", "labels"), device)
        parts.append(_predict_variants(cape, pixels) | {"label": labels})
    columns = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
    common = {"model": classifier.model.pretrained_cfg["architecture"], "data": data, "images": count}
    return [{"variant": name, **common, **_score(columns, name)} for name in MEASURED]


def _predict_variants(cape: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Compute the probabilities (B, C) of the three variants."""
    features, head = cape.forward_features(images), cape.head
    logits = {VANILLA: F.linear(cape.last_features(features).mean(dim=(2, 3)), head.weight, head.bias)}
    for name, naive in (("naive", True), ("off-the-shelf", False)):
        head.naive = naive
        logits[name] = head(features)
    return {name: values.float().softmax(dim=1) for name, values in logits.items()}


def _score(columns: dict[str, Tensor], variant: str) -> Row:
    """Compute the scores of a variant from probabilities and labels."""
    confidence, predicted = columns[variant].max(dim=1)
    scores: dict[str, Any] = {"accuracy": predicted == columns["label"], "confidence": confidence}
    if variant != VANILLA:
        teacher_confidence, teacher = columns[VANILLA].max(dim=1)
        scores |= {"disagreement": predicted != teacher, "teacher_accuracy": teacher == columns["label"]}
        scores["teacher_confidence"] = teacher_confidence
    return {name: 100 * float(values.double().mean()) for name, values in scores.items()}


def table2(rows: list[Row]) -> str:
    """Format one line per variant, in the paper's order."""
    header = ["variant", "accuracy", "disagreement", "mean confidence", "vanilla accuracy", "vanilla confidence"]
    # families without modes of training, such as softcam, come last
    ordered = sorted(rows, key=lambda row: ORDER.index(row["variant"]) if row["variant"] in ORDER else len(ORDER))
    body = []
    for row in ordered:
        numbers = [f"{row[name]:.2f}" if name in row else "-" for name in COLUMNS]
        body.append([f"{row['variant']} (`{row['model']}`)", *numbers])
    names = ", ".join(sorted({f"the {row.get('split', 'test')} images of `{row['data']}`" for row in rows}))
    return markdown(header, body) + f"\nPercent, on {names}. Disagreement is with vanilla.\n"
