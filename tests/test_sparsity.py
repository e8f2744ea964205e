"""What makes maps sparse: the mathematics of every candidate, the heads trained at once, and the page of the rows."""

import math

import pytest
import torch
from helpers.warm import warm_python

from benchmarks.sparsity import page
from benchmarks.sparsity.candidates import CANDIDATES, contrast, entropy, hoyer
from benchmarks.sparsity.entmax import entmax15, sparsemax
from benchmarks.sparsity.features import Features
from benchmarks.sparsity.fine_tune import PLANS
from benchmarks.sparsity.heads import Heads, Setting, predict, train
from benchmarks.sparsity.measures import measure, post_hoc
from benchmarks.sparsity.rule import choose, judge, shortfall
from benchmarks.sparsity.screen import DENSE, ROWS, missing
from benchmarks.timing import read_rows

ALPHA = {sparsemax: 2.0, entmax15: 1.5}
SETTINGS = [Setting(name, value) for name, one in CANDIDATES.items() for value in (one.grid[0], one.grid[-1])]


def bisected(values, alpha):
    """Find t by bisection, so that p_i = max((α - 1)·x_i - t, 0)^(1 / (α - 1)) sums to 1."""
    scaled = [(alpha - 1) * value for value in values]
    low, high = max(scaled) - 1, max(scaled)
    for _ in range(200):
        t = (low + high) / 2
        total = sum(max(value - t, 0) ** (1 / (alpha - 1)) for value in scaled)
        low, high = (t, high) if total > 1 else (low, t)
    return [max(value - t, 0) ** (1 / (alpha - 1)) for value in scaled]


@pytest.mark.parametrize("function", ALPHA)
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 30.0])
def test_softmaxes_with_zeros_are_those_that_bisection_finds(function, scale):
    values = scale * torch.randn(20, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.tensor([bisected(row, ALPHA[function]) for row in values.tolist()], dtype=torch.float64)
    torch.testing.assert_close(function(values), expected, atol=1e-9, rtol=0)
    assert (function(values) == 0).any() or scale < 1


@pytest.mark.parametrize("function", ALPHA)
def test_softmaxes_with_zeros_have_the_right_gradient(function):
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, values)


def random_evidence(classes=3, side=4):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(5, classes, side, side, generator=generator) * 2, torch.randn(classes, generator=generator)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_maps_make_up_the_prediction(setting):
    evidence, bias = random_evidence()
    logits, maps = setting.compose(evidence, bias)
    if setting.candidate.startswith("cape"):
        torch.testing.assert_close(maps.sum(dim=(2, 3)), logits.softmax(dim=1))
        torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(5))
    else:
        rest = 0 if setting.candidate in ("dense", "l1", "rectified") else bias
        torch.testing.assert_close(maps.mean(dim=(2, 3)) + rest, logits)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_losses_and_gradients_are_finite(setting, scale):
    evidence, bias = random_evidence()
    evidence = (evidence * scale).requires_grad_()
    loss = setting.loss(evidence, bias, torch.tensor([0, 1, 2, 0, 1]), 1.0)
    loss.backward()
    assert loss.isfinite()
    assert evidence.grad.isfinite().all()


def test_without_sparsity_predictions_are_those_of_the_vanilla_classifier():
    evidence, bias = random_evidence()
    vanilla = evidence.mean(dim=(2, 3)) + bias
    for name, value in {
        "threshold": 0.0,
        "threshold-image": 0.0,
        "attended": 0.0,
        "highest": 1.0,
        "hoyer": 1.0,
    }.items():
        torch.testing.assert_close(Setting(name, value).compose(evidence, bias)[0], vanilla, msg=name)
    centred = Setting("centred", 0.0).compose(evidence, bias)[0]
    torch.testing.assert_close(centred.log_softmax(dim=1), vanilla.log_softmax(dim=1))


