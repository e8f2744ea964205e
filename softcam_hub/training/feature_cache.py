"""Features of a frozen backbone, computed once: post-fitting at the price of one pass over the images.

- A cache belongs to the backbone's weights, the images and their preprocessing; its folder is named by their hash.
- Every process writes the images that are its own into a file of its own. The folder gets its name when all have
  finished, so that what was cut off is never read. Until then it is the draft of one run: of two runs that compute the
  same features at once, the slower one takes those of the other.
- A folder is deleted only where a record in it, which is the first file to be written, says that it is a cache of
  ours, and where nothing else lies in it. Drafts are deleted when nobody has written to them for a while.
"""

import hashlib
import json
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
from ..files import FULL, read_mapping, write_json
from ..models.evaluation_mode import evaluation_mode
from ..models.modeling import EvidenceForImageClassification
from ..output_folder import RECORD

INDEX = "index.json"
DTYPE = np.dtype("float32")
GB = 1e9

KEY, DRAFT = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{32}\.[0-9a-f]{8}\.unfinished")
KIND, FORMAT = "feature cache", 1
FILES = re.compile(r"\d+\.bin|" + "|".join(map(re.escape, (INDEX, RECORD))) + r"|\.unfinished-.*")
"""Names in a cache, with those of its own drafts."""

INSTEAD = "choose another place with --cache_dir, or compute features at every epoch with --cache_features False"

STALE = 600
"""Seconds after which a draft that nobody writes to was left by a run that is no more."""


