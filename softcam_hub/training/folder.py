"""The folder of a run: whose it is, and what may be written there.

- Nothing of an earlier run is removed before data, network and disk have been found good.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..records import read_record
from .config import Config
from .log import PROJECT

SETTINGS, METRICS = "settings.yaml", "metrics.json"
"""The first and the last file that a run writes."""

FREE_TO_CHANGE = (
    *("resume", "overwrite", "workers", "trackers", "log_steps", "checkpoint_steps"),
    *("cache_features", "cache_dir", "cache_limit", "output"),
)
"""Settings that a resumed run may have otherwise: they do not change what is learnt."""


def check_output(output: Path, config: Config) -> None:
    """Refuse a folder that cannot be written, or that holds a run which these settings do not go on with."""
    settings = output / SETTINGS
    replaces = config.run.resume or (config.run.overwrite and settings.exists())
    if not replaces and any((output / name).exists() for name in ("checkpoints", "log.jsonl", METRICS)):
        raise FileExistsError(
            f"{output} holds an earlier run: go on with it by --resume, throw it away by --overwrite, or choose "
            "another --output"
        )
    if config.run.resume and settings.exists():
        _check_same(read_record(settings, "start the run again with --overwrite"), config.flat(), settings)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(output, error.strerror) from error
    if not os.access(output, os.W_OK | os.X_OK):
        raise _unwritable(output, "permission denied")


def take(output: Path, config: Config) -> None:
    """Remove what an earlier run left if it is to be overwritten, and write the settings of this one."""
    settings = output / SETTINGS
    if config.run.overwrite and settings.exists():
        for name in ("checkpoints", "best", "model", "twin", PROJECT):
            shutil.rmtree(output / name, ignore_errors=True)
        for name in ("log.jsonl", SETTINGS, METRICS, "curve.png", "examples.png"):
            (output / name).unlink(missing_ok=True)
    kept = {name: value for name, value in config.flat().items() if name not in ("resume", "overwrite")}
    try:
        settings.write_text(yaml.safe_dump(kept, sort_keys=False))
    except OSError as error:
        raise _unwritable(output, error.strerror) from error


def check_shared(output: Path) -> None:
    """Refuse a folder in which this process does not see what the main process wrote."""
    if not (output / SETTINGS).exists():
        raise FileNotFoundError(
            f"{output / SETTINGS}, which the main process wrote, is not there for this one: all processes need one "
            "shared storage for --output, also those on other machines"
        )


def check_room(model: nn.Module, output: Path) -> None:
    """Room for two checkpoints (the old one goes when the new one is whole) and three copies of the model."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    needed, free = (2 * 4 + 3) * size, shutil.disk_usage(output).free
    if free < needed:
        raise OSError(
            f"{output} has {free / 1e9:.1f} GB left, but checkpoints and models take up to {needed / 1e9:.1f} GB: "
            "choose another --output"
        )


def _check_same(before: dict[str, Any], now: dict[str, Any], file: Path) -> None:
    before = {**Config().flat(), **before}  # a setting that was not there yet had the effect of its default
    changed = [name for name in now if name not in FREE_TO_CHANGE and before[name] != now[name]]
    if changed:
        name = changed[0]
        raise ValueError(
            f"cannot resume: {file} says {name}={before[name]!r}, but now it is {now[name]!r}; use the same "
            "settings, or --overwrite"
        )


def _unwritable(output: Path, reason: str | None) -> OSError:
    return OSError(f"output {output} cannot be written: {reason}; choose another --output")
