"""Boxes around the parts of maps: by hand, against a flood fill and scipy, and MaxBoxAccV2 against a slow definition."""

import time

import numpy as np
import pytest
import torch
from scipy import ndimage

from softcam_hub.explanation_scores.boxes import (
    annotation_boxes,
    box_hits,
    box_ious,
    component_boxes,
    max_box_accuracies,
)
from softcam_hub.explanation_scores.maps import min_max
from softcam_hub.explanation_scores.thresholds import THRESHOLDS

PICTURE = [
    "##..#",
    "...#.",
    "#....",
    "#.###",
]


def region(rows):
    return torch.tensor([[letter == "#" for letter in row] for row in rows])


def test_components_by_hand():
    boxes, owners = component_boxes(
        torch.stack([region(PICTURE), torch.zeros(4, 5, dtype=torch.bool), ~region(PICTURE)])
    )
    found = [sorted(map(tuple, boxes[owners == index].tolist())) for index in range(3)]
    assert found[0] == [(0, 0, 2, 1), (0, 2, 1, 4), (2, 3, 5, 4), (3, 0, 5, 2)]  # the last one touches at a corner
    assert found[1] == []
    assert found[2] == [(0, 0, 5, 4)]
    assert owners.tolist() == sorted(owners.tolist())


def flood(mask):
    """Fill the components one after another, and return their boxes."""
    left, boxes = {tuple(pixel) for pixel in mask.nonzero().tolist()}, []
    while left:
        waiting, part = [left.pop()], []
        while waiting:
            y, x = waiting.pop()
            part.append((y, x))
            near = {(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            waiting += near
        ys, xs = zip(*part, strict=True)
        boxes.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    return sorted(boxes)


def spiral(side):
    """One path that winds inwards, on which labels have far to go."""
    mask = np.zeros((side, side), dtype=bool)
    place, step = np.array([0, 0]), np.array([0, 1])
    mask[0, 0] = True

    def free(there):
        return ((there >= 0) & (there < side)).all() and not mask[tuple(there)]

    turns = 0
    while turns < 2:
        beyond = place + 2 * step
        if free(place + step) and (free(beyond) or not ((beyond >= 0) & (beyond < side)).all()):
            place, turns = place + step, 0
            mask[tuple(place)] = True
        else:
            step, turns = np.array([step[1], -step[0]]), turns + 1
    return torch.from_numpy(mask)


def test_components_are_those_of_a_flood_fill_and_of_scipy():
    generator = torch.Generator().manual_seed(0)
    shares = torch.linspace(0.02, 0.98, 40)[:, None, None]
    regions = torch.rand(40, 17, 23, generator=generator) < shares
    boxes, owners = component_boxes(regions)
    for index, mask in enumerate(regions):
        found = sorted(map(tuple, boxes[owners == index].tolist()))
        assert found == flood(mask)
        labels, count = ndimage.label(mask.numpy(), structure=np.ones((3, 3)))
        slices = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
        assert found == sorted(slices)
        assert len(found) == count
    winding = spiral(41)
    assert 200 < winding.sum() < 1000
    assert component_boxes(winding[None])[0].tolist() == [[0, 0, 41, 41]]
    assert flood(winding) == [(0, 0, 41, 41)]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1)])
def test_components_of_thin_regions(size):
    regions = torch.ones(3, *size, dtype=torch.bool)
    regions[1] = False
    boxes, owners = component_boxes(regions)
    assert boxes.tolist() == [[0, 0, size[1], size[0]]] * 2
    assert owners.tolist() == [0, 2]


def test_boxes_of_annotations_are_filled_up_with_zeros():
    masks = torch.stack([region(PICTURE), torch.ones(4, 5, dtype=torch.bool)])
    found = annotation_boxes(masks)
    assert found.shape == (2, 4, 4)
    assert sorted(map(tuple, found[0].tolist())) == flood(masks[0])
    assert found[1].tolist() == [[0, 0, 5, 4], [0] * 4, [0] * 4, [0] * 4]


