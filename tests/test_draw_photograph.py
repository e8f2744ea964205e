"""README's first picture is the one that its command draws, with the percentages of the model."""

import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from benchmarks.imagenet_weights import imagenet_folder
from tools import draw_photograph as tool

pytestmark = pytest.mark.slow  # a network of ImageNet's size


@pytest.fixture(scope="module")
def explanation():
    return tool.explain_photograph()


def test_the_picture_is_drawn_by_its_command(explanation):
    drawn, kept = tool.draw_photograph(explanation), Image.open(tool.PICTURE).convert("RGB")
    assert drawn.size == kept.size
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(kept)).mean() < 1
    assert tool.PICTURE.stat().st_size < 350_000


def test_captions_tell_the_percentages_of_both_classes_and_of_their_difference(explanation, monkeypatch):
    captions = []
    monkeypatch.setattr(tool, "captioned_row", lambda panels, *_, **__: captions.extend(text for text, _ in panels))
    tool.draw_photograph(explanation)
    first, second = (100 * float(values.sum()) for values in explanation.maps[0])
    assert captions[1:] == [
        f"missile\n{first:.2f}%",
        f"drilling platform\n{second:.2f}%",
        f"difference\n{first - second:+.2f}%",
    ]
    assert explanation.maps.shape[2:] == (14, 14)
    assert explanation.layout().is_aligned
    assert torch.allclose(explanation.probabilities, torch.tensor([[0.1795, 0.1132]]), atol=2e-3)  # as in the picture


@torch.no_grad()
def test_the_page_tells_the_percentages_of_the_vanilla_classifier(explanation):
    folder, photograph = imagenet_folder(tool.ARCHITECTURE), tool.load_photograph()
    vanilla = timm.create_model(f"local-dir:{folder}", pretrained=True, output_stride=tool.STRIDE).eval()
    transform = create_transform(**{**resolve_model_data_config(vanilla), "crop_pct": 1.0})
    probabilities = vanilla(transform(photograph)[None]).softmax(dim=1)[0, explanation.classes[0]]
    page = " ".join((tool.PICTURE.parent / "index.md").read_text(encoding="utf-8").split())
    told = re.search(r"the vanilla classifier gives the two classes (\S+) % and (\S+) %", page)
    assert [float(number) for number in told.groups()] == pytest.approx((100 * probabilities).tolist(), abs=0.2)
