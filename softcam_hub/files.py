"""Write a file whole or not at all, and read files that a person or a broken disk may have changed.

- A file is written to a draft beside its target, flushed to the disk and renamed, so that a reader, a crash and a full
  disk see the old file or the new one, never half of it.
- A draft has a name of its own (`.unfinished-<random>`), so that two writers cannot mix their bytes, and what a killed
  process left behind is recognised. `models/` saves its folders under the same prefix.
"""

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

DRAFT = ".unfinished-"
"""First letters of the name of every draft, file or folder."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors that say that there is no room."""

ABANDONED = 600.0
"""Seconds after which a draft that nobody has written to counts as left by a killed process."""


def draft_path(target: Path) -> Path:
    """Return an unused name for a draft beside `target`; it keeps the suffix, by which libraries choose a format."""
    suffix = target.suffix if len(target.suffix) < 16 else ""
    return target.with_name(f"{DRAFT}{secrets.token_hex(6)}{suffix}")


def is_draft(path: Path) -> bool:
    """Tell whether `path` is named as drafts are."""
    return path.name.startswith(DRAFT)


@contextmanager
def draft_of(target: str | Path) -> Iterator[Path]:
    """Give the block the path of a draft to write to; the draft takes the place of `target` when the block succeeds.

        with draft_of("curve.png") as draft:
            picture.save(draft)

    Raises:
        OSError: the file cannot be written; what was there before is unchanged.
    """
    target = Path(target)
    draft = draft_path(target)
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # respects the umask, unlike mkstemp
        yield draft
        flush(draft)
        os.replace(draft, target)
    except OSError as error:
        if error.errno in (*FULL, errno.EACCES, errno.EROFS):
            raise unwritable(target, error) from error
        raise
    finally:
        draft.unlink(missing_ok=True)


def check_replaceable(target: Path, overwrite: bool) -> None:
    """Refuse to write to a link or a folder, and without `overwrite` to a file that exists."""
    if target.is_symlink():
        raise FileExistsError(
            f"{target} is a link, and nothing is written through links: remove it, or choose another name"
        )
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: name the file to write")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there already: --overwrite (overwrite=True) replaces it")


def write_text(target: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with draft_of(target) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(target: str | Path, values: Any) -> None:
    """Write a readable JSON file, whole or not at all."""
    write_text(target, json.dumps(values, indent=2) + "\n")


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file, whole or not at all."""
    with draft_of(target) as draft:
        shutil.copyfile(source, draft)


def flush(path: Path) -> None:
    """Wait until a file, or every file below a folder, is on the disk: a rename may otherwise overtake its content."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_drafts(folder: Path, older_than: float = 0.0) -> None:
    """Delete the drafts directly in `folder`.

    Args:
        folder: Folder to clean; a folder that does not exist is clean.
        older_than: Seconds since the last write, for folders that another process may be writing to.
    """
    drafts = [path for path in folder.iterdir() if is_draft(path)] if folder.is_dir() else []
    for draft in drafts:
        try:
            if time.time() - _last_write(draft) < older_than:
                continue
            shutil.rmtree(draft) if draft.is_dir() and not draft.is_symlink() else draft.unlink()
        except FileNotFoundError:
            continue  # its writer has finished meanwhile


def _last_write(draft: Path) -> float:
    inside = draft.rglob("*") if draft.is_dir() and not draft.is_symlink() else ()
    return max((path.lstat().st_mtime for path in (draft, *inside)), default=0.0)


def unwritable(target: Path, error: OSError) -> OSError:
    """Return the error that says why `target` could not be written, and what became of it."""
    told = OSError(
        f"{target} could not be written ({error.strerror or error}); what was there before is unchanged. Make room, "
        "or choose another place, and run the same command again"
    )
    told.errno = error.errno  # not among the arguments, which would print it before the sentence
    return told


def read_mapping(file: Path, remedy: str = "") -> dict[str, Any]:
    """Read a file that must hold names and values.

    Args:
        file: A .json file, or a YAML file.
        remedy: Advice for the error message if the file is damaged, such as "remove it and run the same again".
    """
    advice = f": {remedy}" if remedy else ""
    kind, parse = ("JSON", json.loads) if file.suffix == ".json" else ("YAML", yaml.safe_load)
    try:
        found = parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} cannot be read, it is no {kind} ({reason}){advice}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{file} must hold names and values, but holds {_describe(found)}{advice}")
    return found


def _describe(value: Any) -> str:
    return {type(None): "nothing", dict: "names that are no text"}.get(type(value), f"a {type(value).__name__}")