def test_a_soft_threshold_is_relative_to_the_evidence():
    evidence, bias = random_evidence()
    for name in ("threshold", "threshold-image"):
        maps = Setting(name, 1.0).compose(evidence, bias)[1]
        for image, klass in ((0, 0), (3, 2)):
            values = evidence[image, klass].flatten().tolist()
            of = values if name == "threshold" else evidence[image].flatten().tolist()
            limit = sum(abs(value) for value in of) / len(of)
            expected = [math.copysign(max(abs(value) - limit, 0), value) for value in values]
            torch.testing.assert_close(maps[image, klass].flatten(), torch.tensor(expected))
        assert 0.4 < (maps == 0).float().mean() < 0.8
        larger = Setting(name, 1.0).compose(7 * evidence, bias)[1]
        torch.testing.assert_close(larger, 7 * maps)


def test_an_annealed_threshold_grows_in_the_first_half_of_training():
    evidence, bias = random_evidence()
    labels = torch.tensor([0, 1, 2, 0, 1])
    for progress, value in {0.0: 0.0, 0.25: 0.75, 0.5: 1.5, 0.9: 1.5}.items():
        expected = Setting("threshold", value).loss(evidence, bias, labels, 1.0)
        torch.testing.assert_close(Setting("threshold-annealed", 1.5).loss(evidence, bias, labels, progress), expected)
    values = torch.rand(8, 9, 4, generator=torch.Generator().manual_seed(5)).half()
    features = Features(values, torch.arange(8) % 2, 3, torch.empty(8, 0, 0), torch.zeros(8, dtype=torch.bool))
    start = Heads(torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(6)), torch.zeros(1, 2))
    settings = [Setting("threshold-annealed", 1.5), Setting("threshold", 1.5)]
    weights = train(settings, start, features, seed=0, epochs=4).weights
    assert (weights[0] - weights[1]).abs().max() > 1e-3, "training tells how far it is"


def test_one_sided_maps_compete_across_classes():
    evidence, bias = random_evidence()
    maps = Setting("one-sided", 0.5).compose(evidence, bias)[1]
    assert (maps >= 0).all()
    shared = evidence + torch.randn(5, 1, 4, 4)
    torch.testing.assert_close(Setting("one-sided", 0.5).compose(shared, bias)[1], maps, atol=1e-5, rtol=1e-5)
    assert (Setting("one-sided", 0.0).compose(evidence, bias)[1] > 0).any(dim=1).all(), "a class leads everywhere"


def test_the_highest_cells_are_kept():
    evidence, bias = random_evidence()
    maps = Setting("highest", 0.25).compose(evidence, bias)[1]
    assert (maps != 0).flatten(2).sum(dim=2).unique().tolist() == [4]
    torch.testing.assert_close(maps.amax(dim=(2, 3)), 4 * evidence.amax(dim=(2, 3)))


def test_contrast_does_not_see_what_all_classes_share():
    evidence, bias = random_evidence()
    shared = evidence + torch.randn(5, 1, 4, 4)
    torch.testing.assert_close(contrast(shared.flatten(2)), contrast(evidence.flatten(2)), atol=1e-5, rtol=1e-5)
    setting = Setting("cape-contrast", 1.0)
    torch.testing.assert_close(setting.compose(shared, bias)[1], setting.compose(evidence, bias)[1])


def test_penalties_of_flat_maps_and_of_single_cells():
    flat, single = torch.full((2, 3, 4, 4), -5.0), torch.zeros(2, 3, 4, 4)
    single[:, :, 1, 2] = 7
    assert hoyer(flat) == pytest.approx(1)
    assert hoyer(single) == pytest.approx(1 / 16)
    assert hoyer(torch.tensor([[[[1.0, -3.0]]]])) == pytest.approx(16 / 20)
    assert entropy(flat) == pytest.approx(1)
    assert entropy(single) == pytest.approx(0)
    assert entropy(torch.tensor([[[[1.0, -3.0]]]])) == pytest.approx(0.8113, abs=1e-4)


