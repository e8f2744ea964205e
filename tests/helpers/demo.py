"""A picture for the demo page, its explanation without the page, and the words of the page."""

import html
import re

import timm
from PIL import Image

import softcam_hub
from softcam_hub import CAPE_LESIONS
from softcam_hub.data.lesions import draw


def draw_picture(folder):
    """Write a picture about which the shipped model is in some doubt."""
    file = folder / "eye.png"
    draw(3, "test", 256).image.rotate(20).resize((130, 120)).save(file)
    return file


def text_of(fragment):
    """Return the words of some HTML."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", fragment)).split())


def expected(picture, classes=None, top_k=2, kind=None):
    """Explain a picture by the shipped model through the Hugging Face class alone."""
    model = softcam_hub.CAPEForImageClassification.from_pretrained(CAPE_LESIONS)
    config = timm.data.resolve_data_config({}, pretrained_cfg=model.pretrained_cfg)
    pixels = timm.data.create_transform(**config)(Image.open(picture).convert("RGB"))[None]
    return model.explain(pixels, classes, top_k=top_k, kind=kind)
