"""A whole run: data and network, training, test, and the folder that is left.

output/
  model/             the result with its card: timm, transformers and pipelines load it, `softcam-hub push` publishes it
  twin/              from-scratch and post-fit: the vanilla classifier that CAPE learnt from
  metrics.json       scores of the result on the test split, and what the run took
  curve.png          accuracy and loss of every epoch
  examples.png       explained test images, with their ground truth
  log.jsonl          every logged value
  settings.yaml      a recipe that gives this run again
  checkpoints/       the last checkpoint, for --resume
"""

import json
import platform
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from accelerate import Accelerator, PartialState
from timm.data import resolve_data_config
from torch import nn
from transformers.utils.logging import disable_progress_bar

from ..data.loading import Images, Rows, Splits, StreamedImages, load_splits, make_transforms, mask_transform
from ..models.classifier import Classifier, to_vanilla
from . import log
from .cache import cached_features
from .config import Config
from .evaluation import evaluate
from .loop import LOWER_IS_BETTER, Training, prepare_loader
from .objective import BlackBox, load_model, make_model
from .report import complete_model_folder, draw_curve, draw_examples, write_json

SETTINGS, METRICS = "settings.yaml", "metrics.json"
"""The first and the last file that a run writes."""

FREE_TO_CHANGE = (
    *("resume", "overwrite", "workers", "trackers", "log_steps", "checkpoint_steps"),
    *("cache_features", "cache_dir", "cache_limit", "output"),
)
"""Settings that a resumed run may have otherwise: they do not change what is learnt."""


def run(config: Config) -> dict[str, Any]:
    """Train, test and write everything to `config.run.output`; the metrics of the result."""
    output = Path(config.run.output)
    if config.run.resume and not output.is_dir():
        raise FileNotFoundError(f"there is no run in {output} to go on with: leave --resume out, or check --output")
    return _choose_temperature(config) if config.model.candidates() else _train(config)


def _choose_temperature(config: Config) -> dict[str, Any]:
    """One run for each temperature, in a folder of its own; the best on validation becomes the result."""
    output, found = Path(config.run.output), {}
    for value in config.model.candidates():
        model = replace(config.model, temperature=value, temperatures="")
        cache = config.run.cache_dir or str(output / "features")
        tried = replace(
            config, model=model, run=replace(config.run, output=str(output / f"T={value:g}"), cache_dir=cache)
        )
        found[value] = _train(tried)
    name = f"validation_{config.run.select}"
    if any(name not in metrics for metrics in found.values()):
        raise ValueError("temperatures are chosen on validation data, but there is none: set hold_out, such as 0.1")
    best = (min if config.run.select in LOWER_IS_BETTER else max)(found, key=lambda value: found[value][name])
    metrics = {**found[best], "temperature": best, "tried": {f"{value:g}": row[name] for value, row in found.items()}}
    if PartialState().is_main_process:
        shutil.copytree(
            output / f"T={best:g}", output, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints")
        )
        write_json(metrics, output / METRICS)
    PartialState().wait_for_everyone()
    return metrics


def _train(config: Config) -> dict[str, Any]:
    began = time.monotonic()
    disable_progress_bar()  # of transformers, for the loading and saving of every model
    trackers = log.check_trackers(config.run.trackers)
    output = Path(config.run.output)
    accelerator = _make_accelerator(config, trackers, output)
    if accelerator.is_main_process:
        _claim(output, config)
    accelerator.wait_for_everyone()
    if config.run.resume and (output / METRICS).exists():
        accelerator.print(f"{output} holds a finished run")
        return json.loads((output / METRICS).read_text())
    log.start(accelerator, config.flat())
    splits = load_splits(config.data)
    model = make_model(config, splits)
    if accelerator.is_main_process:
        _check_disk(model, output)
    training = _prepare(config, accelerator, splits, model, output)
    if config.run.resume:
        training.resume()
        accelerator.print(f"going on after update {training.step}")
    training.fit()
    metrics = _finish(config, training, splits, output)
    metrics |= {"seconds": round(time.monotonic() - began, 1), "processes": accelerator.num_processes, **_versions()}
    accelerator.wait_for_everyone()  # has loaded what is tidied away now
    if accelerator.is_main_process:
        _leave(config, training, metrics, output)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return metrics


def _make_accelerator(config: Config, trackers: list[str], output: Path) -> Accelerator:
    return Accelerator(
        mixed_precision=config.run.mixed_precision,
        gradient_accumulation_steps=config.optimization.accumulation,
        log_with=[*trackers, log.JSONLines(output / "log.jsonl")],
        project_dir=str(output),
    )


def _claim(output: Path, config: Config) -> None:
    """Make sure that the folder can be written and holds no other run."""
    settings = output / SETTINGS
    if config.run.overwrite and settings.exists():
        for name in ("checkpoints", "best", "model", "twin", log.PROJECT):
            shutil.rmtree(output / name, ignore_errors=True)
        for name in ("log.jsonl", SETTINGS, METRICS, "curve.png", "examples.png"):
            (output / name).unlink(missing_ok=True)
    elif not config.run.resume and any((output / name).exists() for name in ("checkpoints", "log.jsonl", METRICS)):
        raise FileExistsError(
            f"{output} holds an earlier run: go on with it by --resume, throw it away by --overwrite, or choose "
            "another --output"
        )
    elif config.run.resume and settings.exists():
        _check_same(yaml.safe_load(settings.read_text()), config.flat(), settings)
    try:
        output.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in config.flat().items() if name not in ("resume", "overwrite")}
        settings.write_text(yaml.safe_dump(kept, sort_keys=False))
    except OSError as error:
        raise OSError(f"output {output} cannot be written: {error.strerror}; choose another --output") from error


