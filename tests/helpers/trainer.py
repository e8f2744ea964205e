"""The `Trainer` of transformers on images of coloured squares.

The colour of the square on each noisy image is its class. `test_convnext` has no BatchNorm, so that runs that
divide their batches differently can be compared.
"""

import os
import subprocess
from functools import cache
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from softcam_hub import CAPEConfig, CAPEForImageClassification, SoftCAMConfig, SoftCAMForImageClassification

CLASSES = {
    "softcam": (SoftCAMForImageClassification, SoftCAMConfig),
    "cape": (CAPEForImageClassification, CAPEConfig),
}
SCORES = ("completeness_error", "sparseness", "confidence")
SEVERAL = {"problem_type": "multi_label_classification"}
EXACT = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}
"""Updates proportional to the gradient, so that a loss of the wrong scale shows; Adam would divide it away."""
DROPOUT = {"model_args": {"drop_rate": 0.3}}


def squares(count=48, several=False):
    """Return samples of an image (3, 32, 32) with the colour of its square, or with three labels for three squares."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(count):
        present = [(index >> colour) % 2 for colour in range(3)] if several else [index % 3 == c for c in range(3)]
        image = 0.3 * torch.randn(3, 32, 32, generator=generator)
        for colour in range(3):
            x, y = torch.randint(0, 22, (2,), generator=generator).tolist()
            image[colour, y : y + 10, x : x + 10] += 2.0 * present[colour]
        rows.append({"pixel_values": image, "labels": torch.tensor(present).float() if several else index % 3})
    return rows


def images_of(rows):
    return torch.stack([row["pixel_values"] for row in rows])


def make(family, backbone="test_convnext", model_args=None, **config):
    """Return a new model of three classes with maps of 4x4 and always the same weights."""
    torch.manual_seed(7)
    model, settings = CLASSES[family]
    args = {"output_stride": 8, **(model_args or {})}
    return model(settings(architecture=f"{family}_{backbone}", num_labels=3, model_args=args, **config))


@cache
def vanilla(backbone):
    """Return a vanilla timm classifier that was trained on the squares."""
    torch.manual_seed(7)
    rows = squares()
    model = timm.create_model(backbone, num_classes=3, output_stride=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same weights with every launcher
    for _ in range(15):
        optimizer.zero_grad()
        F.cross_entropy(model(images_of(rows)), torch.tensor([row["labels"] for row in rows])).backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return model


def post_fit(backbone="test_convnext", **config):
    return CAPEForImageClassification.from_timm(vanilla(backbone), mode="post-fit", **config)


def trainer_of(model, folder, **options):
    """Return a Trainer on the squares, with `options` as TrainingArguments."""
    rows = squares(several=model.config.problem_type == SEVERAL["problem_type"])
    defaults = {
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    quiet = {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    arguments = TrainingArguments(str(folder), **{**defaults, **quiet, **options})
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:11])


def fit(model, folder, resume=None, **options):
    trainer = trainer_of(model, folder, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer):
    return torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def state(module, *prefixes):
    """Return a copy of the state dict, or of the entries that begin with `prefixes`."""
    return {key: value.clone() for key, value in module.state_dict().items() if key.startswith(prefixes or "")}


def modes(model):
    return [module.training for module in model.modules()]


SETTINGS = {
    "softcam": lambda: make("softcam"),
    "softcam-several-labels": lambda: make("softcam", **SEVERAL),
    "softcam-elastic-net-frozen": lambda: make("softcam", "test_resnet", l1=0.3, l2=0.1, freeze_backbone=True),
    "cape-direct": lambda: make("cape"),
    "cape-from-scratch": lambda: make("cape", mode="from-scratch"),
    "cape-from-scratch-selective": lambda: make("cape", mode="from-scratch", selective=True),
    "cape-post-fit": lambda: post_fit("test_resnet"),
}


def launch(command, **env):
    """Run a command in a fresh process that can import the helpers of the tests."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


CLASS_COUNT, MAP_SIDE = 1000, 8


class Blank(Dataset):
    """A data set whose `count` images share their memory."""

    def __init__(self, count):
        self.count, self.image = count, torch.zeros(3, 64, 64)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        return {"pixel_values": self.image, "labels": index % CLASS_COUNT}


def peak():
    """Return the largest amount of memory that this process has held so far, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def growth(method, ignored, folder):
    """Return how much higher the memory peak is after 2,000 images than after 500."""
    config = CAPEConfig(architecture="cape_test_resnet", num_labels=CLASS_COUNT, model_args={"output_stride": 8})
    config.keys_to_ignore_at_inference = ignored
    model = CAPEForImageClassification(config)
    assert model.config.output_maps
    assert model(torch.zeros(1, 3, 64, 64)).maps.shape == (1, CLASS_COUNT, MAP_SIDE, MAP_SIDE)
    quiet = {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "report_to": "none"}
    arguments = TrainingArguments(str(folder), per_device_eval_batch_size=10 if ignored else 100, **quiet)
    trainer = Trainer(model, arguments, compute_metrics=lambda given: {"images": len(given.label_ids)})
    getattr(trainer, method)(Blank(500))
    before = peak()
    getattr(trainer, method)(Blank(2000))
    return peak() - before
