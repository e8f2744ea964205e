"""What timm's own scripts do with a model, by the functions of timm that they call, and how they learn our names.

`train.py`, `validate.py`, `avg_checkpoints.py` and `onnx_export.py` are in no package of timm, so a test cannot run them.
"""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import randomise, relative_error
from helpers.warm import warm_python
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import load_state_dict
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, FeatureDistillationTask, LogitDistillationTask, resume_task_checkpoint
from timm.utils import CheckpointSaver
from timm.utils.onnx import onnx_export, onnx_forward

import softcam_hub  # noqa: F401, registers the architectures

NAMES = ["softcam_test_resnet", "cape_test_resnet", "cape_test_vit"]
DOCS = Path(__file__).parents[1] / "docs" / "clients.md"

OF_TRAIN = {"in_chans": 3, "drop_rate": 0.1, "drop_path_rate": 0.1, "drop_block_rate": None, "global_pool": None}
OF_TRAIN |= {"bn_momentum": None, "bn_eps": None, "scriptable": False, "checkpoint_path": ""}
"""Arguments that `train.py` gives to every model, set by the user or not."""

names = pytest.mark.parametrize("name", NAMES)


def create(name, **options):
    args = {"img_size": 64} if "vit" in name else {}
    return timm.create_model(name, num_classes=2, **args, **options)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Dark and bright noise in a folder for each class."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for label, level in enumerate((0, 128)):
        (folder / "train" / str(label)).mkdir(parents=True)
        for index in range(8):
            values = random.integers(level, level + 127, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(values).save(folder / "train" / str(label) / f"{index}.png")
    return folder


def batches(model, folder, training):
    config = resolve_data_config({"input_size": (3, 64, 64), "crop_pct": 1.0}, model=model)
    dataset = create_dataset("", root=folder, split="train", is_training=training)
    fixed = {"no_aug": True, "num_workers": 0, "use_prefetcher": False, "device": torch.device("cpu")}
    names = ("input_size", "mean", "std", "interpolation", "crop_pct")
    options = {name: config[name] for name in names}
    return create_loader(dataset, batch_size=8, is_training=training, **options, **fixed)


class Run:
    """The parts that `train.py` makes, and its epochs."""

    def __init__(self, name, folder, pictures):
        torch.manual_seed(0)
        model = create(name, **OF_TRAIN)
        with torch.no_grad():
            model.get_classifier().weight.mul_(0.5)  # --head-init-scale
            model.get_classifier().bias.mul_(0.5)
        model.set_grad_checkpointing()
        self.optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05, layer_decay=0.75)
        self.schedule, _ = create_scheduler_v2(self.optimizer, num_epochs=4)
        self.task = ClassificationTask(model)
        self.task.setup_ema(decay=0.5)
        options = {"checkpoint_dir": str(folder), "recovery_dir": str(folder), "max_history": 3}
        self.saver = CheckpointSaver(model, self.optimizer, task=self.task, **options)
        self.model, self.loader = model, batches(model, pictures, training=True)

    def train(self, epochs):
        losses = []
        for epoch in epochs:
            torch.manual_seed(epoch)
            self.model.train()
            for images, labels in self.loader:
                loss = self.task(images, labels)["loss"]
                losses.append(loss.item())
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.task.update_ema()
            self.schedule.step(epoch + 1)
            self.saver.save_checkpoint(epoch, metric=float(epoch))
        return losses


@names
def test_training_resuming_averaging_and_validating(name, pictures, tmp_path):
    whole = Run(name, tmp_path, pictures)
    losses = whole.train(range(4))
    assert np.mean(losses[-2:]) < np.mean(losses[:2])

    (tmp_path / "resumed").mkdir()
    resumed = Run(name, tmp_path / "resumed", pictures)
    first = resume_task_checkpoint(resumed.task, str(tmp_path / "checkpoint-2.pth.tar"), resumed.optimizer)
    resumed.schedule.step(first)
    resumed.train(range(first, 4))
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.model.state_dict().items())

    files = sorted(str(file) for file in tmp_path.glob("checkpoint-*.pth.tar"))
    assert len(files) == 3
    states = [load_state_dict(file, use_ema=True) for file in files]
    averaged = {key: sum(state[key].double() for state in states).div(3).float() for key in states[0]}
    torch.save(averaged, tmp_path / "averaged.pth")
    model = create(name, checkpoint_path=str(tmp_path / "averaged.pth")).eval()
    head = torch.stack([state["head.weight"] for state in states]).mean(dim=0)
    assert torch.allclose(model.head.weight, head, atol=1e-6)
    with torch.inference_mode():
        for images, _ in batches(model, pictures, training=False):
            probabilities = model(images).softmax(dim=1)
            explained = model.explain(images)
            assert relative_error(explained.probabilities, probabilities.gather(1, explained.classes)) <= 1e-5


@pytest.mark.parametrize("name", ["softcam_test_resnet", "cape_test_resnet"])
@pytest.mark.parametrize("task", [LogitDistillationTask, FeatureDistillationTask])
def test_distillation_from_a_vanilla_teacher(task, name, pictures):
    student, teacher = create(name), randomise(create("test_resnet"))
    task = task(student, teacher, verbose=False)
    optimizer, losses = torch.optim.SGD(task.parameters(), lr=0.05), []
    images, labels = next(iter(batches(student, pictures, training=False)))
    for _ in range(6):
        loss = task(images, labels)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@names
@pytest.mark.parametrize("use_dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_onnx_export(name, use_dynamo, tmp_path):
    model, file = randomise(create(name, exportable=True)).eval(), str(tmp_path / "model.onnx")
    onnx_export(model, file, check_forward=True, batch_size=2, input_size=(3, 64, 64), use_dynamo=use_dynamo)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(torch.from_numpy(onnx_forward(file, images)), model(images)) < 1e-4


@pytest.mark.slow
def test_the_line_of_the_documentation_runs_a_script_that_does_not_import_softcam_hub(tmp_path):
    line = DOCS.read_text().split('python -c "')[1].split('"')[0]
    script = tmp_path / "script.py"
    script.write_text("import sys, timm\nif __name__ == '__main__': print(len(timm.list_models(sys.argv[1])))\n")
    done = warm_python().run("-c", line, script, "cape_test_*")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
