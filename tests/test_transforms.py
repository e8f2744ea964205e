"""Transforms of images and masks agree with each other and with timm."""

import numpy as np
import pytest
import torch
from helpers.data import PREPROCESSING
from PIL import Image, ImageDraw
from timm.data import create_transform

from softcam_hub.data import load_lesions
from softcam_hub.data.columns import Columns
from softcam_hub.data.config import AugmentationConfig
from softcam_hub.data.samples import ImageDataset, Samples, fixed_random_state
from softcam_hub.data.transforms import RandomPart, make_transforms, mask_transform


@pytest.fixture(scope="module")
def samples():
    data = load_lesions("train", 8, 48)
    return Samples(data, np.asarray(data["label"][:]), Columns("image", "label", "mask"))


def test_without_augmentation_training_sees_what_evaluation_sees(samples):
    train, evaluation = make_transforms(PREPROCESSING, AugmentationConfig(augment=False))
    plain, _ = make_transforms(PREPROCESSING, AugmentationConfig(crop_scale=1.0, hflip=0.0))
    expected = create_transform(**PREPROCESSING)(samples.image(1))
    for transform in (train, evaluation, plain):
        assert torch.equal(transform(samples.image(1)), expected)
    flipped = make_transforms(PREPROCESSING, AugmentationConfig(hflip=1.0))[0]
    assert not torch.equal(flipped(samples.image(1)), expected)


def test_flips_and_the_evaluation_crop():
    image = Image.new("RGB", (64, 64))
    image.putpixel((16, 16), (255, 255, 255))
    flipped, evaluation = make_transforms(PREPROCESSING, AugmentationConfig(crop_scale=1.0, hflip=1.0, vflip=1.0))
    assert torch.equal(flipped(image), evaluation(image).flip(1, 2))
    _, whole = make_transforms(PREPROCESSING, AugmentationConfig(eval_crop=1.0))
    assert torch.equal(whole(image), create_transform(**{**PREPROCESSING, "crop_pct": 1.0})(image))


WIDE = {"wide": (300, 100), "tall": (60, 200), "square": (90, 90)}


def framed(size):
    """Return a grey image with a frame of one pixel in white, which any crop cuts off."""
    image = Image.new("RGB", size, (90, 90, 90))
    ImageDraw.Draw(image).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=(255, 255, 255))
    return image


@pytest.mark.parametrize("resize", ["squash", "pad"])
@pytest.mark.parametrize("size", WIDE.values(), ids=WIDE)
def test_the_whole_image_is_seen_in_training_and_evaluation(resize, size):
    settings = AugmentationConfig(resize=resize, hflip=0.0)
    train, evaluation = make_transforms(PREPROCESSING, settings)
    assert torch.equal(train(framed(size)), evaluation(framed(size)))
    seen = evaluation(framed(size)) - evaluation(Image.new("RGB", size, (90, 90, 90)))
    rows, columns = (seen[0].abs() > 0.01).any(dim=1).nonzero()[:, 0], (seen[0].abs() > 0.01).any(dim=0).nonzero()[:, 0]
    width, height = (32, 32) if resize == "squash" else [round(32 * side / max(size)) for side in size]
    top, left = (32 - height) // 2, (32 - width) // 2
    assert abs(rows.min() - top) <= 1
    assert abs(rows.max() - (top + height - 1)) <= 1
    assert abs(columns.min() - left) <= 1
    assert abs(columns.max() - (left + width - 1)) <= 1


def test_the_centre_crop_of_imagenet_is_a_setting():
    crop = make_transforms({**PREPROCESSING, "crop_mode": "squash"}, AugmentationConfig(resize="crop"))[1]
    assert torch.equal(crop(framed((300, 100))), create_transform(**PREPROCESSING)(framed((300, 100))))
    for own in ("center", "squash", "border"):
        cfg = {**PREPROCESSING, "crop_mode": own}
        kept = make_transforms(cfg, AugmentationConfig(resize="model"))[1]
        assert torch.equal(kept(framed((300, 100))), create_transform(**cfg)(framed((300, 100))))


