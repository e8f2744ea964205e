"""Small training runs on 50 generated images, and the pieces from which tests build them.

The network is timm's `test_resnet` (BatchNorm), or `test_convnext` where batches are divided in different ways.
"""

import importlib
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset as Table, DatasetDict
from PIL import Image
from safetensors.torch import load_file
from timm.data import resolve_data_config
from torch.utils.data import Dataset

from softcam_hub.data import load_lesions
from softcam_hub.data.splits import Splits
from softcam_hub.data.transforms import make_transforms
from softcam_hub.training import make_config, run
from softcam_hub.training.loop import Training
from softcam_hub.training.model import make_model

SIZE, TRAIN, VALIDATION = 32, 50, 21
SMALL = {
    "model": "cape_test_resnet",
    "model_args": "output_stride=8",
    "image_size": SIZE,
    "epochs": 2,
    "batch_size": 8,
    "lr": 0.02,
    "log_steps": 1,
}
CLASSES = ["healthy", "microaneurysm", "haemorrhage", "exudate"]
PF = {"mode": "post-fit", "augment": False, "lr": 1.0}


@cache
def _data():
    folder = tempfile.TemporaryDirectory()
    splits = {"train": TRAIN, "validation": VALIDATION, "test": VALIDATION}
    DatasetDict({split: load_lesions(split, count, SIZE) for split, count in splits.items()}).save_to_disk(folder.name)
    return folder


def settings(output, **changes):
    """Return the settings of a small run on 50 generated images; None stands for the default of a setting."""
    return make_config(**{"data": _data().name, "output": str(output), **SMALL, **changes})


def train(output, draw=False, **changes):
    """Run the small run as in a fresh process, and return its metrics.

    Drawing takes a third of the time of so small a run, so that only tests that look at pictures ask for it.
    """
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    with pytest.MonkeyPatch.context() as patch:
        if not draw:
            module = importlib.import_module("softcam_hub.training.results")
            patch.setattr(module, "draw_pictures", lambda *_: None)
        return run(settings(output, **changes))


def weights(output, folder="model"):
    """Return the weights that a run has saved."""
    return load_file(Path(output) / folder / "model.safetensors")


def part(state, prefix):
    """Return the entries whose names begin with a prefix."""
    return {name: value for name, value in state.items() if name.startswith(prefix)}


def equal(found, expected):
    """Tell whether two state dicts are equal bit for bit."""
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def largest_difference(found, expected):
    """Return the largest difference between two state dicts."""
    assert found.keys() == expected.keys()
    return max((found[name].double() - expected[name].double()).abs().max().item() for name in found)


class Noise(Dataset):
    """Images of noise that record which of them were read."""

    def __init__(self, count=24, classes=3):
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
        self.labels, self.asked = torch.arange(count) % classes, []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        self.asked.append(key)
        index = key[1] if isinstance(key, tuple) else key
        return {"pixel_values": self.images[index], "labels": self.labels[index], "index": index}


def training_of(output, samples=None, validation=None, **changes):
    """Return a training in progress on images of noise, without augmentation."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    config = settings(output, **changes)
    model = make_model(config, Splits(None, None, None, ["a", "b", "c"], False))
    accelerator = Accelerator(gradient_accumulation_steps=config.optimization.accumulation)
    samples = samples or Noise()
    return Training(config, accelerator, model, samples, validation, samples.labels.numpy(), output)


def recorded(training):
    """Train to the end, and return the states of the network after every update."""
    states, schedule = [], training.schedule

    def record(step):
        states.append({name: value.clone() for name, value in training.network.state_dict().items()})
        schedule(step)

    training.schedule = record
    training.fit()
    return states


def images(split="test", count=VALIDATION):
    """Return the images of a split."""
    return list(load_lesions(split, count, SIZE)["image"])


def pixels_for(model, pictures=None):
    """Return the test images, or other pictures, prepared for a model."""
    transform = make_transforms(resolve_data_config({}, pretrained_cfg=dict(model.pretrained_cfg)))[1]
    return torch.stack([transform(image) for image in pictures or images()])


class CutOff(Exception):
    """Stands for a kill."""


@contextmanager
def cut_off_at(step):
    """End a run when the checkpoint after a number of updates has been written."""
    save = Training._save

    def saved(self):
        save(self)
        if self.step == step:
            raise CutOff

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_save", saved)
        with pytest.raises(CutOff):
            yield


def table(folder, labels):
    """Save a training split with these labels and images of one colour, and return its folder."""
    pictures = [Image.new("RGB", (SIZE, SIZE), (20 * index % 255, 90, 40)) for index in range(len(labels))]
    DatasetDict({"train": Table.from_dict({"image": pictures, "label": labels})}).save_to_disk(folder)
    return str(folder)
