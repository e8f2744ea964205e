"""Own the folder that a command writes to: which files in it may be replaced or deleted.

- A folder belongs to a command only if it holds a record that the command wrote before any other file. The
  record names the purpose of the folder, a format number, and the files that may be written or deleted. Every
  other file belongs to the user and is never touched.
- A folder with files but without a record is refused. Runs made before there were records can be continued
  after a check of their structure, but never overwritten.
- A lock keeps a second process out for as long as the first one runs.
"""

import fnmatch
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from .files import is_draft, read_mapping, remove_drafts, write_json
from .models.text import printable

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

RECORD, LOCK = ".softcam_hub.json", ".softcam_hub.lock"

FORMAT = 1
"""Number of the record's format. A release that meets a newer format refuses the folder."""

LOCK_TIMEOUT = 6.0
"""Seconds to wait for the lock. Data-loading workers of a killed run may hold it for five more seconds."""

Use = Literal["new", "continue", "replace"]
"""Intended use of a folder: write to an empty one, continue earlier output, or delete it first."""


class OutputFolder:
    """A folder that one command writes to.

    Args:
        path: Folder, which is created when it is claimed.
        purpose: Kind of output, such as "training run". A folder with another purpose is refused.
        names: Glob patterns of the paths below the folder that may be written or deleted. `*` also matches
            `/`, so that `checkpoints/*` stands for everything below `checkpoints`. Files are deleted in
            reverse order: a file that describes the others comes first in this list, so that a killed
            deletion leaves nothing without it.
        recognise: Function that tells whether a folder without a record is an earlier output for the same
            purpose, made before there were records.
        older_names: Patterns of the paths that such an earlier output may have written, if they differ from
            `names`. Other files in it are not replaced.
        resumes: Whether the command has `--resume`.
    """

    def __init__(
        self,
        path: str | Path,
        purpose: str,
        names: list[str],
        recognise: Callable[[Path], bool] = lambda path: False,
        older_names: list[str] | None = None,
        resumes: bool = False,
    ) -> None:
        self.path, self.purpose, self.names = Path(path), purpose, list(names)
        self.recognise, self.resumes = recognise, resumes
        self.older_names = self.names if older_names is None else list(older_names)

    @contextmanager
    def locked(self, use: Use) -> Iterator[None]:
        """Create the folder if necessary, and keep other processes out of it inside the block.

        A folder that does not admit the intended use is refused before anything is written to it.
        """
        self.check(use)
        existed = self.path.is_dir()
        self._create()
        lock = FileLock(self.path / LOCK, mode=0o666)
        try:
            lock.acquire(timeout=LOCK_TIMEOUT)
        except Timeout:
            raise BlockingIOError(
                f"another process is writing to {self.path}: wait until it has ended, or choose another --output"
            ) from None
        except (NotImplementedError, OSError) as error:
            logger.warning("%s cannot be locked (%s): start no second run in it", self.path, error)
        try:
            yield
        finally:
            lock.release()
            if not (self.path / RECORD).exists():
                self._undo_creation(existed)

    def check(self, use: Use) -> None:
        """Refuse a folder that belongs to somebody else, or whose content does not admit the intended use."""
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file: name a folder with --output, which may be new")
        recorded = self._recorded_names()
        if recorded is None:
            foreign = self._first_entry()
            if foreign is None:
                return
            if use != "continue" or not self.recognise(self.path):
                raise FileExistsError(self._describe_foreign(foreign, use))
            recorded = self.older_names
        is_recorded = _matcher(recorded)
        earlier = next(filter(is_recorded, self._paths_below()), None)
        if use == "new" and earlier:
            advice = "continue it with --resume, delete" if self.resumes else "delete"
            raise FileExistsError(
                f"{self.path} holds an earlier {self.purpose} ({earlier}): {advice} it with --overwrite, or choose "
                "another --output"
            )
        self._refuse_foreign_files(recorded)

    def claim(self, use: Use) -> None:
        """Check the folder, delete earlier output if that is the intended use, and write the record.

        Call it inside `locked()`, when everything else that can be refused has been checked.
        """
        self.check(use)
        recorded = self._recorded_names()
        if recorded is None:
            recorded = self.older_names if use == "continue" else []
        if use == "replace":
            self._delete(recorded)
            recorded = []
        names = list(dict.fromkeys([*recorded, *self.names]))
        write_json(self.path / RECORD, {"kind": self.purpose, "format": FORMAT, "names": names})
        for folder, _, _ in os.walk(self.path):
            if _concerns(Path(folder).relative_to(self.path).as_posix(), names):
                remove_drafts(Path(folder))

    def writes(self, path: Path) -> bool:
        """Tell whether a path relative to the folder is that of a file that may be written."""
        return _matcher(self.names)(path.as_posix())

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(0, "permission denied")
        except OSError as error:
            raise OSError(f"output {self.path} cannot be written: {error.strerror}; choose another --output") from error

    def _undo_creation(self, existed: bool) -> None:
        """Leave nothing behind in a folder that was not claimed."""
        (self.path / LOCK).unlink(missing_ok=True)
        if not existed and not any(self.path.iterdir()):
            self.path.rmdir()

    def _recorded_names(self) -> list[str] | None:
        """Return the patterns of the record, or None without a record, and refuse a record that does not fit."""
        file = self.path / RECORD
        if not file.is_file():
            return None
        try:
            record = read_mapping(file)
            purpose, number, names = record["kind"], record["format"], record["names"]
            is_readable = isinstance(names, list) and all(isinstance(name, str) for name in (purpose, *names))
        except (ValueError, KeyError):
            is_readable = False
        if not is_readable:
            raise ValueError(
                f"{file} is damaged, so that nothing says which files in the folder may be replaced: choose "
                f"another --output"
            )
        if number != FORMAT:
            raise ValueError(
                f"{file} has format {number!r}, but this release knows format {FORMAT} only: use the release "
                f"that wrote it, or choose another --output"
            )
        if purpose != self.purpose:
            raise FileExistsError(
                f"{self.path} holds the output of {_with_article(printable(purpose))}, expected that of "
                f"{_with_article(self.purpose)}: choose another --output"
            )
        return names

    def _describe_foreign(self, entry: str, use: Use) -> str:
        """Say why a folder without a record is refused."""
        reason = {
            "new": "it is not empty",
            "continue": f"it is not an earlier {self.purpose}",
            "replace": "nothing says that its files may be deleted",
        }[use]
        return (
            f"{self.path} is left alone: it holds {entry!r} but no record of {_with_article(self.purpose)}, "
            f"so {reason}. Choose another --output, or move its files away"
        )

    def _first_entry(self) -> str | None:
        """Return the first name in the folder that is neither the lock nor a draft, or None."""
        if not self.path.is_dir():
            return None
        names = [path.name for path in self.path.iterdir() if path.name != LOCK and not is_draft(path)]
        return min(names, default=None)

    def _refuse_foreign_files(self, recorded: list[str]) -> None:
        """Refuse to replace a file that is not in the record, or to write through a link."""
        is_wanted, is_recorded = _matcher(self.names), _matcher(recorded)
        needed_folders = {parent.as_posix() for name in self.names for parent in Path(name).parents}
        for path in self._paths_below():
            if (self.path / path).is_symlink() and _concerns(path, [*self.names, *recorded]):
                raise FileExistsError(
                    f"{self.path / path} is a link, and nothing is written through links: remove it, or "
                    f"choose another --output"
                )
            if (is_wanted(path) or path in needed_folders) and not is_recorded(path):
                raise self._foreign_file(path)
        is_file = _matcher([name for name in self.names if not name.endswith("/*")])
        for folder, _, _ in os.walk(self.path):
            path = Path(folder).relative_to(self.path).as_posix()
            if is_file(path):
                raise self._foreign_file(path)

    def _foreign_file(self, path: str) -> FileExistsError:
        return FileExistsError(
            f"{self.path / path} is not a file of an earlier {self.purpose}, so it is not replaced: move it away, or "
            "choose another --output"
        )

    def _paths_below(self) -> list[str]:
        """Return the paths of all files and links below the folder, except for record, lock and drafts."""
        paths: list[str] = []
        for folder, folders, files in os.walk(self.path):
            links = [name for name in folders if (Path(folder) / name).is_symlink()]
            for path in (Path(folder) / name for name in (*links, *files)):
                if not is_draft(path):
                    paths.append(path.relative_to(self.path).as_posix())
            folders[:] = [name for name in folders if not is_draft(Path(folder) / name)]
        return sorted(path for path in paths if path not in (RECORD, LOCK))

    def _delete(self, names: list[str]) -> None:
        """Delete the recorded files, the last names first, and the folders that become empty."""
        position_of = _position_finder(names)
        positions = {}
        for path in self._paths_below():
            position = position_of(path)
            if position is not None and not (self.path / path).is_symlink():
                positions[path] = position
        for path in sorted(positions, key=positions.__getitem__, reverse=True):
            (self.path / path).unlink(missing_ok=True)
        parents = {parent for path in positions for parent in Path(path).parents if parent != Path()}
        for parent in sorted(parents, key=lambda folder: len(folder.parts), reverse=True):
            remove_drafts(self.path / parent)
            if not any((self.path / parent).iterdir()):
                (self.path / parent).rmdir()


