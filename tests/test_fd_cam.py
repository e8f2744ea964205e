"""FD-CAM against a slow transcription of its formula, in any number of threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from conftest import relative_error
from helpers.cams import (
    CLASSES,
    activations_and_gradients,
    channels_last,
    make_networks,
    maps_of,
    replaced,
    small_resnet,
    tokens,
)

from softcam_hub.explainers import cams
from softcam_hub.explainers.create import create_explainer


@pytest.fixture(scope="module")
def networks():
    return make_networks()


def slow_fd_cam(model, image, module, to_maps, from_maps, A, g, c):
    """FD-CAM of one image and class, one channel after the other, with the quantile written out."""
    flat = A.flatten(1)
    cosine = F.cosine_similarity(flat[:, None], flat[None], dim=2)
    full, score = None, []
    for k in range(len(A)):
        similar = cosine[k] > torch.quantile(cosine[k], 0.95)
        keep = similar[:, None, None].to(A)
        full = replaced(model, image, module, from_maps(A))[c] if full is None else full
        alone = replaced(model, image, module, from_maps(A * keep))[c]
        without = replaced(model, image, module, from_maps(A * (1 - keep)))[c]
        score.append(alone + full - without)
    score, slope = torch.stack(score), g.mean(dim=(1, 2))
    score, slope = ((v - v.min()) / (v.max() - v.min()) for v in (score, slope))
    return ((score.exp() * slope - 0.5)[:, None, None] * A).sum(dim=0)


@pytest.mark.parametrize("which", ["test_resnet", "test_resnet-stages", "swinv2-last", "test_vit"])
def test_fd_cam_follows_its_formula(networks, which):
    if which.startswith("test_resnet"):
        model, images = small_resnet(), torch.randn(2, 3, 96, 64).double()
        layer, module = (None, "layer4") if which == "test_resnet" else ("layer3", "layer3")
        to_maps = maps_of
    elif which == "swinv2-last":
        (model, images), (layer, module, to_maps) = networks["swinv2_tiny_window8_256"], (None, "norm", channels_last)
    else:
        (model, images), (layer, module, to_maps) = networks["test_vit"], (None, "blocks.5.norm1", tokens)
    classes = CLASSES[:, :1]
    A, g = activations_and_gradients(model, images, module, to_maps, classes)
    expected = []
    for i, image in enumerate(images):
        raw = []
        handle = model.get_submodule(module).register_forward_hook(lambda *all, raw=raw: raw.append(all[2].detach()))
        model(image[None])
        handle.remove()

        def from_maps(maps, raw=raw[0]):
            if to_maps is channels_last:
                return maps.permute(1, 2, 0)[None]
            return torch.cat([raw[:, :1], maps.flatten(1).T[None]], dim=1) if to_maps is tokens else maps[None]

        expected.append(slow_fd_cam(model, image, module, to_maps, from_maps, A[i], g[i, 0], classes[i, 0]))
    found = create_explainer("fd-cam", model, layer, signed=True)(images, classes)
    assert relative_error(found[:, 0], torch.stack(expected)) < 1e-9
    again = create_explainer("fd-cam", model, layer, signed=True, batch=5)(images, classes)
    assert relative_error(again, found) < 1e-9


@pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 22, 40, 41, 61, 100, 257])
def test_similar_channels_are_those_above_the_quantile(count):
    features = torch.randn(count, 4, 4).relu()
    features[:: max(count // 7, 1)] = 0  # dead channels tie
    flat = features.double().flatten(1)
    cosine = F.cosine_similarity(flat[:, None], flat[None], dim=2)
    expected = cosine > torch.quantile(cosine, 0.95, dim=1, keepdim=True)
    directions = cams._directions(features.double())
    found = torch.cat([cams._similar_channels(directions, slice(start, start + 9)) for start in range(0, count, 9)])
    assert torch.equal(found.bool(), expected)


def test_fd_cam_where_something_beside_the_layer_keeps_the_batch_size():
    class Shortcut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.side = torch.nn.Conv2d(3, 8, 8, 8), torch.nn.Conv2d(3, 8, 8, 8)
            self.fc = torch.nn.Linear(16, 5)

        def forward(self, x):
            return self.fc(torch.cat([self.side(x), self.stem(x)], dim=1).square().mean(dim=(2, 3)))

    model, images = Shortcut().eval(), torch.randn(2, 3, 32, 32)
    A, g = activations_and_gradients(model, images, "stem", maps_of, CLASSES)
    found = create_explainer("fd-cam", model, "stem", signed=True)(images, CLASSES)
    for i in range(2):
        for c in range(2):
            expected = slow_fd_cam(model, images[i], "stem", maps_of, lambda m: m[None], A[i], g[i, c], CLASSES[i, c])
            assert relative_error(found[i, c], expected) < 1e-4


def threads_of_a_new_thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_fd_cam_leaves_the_number_of_threads(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        explainer = create_explainer("fd-cam", small_resnet())
        explainer(torch.randn(1, 3, 64, 64, dtype=torch.float64), 0)
        assert (torch.get_num_threads(), threads_of_a_new_thread()) == (2, 2)
        monkeypatch.setattr(cams, "_mark_similar", None)
        with pytest.raises(TypeError):
            explainer(torch.randn(1, 3, 64, 64, dtype=torch.float64), 0)
        assert (torch.get_num_threads(), threads_of_a_new_thread()) == (2, 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layer", [None, "layer3"])
def test_fd_cam_under_autocast(layer):
    model, images = small_resnet().float(), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = create_explainer("fd-cam", model, layer)(images, CLASSES)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