def _check_same(before: dict[str, Any], now: dict[str, Any], file: Path) -> None:
    changed = [name for name in now if name not in FREE_TO_CHANGE and before.get(name) != now[name]]
    if changed:
        name = changed[0]
        raise ValueError(
            f"cannot resume: {file} says {name}={before.get(name)!r}, but now it is {now[name]!r}; use the same "
            "settings, or --overwrite"
        )


def _check_disk(model: nn.Module, output: Path) -> None:
    """Room for two checkpoints (the old one goes when the new one is whole) and three copies of the model."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    needed, free = (2 * 4 + 3) * size, shutil.disk_usage(output).free
    if free < needed:
        raise OSError(
            f"{output} has {free / 1e9:.1f} GB left, but checkpoints and models take up to {needed / 1e9:.1f} GB: "
            "choose another --output"
        )


def _prepare(config: Config, accelerator: Accelerator, splits: Splits, model: nn.Module, output: Path) -> Training:
    train_transform, eval_transform = _transforms(config, model)
    frozen = config.model.frozen and config.model.family is not None
    model.to(accelerator.device)
    if isinstance(splits.train, Rows):
        train = Images(splits.train, train_transform, config.run.seed)
        labels = splits.train.labels
    else:
        train, labels = StreamedImages(splits.train, train_transform, config.run.seed), None
    validation = None if splits.validation is None else Images(splits.validation, eval_transform)
    if frozen and config.run.cache_features and not config.augmentation.augment and labels is not None:
        folder = Path(config.run.cache_dir or output / "features")
        options = (accelerator, folder, config.run.cache_limit, config.optimization.batch_size, config.run.workers)
        train = cached_features(model, Images(splits.train, eval_transform), *options)
        validation = None if validation is None else cached_features(model, validation, *options, beside=train)
    return Training(config, accelerator, model, train, validation, labels, output)


def _transforms(config: Config, model: nn.Module) -> tuple[Any, Any]:
    return make_transforms(_data_config(model), config.augmentation)


def _data_config(model: nn.Module) -> dict[str, Any]:
    return resolve_data_config({}, pretrained_cfg=dict(model.pretrained_cfg))


def _finish(config: Config, training: Training, splits: Splits, output: Path) -> dict[str, Any]:
    """Write the result and score it as anyone would who loads it."""
    accelerator = training.accelerator
    best = output / "best"
    if accelerator.is_main_process and training.best is None:
        training.result.save_pretrained(best)
    accelerator.wait_for_everyone()
    result = load_model(best, splits).to(accelerator.device)
    scores = {} if training.best is None else {f"validation_{config.run.select}": training.best["value"]}
    scores["epoch"] = config.optimization.epochs if training.best is None else training.best["epoch"]
    if splits.test is not None:
        loader = prepare_loader(_test_samples(config, splits, result), config, accelerator)
        scores |= {f"test_{name}": value for name, value in evaluate(result, loader, accelerator).items()}
    if accelerator.is_main_process:
        if getattr(result, "teacher", None) is not None:
            _save_twin(best, result, output / "twin", splits.classes)
            result.drop_teacher()
        result.save_pretrained(output / "model")
        if config.model.family is not None and splits.test is not None and not splits.multi_label:
            draw_examples(result, _test_samples(config, splits, result, True), splits.classes, output / "examples.png")
    return {"model": config.model.model, "data": config.data.data, **scores}


def _test_samples(config: Config, splits: Splits, model: nn.Module, with_masks: bool = False) -> Images:
    data_config = _data_config(model)
    transform = make_transforms(data_config, config.augmentation)[1]
    masks = mask_transform(data_config, config.augmentation) if with_masks and splits.test.has_masks else None
    return Images(splits.test, transform, masks=masks)


def _save_twin(best: Path, result: nn.Module, folder: Path, classes: list[str]) -> None:
    """The vanilla timm model with the teacher's classifier, where the architecture has one."""
    if not result.exact:
        return
    timm_model = timm.create_model(f"local-dir:{best}", pretrained=True)
    assert isinstance(timm_model, Classifier)
    timm_model.head.weight.data.copy_(result.teacher.weight.data)
    timm_model.head.bias.data.copy_(result.teacher.bias.data)
    BlackBox(to_vanilla(timm_model), False, classes).save_pretrained(folder)


def _leave(config: Config, training: Training, metrics: dict[str, Any], output: Path) -> None:
    draw_curve(output / "log.jsonl", output / "curve.png")
    complete_model_folder(output, metrics, config.model.family is not None)
    write_json(metrics, output / METRICS)
    shutil.rmtree(output / "best")
    scores = {name: value for name, value in metrics.items() if name.startswith("test_")}
    training.accelerator.print("  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items()))
    training.accelerator.print(f"model in {output / 'model'}, metrics in {output / METRICS}")


def _versions() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {"device": device, "torch": torch.__version__, "timm": timm.__version__}
