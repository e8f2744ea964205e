"""What several test files need: models with weights that hide nothing, finished runs, and a Hub on this machine."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import softcam_hub
from softcam_hub.memory import keep_freed_memory

keep_freed_memory()  # as the commands do


def pytest_collection_modifyitems(items):
    """Put files with slow tests first: a long file that begins last would leave the other worker without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def dataset_cache(tmp_path_factory, monkeypatch):
    """Give a test an empty cache of `datasets`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def hub(monkeypatch):
    """Run a Hub on the loopback device, and let the client of this process talk to it."""
    from helpers.hub_server import HubServer
    from huggingface_hub import constants

    with HubServer() as server:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


@pytest.fixture
def folder(tmp_path):
    """Copy the model that comes with the package; like the original, the copy has no code beside it."""
    return Path(shutil.copytree(softcam_hub.CAPE_LESIONS, tmp_path / "model"))


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Move every parameter and statistic off its initial value, so that a forgotten bias or norm shows."""
    for parameter in model.parameters():
        if parameter.ndim <= 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
        else:
            parameter.add_(0.3 * parameter.std(correction=0) * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.1 * torch.randn_like(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(0.75 + 0.5 * torch.rand_like(buffer))
    return model


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error, relative to the largest expected value."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="session")
def from_scratch_run(tmp_path_factory):
    """Folder and metrics of a finished run of CAPE with a teacher that is trained beside it. Do not change them."""
    from helpers.training import train

    output = tmp_path_factory.mktemp("runs") / "from_scratch"
    options = {"mode": "from-scratch", "trackers": "tensorboard", "color_jitter": 0.2, "erase": 0.3, "epochs": 3}
    return output, train(output, draw=True, **options, select="auc", ema=0.7)


@pytest.fixture(scope="session")
def vanilla_run(tmp_path_factory):
    """Folder and metrics of a finished run of the vanilla classifier. Do not change them."""
    from helpers.training import train

    output = tmp_path_factory.mktemp("runs") / "vanilla"
    return output, train(output, model="test_resnet")


@pytest.fixture(scope="session")
def post_fit_run(vanilla_run, tmp_path_factory):
    """Folder and metrics of a finished run that fits CAPE to `vanilla_run`. Do not change them."""
    from helpers.training import PF, train

    output = tmp_path_factory.mktemp("runs") / "post_fit"
    return output, train(output, init=str(vanilla_run[0] / "model"), **PF)
