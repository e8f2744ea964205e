"""Generated lesions: deterministic, masked to the pixel, and not to be told apart without looking at them."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from softcam_hub.data import load_lesions
from softcam_hub.data.lesions import LESIONS, SEVERITIES, VARIANTS, draw


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_is_a_function_of_its_seed_and_index(variant):
    first, again = draw(5, variant=variant, seed=3), draw(5, variant=variant, seed=3)
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.mask == again.mask).all()
    assert first.label == again.label
    others = [
        draw(5, variant=variant, seed=4),
        draw(6, variant=variant, seed=3),
        draw(5, "test", variant=variant, seed=3),
    ]
    assert all(other.image.tobytes() != first.image.tobytes() for other in others)


@pytest.mark.parametrize("size", [32, 96, 200])
def test_images_have_the_requested_size(size):
    made = draw(1, size=size)
    assert made.image.size == (size, size)
    assert made.mask.shape == (size, size)


def test_classes_take_turns_and_only_the_healthy_have_no_mask():
    for index in range(24):
        made = draw(index)
        assert VARIANTS["lesions"][made.label] == VARIANTS["lesions"][index % 4]
        assert made.mask.any() == (made.label != 0)


def test_screening_shows_lesions_of_every_kind_in_the_diseased_only():
    made = [draw(index, variant="screening") for index in range(24)]
    assert [image.label for image in made] == [0, 1] * 12
    assert all(image.mask.any() == (image.label == 1) for image in made)
    assert len({image.mask.sum() for image in made}) > 10


def test_severity_grows_with_the_number_of_lesions():
    areas = [
        np.mean([draw(index, variant="severity").mask.mean() for index in range(grade, 60, 4)]) for grade in range(4)
    ]
    assert len(SEVERITIES) == 4
    assert areas[0] == 0
    assert all(np.diff(areas) > 0)


def test_several_labels_say_which_lesions_are_there():
    seen = set()
    for index in range(8):
        made = draw(index, variant="labels")
        assert made.mask.any() == any(made.label)
        seen.add(tuple(made.label))
    assert len(seen) == 2 ** len(LESIONS)


def test_the_mask_is_where_the_lesion_changes_the_image():
    """Yellow lesions are yellower inside their mask than the ring of retina around it."""
    differences = []
    for index in range(8, 48 * 12, 48):
        made = draw(index, variant="marks", size=128)
        pixels = np.asarray(made.image, dtype=float)
        near = np.asarray(torch.nn.functional.max_pool2d(torch.from_numpy(made.mask)[None].float(), 9, 1, 4)[0]) > 0
        ring = near & ~made.mask & (pixels.sum(axis=-1) > 0)
        yellowness = pixels[..., 1] / pixels.sum(axis=-1).clip(1)
        differences.append(yellowness[made.mask].mean() - yellowness[ring].mean())
    assert min(differences) > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_load_lesions_returns_a_table(variant):
    data = load_lesions("validation", count=9, size=64, variant=variant)
    column = "labels" if variant == "labels" else "label"
    assert data.column_names == ["image", column, "mask"]
    expected = draw(7, "validation", 64, variant)
    assert np.array_equal(np.asarray(data[7]["image"]), np.asarray(expected.image))
    assert np.array_equal(np.asarray(data[7]["mask"]).astype(bool), expected.mask)
    assert data[7][column] == expected.label
    if column == "label":
        assert tuple(data.features["label"].names) == VARIANTS[variant]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"split": "dev"}, "unknown split 'dev': expected one of train, validation, test"),
        (
            {"variant": "colours"},
            "unknown variant 'colours': expected one of lesions, severity, labels, marks, screening",
        ),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"size": 16}, "size must be at least 32 pixels, as lesions vanish in smaller images, got 16"),
    ],
)
def test_wrong_settings_are_refused(arguments, expected):
    with pytest.raises(ValueError) as error:  # noqa: PT011, compared word for word below
        load_lesions(**arguments)
    assert str(error.value) == expected


def batch(split, count, size):
    made = [draw(index, split, size) for index in range(count)]
    images = torch.stack([torch.from_numpy(np.array(m.image)).permute(2, 0, 1) for m in made]).float() / 255
    return images, torch.tensor([m.label for m in made])


@pytest.mark.slow
def test_the_mean_colour_does_not_give_the_class_away():
    (train, labels), (test, answers) = batch("train", 800, 64), batch("test", 400, 64)
    features = [torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1) for x in (train, test)]
    mean, scale = features[0].mean(dim=0), features[0].std(dim=0)
    x, y = ((f - mean) / scale for f in features)
    linear = nn.Linear(6, 4)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(linear(x), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    accuracy = (linear(y).argmax(dim=1) == answers).float().mean()
    assert accuracy < 0.4, "chance is 0.25"


@pytest.mark.slow
def test_a_small_network_tells_the_classes_apart():
    (train, labels), (test, answers) = batch("train", 1600, 96), batch("test", 200, 96)
    model = timm.create_model("softcam_resnet10t", num_classes=4, output_stride=16)
    steps = 500
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(train), (32,))
        images = train[chosen].flip(int(torch.randint(2, 4, ()))) * 2 - 1
        loss = nn.functional.cross_entropy(model(images), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        accuracy = (model.eval()(test * 2 - 1).argmax(dim=1) == answers).float().mean()
    assert accuracy > 0.8
