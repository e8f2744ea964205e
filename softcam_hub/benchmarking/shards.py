"""The work in pieces: a shard of images -> a file with the values of every image, whole or not there.

A shard's values follow from its images and the settings alone, so that neither the number of processes nor a break
changes them.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import resolve_data_config
from torch import Tensor, nn
from tqdm import tqdm

from ..data.loading import Images, Rows, make_transforms, mask_transform
from .config import GRID, LOCALISATION, SENSITIVITY, BenchmarkConfig
from .measure import Batch, Values, grid_pointing, measure
from .models import Explained

FOLDER = "shards"

Line = dict[str, Any]
"""The values of one image and one explainer."""


class Shards:
    """The shards of a benchmark.

    Args:
        folder: of the benchmark.
        rows: the images.
        explained: models with their explainers.
        config: of the benchmark.
    """

    def __init__(self, folder: Path, rows: Rows, explained: list[Explained], config: BenchmarkConfig) -> None:
        self.folder, self.rows, self.explained, self.config = folder, rows, explained, config
        self.asked = config.chosen_measures(rows.has_masks)
        self.masks = rows.has_masks and bool({LOCALISATION, SENSITIVITY} & set(self.asked))
        count = len(rows) if config.limit is None else min(len(rows), config.limit)
        size = config.shard_size
        self.ranges = [range(first, min(first + size, count)) for first in range(0, count, size)]

    def file(self, number: int) -> Path:
        return self.folder / FOLDER / f"{number:05d}.json"

    def work(self, state: Accelerator) -> None:
        """Compute this process's share of the shards that are not there yet."""
        missing = [number for number in range(len(self.ranges)) if not self.file(number).exists()]
        state.wait_for_everyone()  # all have looked before any of them writes
        own = missing[state.process_index :: state.num_processes]
        total = sum(len(self.ranges[number]) for number in own) * len(self.explained)
        with tqdm(total=total, desc="images x models", disable=not state.is_main_process) as bar, torch.enable_grad():
            for number in own:
                lines = [line for one in self.explained for line in self._lines(one, self.ranges[number], bar)]
                write_whole(self.file(number), json.dumps(lines))

    def lines(self) -> list[Line]:
        """What all processes have written, in the order of the images."""
        found = []
        for number in range(len(self.ranges)):
            try:
                found += json.loads(self.file(number).read_text())
            except ValueError as error:
                raise ValueError(f"{self.file(number)} is damaged: remove it and run the same again") from error
        return found

    def _lines(self, one: Explained, indices: range, bar: tqdm) -> Iterable[Line]:
        """A line per explainer and image."""
        images = samples(one.model, self.rows, self.masks)
        found: dict[tuple[str, int], Line] = {}
        shown, labels = [], []
        for first in range(indices.start, indices.stop, self.config.batch_size):
            some = [images[index] for index in range(first, min(first + self.config.batch_size, indices.stop))]
            batch = self._batch(one, some)
            facts = {"label": batch.labels.tolist(), "predicted": batch.predicted.tolist()}
            _add(found, one, measure(batch, self.asked, self.config), [sample["index"] for sample in some], facts)
            if GRID in self.asked:
                shown.append(batch.images)
                labels.append(batch.labels)
            bar.update(len(some))
        if shown:
            _add(found, one, grid_pointing(one, torch.cat(shown), torch.cat(labels)), list(indices), {})
        return found.values()

    def _batch(self, one: Explained, some: list[Line]) -> Batch:
        device = next(one.model.parameters()).device
        names = ("pixel_values", "labels", *(["mask"] if self.masks else []))
        images, labels, *masks = (torch.stack([sample[name] for sample in some]).to(device) for name in names)
        return Batch(one, images, labels, masks[0] if masks else None)


def samples(model: nn.Module, rows: Rows, masks: bool = False) -> Images:
    """The images as this model wants them."""
    config = resolve_data_config({}, pretrained_cfg=dict(model.pretrained_cfg))
    return Images(rows, make_transforms(config)[1], masks=mask_transform(config) if masks else None)


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


def write_whole(file: Path, text: str) -> None:
    """The file is there with all of `text`, or not at all."""
    draft = file.with_suffix(".unfinished")
    draft.write_text(text)
    os.replace(draft, file)