class CachedFeatures(Dataset):
    """Features (K, H, W) and labels of a data set's images, memory-mapped.

    Args:
        folder: of a finished cache.
        labels: of the images, in their order.
    """

    def __init__(self, folder: Path, labels: Tensor) -> None:
        index = _read_index(folder, len(labels))
        self.folder, self.labels = folder, labels
        self.shape, self.processes = tuple(index["shape"]), index["processes"]
        self.files = [folder / f"{rank}.bin" for rank in range(self.processes)]
        self.shards = [self._open(rank) for rank in range(self.processes)]

    def _open(self, rank: int) -> np.ndarray:
        shape = (len(range(rank, len(self.labels), self.processes)), *self.shape)
        expected = int(np.prod(shape)) * DTYPE.itemsize
        found = self.files[rank].stat().st_size if self.files[rank].is_file() else 0
        if found != expected:
            raise OSError(f"{self.files[rank]} has {found} bytes instead of {expected}: delete the folder")
        return np.memmap(self.files[rank], DTYPE, "r", shape=shape) if shape[0] else np.empty(shape, DTYPE)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: list[int | tuple[int, int]]) -> dict[str, Tensor]:
        """A whole batch at once; training's keys are (epoch, index)."""
        indices = [key if isinstance(key, int) else key[1] for key in keys]
        features = np.empty((len(indices), *self.shape), DTYPE)
        for row, index in enumerate(indices):
            features[row] = self.shards[index % self.processes][index // self.processes]
        where = torch.tensor(indices)
        return {"features": torch.from_numpy(features), "labels": self.labels[where], "index": where}


def cached_features(
    model: EvidenceForImageClassification,
    images: ImageDataset,
    accelerator: Accelerator,
    folder: Path,
    limit: float,
    batch_size: int,
    workers: int = 0,
    beside: CachedFeatures | None = None,
) -> CachedFeatures:
    """The features of all images, from `folder` or computed now by all processes together.

    Args:
        model: its backbone is frozen and on the accelerator's device.
        images: without augmentation.
        accelerator: of the run.
        folder: that holds all caches.
        limit: GB that all caches together may take; the ones not used for longest make room.
        batch_size: images per forward pass.
        workers: processes that load images.
        beside: another cache of this run, which stays.
    """
    target = folder / key_of(model, images, accelerator.mixed_precision)
    if not (target / INDEX).is_file():
        _refuse_foreign(target)
        shape = _shape_of(model, images, accelerator)
        if accelerator.is_main_process:
            needed = len(images) * int(np.prod(shape)) * DTYPE.itemsize / GB
            make_room(folder, needed, limit, beside and beside.folder)
        _compute(model, images, accelerator, target, shape, batch_size, workers)
    if accelerator.is_main_process:
        with suppress(OSError):  # a cache that can only be read is as good
            os.utime(target)  # used now
    return CachedFeatures(target, torch.as_tensor(images.samples.labels))


def key_of(model: EvidenceForImageClassification, images: ImageDataset, precision: str) -> str:
    """Hash of everything that the features depend on."""
    known = hashlib.sha256(f"{precision} {model.config.architecture} {model.backbone_args}".encode())
    known.update(f"{images.transform} {images.samples.fingerprint()}".encode())
    for name, tensor in sorted(model.backbone.state_dict().items()):
        known.update(name.encode())
        known.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return known.hexdigest()[:32]


def make_room(folder: Path, needed: float, limit: float, kept: Path | None = None) -> None:
    """Refuse what cannot fit into `limit` GB or on the disk, and delete the caches that were not used for longest."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the features cannot be written to {folder} ({error.strerror}): {INSTEAD}") from error
    _sweep(folder)
    sizes = {path: _size(path) for path in folder.iterdir() if _is_ours(path)}
    together = needed + sizes.get(kept, 0.0)
    if together > limit:
        raise ValueError(
            f"the features would take {together:.1f} GB, more than cache_limit={limit:g}: raise it, or compute "
            "features at every epoch with --cache_features False"
        )
    finished = [path for path in sizes if path != kept and KEY.fullmatch(path.name)]
    oldest = sorted(finished, key=lambda path: path.stat().st_mtime)
    while oldest and sum(sizes.values()) + needed > limit:
        del sizes[oldest[0]]
        _delete(oldest.pop(0))
    free = shutil.disk_usage(folder).free / GB
    if needed > free:
        raise OSError(f"the features would take {needed:.1f} GB, but {folder} has {free:.1f} GB left: {INSTEAD}")


def _sweep(folder: Path) -> None:
    """Delete what runs that are no more left half-written."""
    for draft in (path for path in folder.iterdir() if DRAFT.fullmatch(path.name) and _is_ours(path)):
        with suppress(FileNotFoundError):  # its run has finished meanwhile
            if time.time() - max(file.stat().st_mtime for file in draft.iterdir()) > STALE:
                _delete(draft)


def _is_ours(folder: Path) -> bool:
    """Tell whether a folder is a cache or draft of ours and holds nothing else."""
    if not (KEY.fullmatch(folder.name) or DRAFT.fullmatch(folder.name)) or folder.is_symlink():
        return False
    try:
        alone = all(FILES.fullmatch(file.name) and not file.is_dir() for file in folder.iterdir())
    except OSError:  # no folder, or not there any more
        return False
    record, index = _read_json(folder / RECORD), _read_json(folder / INDEX)
    recorded = record.get("kind") == KIND and record.get("key") == folder.name[:32]
    return alone and (recorded or {"shape", "processes", "images"} <= index.keys())  # caches made before have no record


def _refuse_foreign(target: Path) -> None:
    """Refuse a folder with the name of a cache that is none, before features are computed for it."""
    if target.is_symlink() or (target.exists() and not _is_ours(target) and any(target.iterdir())):
        raise FileExistsError(f"{target} is not replaced, because it is no cache: move it away, or {INSTEAD}")


def _read_index(folder: Path, images: int) -> dict[str, Any]:
    """Shape, processes and images of a finished cache, checked against the images that it is of."""
    file, remedy = folder / INDEX, f"delete the folder {folder}, and the features are computed again"
    index = read_mapping(file, remedy)
    shape, processes = index.get("shape"), index.get("processes")
    whole = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and n > 0 for n in (*shape, processes))
    if not whole or index.get("images") != images:
        raise ValueError(f"{file} does not describe the features of {images} images: {remedy}")
    return index


def _read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file, empty where it holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _delete(folder: Path) -> None:
    """Delete a cache or draft of ours so that at no moment half of it looks like a finished cache."""
    draft = folder
    with suppress(FileNotFoundError):  # where another run deletes the same
        if not DRAFT.fullmatch(folder.name):
            draft = folder.rename(_draft_path(folder, secrets.token_hex(4)))
        last = [draft / INDEX, draft / RECORD]  # by which the rest is recognised where this is killed
        for file in [*(file for file in draft.iterdir() if file not in last), *last]:
            file.unlink(missing_ok=True)
        draft.rmdir()


def _draft_path(target: Path, token: str) -> Path:
    return target.with_name(f"{target.name}.{token}.unfinished")


def _size(folder: Path) -> float:
    """GB of a cache; none where another run has renamed or deleted it meanwhile."""
    try:
        return sum(file.stat().st_size for file in folder.iterdir()) / GB
    except FileNotFoundError:
        return 0.0


@torch.no_grad()
def _features(model: EvidenceForImageClassification, pixels: Tensor, accelerator: Accelerator) -> Tensor:
    with evaluation_mode(model), accelerator.autocast():
        return model.forward_features(pixels.to(accelerator.device)).float()


def _shape_of(
    model: EvidenceForImageClassification, images: ImageDataset, accelerator: Accelerator
) -> tuple[int, int, int]:
    return tuple(_features(model, images[0]["pixel_values"][None], accelerator).shape[1:])


def _compute(
    model: EvidenceForImageClassification,
    images: ImageDataset,
    accelerator: Accelerator,
    target: Path,
    shape: tuple[int, int, int],
    batch_size: int,
    workers: int,
) -> None:
    draft = _draft_path(target, broadcast_object_list([secrets.token_hex(4)])[0])
    if accelerator.is_main_process:
        draft.mkdir(parents=True)
        write_json(draft / RECORD, {"kind": KIND, "format": FORMAT, "key": target.name})
    accelerator.wait_for_everyone()
    rank, processes = accelerator.process_index, accelerator.num_processes
    own = _batches(Subset(images, range(rank, len(images), processes)), batch_size, workers)
    problem = _write(draft / f"{rank}.bin", (_features(model, pixels, accelerator) for pixels in own))
    problems = [found for found in gather_object([problem]) if found]  # so that no process waits for one that failed
    if accelerator.is_main_process:
        if problems:
            _delete(draft)
        else:
            write_json(draft / INDEX, {"shape": shape, "processes": processes, "images": len(images)})
            _publish(draft, target)
    accelerator.wait_for_everyone()
    if problems:
        raise OSError(f"the features could not be written to {target.parent} ({problems[0]}): {INSTEAD}")


def _write(file: Path, features: Iterator[Tensor]) -> str | None:
    """Write features to the disk; return the reason where the disk has no room for them."""
    try:
        with file.open("wb") as opened:
            for some in features:
                opened.write(some.cpu().numpy().tobytes())
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        if error.errno not in FULL:
            raise
        return error.strerror
    return None


def _publish(draft: Path, target: Path) -> None:
    """Give a draft its name, or drop it where another run was faster."""
    if _is_ours(target) and not (target / INDEX).is_file():
        _delete(target)
    try:
        draft.rename(target)
    except OSError:
        _delete(draft)
        if not (target / INDEX).is_file():
            raise


def _batches(images: Dataset, batch_size: int, workers: int) -> Iterator[Tensor]:
    loader = DataLoader(images, batch_size, num_workers=workers)
    for batch in tqdm(loader, desc="features", leave=False):
        yield batch["pixel_values"]
