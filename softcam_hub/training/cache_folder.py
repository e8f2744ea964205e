"""The folder of cached features: which of its folders are caches, and which are deleted to make room.

- A folder is deleted only if its record, which is the first file to be written, says that it is a cache, and
  if it holds nothing else. Drafts are deleted when nobody has written to them for a while.
"""

import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..files import ABANDONED, DRAFT, read_mapping
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

ADVICE = "choose another folder with --cache-dir, or compute features at every epoch with --no-cache-features"


def publish(draft: Path, target: Path) -> None:
    """Give a draft its name, or delete it if another run was faster."""
    if _is_cache(target) and not (target / INDEX).is_file():
        delete(target)
    try:
        draft.rename(target)
    except OSError:
        delete(draft)
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
    check_limit(needed + sizes.get(keep, 0.0), limit)
    complete = [path for path in sizes if path != keep and CACHE_NAME.fullmatch(path.name)]
    for path in sorted(complete, key=lambda path: path.stat().st_mtime):
        if sum(sizes.values()) + needed > limit:
            del sizes[path]
            delete(path)
    free = shutil.disk_usage(folder).free / GB
    if needed > free:
        raise OSError(f"the features would take {needed:.1f} GB, but {folder} has {free:.1f} GB left: {ADVICE}")


def check_limit(needed: float, limit: float) -> None:
    """Refuse features that take more disk space than all caches together may, both in GB."""
    if needed > limit:
        raise ValueError(
            f"the features would take {needed:.1f} GB, more than cache_limit={limit:g}: raise it, or compute "
            "features at every epoch with --no-cache-features"
        )


def check_folder(folder: Path) -> None:
    """Refuse a path that can be no folder of caches, because it or what it lies in is a file or is not writable."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "it is not writable" if nearest.is_dir() else f"{nearest} is a file"
        raise OSError(f"the features cannot be written to {folder} ({reason}): {ADVICE}")


def _delete_abandoned_drafts(folder: Path) -> None:
    for draft in folder.iterdir():
        if DRAFT_NAME.fullmatch(draft.name) and _is_cache(draft):
            with suppress(FileNotFoundError):  # its run has finished in the meantime
                if time.time() - max(file.stat().st_mtime for file in draft.iterdir()) > ABANDONED:
                    delete(draft)


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


def refuse_foreign(target: Path) -> None:
    """Refuse to replace a folder that has the name of a cache but is none."""
    if target.is_symlink() or (target.exists() and not _is_cache(target) and any(target.iterdir())):
        raise FileExistsError(f"{target} is not replaced, because it is no feature cache: move it away, or {ADVICE}")


def read_index(folder: Path, images: int) -> dict[str, Any]:
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


def delete(folder: Path) -> None:
    """Delete a cache or draft, so that at no moment the rest of it looks like a complete cache."""
    draft = folder
    with suppress(FileNotFoundError):  # another run may delete the same folder
        if not DRAFT_NAME.fullmatch(folder.name):
            draft = folder.rename(draft_path(folder, secrets.token_hex(4)))
        last = [draft / INDEX, draft / RECORD]  # identify the rest if this process is killed
        for file in [*(file for file in draft.iterdir() if file not in last), *last]:
            file.unlink(missing_ok=True)
        draft.rmdir()


def draft_path(target: Path, token: str) -> Path:
    return target.with_name(f"{target.name}.{token}.unfinished")


def _size(folder: Path) -> float:
    """Return the size of a cache in GB, or 0 if another run has deleted it in the meantime."""
    try:
        return sum(file.stat().st_size for file in folder.iterdir()) / GB
    except FileNotFoundError:
        return 0.0
