"""`pretrained=True` as a user runs it: timm's weights over HTTP, in a process of its own, from a loopback Hub."""

import json

import pytest
import timm
import torch
from conftest import randomise
from helpers.hub_server import HubServer
from helpers.warm import WarmPython
from safetensors.torch import save

SCRIPT = """
import sys, json, torch, timm
import softcam_hub
name, options = sys.argv[1], json.loads(sys.argv[2])
x = torch.linspace(-1, 1, 2 * 3 * 160 * 160).reshape(2, 3, 160, 160)
model = timm.create_model(name, pretrained=True, **options).eval()
print(json.dumps(model(x).tolist()))
"""


@pytest.fixture(scope="module")
def vanilla():
    torch.manual_seed(1)
    return randomise(timm.create_model("test_resnet")).eval()


@pytest.fixture(scope="module")
def hub(vanilla):
    with HubServer() as hub:
        weights = save({key: value.contiguous() for key, value in vanilla.state_dict().items()})
        hub.add_repo("timm/test_resnet.r160_in1k", {"model.safetensors": weights})
        hub.add_repo("timm/test_convnext.r160_in1k", {"model.safetensors": weights[:1000]})
        yield hub


@pytest.fixture(scope="module")
def run(hub, tmp_path_factory):
    """Return a function that makes a model by its name in a process of its own, and prints its answers."""
    home = tmp_path_factory.mktemp("home")
    with WarmPython(**hub.env(home)) as python:
        yield lambda name, **options: python.run("-c", SCRIPT, name, json.dumps(options), cwd=home)


def expected_logits(vanilla):
    return vanilla(torch.linspace(-1, 1, 2 * 3 * 160 * 160).reshape(2, 3, 160, 160))


@pytest.mark.slow
def test_softcam_downloads_timms_weights_and_gives_timms_logits(hub, run, vanilla):
    done = run("softcam_test_resnet")
    assert done.returncode == 0, done.stderr
    logits = torch.tensor(json.loads(done.stdout))
    assert torch.allclose(logits, expected_logits(vanilla), rtol=1e-5, atol=1e-5)
    assert ("GET", "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors") in hub.requests


@pytest.mark.slow
def test_cape_by_tag_with_fewer_classes(run):
    done = run("cape_test_resnet.r160_in1k", num_classes=4)
    assert done.returncode == 0, done.stderr
    log_p = torch.tensor(json.loads(done.stdout))
    assert log_p.shape == (2, 4)
    assert torch.allclose(log_p.exp().sum(dim=1), torch.ones(2))


@pytest.mark.slow
def test_a_broken_download_is_an_error(run):
    done = run("softcam_test_convnext")
    assert done.returncode != 0
    assert "SafetensorError" in done.stderr
    assert not done.stdout


@pytest.mark.slow
def test_weights_that_the_hub_does_not_have(run):
    done = run("softcam_test_efficientnet")
    assert done.returncode != 0
    assert "timm/test_efficientnet.r160_in1k" in done.stderr
