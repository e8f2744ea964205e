"""A whole run: data and network, training, test, and the folder that is left.

output/
  model/             the result with its card: timm, transformers and pipelines load it, `softcam-hub push` publishes it
  vanilla/           from-scratch and post-fit: the vanilla classifier that CAPE learnt from
  metrics.json       scores of the result on the test split, and what the run took
  curve.png          accuracy and loss of every epoch
  examples.png       explained test images, with their ground truth
  log.jsonl          every logged value
  settings.yaml      a recipe that gives this run again
  checkpoints/       the last checkpoint, for --resume
"""

import logging
import platform
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator, PartialState
from timm.data import resolve_data_config
from torch import nn
from transformers.utils.logging import disable_progress_bar

from ..data.samples import ImageDataset, Samples
from ..data.splits import Splits, load_splits
from ..data.streaming import EndlessImageDataset, StreamedImageDataset
from ..data.transforms import make_transforms, mask_transform
from ..files import copy_file
from ..models.classifier import Classifier
from ..models.conversion import to_vanilla
from ..models.evaluation_mode import evaluation_mode
from ..output_folder import LOCK, RECORD, OutputFolder
from ..temperature import candidate_losses, set_temperature
from .checks import check_choices, check_launcher
from .config import Config
from .feature_cache import cached_features
from .folder import (
    METRICS,
    SETTINGS_FILE,
    check_room,
    check_settings,
    check_shared,
    intended_use,
    output_folder,
    read_metrics,
    write_settings,
)
from .loop import LOWER_IS_BETTER, Training, prepare_loader
from .metrics import score_model
from .objective import VanillaForTraining, load_model, make_model
from .reporting import (
    LOG_FILE,
    JSONLines,
    check_trackers,
    complete_model_folder,
    draw_curve,
    draw_examples,
    start_trackers,
    write_metrics,
)

logger = logging.getLogger(__name__)


def run(config: Config) -> dict[str, Any]:
    """Train, test and write everything to `config.run.output`; the metrics of the result."""
    check_launcher()
    output = Path(config.run.output)
    if config.run.resume and not output.is_dir():
        raise FileNotFoundError(f"there is no run in {output} to go on with: leave --resume out, or check --output")
    disable_progress_bar()  # of transformers, for the loading and saving of every model
    metrics = _run(config)
    PartialState().destroy_process_group()
    return metrics


def _run(config: Config, splits: Splits | None = None) -> dict[str, Any]:
    """What fills one folder; with temperatures to choose from it calls itself for the folder of each."""
    began, output = time.monotonic(), Path(config.run.output)
    accelerator = make_accelerator(config, output)
    folder = output_folder(config)
    with folder.locked(intended_use(config)) if accelerator.is_main_process else nullcontext():
        return _fill(folder, config, accelerator, splits, began)


def _fill(
    folder: OutputFolder, config: Config, accelerator: Accelerator, splits: Splits | None, began: float
) -> dict[str, Any]:
    """Check everything that can be refused, claim the folder, and train.

    Args:
        folder: Output folder, locked by the main process.
        config: Settings of the run.
        accelerator: Accelerator of this process.
        splits: Data, where they have been loaded already.
        began: Time at which the run began.
    """
    output = folder.path
    check_settings(config)
    accelerator.wait_for_everyone()
    if config.run.resume and (output / METRICS).exists():
        accelerator.print(f"{output} holds a finished run")
        if accelerator.is_main_process and (output / RECORD).is_file():
            shutil.rmtree(output / "best", ignore_errors=True)  # a run that was killed at the very end has left it
        return read_metrics(output)
    splits = splits or load_splits(config.data)
    model = make_model(config, splits)
    check_choices(config, splits, model)
    if accelerator.is_main_process:
        check_room(model, output)
        folder.claim(intended_use(config))
        write_settings(config)
    accelerator.wait_for_everyone()
    check_shared(output)
    if config.model.candidates():
        return _choose_temperature(config, accelerator, splits)
    return _train(config, accelerator, splits, model, began)


