"""The output folder of a training run: its files, its settings, and the checks before a run uses it.

- Nothing of an earlier run is removed before data, model and disk have passed all checks.
"""

import shutil
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..files import read_mapping, write_text
from ..hub.cards import METRICS, PICTURES, RECIPE, WITHOUT_INFLUENCE
from ..output_folder import LOCK, RECORD, OutputFolder, Use
from .cache_folder import INDEX
from .checkpoint import AVERAGE, CHECKPOINT, DIGESTS, PROGRESS
from .config import DEPENDENT, Config, as_recorded
from .reporting import LOG_FILE, TRACKER_FOLDER

SETTINGS_FILE = "settings.yaml"
"""The first file that a run writes, after the record of the folder. METRICS is the last one."""

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")

CHECKPOINT_FILES = (
    *(PROGRESS, AVERAGE, DIGESTS, *WEIGHTS),
    *("optimizer*.bin", "scheduler*.bin", "sampler*.bin", "dl_state_dict*.bin", "random_states_*.pkl", "scaler*.pt"),
)
"""Names of our files in a checkpoint, and of those of Accelerate."""

CACHE_FILES = (RECORD, INDEX, "*.bin")

DIGIT, HEX_DIGIT = "[0-9]", "[0-9a-f]"

MODEL_CODE = Path(__file__).parents[1] / "models"
"""Code that every model folder holds a copy of."""


def settings_behind(source: str) -> tuple[Path, dict[str, Any]] | None:
    """Find the settings of the run that trained a model, and the file that holds them.

    They lie beside the model, and in the folder of the run around it, which also has the folder `vanilla/`.

    Args:
        source: Model folder or file of weights, with or without timm's prefix `local-dir:`. Nothing is known of others.

    Raises:
        ValueError: The file is damaged.
    """
    folder = Path(source.removeprefix("local-dir:")).expanduser()
    if not folder.exists():
        return None
    if folder.is_file():
        folder = folder.parent
    for file in (folder / RECIPE, folder.parent / SETTINGS_FILE):
        if file.is_file():
            settings = read_mapping(file, "mend the file, or copy the model out of its run")
            if {"model", "data"} <= settings.keys():  # a file of that name may be the user's own
                return file, settings
    return None


def intended_use(config: Config) -> Use:
    """Return what the settings ask to be done with the output folder."""
    if config.run.resume:
        return "continue"
    return "replace" if config.run.overwrite else "new"


def output_folder(config: Config) -> OutputFolder:
    """Return the output folder of a run, with the names of all files that a run may write."""
    code = [file.name for file in MODEL_CODE.glob("*.py")]
    files_of_model = ["config.json", *WEIGHTS, "README.md", METRICS, RECIPE, *PICTURES, *code]
    names = [SETTINGS_FILE, METRICS, LOG_FILE, *PICTURES]
    names += [f"model/{name}" for name in files_of_model]
    names += [f"vanilla/{name}" for name in ("config.json", *WEIGHTS)]
    names += [f"best/epoch-{DIGIT * 6}/{name}" for name in (*files_of_model, DIGESTS)]
    names += [f"checkpoints/step-{DIGIT * 9}/{name}" for name in CHECKPOINT_FILES]
    names += [f"features/{HEX_DIGIT * 32}/{name}" for name in CACHE_FILES]
    names += [f"{TRACKER_FOLDER}/*"]
    tried = [f"T={temperature:g}" for temperature in config.model.candidates()]
    names += [f"{folder}/{name}" for folder in tried for name in (*names, RECORD, LOCK)]
    # runs from before there were records called the folder of the vanilla classifier `twin`
    older_names = [name.replace("vanilla/", "twin/") for name in names]
    return OutputFolder(
        config.run.output, "training run", names, recognise=is_older_run, older_names=older_names, resumes=True
    )


def is_older_run(path: Path) -> bool:
    """Tell whether a folder without a record is a training run made before there were records."""
    try:
        settings = read_settings(path / SETTINGS_FILE)
    except (ValueError, OSError):
        return False
    checkpoints, best = path / "checkpoints", path / "best"
    names = [file.name for file in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return (
        {"model", "data", "mode", "epochs", "seed", "output"} <= settings.keys() <= Config().flat().keys()
        and all(CHECKPOINT.fullmatch(name) for name in names)
        and (not best.exists() or (best / "config.json").is_file())
    )


def read_settings(file: Path) -> dict[str, Any]:
    """Read the settings of an earlier run; a damaged file is refused with advice."""
    advice = "restore it, or start the run again with --overwrite"
    settings = read_mapping(file, advice)
    if not {"model", "data"} <= settings.keys():
        raise ValueError(
            f"{file} does not hold the settings of a run: expected lines such as 'model: cape_resnet18'; {advice}"
        )
    return settings


def continue_settings(config: Config) -> Config:
    """Return the settings with which a resumed run continues, and refuse settings that would change its result.

    Settings whose default depends on data and weights, or was another one when the run began, are those that the run
    has recorded, unless the user names them now.
    """
    file = Path(config.run.output) / SETTINGS_FILE
    if not config.run.resume or not file.exists():
        return config
    # a setting that did not exist when the run began had the effect of its default
    defaults = Config().flat()
    earlier = {**defaults, **as_recorded(read_settings(file))}
    dependent = {name: earlier[name] for name in DEPENDENT if config.flat()[name] == defaults[name]}
    config = config.changed(**dependent)
    for name, value in config.flat().items():
        if name not in WITHOUT_INFLUENCE and earlier[name] != value:
            raise ValueError(
                f"cannot resume: {file} says {name}={earlier[name]!r}, but now it is {value!r}; use the same "
                "settings, or --overwrite"
            )
    return config


def read_metrics(output: Path) -> dict[str, Any]:
    """Read the metrics of a finished run; a damaged file is refused with advice."""
    file = output / METRICS
    return read_mapping(file, f"the folder of the model has a copy of it: cp {output / 'model' / METRICS} {file}")


def write_settings(config: Config) -> None:
    """Write the settings of a run, as a recipe that repeats it."""
    settings = {name: value for name, value in config.flat().items() if name not in ("resume", "overwrite")}
    write_text(Path(config.run.output) / SETTINGS_FILE, yaml.safe_dump(settings, sort_keys=False))


def check_shared(output: Path) -> None:
    """Refuse an output folder in which this process does not see the files of the main process."""
    if not (output / SETTINGS_FILE).exists():
        raise FileNotFoundError(
            f"this process does not see {output / SETTINGS_FILE}, which the main process wrote: all "
            "processes need one shared storage for --output, also those on other machines"
        )


def check_disk_space(model: nn.Module, output: Path) -> None:
    """Refuse a disk without room for three checkpoints (two are kept) and four copies of the model."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    needed, free = (3 * 4 + 4) * size, shutil.disk_usage(output).free
    if free < needed:
        raise OSError(
            f"{output} has {free / 1e9:.1f} GB left, but checkpoints and models take up to "
            f"{needed / 1e9:.1f} GB: choose another --output"
        )
