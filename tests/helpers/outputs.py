"""Helpers for tests of output folders: files and their contents, a full disk, and a second process."""

import multiprocessing
import resource
from contextlib import contextmanager
from pathlib import Path

from softcam_hub.output_folder import LOCK, OutputFolder


def content(root: Path) -> dict[str, bytes]:
    """Return the bytes of every file below `root` except for the lock, and the targets of links."""
    found = {}
    for path in root.rglob("*"):
        if path.is_symlink():
            found[path.relative_to(root).as_posix()] = b"-> " + bytes(path.readlink())
        elif path.is_file() and path.name != LOCK:
            found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def fill(root: Path, *names: str) -> None:
    """Write files with these names below `root`, each with different content."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"content of {name}")


@contextmanager
def full_disk(size: int):
    """Make every write beyond `size` bytes of a file fail inside the block, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _hold(path, ready, done):
    with OutputFolder(path, "test", ["*"], recognise=lambda path: True).locked("continue"):
        ready.set()
        done.wait(60)


@contextmanager
def used_by_another_process(path: Path):
    """Let another process hold the lock of an empty folder inside the block, as a run in the folder does."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(path, ready, done))
    other.start()
    try:
        assert ready.wait(60)
        yield
    finally:
        done.set()
        other.join()
