"""Compute the features of a frozen backbone once, so that post-fitting costs one pass over the images.

- A cache belongs to the weights of the backbone, the images and their preprocessing. Its folder is named by
  their hash.
- Every process writes its share of the images into a file of its own. The folder gets its name when all
  processes have finished, so that an incomplete cache is never read. Until then it is the draft of one run.
  Of two runs that compute the same features at once, the slower one uses the cache of the other.
- A folder is deleted only if its record, which is the first file to be written, says that it is a cache, and
  if it holds nothing else. Drafts are deleted when nobody has written to them for a while.
"""

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, tqdm
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..data.samples import ImageDataset
from ..files import ABANDONED, DRAFT, FULL, read_mapping, write_json
from ..models.evaluation_mode import evaluation_mode
from ..models.modeling import EvidenceForImageClassification
from ..output_folder import RECORD

INDEX = "index.json"
DTYPE = np.dtype("float32")
GB = 1e9

PURPOSE, FORMAT = "feature cache", 1
"""Entries of the record of a cache."""

CACHE_NAME = re.compile(r"[0-9a-f]{32}")
DRAFT_NAME = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{8}\.unfinished")

FILE_NAME = re.compile(rf"\d+\.bin|{re.escape(INDEX)}|{re.escape(RECORD)}|{re.escape(DRAFT)}.*")
"""Names of the files in a cache, and of their drafts."""

ADVICE = "choose another folder with --cache-dir, or compute features at every epoch with --cache-features False"


class CachedFeatures(Dataset):
    """Memory-mapped features (K, H, W) of images, with their labels.

    Args:
        folder: Folder of a complete cache.
        labels: Labels of the images, in the order of the data set.
    """

    def __init__(self, folder: Path, labels: Tensor) -> None:
        index = _read_index(folder, len(labels))
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
            raise OSError(f"{self.files[rank]} has {size} bytes instead of {expected}: delete the folder")
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
        _refuse_foreign(target)
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
    draft = _draft_path(target, broadcast_object_list([secrets.token_hex(4)])[0])
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
            _delete(draft)
        else:
            write_json(draft / INDEX, {"shape": shape, "processes": processes, "images": len(images)})
            _publish(draft, target)
    accelerator.wait_for_everyone()
    if problems:
        raise OSError(f"the features could not be written to {target.parent} ({problems[0]}): {ADVICE}")


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


def _publish(draft: Path, target: Path) -> None:
    """Give a draft its name, or delete it if another run was faster."""
    if _is_cache(target) and not (target / INDEX).is_file():
        _delete(target)
    try:
        draft.rename(target)
    except OSError:
        _delete(draft)
        if not (target / INDEX).is_file():
            raise


def make_room(folder: Path, needed: float, limit: float, keep: Path | None = None) -> None:
    """Delete the caches that were not used for longest until a new one fits, or refuse what cannot fit.

    Args:
        folder: Folder of all caches.
        needed: Size of the new cache in GB.
        limit: Disk space for all caches together, in GB.
        keep: Cache that is never deleted.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the features cannot be written to {folder} ({error.strerror}): {ADVICE}") from error
    _delete_abandoned_drafts(folder)
    sizes = {path: _size(path) for path in folder.iterdir() if _is_cache(path)}
    least = needed + sizes.get(keep, 0.0)
    if least > limit:
        raise ValueError(
            f"the features would take {least:.1f} GB, more than cache_limit={limit:g}: raise it, or compute "
            "features at every epoch with --cache-features False"
        )
    complete = [path for path in sizes if path != keep and CACHE_NAME.fullmatch(path.name)]
    for path in sorted(complete, key=lambda path: path.stat().st_mtime):
        if sum(sizes.values()) + needed > limit:
            del sizes[path]
            _delete(path)
    free = shutil.disk_usage(folder).free / GB
    if needed > free:
        raise OSError(f"the features would take {needed:.1f} GB, but {folder} has {free:.1f} GB left: {ADVICE}")


def _delete_abandoned_drafts(folder: Path) -> None:
    for draft in folder.iterdir():
        if DRAFT_NAME.fullmatch(draft.name) and _is_cache(draft):
            with suppress(FileNotFoundError):  # its run has finished in the meantime
                if time.time() - max(file.stat().st_mtime for file in draft.iterdir()) > ABANDONED:
                    _delete(draft)


def _is_cache(folder: Path) -> bool:
    """Tell whether a folder is a cache, or the draft of one, and holds nothing else."""
    if not (CACHE_NAME.fullmatch(folder.name) or DRAFT_NAME.fullmatch(folder.name)) or folder.is_symlink():
        return False
    try:
        holds_nothing_else = all(FILE_NAME.fullmatch(file.name) and not file.is_dir() for file in folder.iterdir())
    except OSError:  # not a folder, or deleted in the meantime
        return False
    record = _read_or_empty(folder / RECORD)
    has_record = record.get("kind") == PURPOSE and record.get("key") == folder.name[:32]
    has_index = {"shape", "processes", "images"} <= _read_or_empty(folder / INDEX).keys()
    return holds_nothing_else and (has_record or has_index)  # the first caches had no record


def _refuse_foreign(target: Path) -> None:
    """Refuse to replace a folder that has the name of a cache but is none."""
    if target.is_symlink() or (target.exists() and not _is_cache(target) and any(target.iterdir())):
        raise FileExistsError(f"{target} is not replaced, because it is no feature cache: move it away, or {ADVICE}")


def _read_index(folder: Path, images: int) -> dict[str, Any]:
    """Read the shape and the number of processes of a cache, and check them.

    Args:
        folder: Folder of the cache.
        images: Expected number of images.
    """
    file, remedy = folder / INDEX, f"delete the folder {folder}, and the features are computed again"
    index = read_mapping(file, remedy)
    shape, processes = index.get("shape"), index.get("processes")
    sizes = (*shape, processes) if isinstance(shape, list) and len(shape) == 3 else (None,)
    if index.get("images") != images or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"{file} does not describe the features of {images} images: {remedy}")
    return index


def _read_or_empty(file: Path) -> dict[str, Any]:
    try:
        return read_mapping(file)
    except (OSError, ValueError):
        return {}


def _delete(folder: Path) -> None:
    """Delete a cache or draft, so that at no moment the rest of it looks like a complete cache."""
    draft = folder
    with suppress(FileNotFoundError):  # another run may delete the same folder
        if not DRAFT_NAME.fullmatch(folder.name):
            draft = folder.rename(_draft_path(folder, secrets.token_hex(4)))
        last = [draft / INDEX, draft / RECORD]  # identify the rest if this process is killed
        for file in [*(file for file in draft.iterdir() if file not in last), *last]:
            file.unlink(missing_ok=True)
        draft.rmdir()


def _draft_path(target: Path, token: str) -> Path:
    return target.with_name(f"{target.name}.{token}.unfinished")


def _size(folder: Path) -> float:
    """Return the size of a cache in GB, or 0 if another run has deleted it in the meantime."""
    try:
        return sum(file.stat().st_size for file in folder.iterdir()) / GB
    except FileNotFoundError:
        return 0.0