def test_heads_learn_together_as_they_learn_alone():
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(90) % 3
    values = torch.rand(90, 9, 6, generator=generator).half()
    values[torch.arange(90), torch.arange(90) % 9, labels] += 3
    features = Features(values, labels, 3, torch.empty(90, 0, 0), torch.zeros(90, dtype=torch.bool))
    start = Heads(torch.randn(1, 3, 6, generator=generator) / 1000, torch.zeros(1, 3))
    settings = [Setting("dense", 0.0), Setting("threshold-annealed", 1.0), Setting("cape-contrast", 1.0)]
    together = train(settings, start, features, seed=0, epochs=4)
    for index, setting in enumerate(settings):
        alone = train([setting], start, features, seed=0, epochs=4)
        torch.testing.assert_close(together.weights[index], alone.weights[0], atol=1e-5, rtol=1e-4)
    logits, maps = predict(settings[0], together, 0, features)
    assert (logits.argmax(dim=1) == labels).float().mean() > 0.9
    assert maps.shape == (90, 3, 3, 3)


def test_the_shortfall_adds_up_what_is_missing():
    dense = {"accuracy": 0.96, "zeros": 0.0, "gini": 0.4, "precision": 0.5}
    cams = [{"precision": 0.52}, {"precision": 0.4}]
    kept = {"accuracy": 0.956, "zeros": 0.8, "gini": 0.4, "precision": 0.53}
    assert shortfall(kept, dense, cams) == 0
    assert shortfall({**kept, "zeros": 0.0, "gini": 0.56}, dense, cams) == 0, "Gini counts too"
    assert shortfall({**kept, "accuracy": 0.935}, dense, cams) == pytest.approx(2.0)
    assert shortfall({**kept, "zeros": 0.7}, dense, cams) == pytest.approx(10.0)
    assert shortfall({**kept, "precision": 0.51}, dense, cams) == pytest.approx(1.0)
    assert shortfall({**dense}, dense, cams) == pytest.approx(15 + 2)


def screening_rows():
    """Rows in which `attended` keeps the rule, `highest` lacks 2 points, and `hoyer` more."""
    numbers = {
        ("dense", 0.0): (0.96, 0.0, 0.40, 0.50),
        ("hoyer", 1.0): (0.90, 0.0, 0.45, 0.50),
        ("highest", 0.1): (0.96, 0.9, 0.90, 0.50),
        ("highest", 0.3): (0.96, 0.6, 0.50, 0.50),
        ("attended", 0.4): (0.96, 0.8, 0.40, 0.53),
    }
    common = {"stage": "screening", "seed": 0, "images": 600, "located": 450, "grid": 16, "epochs": 20}
    names = ("candidate", "value", "accuracy", "zeros", "gini", "precision")
    rows = [dict(zip(names, (*setting, *values), strict=True)) for setting, values in numbers.items()]
    rows.append({"candidate": "post-hoc cam", "value": 0.0, "precision": 0.52})
    return [{**common, "study": study, **row} for study in PLANS for row in rows]


def test_the_two_best_candidates_go_on():
    assert choose(screening_rows(), tuple(PLANS)) == [("attended", 0.4), ("highest", 0.1)]
    text = page.document(screening_rows())
    assert "fine-tunes `attended`, κ = 0.4 (shortfall 0.0 points) and `highest`, p = 0.1 (shortfall 4.0 points)" in text
    assert "Of 4 settings, one keeps the rule" in text
    assert "Not run yet" in page.document([])


def test_settings_with_a_row_are_not_trained_again():
    rows = screening_rows()
    left = missing("lesions", 0, rows)
    assert DENSE not in left
    assert Setting("attended", 0.4) not in left
    assert Setting("attended", 0.2) in left
    assert DENSE in missing("lesions", 1, rows)


