"""Write files atomically, and read files that a person or a broken disk may have changed.

- A file is written to a draft beside its target, flushed to the disk and renamed. A reader sees the old file
  or the new one, never half of it, also after a crash or on a full disk.
- Every draft has a name of its own (`.softcam_hub.unfinished-<random>`), so that two writers cannot mix their bytes,
  and drafts that a killed process left behind are recognised. `models/` saves its folders under the same prefix.
"""

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

DRAFT = ".softcam_hub.unfinished-"
"""Prefix of the name of every draft, which may be a file or a folder. Drafts are deleted by their names, so that no
name that a user might choose may begin like this."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exhausted quota, and a file that is too large."""

ABANDONED = 600.0
"""Seconds without a write after which a draft is taken for one that a killed process left behind."""


def draft_path(target: Path) -> Path:
    """Return an unused path for a draft beside `target`, with the suffix that tells libraries the format."""
    suffix = target.suffix if len(target.suffix) < 16 else ""
    return target.with_name(f"{DRAFT}{secrets.token_hex(6)}{suffix}")


def is_draft(path: Path) -> bool:
    """Tell whether the name of `path` is that of a draft."""
    return path.name.startswith(DRAFT)


@contextmanager
def draft_of(target: str | Path) -> Iterator[Path]:
    """Provide the path of a draft, which takes the place of `target` when the block has succeeded.

        with draft_of("curve.png") as draft:
            picture.save(draft)

    Raises:
        OSError: The file cannot be written. An earlier file is unchanged.
    """
    target = Path(target)
    draft = draft_path(target)
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # unlike mkstemp: the umask holds
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
    """Refuse to write to a link or a folder, or to an existing file without `overwrite`."""
    if target.is_symlink():
        raise FileExistsError(
            f"{target} is a link, and nothing is written through links: remove it, or choose another name"
        )
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: name the file to write")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already: --overwrite (overwrite=True) replaces it")


def write_text(target: str | Path, text: str) -> None:
    """Write a text file in UTF-8 atomically."""
    with draft_of(target) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(target: str | Path, values: Any) -> None:
    """Write an indented JSON file atomically."""
    write_text(target, json.dumps(values, indent=2) + "\n")


def write_json_lines(target: str | Path, values: Iterable[Any]) -> None:
    """Write a file with one JSON value per line atomically."""
    write_text(target, "".join(json.dumps(value) + "\n" for value in values))


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file atomically."""
    with draft_of(target) as draft:
        shutil.copyfile(source, draft)


def flush(path: Path) -> None:
    """Wait until a file, or every file below a folder, is on the disk.

    Without it, a rename may reach the disk before the content of the file.
    """
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
        folder: Folder to clean. It need not exist.
        older_than: Least number of seconds since the last write, for folders that another process may be
            writing to.
    """
    drafts = [path for path in folder.iterdir() if is_draft(path)] if folder.is_dir() else []
    for draft in drafts:
        try:
            if time.time() - _last_write(draft) < older_than:
                continue
            shutil.rmtree(draft) if draft.is_dir() and not draft.is_symlink() else draft.unlink()
        except FileNotFoundError:
            continue  # its writer has finished in the meantime


def _last_write(draft: Path) -> float:
    inside = draft.rglob("*") if draft.is_dir() and not draft.is_symlink() else ()
    return max((path.lstat().st_mtime for path in (draft, *inside)), default=0.0)


def unwritable(target: Path, error: OSError) -> OSError:
    """Return an error that says why `target` could not be written, and that it is unchanged."""
    described = OSError(
        f"{target} could not be written ({error.strerror or error}); what was there before is unchanged. "
        "Make room, or choose another place, and run the same command again"
    )
    described.errno = error.errno  # as an argument, it would be printed before the sentence
    return described


def read_mapping(file: Path, remedy: str = "") -> dict[str, Any]:
    """Read a JSON or YAML file that must hold names and values.

    Args:
        file: File to read. It is read as JSON if its suffix is .json, and as YAML otherwise.
        remedy: Advice for the error message of a damaged file, such as "remove it and run the same command
            again".
    """
    advice = f": {remedy}" if remedy else ""
    language, parse = ("JSON", json.loads) if file.suffix == ".json" else ("YAML", yaml.safe_load)
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} cannot be read, because it is not valid {language} ({reason}){advice}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{file} must hold names and values, but holds {_describe(content)}{advice}")
    return content


def _describe(value: Any) -> str:
    return {type(None): "nothing", dict: "names that are no text"}.get(type(value), f"a {type(value).__name__}")
