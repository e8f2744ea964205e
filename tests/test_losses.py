"""The losses must be the papers' sums, as pinned in the design, and each gradient must reach only whom it is meant for.

The references are loops over images, classes and locations in Python floats. Students are real CAPE heads, whose own
mathematics `test_heads.py` holds.
"""

import math
from itertools import product
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from softcam_hub.models.heads import CAPEHead
from softcam_hub.models.losses import Bootstrap, cross_entropy, distillation, elastic_net, zeroing_l1
from softcam_hub.models.modes import MODES

LAMBDAS = [(0.0, 0.0), (0.3, 0.0), (0.0, 0.7), (0.3, 0.7)]
WEIGHTS = {"direct": (1, 0), "from-scratch": (1, 1), "post-fit": (0, 1)}
"""Mode -> alpha and beta of section 3.2.4."""
TEACHERS = ["from-scratch", "post-fit"]


class Setting(NamedTuple):
    """A student, its teacher, and one batch for them; `features` stand for the backbone."""

    head: CAPEHead
    teacher: nn.Linear
    features: Tensor
    labels: Tensor

    def loss(self, bootstrap: Bootstrap) -> Tensor:
        student = self.head(bootstrap.student_features(self.features))
        teacher = self.teacher_logits() if self.teacher is not None and bootstrap.needs_teacher else None
        return bootstrap.loss(student, teacher, self.labels)

    def student_logits(self) -> Tensor:
        return self.head(self.features)

    def teacher_logits(self) -> Tensor:
        return self.teacher(self.features.mean(dim=(2, 3)))

    def gradients(self, loss: Tensor) -> dict[str, Tensor | None]:
        """Gradient of the backbone, of the teacher and of the student, None where there is no path at all."""
        leaves = {"features": self.features, "teacher": self.teacher.weight, "teacher bias": self.teacher.bias}
        leaves |= dict(self.head.named_parameters())
        return dict(zip(leaves, torch.autograd.grad(loss, leaves.values(), allow_unused=True), strict=True))


BACKBONE = ["features"]
TEACHER = ["teacher", "teacher bias"]
STUDENT = ["weight", "bias", "log_temperature"]


@pytest.fixture
def setting() -> Setting:
    """Five images of which student and teacher agree on some only."""
    generator = torch.Generator().manual_seed(0)
    head, teacher = CAPEHead(3, 4), nn.Linear(3, 4)
    for module in (head, teacher):
        module.double()
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    features = torch.randn(5, 3, 3, 2, generator=generator, dtype=torch.float64).requires_grad_()
    return Setting(head, teacher, features, torch.tensor([0, 3, 1, 1, 2]))


def mixed(labels: Tensor, classes: int = 4) -> Tensor:
    """Mixup's targets: each image shares its label with the next."""
    one_hot = F.one_hot(labels, classes).double()
    return 0.7 * one_hot + 0.3 * one_hot.roll(1, dims=0)


def slow_log_softmax(values: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in values))
    return [value - total for value in values]


def slow_divergence(student: Tensor, teacher: Tensor, temperature: float, selective: bool) -> float:
    """T²·KL(softmax(teacher/T) ‖ p̂), summed image by image and divided by the whole batch (eq. 11 if `selective`)."""
    total = 0.0
    for log_p_hat, logits in zip(student.tolist(), teacher.tolist(), strict=True):
        if selective and log_p_hat.index(max(log_p_hat)) == logits.index(max(logits)):
            continue
        for log_p, other in zip(slow_log_softmax([z / temperature for z in logits]), log_p_hat, strict=True):
            total += math.exp(log_p) * (log_p - other)
    return temperature**2 * total / len(student)


def slow_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> float:
    """H(p, q) with q = (1 - s)·target + s/C, batch mean."""
    classes = logits.shape[1]
    rows = targets.tolist() if targets.ndim == 2 else F.one_hot(targets, classes).tolist()
    total = 0.0
    for values, row in zip(logits.tolist(), rows, strict=True):
        for log_p, q in zip(slow_log_softmax(values), row, strict=True):
            total -= ((1 - smoothing) * q + smoothing / classes) * log_p
    return total / len(logits)


