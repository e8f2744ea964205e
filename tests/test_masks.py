"""Boxes and masks are checked against their images."""

import datasets
import numpy as np
import pytest
from helpers.data import load, manifest, paint
from PIL import Image

from softcam_hub.data.columns import Columns
from softcam_hub.data.samples import Samples

pytestmark = pytest.mark.usefixtures("dataset_cache")


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (
            "[[0, 0, 99, 2.5]]",
            r"row 0 of split 'train'.*: the box \[0, 0, 99, 2.5\] does not fit .*expected x1 up to 12 and y1 up to 10",
        ),
        ("[[3, 3, 1, 4]]", r"row 0 of split 'train'.*: \[3, 3, 1, 4\] is not a box: expected"),
        ("[1, 2, 3]", "boxes of row 0 of split 'train'.*expected"),
        (
            "[[0.2, 0.3, 0.6, 0.7]]",
            "boxes of row 0 .* look like shares of the image: expected pixels; multiply by width",
        ),
        ("[[0, 0, 1, 1]]", "boxes of row 0 of split 'train'.*which look like shares of the image"),
        ("left", "boxes of row 0 of split 'train'.*expected"),
        ('{"x": 1}', "boxes of row 0 of split 'train'.*expected"),
    ],
)
def test_boxes_are_checked(tmp_path, boxes, message):
    data = datasets.Dataset.from_dict({"image": [str(paint(tmp_path / "1.png"))], "label": [0], "boxes": [boxes]})
    found = Samples(data, np.zeros(1, dtype=np.int64), Columns("image", "label", boxes="boxes"))
    with pytest.raises(ValueError, match=message):
        found.mask(0)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_mask_in_the_alpha_channel_alone_is_refused(mode, tmp_path):
    mask = Image.new("L", (12, 10), 0)
    mask.paste(255, (2, 2, 5, 5))
    picture = Image.new(mode[:-1] if mode != "LA" else "L", (12, 10), "white")
    picture.putalpha(mask)
    picture.save(tmp_path / "mask.png")
    path = manifest(tmp_path, "image,label,mask\nimages/1.png,a,mask.png\nimages/2.png,b,\n")
    with pytest.raises(ValueError, match="the mask of row 0 .*only its alpha channel differs.*save the mask as a grey"):
        load(path).train.mask(0)
    picture.paste(mask.convert(picture.mode), (0, 0))  # now the colours say the same
    picture.save(tmp_path / "mask.png")
    assert np.asarray(load(path).train.mask(0)).sum() == 255 * 9


def test_a_mask_of_another_size_is_refused(tmp_path):
    Image.new("L", (5, 5)).save(tmp_path / "mask.png")
    path = manifest(tmp_path, "image,label,mask\nimages/1.png,a,mask.png\nimages/2.png,b,\n")
    with pytest.raises(ValueError, match="5×5 pixels but its image 12×10"):
        load(path).train.mask(0)


def test_a_palette_whose_first_colour_is_not_black_is_refused(tmp_path):
    picture = Image.new("RGB", (12, 10), "white")
    picture.paste((0, 0, 0), (2, 2, 5, 5))
    path = manifest(tmp_path, "image,label,mask\nimages/1.png,a,mask.png\nimages/2.png,b,\n")
    picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=2).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="the mask of row 0 .*colour 0 of its palette is not black"):
        load(path).train.mask(0)
    classes = Image.new("P", (12, 10), 0)  # as PASCAL VOC stores classes
    classes.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    classes.paste(2, (2, 2, 5, 5))
    classes.save(tmp_path / "mask.png")
    assert np.asarray(load(path).train.mask(0)).sum() == 255 * 9


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (255, 0, 0, 255)), ("LA", (90, 255))])
def test_what_is_fully_transparent_is_no_part_of_a_mask(mode, colour, tmp_path):
    picture = Image.new(mode, (12, 10), (255,) * (len(mode) - 1) + (0,))
    picture.paste(colour, (2, 2, 5, 5))
    picture.save(tmp_path / "mask.png")
    path = manifest(tmp_path, "image,label,mask\nimages/1.png,a,mask.png\nimages/2.png,b,\n")
    assert np.asarray(load(path).train.mask(0)).sum() == 255 * 9
