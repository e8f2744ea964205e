"""Pictures: colours keep their order, overlays keep the image where the map is silent, panels keep their places."""

import numpy as np
import torch
from PIL import Image

from softcam_hub.figures import DIVERGING, SEQUENTIAL, colour, overlay, row, signed


def luminance(pixels):
    return pixels @ np.array([0.299, 0.587, 0.114])


def test_sequential_scale_brightens_all_the_way():
    steps = luminance(colour(np.linspace(0, 1, 101)[None]))[0]
    assert (np.diff(steps) > 0).all()
    assert colour(np.zeros((1, 1)))[0, 0].tolist() == list(SEQUENTIAL[0])


def test_diverging_scale_is_palest_at_zero():
    steps = luminance(colour(np.linspace(0, 1, 101)[None], DIVERGING))[0]
    assert steps.argmax() == 50
    assert (np.diff(steps[:51]) > 0).all()
    assert (np.diff(steps[50:]) < 0).all()


def test_overlay_leaves_silent_places_in_grey():
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    heat = torch.zeros(8, 8)
    heat[:4] = 1
    pixels = np.asarray(overlay(image, heat))
    grey = np.asarray(image.convert("L"))[0, 0]
    assert (pixels[4:] == grey).all()
    assert np.abs(pixels[:4].astype(float) - (0.25 * grey + 0.75 * np.array(SEQUENTIAL[-1]))).max() <= 1


def test_signed_map_is_blue_below_zero_and_orange_above():
    pixels = np.asarray(signed(torch.tensor([[-2.0, 0.0, 1.0]]), (2, 6))).astype(int)
    assert pixels.shape == (2, 6, 3)
    assert pixels[0, 0].tolist() == list(DIVERGING[0])
    assert (pixels[0, 2] >= 249).all()
    assert pixels[0, 5, 0] > pixels[0, 5, 2]
    assert (np.asarray(signed(torch.zeros(2, 2), (4, 4))) >= 249).all()


def test_row_places_panels_side_by_side():
    sheet = row(
        [("one", Image.new("RGB", (4, 4), "red")), ("two\nlines", Image.new("RGB", (9, 9), "blue"))], side=32, gap=4
    )
    pixels = np.asarray(sheet)
    bottom = pixels[-8]
    assert bottom[4 + 16].tolist() == [255, 0, 0]
    assert bottom[4 + 32 + 4 + 16].tolist() == [0, 0, 255]
    assert bottom[0].tolist() == [255, 255, 255]
    assert (pixels[:20] < 128).any(), "the captions are missing"
