"""Causal scores of a map: numbers by hand, scipy, the parts of generated images, and a network whose reason is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import pearsonr, spearmanr

from softcam_hub.data.config import DataConfig
from softcam_hub.data.lesions import draw_twins
from softcam_hub.data.splits import load_splits
from softcam_hub.data.transforms import make_transforms, region_transform
from softcam_hub.evaluation.causal import Twins
from softcam_hub.evaluation.causal_summary import correlate_all_parts
from softcam_hub.explanation_scores.causal import (
    choose_background,
    fill_from_surroundings,
    idle_parts,
    linear_agreement,
    log_odds,
    rank_agreement,
    removal_effects,
    share_of_map,
    signed_evidence,
    total_share,
)

NAN = float("nan")


def same(found, expected):
    return torch.allclose(found.double(), torch.tensor(expected).double(), equal_nan=True)


# --- numbers by hand -------------------------------------------------------------------------------------------------

MAPS = torch.tensor([[[1.0, -2.0, 3.0], [0.0, 4.0, 2.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
REGIONS = torch.tensor([[[0, 0, 2], [-1, 2, -2]], [[1, 1, 1], [0, 0, -1]]])


def test_evidence_and_shares_of_parts():
    assert same(signed_evidence(MAPS, REGIONS, 3), [[-1 / 6, NAN, 7 / 6], [0, 0, NAN]])
    assert same(share_of_map(MAPS, REGIONS, 3), [[3 / 12, NAN, 7 / 12], [0, 0, NAN]])
    assert same(share_of_map(MAPS.relu(), REGIONS, 3), [[1 / 10, NAN, 7 / 10], [0, 0, NAN]])
    broken = MAPS.clone()
    broken[0, 0, 0] = NAN
    for function in (signed_evidence, share_of_map):
        assert function(broken, REGIONS, 3).isnan()[0].all()
        assert same(function(broken, REGIONS, 3)[1:], [[0, 0, NAN]])
        with pytest.raises(ValueError, match="there are 2 parts, numbered from 0, but regions hold 2"):
            function(MAPS, REGIONS, 2)
        with pytest.raises(ValueError, match="expected regions"):
            function(MAPS, REGIONS[:1], 3)


def test_effects_are_drops_of_the_class():
    before = torch.tensor([[1.0, 5.0], [2.0, 0.0]])
    after = torch.tensor([[0.0, 3.0], [0.0, 6.0], [0.5, 9.0]])
    assert removal_effects(before, after, torch.tensor([0, 0, 1]), torch.tensor([1, 0])).tolist() == [2.0, -1.0, 1.5]


def test_idle_parts_and_their_share():
    effects = torch.tensor([[2.0, -0.09, 0.11, NAN, 0.0], [0.0, 0.0, NAN, NAN, 0.0], [-4.0, 0.05, 1.0, -0.1, 5.0]])
    idle = idle_parts(effects.double())
    assert idle.tolist() == [
        [False, True, False, False, True],
        [True, True, False, False, True],
        [False, True, False, False, False],
    ]
    shares = torch.tensor([[0.5, 0.2, 0.1, NAN, 0.05], [0.3, NAN, NAN, NAN, 0.1], [0.1, 0.1, 0.1, 0.1, 0.1]])
    assert same(total_share(shares, idle), [0.25, 0.4, 0.1])
    assert same(total_share(shares, ~idle & False), [NAN, NAN, NAN])
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        idle_parts(effects, 0)


def test_log_odds_of_a_softmax():
    logits = torch.tensor([[1.0, 2.0, -0.5], [30.0, 0.0, 1.0], [0.0, 0.0, 0.0], [-1e-7, -16.0, -17.0]])
    p = logits.double().softmax(dim=1)
    others = torch.stack([p[:, [1, 2]], p[:, [0, 2]], p[:, [0, 1]]], dim=1).sum(dim=2)  # 1 - p without its rounding
    assert torch.allclose(log_odds(logits).double(), (p / others).log(), rtol=1e-5)
    assert torch.allclose(log_odds(logits + 100), log_odds(logits), atol=1e-4)
    assert torch.allclose(log_odds(logits[:, :2])[:, 0], logits[:, 0] - logits[:, 1]), "two classes"


def test_correlations_are_those_of_scipy_over_the_parts_that_are_there():
    generator = torch.Generator().manual_seed(0)
    evidence = torch.rand(20, 9, generator=generator).mul(6).round() / 6  # with ties
    effects = torch.randn(20, 9, generator=generator) * 1e-20
    evidence[torch.rand(20, 9, generator=generator) < 0.2] = NAN
    effects[torch.rand(20, 9, generator=generator) < 0.2] = NAN
    for row in range(20):
        present = ~(evidence[row].isnan() | effects[row].isnan())
        pair = evidence[row][present].double().numpy(), effects[row][present].double().numpy()
        for function, expected in ((rank_agreement, spearmanr), (linear_agreement, pearsonr)):
            found = function(evidence, effects)[row]
            if len(pair[0]) < 3:
                assert found.isnan()
            else:
                assert float(found) == pytest.approx(expected(*pair)[0], abs=1e-6)


def test_correlations_without_an_answer():
    evidence = torch.tensor([[1.0, 2.0, NAN], [1.0, 1.0, 1.0], [0.1, 0.1, 0.1], [1.0, 2.0, 3.0]])
    effects = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    for function in (rank_agreement, linear_agreement):
        assert same(function(evidence, effects), [NAN, 0, 0, NAN])
        with pytest.raises(ValueError, match="expected evidence and effects"):
            function(evidence[0], effects[0])


def test_the_correlation_of_all_parts_has_the_interval_of_a_slow_bootstrap_over_images():
    generator = np.random.default_rng(0)
    lines = []
    for _ in range(12):
        effects = generator.normal(0, 2, 5).tolist()
        evidence = [effect + generator.normal(0, 2) + 1000 for effect in effects]
        lines.append({"part_evidence": [None, *evidence], "part_effects": [1.0, *effects[:4], None]})
        lines[-1]["part_effects_logit"] = lines[-1]["part_effects"]
    found = correlate_all_parts(lines)
    pairs = [np.array([line["part_evidence"][1:5], line["part_effects"][1:5]]) for line in lines]
    for pair in pairs:
        pair[1, np.abs(pair[1]) < 0.1] = 0
    joined = np.concatenate(pairs, axis=1)
    assert found["causal_linear_all"] == pytest.approx(pearsonr(*joined)[0])
    assert found["causal_rank_all"] == pytest.approx(spearmanr(*joined)[0])
    drawn = [[pairs[image] for image in generator.integers(12, size=12)] for _ in range(4000)]
    slow = [np.corrcoef(np.concatenate(sample, axis=1))[0, 1] for sample in drawn]
    expected = np.quantile(slow, [0.025, 0.975])
    assert found["causal_linear_all_interval"] == pytest.approx(expected, abs=0.03)
    assert found["causal_linear_all_logit"] == found["causal_linear_all"]
    assert "causal_rank_all_interval" in found
    assert not [name for name in correlate_all_parts(lines[:1]) if name.endswith("_interval")]
    nothing = [{"part_evidence": [None], "part_effects": [None], "part_effects_logit": [None]}] * 2
    assert correlate_all_parts(nothing) == {}
    constant = [{name: [1.0, 1.0] if name == "part_evidence" else [0.0, 5.0] for name in line} for line in lines]
    assert correlate_all_parts(constant)["causal_rank_all"] == 0


# --- background ------------------------------------------------------------------------------------------------------


def test_squares_of_background_are_free_apart_and_follow_from_their_seed():
    free = torch.zeros(3, 40, 30, dtype=torch.bool)
    free[0, 5:35, 5:25] = True
    free[1, 10:18, 10:18] = True  # room for one square of 6 with the pixels around it
    squares = choose_background(free, 6, 4, [(0, 0), (0, 1), (0, 2)])
    assert squares.shape == (3, 4, 40, 30)
    assert squares.sum(dim=(2, 3)).tolist() == [[36] * 4, [36, 0, 0, 0], [0] * 4]
    assert squares[1, 0, 11:17, 11:17].all()
    assert squares.sum(dim=1).max() == 1, "no pixel is in two squares"
    around = F.max_pool2d(squares.any(dim=1)[:, None].float(), 3, 1, 1)[:, 0] > 0
    assert not (around & ~free).any()
    assert torch.equal(choose_background(free[:1], 6, 4, [(0, 0)]), squares[:1]), "other images make no difference"
    assert not torch.equal(choose_background(free[:1], 6, 4, [(1, 0)]), squares[:1])
    assert not choose_background(free, 29, 2, [0, 1, 2]).any(), "the images are too narrow"
    with pytest.raises(ValueError, match="side must be at least 1"):
        choose_background(free, 0, 2, [0, 1, 2])


def test_a_hole_is_filled_with_what_is_around_it():
    images = torch.rand(2, 3, 12, 14, dtype=torch.float64)
    removed = torch.zeros(2, 12, 14, dtype=torch.bool)
    removed[0, 4:8, 5:9] = True
    filled = fill_from_surroundings(images, removed, 4)
    assert torch.equal(filled[1], images[1])
    assert torch.equal(filled[0][:, ~removed[0]], images[0][:, ~removed[0]])
    other = images.clone()
    other[0, :, 4:8, 5:9] = 7.0
    assert torch.allclose(fill_from_surroundings(other, removed, 4), filled), "nothing of the hole is left"
    total, weight = 0.0, 0.0
    for row in range(5 - 4, 5 + 5):
        for column in range(7 - 4, 7 + 5):
            if not removed[0, row, column]:
                share = np.exp(-((row - 5) ** 2 + (column - 7) ** 2) / (2 * 2.0**2))
                total, weight = total + share * images[0, :, row, column], weight + share
    assert torch.allclose(filled[0, :, 5, 7], total / weight)


# --- generated images ------------------------------------------------------------------------------------------------


def test_regions_go_through_the_geometry_of_the_image():
    numbers = np.arange(64 * 64).reshape(64, 64) % 256
    config = {"input_size": (3, 64, 64), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert np.array_equal(region_transform({**config, "crop_pct": 1.0})(numbers).numpy(), numbers)
    halves = np.zeros((64, 64), dtype=int)
    halves[:, :20], halves[30:, 20:] = 3, 200
    for change in ({"input_size": (3, 96, 96)}, {"crop_pct": 0.8}, {"input_size": (3, 40, 40), "crop_mode": "squash"}):
        prepared = {**config, "crop_pct": 1.0, **change}
        regions = region_transform(prepared)(halves)
        assert set(regions.unique().tolist()) == {0, 3, 200}
        picture = make_transforms({**prepared, "interpolation": "nearest"})[1](
            Image.fromarray(halves.astype(np.uint8)).convert("RGB")
        )
        assert torch.equal(((picture[0] * 0.5 + 0.5) * 255).round().long(), regions)


def read_twins(variant, count, size=64):
    data = DataConfig(variant, train_count=4, eval_count=count, data_size=size)
    samples = load_splits(data).test
    preprocessing = {"input_size": (3, size, size), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return Twins(data, samples, {**preprocessing, "interpolation": "bicubic", "crop_mode": "center"}), samples


def test_parts_of_the_benchmark_are_those_of_the_drawing():
    twins, samples = read_twins("cue", 6)
    assert twins.distractors == ("vessels", "disc", "drusen", "pigment", "lesions")
    for index in range(6):
        parts = twins.read(index)
        drawn, pictures = draw_twins(index, "test", 64, "cue")
        assert np.array_equal(np.asarray(samples.image(index)), np.asarray(drawn.image)), "it is the image of the data"
        assert parts.lesions == index % 2
        slots = dict(enumerate(twins.distractors)) | {9: 0}
        covered = np.zeros((64, 64), dtype=bool)
        for number, name in reversed(slots.items()):
            mask = drawn.part_masks.get(name, np.zeros((64, 64), dtype=bool)) & ~covered
            assert np.array_equal(parts.regions.numpy() == number, mask), "the part that was drawn last is seen"
            assert (number in parts.twins) == mask.any()
            covered |= mask
            if number in parts.twins:
                expected = torch.from_numpy(np.array(pictures[name])).permute(2, 0, 1) / 255 * 2 - 1
                assert torch.allclose(parts.twins[number], expected, atol=1e-6)
        assert set(parts.regions[torch.from_numpy(~covered)].unique().tolist()) == {-1, -2}
        black = (np.asarray(drawn.image) == 0).all(axis=-1)
        assert black[parts.regions.numpy() == -2].mean() == 1


def test_a_network_whose_reason_is_known():
    """The logit is the number of bluish pixels, which only the planted mark has, and the map says so."""

    def evidence_of(image):
        pixels = torch.from_numpy(np.array(image)).float()
        return ((pixels[..., 2] > 0.85 * pixels[..., 0]) & (pixels[..., 0] > 20)).float()

    for index in (1, 5, 7):
        whole, twins = draw_twins(index, "test", variant="cue", seed=1)
        regions, names = torch.full((1, 128, 128), -1), list(whole.part_masks)
        for number, mask in enumerate(whole.part_masks.values()):
            regions[0, torch.from_numpy(mask)] = number
        outputs = torch.stack([evidence_of(twins[name]).sum()[None] for name in names])
        maps = evidence_of(whole.image)[None]
        before, first = maps.sum()[None, None], torch.zeros(1, dtype=torch.long)
        effects = removal_effects(before, outputs, torch.zeros(len(names), dtype=torch.long), first)[None]
        assert int(effects.argmax()) == names.index(0)
        assert float(linear_agreement(share_of_map(maps, regions, len(names)), effects)) > 0.99
        idle = idle_parts(effects.float())
        assert idle.sum() >= len(names) - 2
        assert float(total_share(share_of_map(maps, regions, len(names)), idle)) < 0.1
        wrong = 1 - maps
        assert float(linear_agreement(share_of_map(wrong, regions, len(names)), effects)) < 0.2
