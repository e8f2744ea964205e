"""Run a whole training: data and model, checks, training, test, and the output folder.

output/
  model/          the result with its card; timm, transformers and pipelines load it, `softcam-hub push` publishes it
  vanilla/        modes from-scratch and post-fit: the vanilla classifier that CAPE has learnt from
  metrics.json    scores of the result on the test split or, without one, on the validation split; time and versions
  curve.png       accuracy and loss of every epoch
  examples.png    explained images of the same split, with their ground truth
  log.jsonl       every logged value
  settings.yaml   a recipe that repeats the run
  checkpoints/    the last checkpoints, for --resume
  features/       the features of a frozen backbone, unless --cache-dir names another folder
  T=1/, T=2/, ... one run for each of --temperatures, of which the best one becomes the result
  best/           the best weights so far, while the run goes on
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from torch import nn
from transformers.utils.logging import disable_progress_bar

from ..data.samples import ImageDataset, Samples
from ..data.splits import Splits, load_splits
from ..data.streaming import EndlessImageDataset, StreamedImageDataset
from ..data.transforms import make_transforms
from ..files import copy_file
from ..output_folder import LOCK, RECORD, OutputFolder, in_main_process
from .alignment import align_result
from .checkpoint import delete_best
from .checks import check_launcher, check_run
from .config import LOWER_IS_BETTER, Config
from .feature_cache import cached_features, caches_features
from .folder import (
    METRICS,
    SETTINGS_FILE,
    check_disk_space,
    check_shared,
    continue_settings,
    intended_use,
    output_folder,
    read_metrics,
    write_settings,
)
from .loop import Training
from .model import load_model, make_model
from .reporting import (
    LOG_FILE,
    JSONLines,
    check_trackers,
    start_trackers,
    write_metrics,
)
from .results import data_config, describe_machine, fit_temperature, score_result, write_results
from .start import find_start
from .summary import describe_run, warn_of_surprises


def run(config: Config) -> dict[str, Any]:
    """Train and test a model, and write everything to the output folder.

    Args:
        config: Settings from `make_config` or `parse`.

    Returns:
        The metrics of the result, as in metrics.json.
    """
    check_launcher()
    output = Path(config.run.output)
    if config.run.resume and not output.is_dir():
        raise FileNotFoundError(f"there is no run in {output} to continue: leave --resume out, or check --output")
    disable_progress_bar()  # transformers would show one whenever a model is loaded or saved
    metrics = _run_in_folder(config)
    PartialState().destroy_process_group()
    return metrics


def _run_in_folder(config: Config, splits: Splits | None = None) -> dict[str, Any]:
    """Lock one output folder and run in it; the search for a temperature has a folder for each value."""
    began = time.monotonic()
    accelerator = make_accelerator(config, Path(config.run.output))
    folder = output_folder(config)
    with ExitStack() as stack:
        in_main_process(accelerator, lambda: stack.enter_context(folder.locked(intended_use(config))))
        return _check_and_train(folder, config, accelerator, splits, began)


def make_accelerator(config: Config, output: Path) -> Accelerator:
    """Create the Accelerator of this process, with the log and the trackers of the run."""
    trackers = check_trackers(config.run.trackers)
    return Accelerator(
        mixed_precision=config.run.mixed_precision,
        gradient_accumulation_steps=config.optimization.accumulation,
        log_with=[*trackers, JSONLines(output / LOG_FILE)],
        project_dir=str(output),
    )


def _check_and_train(
    folder: OutputFolder, config: Config, accelerator: Accelerator, splits: Splits | None, began: float
) -> dict[str, Any]:
    """Check everything that can be refused, claim the folder, and train.

    Args:
        folder: Output folder, locked by the main process.
        config: Settings of the run.
        accelerator: Accelerator of this process.
        splits: Data, if they have been loaded already.
        began: Time at which the run began.
    """
    output = folder.path
    config = continue_settings(config)
    accelerator.wait_for_everyone()
    if config.run.resume and (output / METRICS).exists():
        accelerator.print(f"{output} holds a finished run")
        metrics = read_metrics(output)
        if accelerator.is_main_process and (output / RECORD).is_file():
            delete_best(output / "best")  # left by a kill at the very end of the run
        return metrics

    # nothing is written before data, model and settings have been found to fit each other
    splits = splits or load_splits(config.data)
    start = find_start(config.model, splits.classes)
    model = make_model(config, splits, start)
    given, config = config, config.changed(hold_out=splits.held_out)
    check_run(config, splits, model, accelerator.num_processes, start)
    if accelerator.is_main_process:
        accelerator.print(describe_run(config, splits, model, start, accelerator))
        warn_of_surprises(given, splits, start)
    in_main_process(accelerator, lambda: _claim(folder, config, model))
    check_shared(output)

    if config.model.candidates():
        return _choose_temperature(config, accelerator, splits)
    return _train(config, accelerator, splits, model, began)


def _claim(folder: OutputFolder, config: Config, model: nn.Module) -> None:
    """Make the folder that of this run, if the disk has room for it."""
    check_disk_space(model, folder.path)
    folder.claim(intended_use(config))
    write_settings(config)


def _choose_temperature(config: Config, accelerator: Accelerator, splits: Splits) -> dict[str, Any]:
    """Train with each temperature in a folder of its own, and copy the result with the best validation."""
    output = Path(config.run.output)
    metrics_by_temperature = {}
    for temperature in config.model.candidates():
        model = replace(config.model, temperature=temperature, temperatures="")
        cache_dir = config.run.cache_dir or str(output / "features")  # the features do not depend on T
        run_config = replace(config.run, output=str(output / f"T={temperature:g}"), cache_dir=cache_dir)
        one_config = replace(config, model=model, run=run_config)
        metrics_by_temperature[temperature] = _run_in_folder(one_config, splits)

    name = f"validation_{config.run.select}"
    scores = {temperature: metrics[name] for temperature, metrics in metrics_by_temperature.items()}
    choose = min if config.run.select in LOWER_IS_BETTER else max
    best = choose(scores, key=scores.__getitem__)
    tried = {f"{temperature:g}": score for temperature, score in scores.items()}
    metrics = {**metrics_by_temperature[best], "temperature": best, "tried": tried}
    if accelerator.is_main_process:
        _copy_result(output / f"T={best:g}", output_folder(config))
        write_metrics(metrics, output / METRICS)
    accelerator.wait_for_everyone()
    return metrics


def _copy_result(source: Path, target: OutputFolder) -> None:
    """Copy models, pictures and logs of a run, but neither the files by which it is resumed nor files of the user."""
    not_copied = ("checkpoints", SETTINGS_FILE, METRICS, RECORD, LOCK)
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        relative = file.relative_to(source)
        if relative.parts[0] not in not_copied and target.writes(relative):
            (target.path / relative).parent.mkdir(parents=True, exist_ok=True)
            copy_file(file, target.path / relative)


def _train(config: Config, accelerator: Accelerator, splits: Splits, model: nn.Module, began: float) -> dict[str, Any]:
    """Train, test the result, and write it."""
    start_trackers(accelerator, config.flat())
    training = prepare_training(config, accelerator, splits, model)
    training.began = began
    if config.run.resume:
        training.resume()
        accelerator.print(f"continuing after update {training.step}")
    training.fit()

    # the result is tested as it is loaded from its folder
    best_folder = _save_best(training)
    result = load_model(best_folder, splits).to(accelerator.device)
    metrics: dict[str, Any] = {"model": config.model.model, "data": config.data.data}
    if config.model.calibrate:
        metrics["fitted_temperature"] = fit_temperature(training, result)
    metrics |= score_result(training, result, splits)
    if config.model.family is not None:
        _, transform = make_transforms(data_config(result), config.augmentation)
        metrics |= align_result(training, result, splits, transform)
    metrics |= {"seconds": round(training.seconds, 1), "processes": accelerator.num_processes}
    metrics |= describe_machine()

    accelerator.wait_for_everyone()  # all processes have loaded the model that is deleted now
    if accelerator.is_main_process:
        write_results(training, result, splits, metrics, best_folder)
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    return metrics


def prepare_training(config: Config, accelerator: Accelerator, splits: Splits, model: nn.Module) -> Training:
    """Create the data sets of a run, with cached features where the settings admit them, and its training."""
    output = Path(config.run.output)
    train_transform, eval_transform = make_transforms(data_config(model), config.augmentation)
    model.to(accelerator.device)
    if isinstance(splits.train, Samples):
        train, labels = ImageDataset(splits.train, train_transform, config.run.seed), splits.train.labels
    else:
        stream = StreamedImageDataset(splits.train, train_transform, config.run.seed)
        train, labels = EndlessImageDataset(stream, config.optimization.batch_size), None
    validation = None if splits.validation is None else ImageDataset(splits.validation, eval_transform)

    if caches_features(config, splits):
        folder = Path(config.run.cache_dir or output / "features")
        batch_size, workers = config.optimization.batch_size, config.run.workers
        options = (accelerator, folder, config.run.cache_limit, batch_size, workers)
        train = cached_features(model, ImageDataset(splits.train, eval_transform), *options)
        validation = None if validation is None else cached_features(model, validation, *options, keep=train)
    return Training(config, accelerator, model, train, validation, labels, output)


def _save_best(training: Training) -> Path:
    """Return the folder of the best model, or of the last one if there is no validation split."""
    if training.best is None:
        training.keep_result(training.epoch)
    training.accelerator.wait_for_everyone()
    return training.checkpoints.best_folder(training.epoch if training.best is None else training.best["epoch"])
