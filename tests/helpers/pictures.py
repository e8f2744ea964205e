"""Helpers for tests of pictures: the texts that are drawn, and explanations to draw."""

import timm
import torch
from conftest import randomise
from PIL import Image, ImageDraw

from softcam_hub import Explanation

GREY = Image.new("RGB", (64, 64), (90, 90, 90))
NAMES = ["healthy", "microaneurysm", "haemorrhage", "exudate"]


def record_texts(monkeypatch):
    """Return a list that receives every text that is drawn from now on, in its order."""
    texts, real = [], ImageDraw.ImageDraw.text

    def text(self, position, words, *args, **options):
        texts.append(words)
        return real(self, position, words, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


def probabilities(*totals, side=8):
    """Make `cape` maps of one image for classes 0, 1, ... with the given sums, their mass in a few cells."""
    maps = torch.rand(1, len(totals), side, side).pow(6)
    maps *= torch.tensor(totals)[None, :, None, None] / maps.sum(dim=(2, 3), keepdim=True)
    return Explanation(maps, torch.arange(len(totals))[None], torch.tensor([totals]), "cape")


def explained(architecture, count=3, top_k=3, size=64, **options):
    """Explain two random images by a model with random weights."""
    model = randomise(timm.create_model(architecture, num_classes=count, **options)).eval()
    return model.explain(torch.rand(2, 3, size, size), top_k=top_k)
