"""The folder of a training run: which files in it are the run's, and whether a new run may use it.

- Nothing of an earlier run is removed before data, network and disk have been found good.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..files import read_mapping, write_text
from ..hub.cards import METRICS, PICTURES, RECIPE
from ..output_folder import OutputFolder, Use
from .config import Config
from .reporting import LOG_FILE, TRACKER_FOLDER

SETTINGS_FILE = "settings.yaml"
"""The first file that a run writes, after the record; METRICS is the last."""

FREE_TO_CHANGE = (
    *("resume", "overwrite", "workers", "trackers", "log_steps", "checkpoint_steps"),
    *("cache_features", "cache_dir", "cache_limit", "output"),
)
"""Settings that a resumed run may have otherwise: they do not change what is learnt."""

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")

MODELS = Path(__file__).parents[1] / "models"
"""Code that a model folder holds a copy of."""

STEP = re.compile(r"step-\d{9}(\.unfinished)?")


def intended_use(config: Config) -> Use:
    """What the settings ask to be done with the output folder."""
    if config.run.resume:
        return "continue"
    return "replace" if config.run.overwrite else "new"


def output_folder(config: Config) -> OutputFolder:
    """The output folder of a run, with the names of all files that a run may write."""
    code = [file.name for file in MODELS.glob("*.py")]
    beside = ["config.json", *WEIGHTS, "README.md", METRICS, RECIPE, *PICTURES, *code]
    names = [SETTINGS_FILE, METRICS, LOG_FILE, *PICTURES]
    names += [f"model/{name}" for name in beside]
    names += [f"vanilla/{name}" for name in ("config.json", *WEIGHTS)]
    names += ["best/*", "checkpoints/*", "features/*", f"{TRACKER_FOLDER}/*"]
    names += [f"T={temperature:g}/*" for temperature in config.model.candidates()]
    return OutputFolder(config.run.output, "training run", names, recognise=is_older_run)


def is_older_run(path: Path) -> bool:
    """Tell whether a folder without a record is a training run made before there were records."""
    try:
        settings = read_settings(path / SETTINGS_FILE)
    except (ValueError, OSError):
        return False
    checkpoints = [file.name for file in (path / "checkpoints").iterdir()] if (path / "checkpoints").is_dir() else []
    best = path / "best"
    return (
        {"model", "data", "mode", "epochs", "seed", "output"} <= settings.keys() <= Config().flat().keys()
        and all(STEP.fullmatch(name) for name in checkpoints)
        and (not best.exists() or (best / "config.json").is_file())
    )


def read_settings(file: Path) -> dict[str, Any]:
    """Read the settings of an earlier run, or raise a ValueError that names the file and says what to do."""
    advice = "restore it, or start the run again with --overwrite"
    settings = read_mapping(file, advice)
    if not {"model", "data"} <= settings.keys():
        raise ValueError(
            f"{file} does not hold the settings of a run: expected lines such as 'model: cape_resnet18'; {advice}"
        )
    return settings


def check_settings(config: Config) -> None:
    """Refuse to resume a run with settings under which it would have learnt something else."""
    file = Path(config.run.output) / SETTINGS_FILE
    if not config.run.resume or not file.exists():
        return
    before = {**Config().flat(), **read_settings(file)}  # a setting that was not there yet had its default's effect
    now = config.flat()
    changed = [name for name in now if name not in FREE_TO_CHANGE and before[name] != now[name]]
    if changed:
        name = changed[0]
        raise ValueError(
            f"cannot resume: {file} says {name}={before[name]!r}, but now it is {now[name]!r}; use the same "
            "settings, or --overwrite"
        )


def read_metrics(output: Path) -> dict[str, Any]:
    """Read the metrics of a finished run, or raise a ValueError that names the file and says what to do."""
    return read_mapping(output / METRICS, "delete it to have the end of the run written again by --resume")


def write_settings(config: Config) -> None:
    """Write the settings of this run, which are a recipe that gives it again."""
    kept = {name: value for name, value in config.flat().items() if name not in ("resume", "overwrite")}
    write_text(Path(config.run.output) / SETTINGS_FILE, yaml.safe_dump(kept, sort_keys=False))


def check_shared(output: Path) -> None:
    """Refuse a folder in which this process does not see what the main process wrote."""
    if not (output / SETTINGS_FILE).exists():
        raise FileNotFoundError(
            f"{output / SETTINGS_FILE}, which the main process wrote, is not there for this one: all processes need "
            "one shared storage for --output, also those on other machines"
        )


def check_room(model: nn.Module, output: Path) -> None:
    """Refuse a disk without room for three checkpoints (two are kept) and four copies of the model."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    needed, free = (3 * 4 + 4) * size, shutil.disk_usage(output).free
    if free < needed:
        raise OSError(
            f"{output} has {free / 1e9:.1f} GB left, but checkpoints and models take up to {needed / 1e9:.1f} GB: "
            "choose another --output"
        )