def in_main_process(state: "Accelerator", action: Callable[[], Any]) -> None:
    """Act in the main process, while the others wait; where the action is refused, all processes raise the error.

    Args:
        state: Accelerator of this process.
        action: Function without arguments, such as one that locks or claims the output folder.
    """
    from accelerate.utils import broadcast_object_list

    problem: Exception | None = None
    if state.is_main_process:
        try:
            action()
        except (OSError, ValueError) as error:
            problem = error
    (problem,) = broadcast_object_list([problem])
    if problem is not None:
        raise problem


def _with_article(purpose: str) -> str:
    return f"{'an' if purpose[:1] in 'aeiou' else 'a'} {purpose}"


def _position_finder(patterns: list[str]) -> Callable[[str], int | None]:
    """Return a function that finds the position of the first pattern that a path matches, or None.

    Plain names, of which there may be thousands, are looked up in a dictionary.
    """
    plain = {pattern: position for position, pattern in enumerate(patterns) if not set(pattern) & set("*?[")}
    globs = {
        position: re.compile(fnmatch.translate(pattern))
        for position, pattern in enumerate(patterns)
        if pattern not in plain
    }

    def find_position(path: str) -> int | None:
        if path in plain:
            return plain[path]
        return next((position for position, glob in globs.items() if glob.match(path)), None)

    return find_position


def _matcher(patterns: list[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a path matches a pattern."""
    position_of = _position_finder(patterns)
    return lambda path: position_of(path) is not None


def _concerns(path: str, patterns: list[str]) -> bool:
    """Tell whether a file that the patterns name is, or would be, at a path or below it."""
    holds_named_file = any(pattern.startswith(f"{path}/") for pattern in patterns)
    return path == "." or holds_named_file or _matcher(patterns)(path)
