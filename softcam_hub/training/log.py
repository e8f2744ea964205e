"""The log of a run: JSON lines always, and the trackers that were asked for."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process

from ..files import write_text

PROJECT = "softcam_hub"
"""Folder in which trackers such as TensorBoard keep their logs."""

LOG = "log.jsonl"
HINTS = {"tensorboard": "pip install tensorboard", "wandb": "pip install wandb"}


class JSONLines(GeneralTracker):
    """One line per `log` call, with its update number.

    Args:
        file: that lines are appended to.
    """

    name = "json"
    requires_logging_directory = False

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    @property
    def tracker(self) -> Path:
        return self.file

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """The settings are in a file of their own."""

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        try:
            with self.file.open("a") as file:
                file.write(json.dumps({"step": step, **finite(values)}) + "\n")
        except OSError as error:
            raise OSError(
                f"the log {self.file} could not be written ({error.strerror}): make room, and go on with --resume"
            ) from error

    @on_main_process
    def rewind(self, step: int) -> None:
        """Forget what a run that goes on from `step` will log again."""
        if self.file.exists():
            kept = [line for line in read(self.file) if line["step"] <= step]
            write_text(self.file, "".join(json.dumps(line) + "\n" for line in kept))


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """The same with None for NaN and infinity, which JSON has not."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut off in the middle is left out."""
    lines = []
    for line in file.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def check_trackers(names: str) -> list[str]:
    """The trackers asked for, all of them installed."""
    chosen = names.replace(",", " ").split()
    for name in chosen:
        if name not in HINTS:
            raise ValueError(f"unknown tracker {name!r}: expected {' or '.join(HINTS)}")
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"tracker {name!r} is not installed: {HINTS[name]}")
    return chosen


def start(accelerator: Accelerator, settings: dict[str, Any]) -> None:
    """Begin logging; settings that are unset are left out, as TensorBoard takes no None."""
    accelerator.init_trackers(PROJECT, {k: v for k, v in settings.items() if v is not None})
