"""Read what the card of a model is made of: configuration, scores, recipe, benchmark rows and pictures."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...files import read_mapping
from ...models.alignment import Alignment
from ...models.heads import HEADS
from ...models.saved_format import check_registered

Row = dict[str, Any]

METRICS, RECIPE, EXPLANATIONS = "metrics.json", "recipe.yaml", "rows.jsonl"
"""Files beside a model: scores, settings of the training run, and the rows of `softcam-hub benchmark`."""

PICTURES = {
    "examples.png": "Explained test images, ground truth outlined: the image, and the maps of its two top classes",
    "curve.png": "Accuracy and loss of every epoch",
}
"""Pictures beside a model that its card shows, with their captions."""


@dataclass(frozen=True)
class ModelRecord:
    """Everything that a card says about a trained model.

    Args:
        config: Content of config.json.
        metrics: Scores by name, with the split as prefix (`test_accuracy`), and versions of libraries.
        settings: Settings of the training run.
        explanations: Rows of a benchmark, each with an `explainer` and its scores.
        pictures: Files that the card shows.
        license: Licence of the weights; by default the one of the weights that training started from.
        trainer: Name of the trainer, if the settings are not a recipe of `softcam-hub train`.
    """

    config: Row
    metrics: Row = field(default_factory=dict)
    settings: Row = field(default_factory=dict)
    explanations: list[Row] = field(default_factory=list)
    pictures: tuple[str, ...] = ()
    license: str | None = None
    trainer: str = ""

    @property
    def alignment(self) -> Alignment | None:
        """Where the cells of the maps look; None where it was not measured. A broken one raises ValueError."""
        content = (self.config.get("model_args") or {}).get("alignment")
        return None if content is None else Alignment.from_dict(content)

    @property
    def distances(self) -> list[float | None]:
        """How far the cells look from the middle of squares as large as a step, (down, right) in cells."""
        try:
            alignment = self.alignment
        except ValueError:
            alignment = None
        if alignment is None:
            return [None, None]
        places = zip(alignment.start, alignment.step, strict=True)
        return [None if start is None else start / step - 0.5 for start, step in places]

    @property
    def rows(self) -> list[Row]:
        """Everything that holds numbers of the card."""
        return [self.config, self.distance_row, self.metrics, *self.explanations]

    @property
    def distance_row(self) -> Row:
        """The distances as the card tells them, without their sign."""
        return {"distances": [abs(distance) for distance in self.distances if distance is not None]}


def load_model_record(folder: str | Path, license: str | None = None) -> ModelRecord:
    """Read the record of a model from its folder: config.json and, as far as they exist, the other files.

    Args:
        folder: Model folder.
        license: Licence of the weights, as the Hub spells it.
    """
    folder = Path(folder)
    lines = folder / EXPLANATIONS
    return ModelRecord(
        config=read_model_config(folder),
        metrics=read_optional_mapping(folder / METRICS),
        settings=read_optional_mapping(folder / RECIPE),
        explanations=read_explanations(lines) if lines.exists() else [],
        pictures=tuple(name for name in PICTURES if (folder / name).exists()),
        license=license,
    )


def read_model_config(folder: Path) -> Row:
    """Read config.json of a model folder, and refuse one of another library."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: name the folder of a model")
    if not (folder / "config.json").is_file():
        inside = folder / "model"
        hint = f"did you mean {inside}?" if (inside / "config.json").is_file() else "save_pretrained writes one"
        raise FileNotFoundError(f"{folder} is not a model folder, because it has no config.json: {hint}")
    config = read_mapping(folder / "config.json")
    check_registered(config.get("architecture"), config.get("model_args"))
    if str(config.get("architecture")).partition("_")[0] not in HEADS:
        raise ValueError(
            f"{folder} holds no model of ours: its architecture is {config.get('architecture')!r}, expected "
            f"{' or '.join(f'{family}_<timm name>' for family in HEADS)}"
        )
    return config


def read_optional_mapping(file: Path) -> Row:
    """Read a JSON or YAML file of names and values; a file that does not exist has none."""
    return read_mapping(file) if file.exists() else {}


def read_explanations(file: Path) -> list[Row]:
    """Read the rows of a benchmark."""
    rows = read_rows(file)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("explainer"), str):
            raise ValueError(
                f"line {number} of {file} names no explainer: expected the {EXPLANATIONS} of `softcam-hub benchmark`; "
                "put that file there, or remove this one"
            )
    return rows


def read_rows(file: Path) -> list[Row]:
    """Read the rows of a JSON-lines file."""
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{file} is not a JSON-lines file: {error}") from error
