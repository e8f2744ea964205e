"""Generated lesions: deterministic, masked to the pixel, and not to be told apart without looking at them."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from softcam_hub.data import load_lesions
from softcam_hub.data.fundus import DISTRACTORS
from softcam_hub.data.lesions import LESIONS, SEVERITIES, VARIANTS, draw, draw_twins, list_distractors

MEANS = {
    "lesions": (64.4678, 1497),
    "severity": (65.3198, 2379),
    "labels": (74.2510, 1860),
    "marks": (75.1397, 3789),
    "screening": (71.2233, 969),
    "cue": (75.3666, 397),
}
"""Variant -> mean pixel, and number of pixels in masks, of the images of `pinned_images`."""

REACH = {"vessels": 0.002, "disc": 0.01, "drusen": 0.008, "pigment": 0.004}
"""Part -> standard deviation of its soft edge in sides of the image; a lesion has that of vessels."""


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


def pinned_images(variant):
    return [
        draw(index, split, size, variant, seed)
        for split, size, seed in (("train", 128, 0), ("test", 96, 3), ("validation", 65, 7))
        for index in range(6)
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_are_those_of_earlier_releases(variant):
    made = pinned_images(variant)
    mean, pixels = MEANS[variant]
    assert np.mean([np.asarray(one.image).mean() for one in made]) == pytest.approx(mean, abs=1e-3)
    assert sum(int(one.mask.sum()) for one in made) == pixels


def widen(mask, pixels):
    pooled = torch.nn.functional.max_pool2d(torch.from_numpy(mask)[None].float(), 2 * pixels + 1, 1, pixels)
    return pooled[0].numpy() > 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("index", [3, 7])
def test_a_twin_differs_in_the_surroundings_of_its_part_alone(variant, index):
    whole, twins = draw_twins(index, "test", variant=variant, seed=2)
    same = draw(index, "test", variant=variant, seed=2)
    assert same.image.tobytes() == whole.image.tobytes()
    assert {"vessels", "disc", 0} <= twins.keys() == whole.part_masks.keys()
    for part, picture in twins.items():
        twin = draw(index, "test", variant=variant, seed=2, without=[part])
        assert twin.image.tobytes() == picture.tobytes()
        changed = (np.asarray(twin.image) != np.asarray(whole.image)).any(axis=-1)
        near = widen(whole.part_masks[part], 2 + round(4 * 128 * REACH.get(part, 0.002)))
        assert not (changed & ~near).any(), "everything else is equal to the bit"
        assert changed[whole.part_masks[part]].any(), "and the part is gone"
        assert twin.label == whole.label
        others = {other: mask for other, mask in whole.part_masks.items() if other != part}
        assert twin.part_masks.keys() == others.keys()
        assert all(np.array_equal(twin.part_masks[other], mask) for other, mask in others.items())
        assert np.array_equal(twin.mask, whole.mask) == (part in list_distractors(variant))


def test_several_parts_are_left_out_at_once():
    whole = draw(13, "test")
    lesions = [part for part in whole.part_masks if isinstance(part, int)]
    assert len(lesions) > 1
    assert lesions == list(range(len(lesions)))
    bare = draw(13, "test", without=[*lesions, "disc", "drusen"])
    assert not bare.mask.any()
    assert list(bare.part_masks) == ["vessels", "pigment"]
    one_by_one = [draw(13, "test", without=[part]).mask for part in lesions]
    assert all(((mask & whole.mask) == mask).all() for mask in one_by_one)
    assert draw(13, "test", without="disc").image.tobytes() == draw(13, "test", without=["disc"]).image.tobytes()
    assert draw(13, "test", without=0).image.tobytes() == draw(13, "test", without={0}).image.tobytes()


def test_masks_of_parts_end_at_the_field_of_view():
    y, x = np.mgrid[0:128, 0:128] / 127 - 0.5
    made = [draw(index) for index in range(8)]
    for one in made:
        assert not any(mask[np.hypot(x, y) > 0.49].any() for mask in one.part_masks.values())
        assert all((np.asarray(one.image)[mask] > 0).any() for mask in one.part_masks.values())
    shows = {name for one in made for name in one.part_masks if isinstance(name, str)}
    assert shows == set(DISTRACTORS)


def test_a_distractor_that_is_not_there_may_be_left_out_and_an_unknown_part_may_not():
    index = next(index for index in range(40) if "drusen" not in draw(index).part_masks)
    assert draw(index, without=["drusen"]).image.tobytes() == draw(index).image.tobytes()
    with pytest.raises(
        ValueError, match="image 5 has 5 lesions and no part 5: expected numbers of lesions from 0 to 4 "
    ):
        draw(5, without=[5])
    with pytest.raises(ValueError, match="image 0 has 0 lesions and no part 'lesions': expected names of distractors"):
        draw(0, without=["lesions", "disc"])


def test_the_planted_cue_is_in_one_class_and_lesions_are_in_both():
    made = [draw(index, "test", variant="cue") for index in range(24)]
    assert [one.label for one in made] == [0, 1] * 12
    for one in made:
        assert one.mask.any() == (0 in one.part_masks) == (one.label == 1)
        assert one.mask.sum() <= 11 * 11
    lesions = np.array(["lesions" in one.part_masks for one in made]).reshape(12, 2)
    assert (lesions.mean(axis=0) > 0.6).all()
    marked, without = made[1], draw(1, "test", variant="cue", without=[0])
    brighter = np.asarray(marked.image, dtype=int) - np.asarray(without.image)
    assert (brighter[marked.mask].sum(axis=-1) > 0).all()
    assert not without.mask.any()


def test_nothing_but_the_mark_depends_on_the_class(monkeypatch):
    plain, marked = draw(4, variant="cue"), draw(5, variant="cue")
    monkeypatch.setitem(VARIANTS, "cue", VARIANTS["cue"][::-1])  # now the other image of the two is marked
    assert draw(4, variant="cue", without=[0]).image.tobytes() == plain.image.tobytes()
    assert draw(4, variant="cue").image.tobytes() != plain.image.tobytes()
    monkeypatch.undo()
    without = draw(5, variant="cue", without=[0])
    monkeypatch.setitem(VARIANTS, "cue", VARIANTS["cue"][::-1])
    assert draw(5, variant="cue").image.tobytes() == without.image.tobytes() != marked.image.tobytes()


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
            "unknown variant 'colours': expected one of lesions, severity, labels, marks, screening, cue",
        ),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"size": 16}, "size must be at least 32 pixels, as lesions vanish in smaller images, got 16"),
    ],
)
def test_wrong_settings_are_refused(arguments, expected):
    functions = [load_lesions] if "count" in arguments else [load_lesions, partial(draw, 0), partial(draw_twins, 0)]
    for function in functions:
        with pytest.raises(ValueError) as error:  # noqa: PT011, compared word for word below
            function(**arguments)
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
