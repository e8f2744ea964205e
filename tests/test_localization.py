"""Localisation scores worked out by hand on small maps, and against a slow transcription."""

import pytest
import torch

from softcam_hub.explanation_scores.localization import (
    activation_precision,
    activation_sensitivity,
    box_masks,
    energy_pointing_game,
    evidence_precision,
    grid_pointing_game,
    hit_rate,
    localization_precision,
    mosaics,
    pointing_game,
    share_of_positive,
)

MAPS = torch.tensor([[[4.0, 0.0, 1.0], [2.0, -5.0, 3.0]]])
MASKS = torch.tensor([[[True, True, False], [False, False, True]]])
ZERO, CONSTANT, NEGATIVE = torch.zeros(1, 2, 3), torch.full((1, 2, 3), 0.7), torch.full((1, 2, 3), -1.0)
NAN = torch.tensor([[[4.0, 0.0, 1.0], [2.0, torch.nan, 3.0]]])
NOTHING = pytest.mark.parametrize("maps", [ZERO, NEGATIVE], ids=["zero", "negative"])


def test_localization_precision_by_hand():
    found = localization_precision(MAPS, MASKS)  # in order: 4 (hit), 3 (hit), 2, 1, 0 (hit), -5
    assert found[0].tolist() == pytest.approx([1, 1, 2 / 3, 2 / 4, 3 / 5, 3 / 6])
    assert torch.equal(localization_precision(MAPS, MASKS, k=2), found[:, :2])


def test_a_patch_that_touches_the_annotation_hits():
    maps = torch.zeros(1, 4, 6)
    maps[0, :2, 2:4] = 1.0  # the second of the six 2x2 patches
    masks = torch.zeros(1, 4, 6, dtype=torch.bool)
    masks[0, 1, 3] = True
    assert localization_precision(maps, masks, patch=2)[0].tolist() == pytest.approx([1 / n for n in range(1, 7)])


def slow_precision(image, mask, k, patch):
    height, width = image.shape
    corners = [(top, left) for top in range(0, height, patch) for left in range(0, width, patch)]
    parts = [(slice(top, top + patch), slice(left, left + patch)) for top, left in corners]
    parts = sorted(parts, key=lambda part: -float(image[part].mean()))
    hits = [bool(mask[part].any()) for part in parts]
    return [sum(hits[:n]) / n for n in range(1, k + 1)]