@pytest.mark.parametrize("mixup", [False, True], ids=["labels", "mixup"])
def test_weighted_cross_entropy_divides_by_the_number_of_images(setting: Setting, mixup: bool) -> None:
    weights = torch.tensor([0.5, 2.0, 1.0, 4.0], dtype=torch.float64)
    logits = setting.teacher_logits()
    targets = mixed(setting.labels) if mixup else setting.labels
    expected = 0.0
    for index, target in enumerate(targets):
        weight = float(target @ weights) if mixup else float(weights[target])
        expected += (
            weight * slow_cross_entropy(logits[index : index + 1], targets[index : index + 1], 0.1) / len(logits)
        )
    found = cross_entropy(logits, targets, label_smoothing=0.1, class_weights=weights)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_of_several_labels_per_image(setting: Setting) -> None:
    logits = setting.teacher_logits()
    labels, weights = (mixed(setting.labels) > 0).double(), torch.tensor([0.5, 2.0, 1.0, 4.0], dtype=torch.float64)
    total = 0.0
    for row, present in zip(logits.tolist(), labels.tolist(), strict=True):
        for logit, y, weight in zip(row, present, weights.tolist(), strict=True):
            p, q = 1 / (1 + math.exp(-logit)), 0.9 * y + 0.05
            total -= weight * q * math.log(p) + (1 - q) * math.log(1 - p)
    found = cross_entropy(logits, labels, label_smoothing=0.1, class_weights=weights, multi_label=True)
    assert found.item() == pytest.approx(total / logits.numel(), rel=1e-6)


def make_maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("l1", "l2"), LAMBDAS)
def test_elastic_net_is_a_mean_of_means(l1: float, l2: float) -> None:
    maps = make_maps(3, 4, 2, 5)
    penalties = []
    for image in maps:
        values = [image[c, i, j].item() for c, i, j in product(range(4), range(2), range(5))]
        penalties.append(l1 * sum(map(abs, values)) / len(values) + l2 * sum(v * v for v in values) / len(values))
    assert elastic_net(maps, l1, l2).item() == pytest.approx(sum(penalties) / len(penalties), rel=1e-12)


@pytest.mark.parametrize("repeats", [(1, 1, 2, 2), (1, 1, 1, 3), (1, 2, 1, 1), (4, 1, 1, 1)])
@pytest.mark.parametrize(("l1", "l2"), LAMBDAS)
def test_lambda_means_the_same_at_every_size(l1: float, l2: float, repeats: tuple[int, ...]) -> None:
    maps = make_maps(2, 3, 4, 4)
    torch.testing.assert_close(elastic_net(maps.repeat(repeats), l1, l2), elastic_net(maps, l1, l2))


def test_l1_prefers_no_map_of_one_sign_and_l2_the_flat_one() -> None:
    """The proof in `elastic_net`: four maps of one class with the logit 1.5, the last of which cancels."""
    rows = {"flat": [1.5] * 4, "half empty": [3.0, 3, 0, 0], "spike": [6.0, 0, 0, 0], "both signs": [8.0, 0, 0, -2]}
    maps = {name: torch.tensor(row).view(1, 1, 2, 2) for name, row in rows.items()}
    lasso = {name: elastic_net(one, l1=1.0).item() for name, one in maps.items()}
    ridge = {name: elastic_net(one, l2=1.0).item() for name, one in maps.items()}
    assert lasso == {"flat": 1.5, "half empty": 1.5, "spike": 1.5, "both signs": 2.5}
    assert ridge["flat"] < ridge["half empty"] < ridge["spike"] < ridge["both signs"]