def _choose_temperature(config: Config, accelerator: Accelerator, splits: Splits) -> dict[str, Any]:
    """One run for each temperature, in a folder of its own; the best on validation becomes the result."""
    output, found = Path(config.run.output), {}
    for value in config.model.candidates():
        model = replace(config.model, temperature=value, temperatures="")
        cache = config.run.cache_dir or str(output / "features")
        tried = replace(config.run, output=str(output / f"T={value:g}"), cache_dir=cache)
        found[value] = _run(replace(config, model=model, run=tried), splits)
    name = f"validation_{config.run.select}"
    best = (min if config.run.select in LOWER_IS_BETTER else max)(found, key=lambda value: found[value][name])
    metrics = {**found[best], "temperature": best, "tried": {f"{value:g}": row[name] for value, row in found.items()}}
    if accelerator.is_main_process:
        _copy_result(output / f"T={best:g}", output)
        write_metrics(metrics, output / METRICS)
    accelerator.wait_for_everyone()
    return metrics


def _copy_result(source: Path, target: Path) -> None:
    """Copy models, pictures, log and tracker logs of a run, but not what makes it a run of its own."""
    own = ("checkpoints", SETTINGS_FILE, METRICS, RECORD, LOCK)
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        relative = file.relative_to(source)
        if relative.parts[0] not in own:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            copy_file(file, target / relative)


def _train(config: Config, accelerator: Accelerator, splits: Splits, model: nn.Module, began: float) -> dict[str, Any]:
    start_trackers(accelerator, config.flat())
    training = prepare_training(config, accelerator, splits, model)
    training.began = began
    if config.run.resume:
        training.resume()
        accelerator.print(f"going on after update {training.step}")
    training.fit()
    result = _load_result(training, splits)
    fitted = {"fitted_temperature": _fit_temperature(training, result)} if config.model.calibrate else {}
    metrics = {"model": config.model.model, "data": config.data.data, **fitted, **_scores(training, result, splits)}
    metrics |= {"seconds": round(training.seconds, 1), "processes": accelerator.num_processes, **_versions()}
    accelerator.wait_for_everyone()  # has loaded what is tidied away now
    if accelerator.is_main_process:
        _write_results(training, result, splits, metrics)
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    return metrics


def make_accelerator(config: Config, output: Path) -> Accelerator:
    trackers = check_trackers(config.run.trackers)
    return Accelerator(
        mixed_precision=config.run.mixed_precision,
        gradient_accumulation_steps=config.optimization.accumulation,
        log_with=[*trackers, JSONLines(output / LOG_FILE)],
        project_dir=str(output),
    )


def prepare_training(config: Config, accelerator: Accelerator, splits: Splits, model: nn.Module) -> Training:
    output = Path(config.run.output)
    train_transform, eval_transform = _transforms(config, model)
    frozen = config.model.frozen and config.model.family is not None
    model.to(accelerator.device)
    if isinstance(splits.train, Samples):
        train = ImageDataset(splits.train, train_transform, config.run.seed)
        labels = splits.train.labels
    else:
        once = StreamedImageDataset(splits.train, train_transform, config.run.seed)
        train, labels = EndlessImageDataset(once, config.optimization.batch_size), None
    validation = None if splits.validation is None else ImageDataset(splits.validation, eval_transform)
    if frozen and config.run.cache_features and not config.augmentation.augment and labels is not None:
        folder = Path(config.run.cache_dir or output / "features")
        options = (accelerator, folder, config.run.cache_limit, config.optimization.batch_size, config.run.workers)
        train = cached_features(model, ImageDataset(splits.train, eval_transform), *options)
        validation = None if validation is None else cached_features(model, validation, *options, beside=train)
    return Training(config, accelerator, model, train, validation, labels, output)


def _transforms(config: Config, model: nn.Module) -> tuple[Any, Any]:
    return make_transforms(_data_config(model), config.augmentation)


def _data_config(model: nn.Module) -> dict[str, Any]:
    return resolve_data_config({}, pretrained_cfg=dict(model.pretrained_cfg))