@pytest.mark.parametrize(("size", "patch"), [((32, 32), None), ((50, 37), 5), ((33, 64), None), ((20, 20), 7)])
def test_localization_precision_is_the_definition(size, patch):
    maps, masks = torch.rand(4, *size), torch.zeros(4, *size, dtype=torch.bool)
    masks[:, 5:11, 8:13] = True
    side = patch or max(min(size) // 16, 1)
    patches = -(-size[0] // side) * -(-size[1] // side)
    found = localization_precision(maps, masks, patch=patch)
    assert found.shape == (4, min(30, patches))
    for image, mask, curve in zip(maps, masks, found, strict=True):
        assert curve.tolist() == pytest.approx(slow_precision(image, mask, len(curve), side))


def test_only_the_positive_part_ranks_patches():
    maps = torch.tensor([[[3.0, -9.0, 1.0, 1.0]]])  # two patches of means 1.5 and 1; -3 and 1 with the negative part
    maps = torch.cat([maps, torch.zeros(1, 1, 4)], dim=1)
    masks = torch.zeros(1, 2, 4, dtype=torch.bool)
    masks[:, :, :2] = True
    assert localization_precision(maps, masks, k=1, patch=2).tolist() == [[1]]
    assert torch.equal(
        localization_precision(maps, masks, patch=2), localization_precision(maps.relu(), masks, patch=2)
    )
    assert localization_precision(torch.tensor([[[-1.0, -2.0]]]), masks[:, :1, 1:3], k=1).tolist() == [[0]]


def test_equal_patches_keep_reading_order():
    maps = torch.tensor([[[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]])
    masks = torch.tensor([[[False, True, False], [True, False, False]]])
    assert localization_precision(maps, masks, k=4)[0].tolist() == pytest.approx([1, 1 / 2, 2 / 3, 2 / 4])


def test_a_constant_map_localises_nothing():
    for maps in (ZERO, CONSTANT, NEGATIVE):
        assert localization_precision(maps, MASKS).abs().sum() == 0


def test_activation_precision_by_hand():
    assert activation_precision(MAPS, MASKS).tolist() == pytest.approx([(4 + 0 + 3) / (4 + 1 + 2 + 3)])
    assert activation_precision(CONSTANT, MASKS).tolist() == pytest.approx([3 / 6])


def test_activation_sensitivity_by_hand():
    maps = torch.tensor([[[5.0, 1.0, 1.0], [2.0, 1.0, 3.0]]])
    assert activation_sensitivity(maps, MASKS).tolist() == pytest.approx([(1 + 0 + 0.5) / 3])
    assert activation_sensitivity(MAPS, MASKS).tolist() == pytest.approx([(4 + 0 + 3) / 4 / 3])
    assert activation_sensitivity(CONSTANT, MASKS).tolist() == [0]


def test_the_pointing_game_by_hand():
    assert pointing_game(MAPS, MASKS).tolist() == [1]  # 4, in the corner
    assert pointing_game(MAPS, ~MASKS).tolist() == [0]
    tie = torch.tensor([[[0.0, 3.0, 1.0], [3.0, -5.0, 3.0]]])
    assert pointing_game(tie, MASKS).tolist() == [1]  # the first of three in reading order
    assert pointing_game(tie, ~MASKS).tolist() == [0]
    for maps in (ZERO, CONSTANT, NEGATIVE):
        assert pointing_game(maps, MASKS | True).tolist() == [0]


def test_the_pointing_game_is_the_definition():
    maps = torch.randn(50, 6, 9, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(50, 6, 9, generator=torch.Generator().manual_seed(1)) > 0.7
    masks[:, 0, 0] = True
    expected = []
    for image, mask in zip(maps.tolist(), masks.tolist(), strict=True):
        highest = max(value for row in image for value in row)
        expected.append(float(any(mask[y][x] for y in range(6) for x in range(9) if image[y][x] == highest)))
    assert pointing_game(maps, masks).tolist() == expected
    assert 0 < sum(expected) < 50


def test_the_hit_rate_by_hand():
    maps, masks = torch.zeros(1, 224, 224), torch.zeros(1, 224, 224, dtype=torch.bool)
    maps[0, 100, 100] = 1.0
    for row, column, expected in (
        (100, 115, 1),
        (100, 116, 0),
        (109, 112, 1),
        (111, 111, 0),
        (85, 100, 1),
        (84, 100, 0),
    ):
        masks.zero_()
        masks[0, row, column] = True  # (9, 12) is 15 pixels away, and (11, 11) is 15.6
        assert hit_rate(maps, masks).tolist() == [expected], (row, column)
        assert pointing_game(maps, masks).tolist() == [0]
    assert hit_rate(maps, masks, tolerance=16).tolist() == [1]
    assert hit_rate(maps[:, :112, :], masks[:, :112, :], tolerance=None).tolist() == [0]
    masks.zero_()
    masks[0, 100, 108] = True  # half the side has half the tolerance: 7.5 pixels
    assert hit_rate(maps[:, :, :112], masks[:, :, :112]).tolist() == [0]
    masks[0, 100, 107] = True
    assert hit_rate(maps[:, :, :112], masks[:, :, :112]).tolist() == [1]
    for empty in (maps * 0, maps * 0 + 0.7, maps - 1):
        assert hit_rate(empty, masks).tolist() == [0]


def test_the_hit_rate_is_the_definition():
    maps = torch.rand(40, 30, 45, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(40, 30, 45, generator=torch.Generator().manual_seed(1)) > 0.97
    masks[:, 0, 0] = True
    expected = []
    for image, mask in zip(maps, masks, strict=True):
        y, x = divmod(int(image.argmax()), 45)
        expected.append(
            float(any((y - v) ** 2 + (x - u) ** 2 <= (15 / 224 * 30) ** 2 for v, u in mask.nonzero().tolist()))
        )
    assert hit_rate(maps, masks).tolist() == expected
    assert 0 < sum(expected) < 40


@NOTHING
def test_a_map_that_shows_nothing_scores_nothing(maps):
    assert activation_precision(maps, MASKS).tolist() == [0]
    assert activation_sensitivity(maps, MASKS).tolist() == [0]


def test_one_broken_map_leaves_the_others():
    maps, masks = torch.cat([MAPS, NAN, MAPS]), MASKS.expand(3, -1, -1)
    for measure in (
        *(activation_precision, activation_sensitivity, evidence_precision, localization_precision),
        pointing_game,
    ):
        found, alone = measure(maps, masks), measure(MAPS, MASKS)
        assert torch.equal(found[0], alone[0])
        assert torch.equal(found[2], alone[0])


def test_scale_does_not_matter():
    maps, masks = torch.rand(2, 8, 8), torch.rand(2, 8, 8) > 0.7
    for measure in (activation_precision, activation_sensitivity, localization_precision):
        for scale in (1e-30, 1e30):
            assert torch.allclose(measure(scale * maps, masks), measure(maps, masks), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.long, torch.float32])
def test_masks_of_zeros_and_ones(dtype):
    for measure in (activation_precision, activation_sensitivity, evidence_precision, localization_precision):
        assert torch.equal(measure(MAPS, MASKS.to(dtype)), measure(MAPS, MASKS))


def test_energy_pointing_game_by_hand():
    boxes = torch.tensor([[1, 0, 3, 1]])  # the two right ones of the upper row: 0 and 1
    assert energy_pointing_game(MAPS, boxes).tolist() == pytest.approx([1 / 10])
    several = torch.tensor([[[1, 0, 3, 1], [2, 0, 3, 2]]])  # overlap counts once
    assert energy_pointing_game(MAPS, several).tolist() == pytest.approx([(1 + 3) / 10])


def test_evidence_precision_by_hand():
    assert evidence_precision(MAPS, MASKS, patch=1).tolist() == pytest.approx([2 / 3])  # of 4 (hit), 2 and 3 (hit)
    assert evidence_precision(MAPS, MASKS, threshold=0.0).tolist() == pytest.approx([2 / 4])  # and of 1
    assert evidence_precision(MAPS, MASKS, threshold=3.0).tolist() == [1]  # of 4 alone: 3 is not above 3
    assert evidence_precision(MAPS, MASKS, threshold=4.0).isnan().tolist() == [True]
    assert evidence_precision(-MAPS, MASKS, threshold=1.0).tolist() == [0]  # of 5, which is outside


def slow_evidence_precision(image, mask, threshold, patch):
    above = hits = 0
    for top in range(0, image.shape[0], patch):
        for left in range(0, image.shape[1], patch):
            cells = [
                (row, column)
                for row in range(top, min(top + patch, image.shape[0]))
                for column in range(left, min(left + patch, image.shape[1]))
            ]
            if sum(float(image[cell]) for cell in cells) / len(cells) > threshold:
                above += 1
                hits += any(bool(mask[cell]) for cell in cells)
    return hits / above if above else float("nan")


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 1.0, 9.0])
@pytest.mark.parametrize(("size", "patch"), [((32, 32), None), ((50, 37), 5), ((20, 20), 7), ((8, 8), 1)])
def test_evidence_precision_is_the_definition(size, patch, threshold):
    maps = 3 * torch.randn(4, *size, generator=torch.Generator().manual_seed(0))
    maps[3] -= 20  # an image without any patch above the threshold
    masks = torch.zeros(4, *size, dtype=torch.bool)
    masks[:, 5:7, 3:8] = True
    side = patch or max(min(size) // 16, 1)
    expected = [slow_evidence_precision(*pair, threshold, side) for pair in zip(maps, masks, strict=True)]
    found = evidence_precision(maps, masks, threshold, patch)
    assert found.tolist() == pytest.approx(expected, nan_ok=True)
    assert found.isnan()[3]


def test_shrunk_evidence_is_as_precise_or_more_at_the_same_place():
    """What a penalty on the size of evidence does: the map and its place are the same, and the score is another one."""
    found = [float(evidence_precision(scale * MAPS, MASKS)) for scale in (1.0, 0.4, 0.2)]
    assert found[:2] == pytest.approx([2 / 3, 1])
    assert torch.tensor(found[2]).isnan()
    assert share_of_positive(0.2 * MAPS).tolist() == share_of_positive(MAPS).tolist() == pytest.approx([4 / 6])


def test_share_of_positive_is_the_definition():
    maps = (
        torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(1))
        + torch.tensor([0.0, 1, -1, 9, -9])[:, None, None]
    )
    maps[0, :3] = 0.0  # zero speaks neither for nor against
    expected = [sum(float(cell) > 0 for row in image for cell in row) / 63 for image in maps]
    assert share_of_positive(maps).tolist() == pytest.approx(expected)
    assert expected[3:] == [1, 0]


def test_box_masks():
    masks = box_masks(torch.tensor([[[0, 0, 1, 2]], [[1, 1, 3, 2]]]), (2, 3))
    assert masks.int().tolist() == [[[1, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, 1, 1]]]


def test_mosaics_put_each_image_into_its_cell():
    images = torch.arange(8.0)[:, None, None, None].expand(-1, 3, 2, 5)
    pictures, classes = mosaics(images, torch.arange(8))
    assert pictures.shape == (2, 3, 4, 10)
    assert classes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert pictures[1, 0, ::2, ::5].tolist() == [[4, 5], [6, 7]]
    assert pictures[0, 2].unique(return_counts=True)[1].tolist() == [10] * 4


def test_mosaics_keep_the_pixels():
    images = torch.rand(9, 1, 2, 3)
    pictures, _ = mosaics(images, torch.arange(9), side=3)
    assert torch.equal(pictures[0, :, 2:4, 3:6], images[4])
    assert torch.equal(pictures[0, :, 4:6, 6:9], images[8])


def test_grid_pointing_game_by_hand():
    maps = torch.zeros(1, 4, 4, 4)
    maps[0, 0, 0, 0] = 2.0  # all in its own cell
    maps[0, 1, 0, 3], maps[0, 1, 3, 3], maps[0, 1, 0, 0] = 1.0, 3.0, -4.0  # a quarter
    maps[0, 2] = 1.0  # everywhere: chance
    assert grid_pointing_game(maps).tolist() == [pytest.approx([1, 1 / 4, 1 / 4, 0])]


def test_grid_pointing_game_on_mosaics_of_bright_cells():
    images = torch.zeros(4, 1, 3, 6)
    pictures = []
    for cell in range(4):
        images.zero_()
        images[cell] = 1.0
        pictures.append(mosaics(images, torch.arange(4))[0][0, 0])
    assert grid_pointing_game(torch.stack(pictures)[None]).tolist() == [[1, 1, 1, 1]]


ERRORS = {
    "mask of another size": (activation_precision, (MAPS, MASKS[:, :, :2]), r"got \(1, 2, 3\) and \(1, 2, 2\): resize"),
    "empty mask": (
        activation_sensitivity,
        (MAPS.expand(3, -1, -1), torch.cat([MASKS, ~MASKS & MASKS, MASKS])),
        r"^the masks of images \[1\] are empty: leave out images without an annotation$",
    ),
    "mask of 255": (localization_precision, (MAPS, 255 * MASKS.int()), r"only 0 and 1, got values up to 255$"),
    "k": (localization_precision, (MAPS, MASKS, 7), r"^k must be from 1 to the 6 patches of a map, got 7"),
    "patch": (localization_precision, (MAPS, MASKS, 1, 3), r"^patch must be from 1 to the shorter side of 2x3, got 3$"),
    "box of no size": (energy_pointing_game, (MAPS, torch.tensor([[1, 0, 1, 1]])), r"^boxes must have left < right"),
    "box outside": (energy_pointing_game, (MAPS, torch.tensor([[0, 0, 4, 1]])), r"lie inside the \(2, 3\) image$"),
    "boxes of other images": (energy_pointing_game, (MAPS, torch.tensor([[0, 0, 1, 1]] * 2)), "must have one shape"),
    "class twice": (
        mosaics,
        (torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 1])),
        r"^mosaics \[0\] would hold a class",
    ),
    "images left over": (mosaics, (torch.rand(5, 3, 2, 2), torch.arange(5)), r"^expected .* B a multiple of 4, got"),
    "tolerance": (hit_rate, (MAPS, MASKS, -1.0), r"^tolerance must be a number of pixels from 0 on, got -1.0$"),
    "odd mosaic": (grid_pointing_game, (torch.rand(1, 4, 5, 4),), r"multiples of 2, got \(1, 4, 5, 4\)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name):
    measure, arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        measure(*arguments)