def test_cells_of_one_sign_have_the_same_gradient() -> None:
    maps = make_maps(2, 3, 3, 4)
    maps.requires_grad_()
    loss = cross_entropy(maps.mean(dim=(2, 3)), torch.tensor([0, 2])) + elastic_net(maps, l1=0.3)
    (gradient,) = torch.autograd.grad(loss, maps)
    for values, slopes in zip(maps.detach().flatten(0, 1), gradient.flatten(0, 1), strict=True):
        for sign in (-1, 1):
            of_sign = slopes[values.sign() == sign]
            torch.testing.assert_close(of_sign, of_sign[:1].expand_as(of_sign))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_elastic_net_is_float32_at_least(dtype: torch.dtype) -> None:
    """Squares of 300 overflow float16, and a mean of bfloat16 would round to three digits."""
    maps = (300 * make_maps(2, 3, 4, 4)).to(dtype)
    penalty = elastic_net(maps, 0.5, 0.5)
    assert penalty.dtype == torch.float32
    torch.testing.assert_close(penalty.double(), elastic_net(maps.double(), 0.5, 0.5), rtol=1e-6, atol=0)


def test_elastic_net_gradient() -> None:
    assert torch.autograd.gradcheck(lambda maps: elastic_net(maps, 0.3, 0.7), make_maps(2, 3, 2, 2).requires_grad_())


@pytest.mark.parametrize("selective", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation(setting: Setting, temperature: float, selective: bool) -> None:
    student, teacher = setting.student_logits(), setting.teacher_logits()
    expected = slow_divergence(student, teacher, temperature, selective)
    assert distillation(student, teacher, temperature, selective).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixup", [False, True], ids=["labels", "mixup"])
@pytest.mark.parametrize("selective", [False, True], ids=["every", "selective"])
@pytest.mark.parametrize(
    ("mode", "alpha", "beta"),
    [
        *((mode, None, None) for mode in WEIGHTS),
        ("direct", 0.3, 0.0),
        ("from-scratch", 0.3, 0.7),
        ("post-fit", 2.0, 0.7),
    ],
)
def test_bootstrap(
    setting: Setting, mode: str, alpha: float | None, beta: float | None, selective: bool, mixup: bool, smoothing: float
) -> None:
    targets = mixed(setting.labels) if mixup else setting.labels
    student, teacher = setting.student_logits(), setting.teacher_logits()
    bootstrap = Bootstrap(mode, alpha, beta, 3.0, selective)
    loss = bootstrap.loss(student, teacher if bootstrap.needs_teacher else None, targets, label_smoothing=smoothing)
    alpha, beta = WEIGHTS[mode] if alpha is None else (alpha, beta)
    expected = alpha * slow_cross_entropy(teacher if mode == "from-scratch" else student, targets, smoothing)
    expected += beta * slow_divergence(student, teacher, 3.0, selective)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_the_papers_temperature_and_modes() -> None:
    bootstrap = Bootstrap("post-fit")
    assert MODES == WEIGHTS
    assert (bootstrap.temperature, bootstrap.selective) == (2.0, False)
    assert {mode: Bootstrap(mode).needs_teacher for mode in MODES} == {mode: mode in TEACHERS for mode in MODES}


def assert_same_gradients(actual: dict, expected: dict, names: list[str]) -> None:
    """Equal and not zero everywhere."""
    for name in names:
        assert expected[name].any(), name
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-12, atol=1e-14)


def assert_no_gradients(actual: dict, names: list[str]) -> None:
    assert [name for name in names if actual[name] is not None] == []


@pytest.mark.parametrize("selective", [False, True])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_from_scratch_backbone_learns_from_the_teacher_only(setting: Setting, alpha: float, selective: bool) -> None:
    actual = setting.gradients(setting.loss(Bootstrap("from-scratch", alpha=alpha, selective=selective)))
    teaching = setting.gradients(alpha * F.cross_entropy(setting.teacher_logits(), setting.labels))
    imitating = setting.gradients(distillation(setting.student_logits(), setting.teacher_logits(), 2.0, selective))
    assert_same_gradients(actual, teaching, BACKBONE + TEACHER)
    assert_same_gradients(actual, imitating, STUDENT)
    assert_no_gradients(teaching, STUDENT)


@pytest.mark.parametrize("mode", TEACHERS)
def test_divergence_reaches_the_student_alone(setting: Setting, mode: str) -> None:
    actual = setting.gradients(setting.loss(Bootstrap(mode, alpha=0.0)))
    assert_no_gradients(actual, BACKBONE + TEACHER)
    assert all(actual[name].any() for name in STUDENT)