def _load_result(training: Training, splits: Splits) -> nn.Module:
    """The model that counts, as anyone has it who loads it."""
    if training.best is None:
        training.keep_result(training.epoch)
    training.accelerator.wait_for_everyone()
    return load_model(_best_folder(training), splits).to(training.accelerator.device)


def _best_folder(training: Training) -> Path:
    """Folder of the model that counts: the best epoch's, or the last one's where there is no validation split."""
    return training.checkpoints.best_folder(training.epoch if training.best is None else training.best["epoch"])


@torch.no_grad()
def _fit_temperature(training: Training, result: nn.Module) -> float:
    accelerator, losses = training.accelerator, []
    with evaluation_mode(result):
        for batch in training.validation:
            with accelerator.autocast():
                features = batch["features"] if "features" in batch else result.forward_features(batch["pixel_values"])
                _, evidence = result.head(features, kind="evidence")
            losses.append(accelerator.gather_for_metrics(candidate_losses(result.head, evidence, batch["labels"])))
    return set_temperature(result.head, torch.cat(losses))


def _scores(training: Training, result: nn.Module, splits: Splits) -> dict[str, Any]:
    config, accelerator = training.config, training.accelerator
    scores = {} if training.best is None else {f"validation_{config.run.select}": training.best["value"]}
    scores["epoch"] = config.optimization.epochs if training.best is None else training.best["epoch"]
    if splits.test is not None:
        loader = prepare_loader(_test_samples(config, splits, result), config, accelerator)
        scores |= {f"test_{name}": value for name, value in score_model(result, loader, accelerator).items()}
        training.check_score("the test loss", scores["test_loss"])
    return scores


def _test_samples(config: Config, splits: Splits, model: nn.Module, with_masks: bool = False) -> ImageDataset:
    data_config = _data_config(model)
    transform = make_transforms(data_config, config.augmentation)[1]
    masks = mask_transform(data_config, config.augmentation) if with_masks and splits.test.has_masks else None
    return ImageDataset(splits.test, transform, masks=masks)


def _save_vanilla(best: Path, result: nn.Module, folder: Path, classes: list[str]) -> None:
    """The vanilla timm model with the teacher's classifier, where the architecture has one."""
    if not result.exact:
        return
    timm_model = timm.create_model(f"local-dir:{best}", pretrained=True)
    assert isinstance(timm_model, Classifier)
    timm_model.head.weight.data.copy_(result.teacher.weight.data)
    timm_model.head.bias.data.copy_(result.teacher.bias.data)
    VanillaForTraining(to_vanilla(timm_model), False, classes).save_pretrained(folder)


def _write_results(training: Training, result: nn.Module, splits: Splits, metrics: dict[str, Any]) -> None:
    """Models, scores, pictures and the card; the scores in the run's own folder come last, and say that it is done."""
    output, family = training.output, training.config.model.family
    if getattr(result, "teacher", None) is not None:
        _save_vanilla(_best_folder(training), result, output / "vanilla", splits.classes)
        result.drop_teacher()
    result.save_pretrained(output / "model")
    write_metrics(metrics, output / "model" / METRICS)
    _draw_pictures(training, result, splits)
    complete_model_folder(output, family is not None)
    write_metrics(metrics, output / METRICS)
    shutil.rmtree(training.checkpoints.best)
    scores = {name: value for name, value in metrics.items() if name.startswith("test_")}
    training.accelerator.print("  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items()))
    training.accelerator.print(f"model in {output / 'model'}, metrics in {output / METRICS}")


def _draw_pictures(training: Training, result: nn.Module, splits: Splits) -> None:
    """The pictures of a run. Masks and boxes are first looked at here: a wrong one costs a picture, not the run."""
    config, output = training.config, training.output
    try:
        draw_curve(output / LOG_FILE, output / "curve.png")
        if config.model.family is not None and splits.test is not None and not splits.multi_label:
            draw_examples(result, _test_samples(config, splits, result, True), splits.classes, output / "examples.png")
    except Exception as error:
        logger.warning("not all pictures of %s could be drawn: %s", output, error)


def _versions() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {"device": device, "torch": torch.__version__, "timm": timm.__version__}
