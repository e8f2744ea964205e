"""Measures that ask the model, on models so small that their answers are known."""

import numpy as np
import pytest
import timm
import torch
from captum.metrics import sensitivity_max
from scipy.stats import spearmanr

from softcam_hub import Explanation
from softcam_hub.explanation_scores.faithfulness import adcc, average_drop, coherency
from softcam_hub.explanation_scores.maps import blur, patch_means
from softcam_hub.explanation_scores.perturbation import (
    deletion_auc,
    faithfulness_parts,
    insertion_auc,
    max_sensitivity,
    single_deletion,
    spearman,
    topk_sensitivity,
)


def brightness(images):
    """Class 0's probability is the mean of the image, class 1's what is left."""
    bright = images.flatten(1).mean(dim=1)
    return torch.stack([bright, 1 - bright], dim=1)


WHITE = torch.ones(1, 1, 2, 3)
MAPS = torch.tensor([[[1.0, 0.5, 0.0], [0.25, 0.0, 0.5]]])


class Counting:
    """A model that remembers how many images it was asked about at a time."""

    def __init__(self, model):
        self.model, self.sizes = model, []

    def __call__(self, images):
        self.sizes.append(len(images))
        return self.model(images)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).eval()
    return lambda images: model(images).softmax(dim=1)  # with gradients: measures must not keep them


def test_faithfulness_parts_by_hand():
    parts = faithfulness_parts(brightness, WHITE, MAPS)
    assert {name: values.tolist() for name, values in parts.items()} == {
        "confidence": [1.0],
        "kept": [pytest.approx(2.25 / 6)],
        "removed": [pytest.approx(3.75 / 6)],
        "complexity": [pytest.approx(2.25 / 6)],
    }
    other = faithfulness_parts(brightness, WHITE, MAPS, classes=torch.tensor([1]))
    assert other["confidence"].tolist() == [0]
    assert other["kept"].tolist() == [pytest.approx(3.75 / 6)]


def test_coherencys_second_map_is_that_of_the_kept_image_for_the_same_class():
    images, asked = WHITE.expand(3, -1, -1, -1), []

    def explain(images, classes):
        asked.append((images, classes))
        return images[:, 0]

    maps, classes = torch.rand(3, 2, 3), torch.tensor([0, 1, 0])
    parts = faithfulness_parts(brightness, images, maps, explain, classes, batch=2)
    assert [len(images) for images, _ in asked] == [2, 1]
    assert torch.equal(torch.cat([images[:, 0] for images, _ in asked]), maps)
    assert torch.cat([classes for _, classes in asked]).tolist() == [0, 1, 0]
    assert torch.allclose(parts["coherency"], torch.ones(3))


def test_a_map_of_ones_and_a_map_of_nothing(network):
    images, ones = torch.rand(2, 3, 32, 32), torch.ones(2, 32, 32)
    everything = faithfulness_parts(network, images, ones)
    nothing = faithfulness_parts(network, images, torch.zeros(2, 32, 32))
    assert torch.equal(everything["kept"], everything["confidence"])
    assert torch.equal(nothing["removed"], nothing["confidence"])
    assert torch.equal(nothing["kept"], everything["removed"])


def test_faithfulness_of_a_real_network_image_by_image(network):
    images, maps, again = torch.rand(5, 3, 32, 32), torch.rand(5, 32, 32), torch.rand(5, 1, 4, 4)
    parts = faithfulness_parts(network, images, maps, lambda images, _: again[: len(images)], batch=5)
    for index in range(5):
        image, weights = images[index : index + 1], maps[index]
        before = network(image)[0].detach()
        label = int(before.argmax())
        kept = network(weights * image)[0, label].detach()
        assert float(parts["confidence"][index]) == pytest.approx(float(before[label]), abs=1e-6)
        assert float(parts["kept"][index]) == pytest.approx(float(kept), abs=1e-6)
        assert float(parts["removed"][index]) == pytest.approx(
            network((1 - weights) * image)[0, label].item(), abs=1e-6
        )
    second = Explanation(again, torch.zeros(5, 1), torch.zeros(5, 1), "cam").heatmaps(32)[:, 0]
    assert torch.allclose(parts["coherency"], coherency(maps, second))
    drop = average_drop(parts["confidence"], parts["kept"])
    assert (adcc(parts["coherency"], parts["complexity"], drop) <= 1).all()


def test_topk_sensitivity_by_hand():
    found = topk_sensitivity(brightness, WHITE, MAPS)
    assert found[0].tolist() == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])


def test_topk_sensitivity_takes_patches_in_order_and_fills_them():
    images, maps = torch.ones(1, 1, 5, 5), torch.zeros(1, 5, 5)
    maps[0, 4, 4], maps[0, 0, 0] = 1.0, 2.0  # one pixel of a corner patch of one pixel; one of a patch of four
    found = topk_sensitivity(brightness, images, maps, k=2, patch=2, fill=0.5)
    assert found[0].tolist() == pytest.approx([(25 - 0.5) / 25, (25 - 0.5 - 2) / 25])
    assert torch.equal(topk_sensitivity(brightness, images, maps, k=2, patch=2, fill=images), torch.ones(1, 2))