def test_post_fit_trains_the_student_alone(setting: Setting) -> None:
    """Even with backbone and teacher left unfrozen, and without labels."""
    actual = setting.gradients(setting._replace(labels=None).loss(Bootstrap("post-fit")))
    imitating = setting.gradients(distillation(setting.student_logits(), setting.teacher_logits(), 2.0))
    assert_no_gradients(actual, BACKBONE + TEACHER)
    assert_same_gradients(actual, imitating, STUDENT)


def test_labels_reach_the_student_alone_in_post_fit(setting: Setting) -> None:
    """The teacher is frozen there: its cross-entropy would be a constant."""
    bootstrap = Bootstrap("post-fit", alpha=0.7, beta=0.0)
    actual = setting.gradients(setting.loss(bootstrap))
    negative_log_likelihood = -setting.student_logits()[torch.arange(5), setting.labels].mean()
    assert_same_gradients(actual, setting.gradients(0.7 * negative_log_likelihood), STUDENT)
    assert_no_gradients(actual, BACKBONE + TEACHER)


def test_direct_reaches_the_backbone_through_the_student(setting: Setting) -> None:
    actual = setting.gradients(setting._replace(teacher=None).loss(Bootstrap("direct")))
    negative_log_likelihood = -setting.student_logits()[torch.arange(5), setting.labels].mean()
    assert_same_gradients(actual, setting.gradients(negative_log_likelihood), BACKBONE + STUDENT)
    assert_no_gradients(actual, TEACHER)


def test_selective_counts_disagreement_over_the_whole_batch() -> None:
    """By hand: p̂ = (3/4, 1/4) against a teacher of (1/2, 1/2), once in four images."""
    student = torch.tensor([[0.75, 0.25]]).log().expand(4, 2)
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1e-9], [9.0, 0.0]], dtype=torch.float64)
    expected = 0.25 * 0.5 * (math.log(0.5 / 0.75) + math.log(0.5 / 0.25))
    assert distillation(student, teacher, 1.0, selective=True).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mode", TEACHERS)
def test_selective_keeps_its_graph_when_all_agree(setting: Setting, mode: str) -> None:
    setting.teacher.bias.data[2] = setting.head.bias.data[2] = 50.0
    assert (setting.student_logits().argmax(1) == setting.teacher_logits().argmax(1)).all()
    loss = setting.loss(Bootstrap(mode, alpha=0.0, selective=True))
    gradients = setting.gradients(loss)
    assert loss.item() == 0
    assert all(not gradients[name].any() for name in STUDENT)


