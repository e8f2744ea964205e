"""The work in pieces: a shard of images -> a file with the values of every image, whole or not there.

- A shard's values follow from its images and the settings alone, so that neither the number of processes nor a break
  changes them.
- Mosaics of the grid pointing game are made of all images, wherever they are: of four classes, also where images come
  in the order of their classes. The value of a mosaic stands with the first of its four images, in that one's shard.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..data.samples import ImageDataset, Samples
from ..data.transforms import make_transforms, mask_transform
from ..files import write_text
from .config import GRID, LOCALISATION, SENSITIVITY, BenchmarkConfig
from .folder import SHARDS
from .measure import Batch, Values, grid_pointing, measure, quartets
from .models import Explained

Line = dict[str, Any]
"""The values of one image and one explainer."""


class Shards:
    """The shards of a benchmark.

    Args:
        folder: of the benchmark.
        samples: Images, labels and masks of the split.
        explained: models with their explainers.
        config: of the benchmark.
    """

    def __init__(self, folder: Path, samples: Samples, explained: list[Explained], config: BenchmarkConfig) -> None:
        self.folder, self.samples, self.explained, self.config = folder, samples, explained, config
        self.asked = config.chosen_measures(samples.has_masks)
        self.masks = samples.has_masks and bool({LOCALISATION, SENSITIVITY} & set(self.asked))
        self.count = count_of(samples, config)
        size = config.shard_size
        self.ranges = [range(first, min(first + size, self.count)) for first in range(0, self.count, size)]
        self.mosaics = quartets(samples.labels[: self.count].tolist()) if GRID in self.asked else []

    def file(self, number: int) -> Path:
        return self.folder / SHARDS / f"{number:05d}.json"

    def work(self, state: Accelerator) -> None:
        """Compute this process's share of the shards that are not there yet."""
        missing = [number for number in range(len(self.ranges)) if not self.file(number).exists()]
        state.wait_for_everyone()  # all have looked before any of them writes
        own = missing[state.process_index :: state.num_processes]
        total = sum(len(self.ranges[number]) for number in own) * len(self.explained)
        with tqdm(total=total, desc="images x models", disable=not state.is_main_process) as bar, torch.enable_grad():
            for number in own:
                lines = [line for one in self.explained for line in self._lines(one, self.ranges[number], bar)]
                write_text(self.file(number), json.dumps(lines))

    def lines(self) -> list[Line]:
        """What all processes have written, in the order of the images."""
        found = []
        for number, indices in enumerate(self.ranges):
            lines = _read_lines(self.file(number))
            if {line["index"] for line in lines} != set(indices):
                raise ValueError(
                    f"{self.file(number)} is not of images {indices.start} to {indices.stop - 1}: remove it and run "
                    "the same again"
                )
            found += lines
        return found

    def _lines(self, one: Explained, indices: range, bar: tqdm) -> Iterable[Line]:
        """A line per explainer and image."""
        images = make_dataset(one.classifier.preprocessing, self.samples, self.masks)
        found: dict[tuple[str, int], Line] = {}
        for first in range(indices.start, indices.stop, self.config.batch_size):
            some = [images[index] for index in range(first, min(first + self.config.batch_size, indices.stop))]
            batch = self._batch(one, some)
            facts = {"label": batch.labels.tolist(), "predicted": batch.predicted.tolist()}
            facts["annotated"] = batch.annotated.tolist() if self.masks else [False] * len(some)
            _add(found, one, measure(batch, self.asked, self.config), [sample["index"] for sample in some], facts)
            bar.update(len(some))
        for four in self.mosaics:
            if four[0] in indices:
                some = [images[index] for index in four]
                _add(found, one, grid_pointing(one, *_stacked(one, some, "pixel_values", "labels")), four[:1], {})
        return found.values()

    def _batch(self, one: Explained, some: list[Line]) -> Batch:
        names = ("pixel_values", "labels", *(["mask"] if self.masks else []))
        images, labels, *masks = _stacked(one, some, *names)
        return Batch(one, images, labels, masks[0] if masks else None)


def _read_lines(file: Path) -> list[Line]:
    """The lines of a shard; a damaged or hand-written file is named."""
    try:
        lines = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{file} is damaged: remove it and run the same again") from error
    if not isinstance(lines, list) or not all(_is_line(line) for line in lines):
        raise ValueError(f"{file} does not hold the values of images: remove it and run the same again")
    return lines


def _is_line(line: Any) -> bool:
    """Whether this is a mapping with an image's index, an explainer, and numbers, lists of numbers, text or null."""
    if not isinstance(line, dict) or type(line.get("index")) is not int:
        return False
    words = ("explainer", "explains")
    values = [value for name, value in line.items() if name not in words]
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    named = all(isinstance(line.get(name), str) for name in words)
    return named and all(one is None or isinstance(one, int | float) for one in flat)


def count_of(samples: Samples, config: BenchmarkConfig) -> int:
    """How many images are explained."""
    return len(samples) if config.limit is None else min(len(samples), config.limit)


def _stacked(one: Explained, some: list[Line], *names: str) -> list[Tensor]:
    """Columns of some samples, on the model's device."""
    device = next(one.model.parameters()).device
    return [torch.stack([sample[name] for sample in some]).to(device) for name in names]


def make_dataset(preprocessing: dict[str, Any], samples: Samples, masks: bool = False) -> ImageDataset:
    """Prepare images as a model takes them, and their annotations with them.

    Args:
        preprocessing: Preprocessing of a `LoadedClassifier`.
        samples: Undecoded images of a data set.
        masks: Add the annotation of every image.
    """
    mask = mask_transform(preprocessing) if masks else None
    return ImageDataset(samples, make_transforms(preprocessing)[1], masks=mask)


def _add(
    found: dict[tuple[str, int], Line], one: Explained, values: Values, indices: list[int], facts: dict[str, list[Any]]
) -> None:
    """Sort the values of a batch by explainer and image."""
    for name, measured in values.items():
        columns = facts | {measure: plain(column) for measure, column in measured.items()}
        for place, index in enumerate(indices):
            line = found.setdefault((name, index), {"index": index, "explainer": name, "explains": one.role})
            line |= {measure: column[place] for measure, column in columns.items()}


def plain(column: Tensor) -> list[Any]:
    """Numbers or lists of numbers, with None for an image without a value."""
    absent = column.isnan() if column.ndim == 1 else column.isnan().any(dim=1)
    return [None if none else value for none, value in zip(absent.tolist(), column.tolist(), strict=True)]
