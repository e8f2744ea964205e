"""Compute the values of a benchmark in shards. The file of a shard is either complete or absent.

- The values of a shard follow from its images and the settings alone, so that neither the number of processes
  nor an interruption changes them. The last entry of a shard is the digest of the lines before it.
- Mosaics of the grid pointing game combine images of four classes from all shards, also where images come in
  the order of their classes. The value of a mosaic is stored with the first of its four images, in the shard
  of that image.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..data.config import DataConfig
from ..data.samples import ImageDataset, Samples, label_tensor
from ..data.transforms import make_transforms, mask_transform
from ..files import write_text
from .agreement import Agreement
from .batch import Batch
from .causal import Twins, measure_causal
from .config import AGREEMENT, CAUSAL, EVIDENCE, GRID, LOCALISATION, OF_REGIONS, SENSITIVITY, BenchmarkConfig
from .folder import SHARDS, with_current_role
from .grid_pointing import choose_quartets, grid_pointing
from .lines import Line, is_line
from .measure import measure
from .models import ClassifierWithExplainers

DIGEST = "sha256"


class Shards:
    """The shards of a benchmark.

    Args:
        folder: Folder of the benchmark.
        samples: Images, labels and masks of the split.
        classifiers: Classifiers with their explainers.
        config: Settings of the benchmark.
        data: Description of the data.
    """

    def __init__(
        self,
        folder: Path,
        samples: Samples,
        classifiers: list[ClassifierWithExplainers],
        config: BenchmarkConfig,
        data: DataConfig,
    ) -> None:
        self.data = data
        self.folder, self.samples, self.classifiers, self.config = folder, samples, classifiers, config
        self.measures = config.chosen_measures(samples.has_masks)
        self.masks = samples.has_masks and bool({LOCALISATION, SENSITIVITY, EVIDENCE, *OF_REGIONS} & set(self.measures))
        self.fields = ("pixel_values", "labels", "mask") if self.masks else ("pixel_values", "labels")
        self.count = count_images(samples, config)
        size = config.shard_size
        self.ranges = [range(first, min(first + size, self.count)) for first in range(0, self.count, size)]
        self.quartets = choose_quartets(samples.labels[: self.count].tolist()) if GRID in self.measures else []

    def file(self, number: int) -> Path:
        """Return the file of a shard."""
        return self.folder / SHARDS / f"{number:05d}.json"

    def compute(self, state: Accelerator) -> None:
        """Compute this process's share of the missing shards."""
        missing = [number for number in range(len(self.ranges)) if not self.file(number).exists()]
        state.wait_for_everyone()  # no process writes before all have looked for missing shards
        own = missing[state.process_index :: state.num_processes]
        total = sum(len(self.ranges[number]) for number in own) * len(self.classifiers)
        with tqdm(total=total, desc="images x models", disable=not state.is_main_process) as bar, torch.enable_grad():
            for number in own:
                lines: list[Line] = []
                agreement = Agreement(self.classifiers) if AGREEMENT in self.measures else None
                for classifier in self.classifiers:
                    lines += self._compute_lines(classifier, self.ranges[number], bar, agreement)
                if agreement is not None:
                    agreement.add_to(lines)
                write_shard(self.file(number), lines)

    def read_lines(self) -> list[Line]:
        """Read the lines that all processes have written, in the order of the images."""
        lines: list[Line] = []
        names: set[str] = set()
        for number, indices in enumerate(self.ranges):
            shard = read_shard(self.file(number))
            found = Counter((line["explainer"], line["explains"], line["index"], str(line["label"])) for line in shard)
            if found != self._expected_lines(indices):
                raise ValueError(
                    f"{self.file(number)} is not of images {indices.start} to {indices.stop - 1} and the explainers of "
                    "this benchmark: remove it and run the same again"
                )
            lines += shard
            names = names or _common_names(shard)
            if _common_names(shard) != names:
                raise ValueError(
                    f"{self.file(number)} has other measures than the shards before it, as another release of this "
                    "package wrote it: measure everything again with --overwrite, or choose another --output"
                )
        return lines

    def _expected_lines(self, indices: range) -> Counter[tuple[str, str, int, str]]:
        """Return explainer, role, image and label of every line of a shard, each of which is there once."""
        labels = {index: str(label_tensor(self.samples.labels[index]).tolist()) for index in indices}
        return Counter(
            (name, classifier.role, index, label)
            for classifier in self.classifiers
            for name in classifier.names
            for index, label in labels.items()
        )

    def _compute_lines(
        self, classifier: ClassifierWithExplainers, indices: range, bar: tqdm, agreement: Agreement | None
    ) -> list[Line]:
        """Compute a line for every explainer and image of a shard.

        Args:
            classifier: Classifier with its explainers.
            indices: Indices of the images.
            bar: Progress, in images.
            agreement: Comparison of the maps of all classifiers, if it is measured.
        """
        preprocessing = classifier.classifier.preprocessing
        images = make_dataset(preprocessing, self.samples, self.masks)
        twins = Twins(self.data, self.samples, preprocessing) if CAUSAL in self.measures else None
        lines: dict[tuple[str, int], Line] = {}
        for first in range(indices.start, indices.stop, self.config.batch_size):
            samples = [images[index] for index in range(first, min(first + self.config.batch_size, indices.stop))]
            batch = Batch(classifier, *stack_samples(samples, self.fields, classifier.device))
            common = {"label": batch.labels.tolist(), "predicted": batch.predicted.tolist()}
            common["annotated"] = batch.annotated.tolist() if self.masks else [False] * len(samples)
            values = measure(batch, self.measures, self.config)
            numbers = [sample["index"] for sample in samples]
            _add_values(lines, classifier.role, values, numbers, common)
            if twins is not None:
                _add_values(lines, classifier.role, measure_causal(batch, twins, numbers, self.config), numbers, {})
            if agreement is not None:
                agreement.observe(batch, numbers)
            bar.update(len(samples))
        for quartet in self.quartets:
            if quartet[0] in indices:
                samples = [images[index] for index in quartet]
                inputs = stack_samples(samples, ("pixel_values", "labels"), classifier.device)
                _add_values(lines, classifier.role, grid_pointing(classifier, *inputs), quartet[:1], {})
        return list(lines.values())