def tuned_rows(hits="1110", precisions=(0.6, 0.4), **changes):
    """Rows of three seeds, where `attended` classifies as well as dense SoftCAM and is placed better."""
    common = {"stage": "fine-tuning", "study": "lesions", "value": 0.0, "zeros": 0.0, "gini": 0.4}
    names = dict.fromkeys(("accuracy", "precision", *page.COLUMNS), 0.5)
    cam = {"candidate": "post-hoc score-cam", "precisions": [0.55]}
    rows = []
    for seed in range(3):
        dense = {"candidate": "dense", "hits": "1101", "precisions": [0.3, 0.5]}
        own = {"candidate": "attended", "hits": hits, "precisions": list(precisions), "zeros": 0.8, **changes}
        rows += [{**names, **common, **row, "seed": seed} for row in (dense, own)]
        rows.append({**common, **cam, "seed": seed})
    return rows


def test_the_rule_judges_fine_tuned_candidates():
    verdict = judge(tuned_rows(), "lesions", "attended")
    assert verdict.passes
    assert verdict.accuracy == 0
    # changes 0, 0, 1, -1 in every seed
    assert verdict.interval == pytest.approx(1.96 * math.sqrt(2 / 3) / 2)
    assert not judge(tuned_rows()[:6], "lesions", "attended").passes, "two seeds"
    assert judge([], "lesions", "attended") is None
    assert not judge(tuned_rows(hits="1100"), "lesions", "attended").is_accurate
    assert not judge(tuned_rows(zeros=0.7), "lesions", "attended").is_sparse
    assert judge(tuned_rows(zeros=0.7, gini=0.56), "lesions", "attended").is_sparse
    # better than dense SoftCAM, and not on the one image that Score-CAM explains
    worse = tuned_rows(precisions=(0.5, 0.6))
    assert judge(worse, "lesions", "attended").margins == pytest.approx([-0.05] * 3)
    assert judge(worse, "lesions", "attended").is_out
    assert "3 of 3 seeds (+5.0, +5.0, +5.0)" in page.document(tuned_rows())
    assert "is not decided yet" in page.document(tuned_rows())
    assert "does not keep the rule" in page.document(worse)
    assert judge(worse[:3], "lesions", "attended").is_out, "one seed is enough to fail"


def test_measures_of_maps_worked_out_by_hand():
    maps = torch.zeros(2, 2, 4, 4)
    maps[0, 0, 0, 0], maps[0, 0, 3, 3] = 3, -1
    maps[1, 1, 2, 2] = 2
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 0, 0] = True
    labels, located = torch.tensor([0, 0]), torch.tensor([True, False])
    features = Features(torch.empty(2, 16, 1), labels, 4, masks, located)
    row = measure(maps.mean(dim=(2, 3)), maps, features)
    assert row["accuracy"] == 0.5
    assert row["zeros"] == pytest.approx(29 / 32, abs=1e-4)
    assert row["positive"] == pytest.approx(2 / 32)
    assert row["cancellation"] == pytest.approx((4 + 2) / (2 + 2))
    assert (row["mass"], row["precision_1"]) == (1, 1)


def test_post_hoc_cam_of_the_vanilla_is_its_positive_evidence():
    generator = torch.Generator().manual_seed(4)
    values, labels = torch.rand(6, 9, 5, generator=generator).half(), torch.arange(6) % 2
    features = Features(values, labels, 3, torch.empty(6, 0, 0), torch.ones(6, dtype=torch.bool))
    heads = Heads(torch.randn(1, 2, 5, generator=generator), torch.randn(1, 2, generator=generator))
    _, maps = predict(DENSE, heads, 0, features)
    evidence = maps[torch.arange(6), labels] - heads.biases[0, labels][:, None, None]
    torch.testing.assert_close(post_hoc(heads, 0, features)["cam"], evidence.relu(), atol=1e-5, rtol=1e-5)


def test_the_committed_page_is_that_of_the_rows():
    assert page.DOCUMENT.read_text(encoding="utf-8") == page.document(read_rows(ROWS)), "run benchmarks.sparsity.page"
    assert page.PICTURE.exists()


@pytest.mark.slow
def test_fine_tuning_runs():
    options = ("--studies", "lesions", "--seeds", "0", "--quick")
    done = warm_python().run("-m", "benchmarks.sparsity.fine_tune", *options)
    assert done.returncode == 0, done.stderr
    assert "lesions, seed 0: accuracy {'dense': " in done.stdout