def test_box_ious_by_hand():
    maps = torch.zeros(1, 4, 6)
    maps[0, 0, :2] = 4.0  # a part of 2 pixels
    maps[0, 2:, 3:] = 2.0  # a part of 6 pixels
    maps[0, 3, 0] = 1.0
    boxes = torch.tensor([[[0, 0, 3, 1], [3, 1, 6, 4], [0, 0, 0, 0]]])
    found = box_ious(maps, boxes, (0.0, 0.3, 0.6))
    assert found[0].tolist() == pytest.approx([6 / 9, 6 / 9, 2 / 3])
    assert box_ious(maps, boxes[:, :1], (0.0, 0.6))[0].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert box_ious(maps, boxes[:, 1:2], (0.0, 0.6))[0].tolist() == pytest.approx([6 / 9, 0])
    assert box_ious(maps, boxes[:, 2:], (0.0, 0.6))[0].tolist() == [0, 0]
    assert box_ious(torch.ones(1, 4, 6), boxes).abs().sum() == 0  # no contrast, and no part


def blobs(count, side, seed=0):
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(count, 8, 8, generator=generator)
    maps = torch.nn.functional.interpolate(small[:, None], size=(side, side), mode="bilinear")[:, 0]
    shifted = maps.roll((0, 1), dims=(1, 2)) + 0.03 * torch.randn(count, side, side, generator=generator)
    return maps, shifted > 0.5 * shifted.amax(dim=(1, 2), keepdim=True)


def slow_iou(one, other):
    pixels = [{(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])} for box in (one, other)]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


def test_max_box_accuracy_is_the_definition():
    maps, masks = blobs(12, 32)
    found = box_ious(maps, annotation_boxes(masks))
    expected = torch.zeros(12, len(THRESHOLDS))
    for index, (heat, mask) in enumerate(zip(min_max(maps.relu()), masks, strict=True)):
        truths = flood(mask)
        for place, threshold in enumerate(THRESHOLDS):
            pairs = [(part, truth) for part in flood(heat > threshold) for truth in truths]
            expected[index, place] = max((slow_iou(*pair) for pair in pairs), default=0)
    assert torch.allclose(found, expected)
    shares = [[float((expected[:, place] >= level).float().mean()) for place in range(20)] for level in (0.3, 0.5, 0.7)]
    accuracies = max_box_accuracies(box_hits(found).sum(dim=0))
    assert accuracies.tolist() == pytest.approx([max(line) for line in shares])
    assert 1 >= accuracies[0] > accuracies[2] > 0
    batched = torch.cat(
        [box_ious(maps[:5], annotation_boxes(masks[:5])), box_ious(maps[5:], annotation_boxes(masks[5:]))]
    )
    assert torch.equal(found, batched)


def test_accuracies_by_hand():
    ious = torch.tensor([[0.3, 0.75], [0.5, 0.0], [torch.nan, torch.nan], [0.0, 0.0]])
    hits = box_hits(ious)
    assert hits[0].tolist() == [[1, 1, 1], [0, 1, 1], [0, 1, 1]]
    assert hits[2].isnan().all()
    found = max_box_accuracies(hits[[0, 1, 3]].sum(dim=0))
    assert found.tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    assert max_box_accuracies(hits[[0, 1, 3]].sum(dim=0).numpy()[None]).tolist() == [
        pytest.approx([2 / 3, 1 / 3, 1 / 3])
    ]
    exact = torch.tensor([[0.7, 0.7]]).double()  # 0.7 of single precision is a little less
    assert box_hits(exact.float().double())[0, 2].tolist() == [1, 1, 1]


def test_large_batches_take_seconds():
    maps, masks = blobs(100, 128)
    noise = torch.rand(2, 128, 128, generator=torch.Generator().manual_seed(1))
    boxes = annotation_boxes(masks)
    start = time.process_time()
    box_ious(maps, boxes)
    box_ious(noise, boxes[:2])
    assert time.process_time() - start < 20


ERRORS = {
    "boxes of other images": (
        lambda: box_ious(torch.rand(2, 4, 4), torch.zeros(1, 1, 4)),
        r"of the 2 maps as left, top",
    ),
    "flat boxes": (lambda: box_ious(torch.rand(2, 4, 4), torch.zeros(2, 4)), r"^expected boxes \(B, n, 4\)"),
    "one mask": (lambda: annotation_boxes(torch.ones(4, 4, dtype=torch.bool)), r"^expected masks \(B, H, W\), got"),
    "empty mask": (lambda: annotation_boxes(torch.zeros(2, 4, 4)), r"^the masks of images \[0, 1\] are empty"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name):
    function, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        function()