def _common_names(lines: list[Line]) -> set[str]:
    """Return the names of what all lines of a shard have, except for mosaics, which few images have."""
    return set.intersection(*({*line} for line in lines)) - {GRID}


def write_shard(file: Path, lines: list[Line]) -> None:
    """Write lines and their digest."""
    write_text(file, json.dumps([*lines, {DIGEST: _digest(lines)}]))


def _digest(lines: list[Line]) -> str:
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def read_shard(file: Path) -> list[Line]:
    """Read the lines of a shard, and name a file that is damaged or was written by hand."""
    damaged = f"{file} is damaged: remove it and run the same again"
    try:
        lines = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(damaged) from error
    has_digest = isinstance(lines, list) and lines and isinstance(lines[-1], dict) and DIGEST in lines[-1]
    if has_digest and lines.pop()[DIGEST] != _digest(lines):  # shards of earlier releases have no digest
        raise ValueError(damaged)
    if not isinstance(lines, list) or not all(is_line(line) for line in lines):
        raise ValueError(f"{file} does not hold the values of images: remove it and run the same again")
    return with_current_role(lines)


def count_images(samples: Samples, config: BenchmarkConfig) -> int:
    """Return the number of images to explain."""
    return len(samples) if config.limit is None else min(len(samples), config.limit)


def make_dataset(preprocessing: dict[str, Any], samples: Samples, masks: bool = False) -> ImageDataset:
    """Prepare images as a model takes them, and their annotations with them.

    Args:
        preprocessing: Preprocessing of a `LoadedClassifier`.
        samples: Undecoded images of a data set.
        masks: Add the annotation of every image.
    """
    mask = mask_transform(preprocessing) if masks else None
    return ImageDataset(samples, make_transforms(preprocessing)[1], masks=mask)


def stack_samples(samples: list[dict[str, Any]], names: tuple[str, ...], device: torch.device) -> list[Tensor]:
    """Stack fields of samples into tensors on a device."""
    return [torch.stack([sample[name] for sample in samples]).to(device) for name in names]


def _add_values(
    lines: dict[tuple[str, int], Line],
    role: str,
    values: Mapping[str, Mapping[str, Any]],
    indices: list[int],
    common: dict[str, list[Any]],
) -> None:
    """Sort the values of a batch into lines.

    Args:
        lines: Lines by explainer and image, to which the values are added.
        role: Role of the explained classifier.
        values: Values of the batch by explainer and measure: a tensor, or a list with an entry per image.
        indices: Indices of the images.
        common: Lists of values that all explainers share.
    """
    for explainer, measured in values.items():
        own = {name: column if isinstance(column, list) else plain(column) for name, column in measured.items()}
        columns = common | own
        for position, index in enumerate(indices):
            line = lines.setdefault((explainer, index), {"index": index, "explainer": explainer, "explains": role})
            line |= {name: column[position] for name, column in columns.items()}


def plain(column: Tensor) -> list[Any]:
    """Turn a column into numbers or lists of numbers, with None for an image without a value."""
    missing = column.isnan() if column.ndim == 1 else column.isnan().any(dim=1)
    return [None if absent else value for absent, value in zip(missing.tolist(), column.tolist(), strict=True)]
