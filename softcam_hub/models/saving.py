"""Write a model folder so that a crash leaves the old model or the new one, and never a mixture."""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

SAVED_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""Names under which transformers saves weights."""


def save_in_one_go(save: Callable[[str], None], target: Path) -> None:
    """Write files into a draft folder, then move them to their place.

    Args:
        save: Function that writes the files into the folder that it is given.
        target: Folder of the model, which exists. Files there stay as they are until all new ones are written.
    """
    with tempfile.TemporaryDirectory(dir=target, prefix=".softcam_hub.unfinished-") as draft:
        save(draft)
        written = sorted(file.name for file in Path(draft).iterdir())
        for name in written:
            _flush(Path(draft, name))
        for name in written:
            os.replace(Path(draft, name), target / name)
    if any(name.endswith(".safetensors") for name in written):
        for old in target.iterdir():  # readers would pick up the shards of an earlier save beside the new weights
            if SAVED_WEIGHTS.fullmatch(old.name) and old.name not in written:
                old.unlink()


def _flush(file: Path) -> None:
    """Wait until a file is on the disk: a rename may otherwise overtake its content."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