@pytest.mark.parametrize("size", WIDE.values(), ids=WIDE)
def test_a_random_part_has_the_share_and_about_the_shape_of_the_image(size):
    torch.manual_seed(0)
    parts = [RandomPart(0.6)(Image.new("RGB", size)) for _ in range(50)]
    assert all(0.55 <= part.width * part.height / (size[0] * size[1]) <= 1 for part in parts)
    assert all(0.74 <= part.width / part.height / (size[0] / size[1]) <= 1.36 for part in parts)
    assert len({part.size for part in parts}) > 10


def test_random_crops_of_imagenet_are_those_of_timm():
    image, settings = framed((300, 100)), {"scale": (0.3, 1.0), "hflip": 0.0, "color_jitter": None}
    timms = create_transform(**{**PREPROCESSING, **settings}, is_training=True)
    ours = make_transforms(PREPROCESSING, AugmentationConfig(resize="crop", crop_scale=0.3, hflip=0.0))[0]
    with fixed_random_state(1):
        expected = timms(image)
    with fixed_random_state(1):
        assert torch.equal(ours(image), expected)
    whole = make_transforms(PREPROCESSING, AugmentationConfig(resize="squash", crop_scale=0.3, hflip=0.0))[0]
    with fixed_random_state(1):
        assert not torch.equal(whole(image), expected)


@pytest.mark.parametrize(
    "settings", [{"hflip": 1.5}, {"crop_scale": 0}, {"eval_crop": 2}, {"color_jitter": -1}, {"resize": "letterbox"}]
)
def test_augmentation_is_checked(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        AugmentationConfig(**settings)


def test_grey_models_are_refused():
    with pytest.raises(ValueError, match="in_chans=3"):
        make_transforms({**PREPROCESSING, "input_size": (1, 32, 32)})


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(96, 64), (70, 130), (40, 40)])
def test_a_mask_lies_where_its_mark_is(mode, size):
    config = {**PREPROCESSING, "crop_mode": mode, "mean": (0.0, 0.4, 0.3)}  # a border without red
    image, mask = Image.new("RGB", size, (0, 0, 0)), Image.new("L", size)
    box = (size[0] * 0.4, size[1] * 0.35, size[0] * 0.6, size[1] * 0.55)
    ImageDraw.Draw(image).rectangle(box, fill=(255, 0, 0))
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    red = make_transforms(config)[1](image)[0] * 0.2
    found = mask_transform(config)(mask)
    assert found.shape == (32, 32)
    assert 10 < found.sum() < 300
    assert found[red > 0.6].all()
    assert not found[red < 0.05].any()


def test_a_lesion_of_one_pixel_does_not_vanish_and_a_large_one_does_not_grow():
    mask = Image.new("L", (400, 400))
    mask.putpixel((123, 200), 255)
    transform = mask_transform({**PREPROCESSING, "crop_pct": 1.0})
    assert transform(mask).nonzero().tolist() == [[200 * 32 // 400, 123 * 32 // 400]]
    ImageDraw.Draw(mask).rectangle((200, 200, 399, 399), fill=255)
    assert transform(mask)[16:, 16:].all()
    assert transform(mask).sum() == 256 + 1


def test_masks_in_samples_follow_eval_crop(samples):
    augmentation = AugmentationConfig(eval_crop=1.0)
    evaluation, masks = make_transforms(PREPROCESSING, augmentation)[1], mask_transform(PREPROCESSING, augmentation)
    sample = ImageDataset(samples, evaluation, masks=masks)[3]
    assert sample["mask"].dtype == torch.bool
    whole = np.asarray(samples.mask(3).resize((32, 32), Image.Resampling.BOX)) >= 64
    assert (sample["mask"].numpy() >= whole).all()
    assert sample["mask"].any()
    assert not ImageDataset(samples, evaluation, masks=masks)[0]["mask"].any()
