"""Small models and data for tests of benchmarks."""

from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import PartialState
from conftest import randomise
from torch import nn

from softcam_hub import CAPEForImageClassification, SoftCAMForImageClassification
from softcam_hub.data.config import DataConfig
from softcam_hub.data.lesions import load_lesions
from softcam_hub.data.samples import ImageDataset, Samples
from softcam_hub.data.splits import load_splits
from softcam_hub.data.transforms import make_transforms, mask_transform
from softcam_hub.evaluation import benchmark
from softcam_hub.training.objective import VanillaForTraining

CLASSES = ["healthy", "microaneurysm", "haemorrhage", "exudate"]
DATA = {"data": "lesions", "train_count": 8, "eval_count": 10, "data_size": 64}


def vanilla_model(classes: int = 4) -> nn.Module:
    """Return a vanilla classifier of images of 64 pixels, with random weights that are always the same."""
    torch.manual_seed(1)
    vanilla = randomise(timm.create_model("test_resnet", num_classes=classes, output_stride=8)).eval()
    vanilla.pretrained_cfg["input_size"] = (3, 64, 64)
    vanilla.pretrained_cfg["crop_pct"] = 1.0
    with torch.no_grad():
        vanilla.get_classifier().weight.mul_(8)  # larger logits, so that confidences move
    return vanilla


def save_models(model: nn.Module, folder: Path) -> None:
    """Save a vanilla classifier to `vanilla`, and the models with its weights to `cape` and `softcam`."""
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    for family, model_class in {"cape": CAPEForImageClassification, "softcam": SoftCAMForImageClassification}.items():
        model_class.from_timm(model, **names).save_pretrained(folder / family)
    VanillaForTraining(model, False, CLASSES).save_pretrained(folder / "vanilla")


def write_lesions(folder: Path) -> Path:
    """Write generated images into folders of their classes, so that all of one class come before those of the next."""
    for split in ("train", "test"):
        for index, row in enumerate(load_lesions(split, 8, 64)):
            place = folder / split / CLASSES[row["label"]]
            place.mkdir(parents=True, exist_ok=True)
            row["image"].save(place / f"{index}.png")
    return folder


def run_benchmark(model: Path, vanilla: Path | None, output: Path, options: dict[str, Any], processes: int = 1) -> None:
    """Run a benchmark in a process that a test starts, and check the number of processes that share it."""
    benchmark(model, output, vanilla, **options)
    assert PartialState().num_processes == processes


def read_split() -> Samples:
    """Read the test images of `DATA`."""
    return load_splits(DataConfig(**DATA)).test


def prepare_split(model: nn.Module) -> ImageDataset:
    """Prepare the test images of `DATA` as a model takes them."""
    config = timm.data.resolve_data_config({}, pretrained_cfg=dict(model.pretrained_cfg))
    return ImageDataset(read_split(), make_transforms(config)[1], masks=mask_transform(config))