@pytest.mark.parametrize("mode", TEACHERS)
def test_finite_where_the_authors_form_is_not(mode: str) -> None:
    """Evidence of standard deviation 60, float32: p̂ underflows, and 0·log 0 or log 0 spoils a loss made of it."""
    torch.manual_seed(0)
    head, teacher = CAPEHead(16, 20), nn.Linear(16, 20)
    nn.init.normal_(head.weight, std=15.0)
    nn.init.normal_(teacher.weight, std=15.0)
    features, labels = torch.randn(4, 16, 1, 1), torch.arange(4)
    setting = Setting(head, teacher, features.requires_grad_(), labels)
    p_student, p_teacher = head.maps(features).sum(dim=(2, 3)), setting.teacher_logits().detach().softmax(dim=1)
    naive = (p_teacher * (p_teacher.log() - torch.log(p_student))).sum(dim=1).mean()
    assert not naive.isfinite()
    assert not setting.gradients(naive)["weight"].isfinite().all()
    loss = setting.loss(Bootstrap(mode))
    gradients = setting.gradients(loss)
    assert loss.isfinite()
    assert all(gradients[name].isfinite().all() for name in STUDENT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", WEIGHTS)
def test_losses_of_half_precision_are_float32(setting: Setting, mode: str, dtype: torch.dtype) -> None:
    """The loss of rounded logits, computed in float64, tells the dtype's rounding from the loss's own."""
    half = Setting(setting.head.to(dtype), setting.teacher.to(dtype), setting.features.to(dtype), setting.labels)
    loss = half.loss(Bootstrap(mode))
    alpha, beta = WEIGHTS[mode]
    student, teacher = half.student_logits(), half.teacher_logits()
    expected = alpha * slow_cross_entropy(student if mode == "direct" else teacher, half.labels, 0.0)
    expected += beta * slow_divergence(student, teacher, 2.0, selective=False)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("selective", [False, True])
@pytest.mark.parametrize("mode", WEIGHTS)
def test_loss_gradient(setting: Setting, mode: str, selective: bool) -> None:
    """Gradcheck in the student's parameters."""
    names = [name for name, _ in setting.head.named_parameters()]

    def loss(*values: Tensor) -> Tensor:
        def student(features: Tensor) -> Tensor:
            return functional_call(setting.head, dict(zip(names, values, strict=True)), (features,))

        return setting._replace(head=student, features=setting.features.detach()).loss(
            Bootstrap(mode, selective=selective)
        )

    assert torch.autograd.gradcheck(loss, tuple(setting.head.parameters()))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"mode": "scratch"}, "unknown mode 'scratch' for CAPE: expected one of direct, from-scratch, post-fit"),
        ({"temperature": 0.0}, "temperature must be above 0 and finite, got 0.0"),
        ({"temperature": -2.0}, "temperature must be above 0 and finite, got -2.0"),
        ({"temperature": math.nan}, "temperature must be above 0 and finite, got nan"),
        ({"temperature": math.inf}, "temperature must be above 0 and finite, got inf"),
        ({"beta": math.inf, "mode": "post-fit"}, "beta must be at least 0 and finite, got inf"),
        ({"alpha": 0.0}, "mode 'direct' with alpha and beta both 0 trains nothing"),
        ({"alpha": -0.5}, "alpha must be at least 0 and finite, got -0.5"),
        ({"alpha": math.nan}, "alpha must be at least 0 and finite, got nan"),
        ({"mode": "post-fit", "beta": -1.0}, "beta must be at least 0 and finite, got -1.0"),
        ({"mode": "direct", "beta": 0.5}, "mode 'direct' has no teacher, so beta must be 0, got 0.5"),
    ],
    ids=str,
)
def test_impossible_bootstraps_are_refused(arguments: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=r"must be|unknown|trains nothing") as error:
        Bootstrap(**arguments)
    assert str(error.value) == expected


@pytest.mark.parametrize("mode", TEACHERS)
def test_missing_teacher_is_refused(setting: Setting, mode: str) -> None:
    with pytest.raises(ValueError, match="teacher") as error:
        setting._replace(teacher=None).loss(Bootstrap(mode))
    assert str(error.value) == f"mode '{mode}' learns from a teacher, but the model has none"


@pytest.mark.parametrize(("mode", "alpha"), [("direct", None), ("from-scratch", None), ("post-fit", 0.1)])
def test_missing_labels_are_refused(setting: Setting, mode: str, alpha: float | None) -> None:
    with pytest.raises(ValueError, match="labels") as error:
        setting._replace(labels=None).loss(Bootstrap(mode, alpha))
    assert str(error.value) == f"mode '{mode}' with alpha above 0 needs labels, got none"


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("classes", [2, 5])
def test_from_where_on_a_penalty_leaves_nothing_to_learn(classes: int, multi_label: bool) -> None:
    limit = zeroing_l1(classes, multi_label)
    generator = torch.Generator().manual_seed(classes)
    targets = torch.eye(classes)[:1] if multi_label else torch.tensor([0])

    def loss(maps: Tensor, l1: float) -> Tensor:
        return cross_entropy(maps.mean(dim=(2, 3)), targets, multi_label=multi_label) + elastic_net(maps, l1)

    zero = torch.zeros(1, classes, 2, 3)
    for size in (1e-3, 0.1, 1.0, 10.0):
        for _ in range(50):
            maps = size * torch.randn(zero.shape, generator=generator)
            assert loss(maps, limit) >= loss(zero, limit) - 1e-6
    little = zero.clone()
    little[:, 0] = 0.05
    assert loss(little, 0.9 * limit) < loss(zero, 0.9 * limit)
