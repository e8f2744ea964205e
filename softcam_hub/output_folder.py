"""The folder that a command writes to: whose it is, and which files in it may be replaced or deleted.

- A folder is ours only if it holds a record that we wrote before any other file: the kind of output, a format number,
  and the names that may be written or deleted. Every other file in it belongs to the user and is never touched.
- A folder that holds files but no record is refused. Runs made before there were records can be continued after a
  check of their structure, but never overwritten.
- A lock keeps a second process out for as long as the first one runs.
"""

import fnmatch
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from .files import is_draft, remove_drafts, write_json

logger = logging.getLogger(__name__)

RECORD, LOCK = ".softcam_hub.json", ".softcam_hub.lock"
FORMAT = 1
"""Number of the record's format; a release that meets a newer one refuses the folder."""

PATIENCE = 6.0
"""Seconds to wait for the lock: data-loading workers of a killed run may hold it for five more seconds."""

Use = Literal["new", "continue", "replace"]
"""Intended use of a folder: write to an empty one, go on with earlier output, or delete earlier output first."""


class OutputFolder:
    """A folder that one command writes to.

    Args:
        path: Folder, which is made when it is claimed.
        kind: Kind of output, such as "training run"; a folder of another kind is refused.
        names: Glob patterns of the paths below the folder that may be written or deleted; `*` also matches `/`, so
            that `checkpoints/*` stands for everything below `checkpoints`. They are deleted in reverse order: the
            file that says what the others are comes first, so that a killed deletion leaves nothing without it.
        flag: Command-line flag that names the folder, for error messages.
        recognise: Function that tells whether a folder without a record is an earlier output of this kind, made
            before there were records.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str,
        names: list[str],
        flag: str = "--output",
        recognise: Callable[[Path], bool] = lambda path: False,
    ) -> None:
        self.path, self.kind, self.names, self.flag = Path(path), kind, list(names), flag
        self.recognise = recognise

    @contextmanager
    def locked(self, use: Use) -> Iterator[None]:
        """Keep other processes out of the folder inside the block; make the folder if there is none.

        A folder that does not admit the intended use is refused before anything is written to it.
        """
        self.check(use)
        existed = self.path.is_dir()
        self._make()
        lock = FileLock(self.path / LOCK, mode=0o666)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise BlockingIOError(
                f"another process is writing to {self.path}: wait until it has ended, or choose another {self.flag}"
            ) from None
        except (NotImplementedError, OSError) as error:
            logger.warning("%s cannot be locked (%s): start no second run in it", self.path, error)
        try:
            yield
        finally:
            lock.release()
            if not (self.path / RECORD).exists():
                self._undo_making(existed)

    def check(self, use: Use) -> None:
        """Refuse a folder that is not ours, or whose content does not admit the intended use."""
        recorded = self._recorded_names()
        if recorded is None:
            foreign = self._first_entry()
            if foreign is None:
                return
            if use != "continue" or not self.recognise(self.path):
                raise FileExistsError(self._not_ours(foreign, use))
            recorded = self.names
        ours = list(filter(_matcher(recorded), self._below()))
        if use == "new" and ours:
            raise FileExistsError(
                f"{self.path} holds an earlier {self.kind} ({ours[0]}): continue it with --resume, delete it with "
                f"--overwrite, or choose another {self.flag}"
            )
        self._refuse_foreign(recorded)

    def claim(self, use: Use) -> None:
        """Make the folder ours: check it, delete earlier output if asked to, and write the record.

        Call it inside `locked()`, when everything else that can be refused has been checked.
        """
        self.check(use)
        recorded = self._recorded_names() or []
        if use == "replace":
            self._delete(recorded)
            recorded = []
        names = list(dict.fromkeys([*recorded, *self.names]))
        write_json(self.path / RECORD, {"kind": self.kind, "format": FORMAT, "names": names})
        for folder in self._folders_of_ours(names):
            remove_drafts(folder)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error.strerror) from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise self._unwritable("permission denied")

    def _unwritable(self, reason: str | None) -> OSError:
        return OSError(f"output {self.path} cannot be written: {reason}; choose another {self.flag}")

    def _undo_making(self, existed: bool) -> None:
        """Leave nothing behind in a folder that was not claimed."""
        (self.path / LOCK).unlink(missing_ok=True)
        if not existed and not any(self.path.iterdir()):
            self.path.rmdir()

    def _recorded_names(self) -> list[str] | None:
        """The patterns of the record, or None where there is no record; records that do not fit are refused."""
        file = self.path / RECORD
        if not file.is_file():
            return None
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            kind, number, names = record["kind"], record["format"], record["names"]
            readable = isinstance(names, list) and all(isinstance(name, str) for name in (kind, *names))
        except (ValueError, KeyError, TypeError):
            readable = False
        if not readable:
            raise ValueError(
                f"{file} is damaged, so that nothing says which files in the folder may be replaced: choose another "
                f"{self.flag}"
            )
        if number != FORMAT:
            raise ValueError(
                f"{file} has format {number!r}, but this release knows format {FORMAT} only: use the release that "
                f"wrote it, or choose another {self.flag}"
            )
        if kind != self.kind:
            raise FileExistsError(
                f"{self.path} holds the output of {_with_article(kind)}, expected that of {_with_article(self.kind)}: "
                f"choose another {self.flag}"
            )
        return names

    def _not_ours(self, foreign: str, use: Use) -> str:
        what = {
            "new": "it is not empty",
            "continue": f"it is not an earlier {self.kind}",
            "replace": "nothing says that its files may be deleted",
        }[use]
        return (
            f"{self.path} is left alone: it holds {foreign!r} but no record of {_with_article(self.kind)}, so {what}. "
            f"Choose another {self.flag}, or move its files away"
        )

    def _first_entry(self) -> str | None:
        """The first entry of the folder that says that somebody uses it."""
        if not self.path.is_dir():
            return None
        names = sorted(path.name for path in self.path.iterdir() if path.name != LOCK and not is_draft(path))
        return names[0] if names else None

    def _refuse_foreign(self, recorded: list[str]) -> None:
        """Refuse names that are to be written but hold somebody else's file, or a link to another place."""
        wanted, ours = _matcher(self.names), _matcher(recorded)
        for path in self._below():
            if (self.path / path).is_symlink() and _concerns(path, [*self.names, *recorded]):
                raise FileExistsError(
                    f"{self.path / path} is a link, and nothing is written through links: remove it, or choose another "
                    f"{self.flag}"
                )
            if wanted(path) and not ours(path):
                raise FileExistsError(
                    f"{self.path / path} is not of an earlier {self.kind}, so it is not replaced: move it away, or "
                    f"choose another {self.flag}"
                )

    def _below(self) -> list[str]:
        """Paths of everything below the folder but its record, its lock and drafts; links are not followed."""
        found: list[str] = []
        for folder, folders, files in os.walk(self.path):
            below = Path(folder)
            links = [name for name in folders if (below / name).is_symlink()]
            for name in (*links, *files):
                if not is_draft(below / name):
                    found.append((below / name).relative_to(self.path).as_posix())
            folders[:] = [name for name in folders if not is_draft(below / name)]
        return sorted(path for path in found if path not in (RECORD, LOCK))

    def _delete(self, names: list[str]) -> None:
        """Delete the recorded files, those named last first, and the folders that this leaves empty."""
        position = _positions(names)
        ours = {path: position(path) for path in self._below() if not (self.path / path).is_symlink()}
        ours = {path: place for path, place in ours.items() if place is not None}
        for path in sorted(ours, key=ours.__getitem__, reverse=True):
            (self.path / path).unlink(missing_ok=True)
        parents = {parent for path in ours for parent in Path(path).parents if parent != Path()}
        for parent in sorted(parents, key=lambda folder: len(folder.parts), reverse=True):
            remove_drafts(self.path / parent)
            if not any((self.path / parent).iterdir()):
                (self.path / parent).rmdir()

    def _folders_of_ours(self, names: list[str]) -> list[Path]:
        """The folder itself, and every folder below it in which files of ours may lie."""
        below = [Path(folder) for folder, _, _ in os.walk(self.path)]
        return [folder for folder in below if _concerns(folder.relative_to(self.path).as_posix(), names)]


def _with_article(kind: str) -> str:
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


def _positions(patterns: list[str]) -> Callable[[str], int | None]:
    """A function that returns the position of the pattern that a path matches, or None.

    Plain names, of which there may be thousands, are looked up at once.
    """
    plain = {pattern: place for place, pattern in enumerate(patterns) if not set(pattern) & set("*?[")}
    globs = [(place, re.compile(fnmatch.translate(name))) for place, name in enumerate(patterns) if name not in plain]
    return lambda path: plain.get(path, next((place for place, glob in globs if glob.match(path)), None))


def _matcher(patterns: list[str]) -> Callable[[str], bool]:
    position = _positions(patterns)
    return lambda path: position(path) is not None


def _concerns(path: str, patterns: list[str]) -> bool:
    """Whether a file that the patterns name is, or would be, at `path` or below it."""
    inside = any(pattern.startswith(f"{path}/") for pattern in patterns)
    return path == "." or inside or _matcher(patterns)(path)
