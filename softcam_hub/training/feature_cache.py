"""Compute the features of a frozen backbone once, so that post-fitting costs one pass over the images.

- A cache belongs to the weights of the backbone, the images and their preprocessing. Its folder is named by
  their hash.
- `store_features` keeps those of images that are no data set, such as the batches of a loader, for one program.
- Every process writes its share of the images into a file of its own. The folder gets its name when all
  processes have finished, so that an incomplete cache is never read. Until then it is the draft of one run.
  Of two runs that compute the same features at once, the slower one uses the cache of the other.
"""

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, tqdm
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..data.samples import ImageDataset, Samples
from ..data.splits import Splits
from ..files import FULL, write_json
from ..models.evaluation_mode import evaluation_mode
from ..models.losses import NO_LABEL
from ..models.modeling import EvidenceForImageClassification
from ..output_folder import RECORD
from .cache_folder import (
    ADVICE,
    DTYPE,
    FORMAT,
    GB,
    INDEX,
    PURPOSE,
    delete,
    draft_path,
    make_room,
    publish,
    read_index,
    refuse_foreign,
)
from .config import Config


class CachedFeatures(Dataset):
    """Memory-mapped features (K, H, W) of images, with their labels.

    Args:
        folder: Folder of a complete cache.
        labels: Labels of the images, in the order of the data set.
    """

    def __init__(self, folder: Path, labels: Tensor) -> None:
        index = read_index(folder, len(labels))
        self.folder, self.labels = folder, labels
        self.shape, self.processes = tuple(index["shape"]), index["processes"]
        self.files = [folder / f"{rank}.bin" for rank in range(self.processes)]
        self.shards = [self._open(rank) for rank in range(self.processes)]

    def _open(self, rank: int) -> np.ndarray:
        """Map the features of every image that one process has computed."""
        shape = (len(range(rank, len(self.labels), self.processes)), *self.shape)
        expected = int(np.prod(shape)) * DTYPE.itemsize
        size = self.files[rank].stat().st_size if self.files[rank].is_file() else 0
        if size != expected:
            raise OSError(
                f"{self.files[rank]} has {size} bytes instead of {expected}: delete the folder {self.folder}, and the "
                "features are computed again"
            )
        return np.memmap(self.files[rank], DTYPE, "r", shape=shape) if shape[0] else np.empty(shape, DTYPE)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: list[int | tuple[int, int]]) -> dict[str, Tensor]:
        """Return a whole batch. A key is an index, or (epoch, index) as training draws them."""
        indices = [key if isinstance(key, int) else key[1] for key in keys]
        features = np.empty((len(indices), *self.shape), DTYPE)
        for position, index in enumerate(indices):
            features[position] = self.shards[index % self.processes][index // self.processes]
        index = torch.tensor(indices)
        return {"features": torch.from_numpy(features), "labels": self.labels[index], "index": index}


def caches_features(config: Config, splits: Splits) -> bool:
    """Tell whether a run computes its features once: its backbone is frozen, and its images do not change."""
    has_frozen_backbone = config.model.frozen and config.model.family is not None
    has_fixed_images = not config.augmentation.augment and isinstance(splits.train, Samples)
    return has_frozen_backbone and has_fixed_images and config.run.cache_features


def cached_features(
    model: EvidenceForImageClassification,
    images: ImageDataset,
    accelerator: Accelerator,
    folder: Path,
    limit: float,
    batch_size: int,
    workers: int = 0,
    keep: CachedFeatures | None = None,
) -> CachedFeatures:
    """Return the features of all images, from `folder` or computed now by all processes together.

    Args:
        model: Model with a frozen backbone, on the device of the accelerator.
        images: ImageDataset without augmentation.
        accelerator: Accelerator of this process.
        folder: Folder of all caches.
        limit: Disk space for all caches together, in GB. Caches that were not used for longest are deleted
            first.
        batch_size: Number of images per forward pass.
        workers: Number of processes that load images.
        keep: Another cache of the same run, which is never deleted.
    """
    target = folder / cache_key(model, images, accelerator.mixed_precision)
    if not (target / INDEX).is_file():
        refuse_foreign(target)
        shape = tuple(_features(model, images[0]["pixel_values"][None], accelerator).shape[1:])
        if accelerator.is_main_process:
            needed = len(images) * int(np.prod(shape)) * DTYPE.itemsize / GB
            make_room(folder, needed, limit, keep and keep.folder)
        _compute(model, images, accelerator, target, shape, batch_size, workers)
    if accelerator.is_main_process:
        with suppress(OSError):  # the folder may be read-only
            os.utime(target)  # marks the cache as used now
    return CachedFeatures(target, torch.as_tensor(images.samples.labels))


def cache_key(model: EvidenceForImageClassification, images: ImageDataset, precision: str) -> str:
    """Return the hash of everything that the features depend on."""
    digest = hashlib.sha256(f"{precision} {model.config.architecture} {model.backbone_args}".encode())
    digest.update(f"{images.transform} {images.samples.fingerprint()}".encode())
    if model.anatomy.finer:
        digest.update(str(model.anatomy.finer).encode())
    for name, tensor in sorted(model.backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


@torch.no_grad()
def _features(model: EvidenceForImageClassification, pixels: Tensor, accelerator: Accelerator) -> Tensor:
    with evaluation_mode(model), accelerator.autocast():
        return model.forward_features(pixels.to(accelerator.device)).float()


def _compute(
    model: EvidenceForImageClassification,
    images: ImageDataset,
    accelerator: Accelerator,
    target: Path,
    shape: tuple[int, ...],
    batch_size: int,
    workers: int,
) -> None:
    """Compute the features of all images, every process those of its own share, and publish the cache."""
    draft = draft_path(target, broadcast_object_list([secrets.token_hex(4)])[0])
    if accelerator.is_main_process:
        draft.mkdir(parents=True)
        write_json(draft / RECORD, {"kind": PURPOSE, "format": FORMAT, "key": target.name})
    accelerator.wait_for_everyone()

    # all processes learn of a full disk, so that none waits for a process that has failed
    rank, processes = accelerator.process_index, accelerator.num_processes
    loader = DataLoader(Subset(images, range(rank, len(images), processes)), batch_size, num_workers=workers)
    batches = tqdm(loader, desc="features", leave=False)
    features = (_features(model, batch["pixel_values"], accelerator) for batch in batches)
    problem = _write_features(draft / f"{rank}.bin", features)
    problems = [each for each in gather_object([problem]) if each]

    if accelerator.is_main_process:
        if problems:
            delete(draft)
        else:
            write_json(draft / INDEX, {"shape": shape, "processes": processes, "images": len(images)})
            publish(draft, target)
    accelerator.wait_for_everyone()
    if problems:
        raise OSError(f"the features could not be written to {target.parent} ({problems[0]}): {ADVICE}")


def store_features(batches: Iterable[Tensor], folder: Path) -> CachedFeatures:
    """Write features of images without labels into an empty folder, and return them memory-mapped.

    Args:
        batches: Features (B, K, H, W), of one shape (K, H, W) for all images.
        folder: Folder that the caller deletes.
    """
    shapes: list[torch.Size] = []

    def recorded() -> Iterator[Tensor]:
        for batch in batches:
            shapes.append(batch.shape)
            yield batch

    problem = _write_features(folder / "0.bin", recorded())
    if problem:
        raise OSError(f"the features could not be written to {folder.parent} ({problem}): choose another cache_dir")
    images = sum(shape[0] for shape in shapes)
    if not images:
        raise ValueError("there is no image to compute features of: expected at least one")
    write_json(folder / INDEX, {"shape": list(shapes[0][1:]), "processes": 1, "images": images})
    return CachedFeatures(folder, torch.full((images,), NO_LABEL))


def _write_features(file: Path, features: Iterator[Tensor]) -> str | None:
    """Write features to the disk, and return the reason if the disk has no room for them."""
    try:
        with file.open("wb") as opened:
            for batch in features:
                opened.write(batch.cpu().numpy().tobytes())
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        if error.errno not in FULL:
            raise
        return error.strerror
    return None