def test_topk_sensitivity_of_a_class_without_probability():
    images = torch.cat([0 * WHITE, WHITE])
    found = topk_sensitivity(brightness, images, MAPS.expand(2, -1, -1), k=2, fill=1.0, classes=torch.tensor([0, 0]))
    assert found.tolist() == [[1, 1], [1, 1]]  # of black images nothing could drop; white ones stay white


def test_deletion_and_insertion_by_hand():
    image = torch.tensor([[[[1.0, 0.0], [0.6, 0.4]]]])
    label = torch.tensor([0])
    order = torch.tensor([[[4.0, 1.0], [3.0, 2.0]]])  # goes: 1.0, 0.6, 0.4, 0.0
    deletion = np.trapezoid([2.0 / 4, 1.0 / 4, 0.4 / 4, 0, 0], dx=1 / 4)
    insertion = np.trapezoid([0, 1.0 / 4, 1.6 / 4, 2.0 / 4, 2.0 / 4], dx=1 / 4)
    assert float(deletion_auc(brightness, image, order, 4, classes=label)) == pytest.approx(deletion)
    assert float(insertion_auc(brightness, image, order, 4, fill=0.0, classes=label)) == pytest.approx(insertion)
    two = np.trapezoid([2.0 / 4, 0.4 / 4, 0], dx=1 / 2)
    assert float(deletion_auc(brightness, image, order, 2, classes=label)) == pytest.approx(two)


def test_the_right_order_has_the_lowest_deletion_and_the_highest_insertion():
    images = torch.rand(3, 1, 6, 6)
    right, wrong = images[:, 0], 1 - images[:, 0]
    label = torch.zeros(3, dtype=torch.long)
    assert (
        deletion_auc(brightness, images, right, classes=label) < deletion_auc(brightness, images, wrong, classes=label)
    ).all()
    better = insertion_auc(brightness, images, right, fill=0.0, classes=label)
    assert (better > insertion_auc(brightness, images, wrong, fill=0.0, classes=label)).all()


def test_insertion_begins_with_the_blurred_image():
    images, maps = torch.rand(2, 1, 16, 16), torch.rand(2, 16, 16)
    expected = insertion_auc(brightness, images, maps, fill=blur(images, radius=5, sigma=5.0))
    assert torch.equal(insertion_auc(brightness, images, maps), expected)


def linear(weights):
    """A model whose first logit is a weighted sum of the pixels."""
    return lambda images: torch.stack([(weights * images).sum(dim=(1, 2, 3)), torch.zeros(len(images))], dim=1)


def test_single_deletion_of_a_linear_model_is_known():
    weights = torch.randn(1, 1, 8, 8)
    images, label = torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.long)
    cost = (weights * images)[:, 0]
    score = {"classes": label, "patch": 2}
    assert single_deletion(linear(weights), images, cost, **score).tolist() == pytest.approx([1, 1, 1])
    assert single_deletion(linear(weights), images, -cost, **score).tolist() == pytest.approx([-1, -1, -1])
    assert single_deletion(linear(weights), images, torch.ones_like(cost), **score).tolist() == [0, 0, 0]
    other = torch.rand(3, 8, 8)
    expected = [
        spearmanr(patch_means(a[None], 2).flatten(), patch_means(b[None], 2).flatten())[0]
        for a, b in zip(other, cost, strict=True)
    ]
    assert single_deletion(linear(weights), images, other, **score).tolist() == pytest.approx(expected, abs=1e-5)


def test_single_deletion_fills():
    images, weights = torch.rand(2, 1, 4, 4), torch.rand(1, 1, 4, 4)
    cost = (weights * (images - 0.5))[:, 0]
    found = single_deletion(linear(weights), images, cost, 1, fill=0.5, classes=torch.tensor([0, 0]))
    assert found.tolist() == pytest.approx([1, 1])


def test_spearman_is_scipys_also_with_ties():
    for levels in (3, 10, 1000):
        first, second = (torch.randint(levels, (4, 40)).float() for _ in range(2))
        expected = [spearmanr(a, b)[0] for a, b in zip(first, second, strict=True)]
        assert spearman(first, second).tolist() == pytest.approx(expected, abs=1e-5)


def test_max_sensitivity_by_hand():
    images = torch.rand(2, 1, 3, 3)
    generator = torch.Generator().manual_seed(7)
    noise = 0.1 * (2 * torch.rand(4, 1, 3, 3, generator=generator) - 1)
    expected = [max(3 * delta.norm() for delta in noise) / (3 * image).norm() for image in images]
    found = max_sensitivity(lambda x, _: 3 * x[:, 0], images, torch.tensor([0, 1]), 0.1, samples=4, seed=7)
    assert found.tolist() == pytest.approx([float(value) for value in expected])
    assert max_sensitivity(lambda x, _: torch.ones(len(x), 2, 2), images, torch.tensor([0, 1])).tolist() == [0, 0]


def test_max_sensitivity_is_captums_for_the_same_noise():
    images, classes = torch.rand(3, 2, 4, 4), torch.tensor([0, 1, 0])
    noise = 0.05 * (2 * torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) - 1)

    def explain(images, classes):
        return images[torch.arange(len(images)), classes].square().sin()

    theirs = sensitivity_max(
        lambda images: (explain(images[0] if isinstance(images, tuple) else images, classes),),
        images,
        perturb_func=lambda inputs, _: inputs + noise,
        n_perturb_samples=1,
    )
    assert torch.allclose(max_sensitivity(explain, images, classes, 0.05, samples=1), theirs, atol=1e-6)


def every_measure(predict, images, maps, batch):
    """Name -> a measure's values; few versions of each image."""
    return {
        "parts": faithfulness_parts(predict, images, maps, batch=batch)["kept"],
        "top-k": topk_sensitivity(predict, images, maps, k=3, batch=batch),
        "deletion": deletion_auc(predict, images, maps, steps=4, batch=batch),
        "insertion": insertion_auc(predict, images, maps, steps=4, batch=batch),
        "single": single_deletion(predict, images, maps, patch=16, batch=batch),
    }


def test_no_measure_makes_more_images_at_a_time_than_told(network):
    images, maps = torch.rand(3, 3, 32, 32), torch.rand(3, 32, 32)
    counting = Counting(network)
    small, large = (every_measure(counting, images, maps, batch) for batch in (2, 64))
    few = counting.sizes[: sum(size <= 2 for size in counting.sizes)]
    assert max(few) == 2
    for name in small:
        torch.testing.assert_close(small[name], large[name], rtol=1e-4, atol=1e-5, msg=name)


def test_one_image_at_a_time_is_the_same(network):
    images, maps = torch.rand(3, 3, 32, 32), torch.rand(3, 32, 32)
    together = every_measure(network, images, maps, 64)
    alone = [every_measure(network, image, map, 64) for image, map in zip(images.split(1), maps.split(1), strict=True)]
    for name, values in together.items():
        torch.testing.assert_close(values, torch.cat([one[name] for one in alone]), rtol=1e-4, atol=1e-5)


def test_measures_are_bounded_also_for_degenerate_maps(network):
    images = torch.rand(4, 3, 32, 32)
    maps = torch.stack([torch.zeros(32, 32), torch.ones(32, 32), torch.rand(32, 32), torch.rand(32, 32)])
    for name, values in every_measure(network, images, maps, 64).items():
        assert values.isfinite().all(), name
        assert (values >= (-1 if name == "single" else 0)).all(), name
        assert (values <= 1).all() or name == "top-k"


def test_no_graph_is_kept(network):
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    assert not any(values.requires_grad for values in every_measure(network, images, torch.rand(1, 32, 32), 8).values())


LABEL = torch.tensor([0])
ERRORS = {
    "logits": (
        lambda: topk_sensitivity(lambda x: 9 * brightness(x), WHITE, MAPS),
        r"probabilities, got 0 to 9: apply softmax",
    ),
    "one column": (
        lambda: deletion_auc(lambda x: x.mean(dim=(1, 2, 3)), WHITE, MAPS),
        r"\(B, C\) for 1 images, got shape \(1,\)",
    ),
    "map size": (
        lambda: topk_sensitivity(brightness, WHITE, MAPS[:, :1]),
        r"^expected maps \(1, 2, 3\) for these images, got \(1, 1, 3\)",
    ),
    "raw map": (
        lambda: faithfulness_parts(brightness, WHITE, 2 * MAPS),
        r"^expected maps in \[0, 1\], got 0 to 2: use heat",
    ),
    "class": (
        lambda: deletion_auc(brightness, WHITE, MAPS, classes=torch.tensor([2])),
        r"^classes must be from 0 to 1, got \[2\]$",
    ),
    "class shape": (
        lambda: deletion_auc(brightness, WHITE, MAPS, classes=LABEL[None]),
        r"^expected classes as integers of shape \(1,\)",
    ),
    "steps": (lambda: deletion_auc(brightness, WHITE, MAPS, steps=0), r"^steps must be at least 1, got 0$"),
    "batch": (lambda: deletion_auc(brightness, WHITE, MAPS, batch=0), r"^batch must be at least 1, got 0$"),
    "k": (lambda: topk_sensitivity(brightness, WHITE, MAPS, k=7), r"^k must be from 1 to the 6 patches"),
    "two maps": (
        lambda: max_sensitivity(lambda x, _: torch.rand(1, 2, 4, 4), WHITE, LABEL),
        r"^explain\(\) must return one map per image",
    ),
    "radius": (lambda: max_sensitivity(lambda x, _: x, WHITE, LABEL, radius=0), r"^samples and radius must be above 0"),
    "no image": (
        lambda: topk_sensitivity(brightness, WHITE[0], MAPS),
        r"^expected images \(B, C, H, W\), got shape \(1, 2, 3\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()
