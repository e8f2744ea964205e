"""The heads must be the papers' formulas: eq. 2 to 9 of CAPE and SoftCAM's mean, at any size, scale and precision.

The reference is a loop per image, class and location in double precision. Half precision is judged in two steps that
together leave nothing out: evidence against float64 within the dtype's own rounding, and all that follows against
float64 *on the same evidence*, within float32's rounding.
"""

import copy
import math
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from helpers.heads import KINDS, VARIANTS, Calling, make_features, make_head
from torch import Tensor
from torch.func import functional_call

from softcam_hub.models.heads import EvidenceHead

TEMPERATURES = [1.0, 0.6]


def slow_evidence(head: EvidenceHead, features: Tensor, bias: bool = True) -> Tensor:
    """M of section 3.1, one multiplication at a time, and M' = M + b with `bias`."""
    batch, channels, height, width = features.shape
    evidence = torch.zeros(batch, head.num_classes, height, width, dtype=torch.float64)
    for n, c, i, j in torch.cartesian_prod(*map(torch.arange, evidence.shape)).tolist():
        value = sum(head.weight[c, k].item() * features[n, k, i, j].item() for k in range(channels))
        evidence[n, c, i, j] = value + bias * head.bias[c].item()
    return evidence


def slow_softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def slow_cape(evidence: Tensor, temperature: float, naive: bool = False) -> Tensor:
    """P of eq. 8: eq. 3 times eq. 7, or times eq. 4's 1/(H·W) if `naive`; T' divides the evidence."""
    contributions = torch.zeros_like(evidence)
    _, _, height, width = evidence.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    for image, out in zip(evidence / temperature, contributions, strict=True):
        means = [sum(image[:, i, j].tolist()) / len(image) for i, j in places]
        saliency = [1 / len(places)] * len(places) if naive else slow_softmax(means)
        for (i, j), importance in zip(places, saliency, strict=True):
            for c, probability in enumerate(slow_softmax(image[:, i, j].tolist())):
                out[c, i, j] = probability * importance
    return contributions


def slow_joint_softmax(evidence: Tensor) -> Tensor:
    """Eq. 9 to the letter: one softmax over classes and locations together."""
    shifted = evidence + evidence.mean(dim=1, keepdim=True)
    return torch.stack([torch.tensor(slow_softmax(image.flatten().tolist())).view(image.shape) for image in shifted])


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("variant", ["cape", "naive"])
def test_cape_is_the_papers_product(variant: str, temperature: float) -> None:
    head, features = make_head(variant, temperature=temperature), make_features()
    expected = slow_cape(slow_evidence(head, features), temperature, head.naive)
    logits, maps = head(features, kind=head.kinds[0])
    torch.testing.assert_close(maps, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(logits.exp(), expected.sum(dim=(2, 3)), rtol=1e-12, atol=0)


def test_naive_differs_from_cape() -> None:
    features = make_features()
    assert (make_head("cape")(features) - make_head("naive")(features)).abs().max() > 0.01


def test_cape_is_not_one_joint_softmax() -> None:
    head, features = make_head("cape"), make_features()
    evidence, maps = slow_evidence(head, features), head.maps(features)
    saliency = evidence.mean(dim=1).flatten(1).softmax(dim=1).view(2, 3, 2)
    joint = slow_joint_softmax(evidence)
    torch.testing.assert_close(maps.sum(dim=1), saliency)
    assert (joint.sum(dim=1) - saliency).abs().max() > 0.01
    assert (joint.sum(dim=(2, 3)) - head(features).softmax(dim=1)).abs().max() > 0.01


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("variant", ["cape", "naive"])
def test_mu_cape_is_evidence_above_zero(variant: str, temperature: float) -> None:
    head, features = make_head(variant, temperature=temperature), make_features()
    evidence = slow_evidence(head, features)
    expected = (evidence + evidence.mean(dim=1, keepdim=True)).clamp(min=0)
    torch.testing.assert_close(head.maps(features, kind="mu-cape"), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cam_leaves_the_bias_out(variant: str) -> None:
    head, features = make_head(variant, temperature=0.6), make_features()
    expected = slow_evidence(head, features, bias=False).clamp(min=0)
    torch.testing.assert_close(head.maps(features, kind="cam"), expected, rtol=1e-12, atol=1e-14)


def test_softcam_averages_its_maps() -> None:
    head, features = make_head("softcam"), make_features()
    expected = slow_evidence(head, features)
    logits, maps = head(features, kind=head.kinds[0])
    torch.testing.assert_close(maps, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(logits, expected.mean(dim=(2, 3)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("variant", "kind"), KINDS)
def test_logits_are_the_same_with_any_maps(variant: str, kind: str) -> None:
    head, features = make_head(variant, temperature=0.6), make_features()
    logits, maps = head(features, kind=kind)
    torch.testing.assert_close(head(features), logits, rtol=1e-12, atol=1e-14)
    assert torch.equal(head.maps(features, kind=kind), maps)


@pytest.mark.parametrize(("variant", "kind"), KINDS)
def test_maps_of_chosen_classes(variant: str, kind: str) -> None:
    head, features = make_head(variant), make_features()
    classes = torch.tensor([[3, 0, 3], [1, 2, 0]])
    every, chosen = head.maps(features, kind=kind), head.maps(features, classes, kind)
    expected = [[every[n, c] for c in row] for n, row in enumerate(classes.tolist())]
    assert torch.equal(chosen, torch.stack([torch.stack(row) for row in expected]))


@pytest.mark.parametrize(("variant", "kind"), [*KINDS, ("softcam", None), ("cape", None), ("naive", None)])
def test_gradients(variant: str, kind: str | None) -> None:
    """Gradcheck of logits and maps (`forward` without a kind) in the features and in every parameter."""
    head = make_head(variant, temperature=0.6)
    method = head.forward if kind is None else lambda features: head(features, kind=kind)
    parameters = {name: value.detach().clone().requires_grad_() for name, value in head.named_parameters()}

    def run(features: Tensor, *values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        renamed = {f"head.{name}": value for name, value in zip(parameters, values, strict=True)}
        return functional_call(Calling(head, method), renamed, (features,))

    assert torch.autograd.gradcheck(run, (make_features().requires_grad_(), *parameters.values()))


@pytest.mark.parametrize(
    ("variant", "kind", "expected"),
    [
        ("softcam", "cape", "unknown map kind 'cape' for softcam: expected one of softcam, cam"),
        ("softcam", "mu-cape", "unknown map kind 'mu-cape' for softcam: expected one of softcam, cam"),
        ("cape", "softcam", "unknown map kind 'softcam' for cape: expected one of cape, mu-cape, cam"),
        ("naive", "gradcam", "unknown map kind 'gradcam' for cape: expected one of cape, mu-cape, cam"),
        ("cape", "", "unknown map kind '' for cape: expected one of cape, mu-cape, cam"),
    ],
)
def test_other_kinds_are_refused(variant: str, kind: str, expected: str) -> None:
    head, features = make_head(variant), make_features()
    for ask in (head, head.maps):
        with pytest.raises(ValueError, match="unknown map kind") as error:
            ask(features, kind=kind)
        assert str(error.value) == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_the_vanilla_ones(variant: str) -> None:
    shapes = {name: tuple(value.shape) for name, value in make_head(variant).state_dict().items()}
    temperature = {} if variant == "softcam" else {"log_temperature": (1,)}
    assert shapes == {"weight": (4, 3), "bias": (4,), **temperature}


@pytest.mark.parametrize("variant", VARIANTS)
def test_fresh_parameters_hold_nothing_of_the_old_ones(variant: str) -> None:
    head = make_head(variant, temperature=0.6, scale=100.0)
    head.reset_parameters()
    assert head.weight.abs().max() < 0.2
    assert head.weight.unique().numel() == head.weight.numel()
    assert not head.bias.any()
    assert variant == "softcam" or not head.log_temperature.any()


class Case(NamedTuple):
    """What a head is put through; the dtype is the parameters' and features', or autocast's."""

    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    autocast: bool = False
    shape: tuple[int, int, int] = (5, 4, 3)
    """C, H, W."""
    shift: float = 0.0
    """Of all evidence alike: probabilities stay, but a softmax that adds before it subtracts loses their digits."""

    def context(self) -> torch.autocast | nullcontext:
        return torch.autocast("cpu", self.dtype) if self.autocast else nullcontext()

    def make(self, variant: str) -> tuple[EvidenceHead, Tensor]:
        """Head and features, rounded as the case wants them."""
        classes, height, width = self.shape
        stored = torch.float32 if self.autocast else self.dtype
        head = make_head(variant, classes, 8, temperature=0.6, scale=self.scale).to(stored)
        head.bias.data += self.shift
        return head, make_features(2 if classes < 100 else 1, 8, height, width).to(stored)


CASES = {
    "float32 x1000": Case(scale=1e3),
    "bfloat16 x1000": Case(torch.bfloat16, 1e3),
    "bfloat16 autocast x1000": Case(torch.bfloat16, 1e3, autocast=True),
    "float32 + 10000": Case(shift=1e4),
    "float32": Case(),
    "float16": Case(torch.float16),
    "bfloat16": Case(torch.bfloat16),
    "float16 autocast": Case(torch.float16, autocast=True),
    "bfloat16 autocast": Case(torch.bfloat16, autocast=True),
    "one class": Case(shape=(1, 4, 3)),
    "one location": Case(shape=(5, 1, 1)),
    "one class, one location": Case(torch.float16, shape=(1, 1, 1)),
    "21841 classes": Case(shape=(21841, 2, 2)),
    "21841 classes, float16": Case(torch.float16, shape=(21841, 2, 2)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def in_double(head: EvidenceHead) -> EvidenceHead:
    return copy.deepcopy(head).double()


@every_case
def test_evidence_is_float64s_but_for_rounding(case: Case) -> None:
    """Products, sums and the result round once each, half precision only the result: K = 8 allows 4.5 eps in all."""
    head, features = case.make("cape")
    with case.context():
        evidence = head.evidence(features)
    magnitudes = torch.einsum("ck,nkij->ncij", head.weight.double().abs(), features.double().abs())
    magnitudes += head.bias.double().abs()[:, None, None]
    error = (evidence - in_double(head).evidence(features.double())).abs()
    assert evidence.dtype == case.dtype
    assert (error <= 4.5 * torch.finfo(case.dtype).eps * magnitudes).all()


@every_case
@pytest.mark.parametrize("variant", ["cape", "naive"])
def test_cape_is_float64s_on_the_same_evidence(variant: str, case: Case) -> None:
    head, features = case.make(variant)
    with case.context():
        evidence = head.evidence(features).double()
        logits, maps = head(features, kind=head.kinds[0])
    parts = in_double(head).log_parts(evidence)
    tolerance = 1e-6 * max(1.0, evidence.abs().max().item())  # of a logarithm: its argument rounds relatively
    assert logits.dtype == maps.dtype == torch.float32
    torch.testing.assert_close(logits.double(), parts.flatten(2).logsumexp(dim=2), rtol=1e-6, atol=tolerance)
    torch.testing.assert_close(maps.double(), parts.exp(), rtol=tolerance, atol=1e-12)


@every_case
@pytest.mark.parametrize("variant", ["cape", "naive"])
def test_cape_composes_a_distribution(variant: str, case: Case) -> None:
    head, features = case.make(variant)
    features.requires_grad_()
    with case.context():
        logits, maps = head(features, kind=head.kinds[0])
        alone = head(features)
    assert all(values.isfinite().all() for values in (logits, maps))
    assert torch.equal(alone, logits)
    summed, exact = maps.double().sum(dim=(2, 3)), logits.double()
    torch.testing.assert_close(summed, exact.softmax(dim=1), rtol=0, atol=1e-6)
    torch.testing.assert_close(exact.exp().sum(dim=1), torch.ones(len(logits)).double(), rtol=0, atol=1e-6)
    (logits.mean() + maps.square().sum()).backward()
    assert all(value.grad.isfinite().all() for value in (features, *head.parameters()))


@every_case
def test_softcam_is_float64s(case: Case) -> None:
    """With maps, the logits are their float32 mean; without, one product in the compute dtype."""
    head, features = case.make("softcam")
    with case.context():
        logits, maps = head(features, kind=head.kinds[0])
        alone = head(features)
    exact = in_double(head)(features.double())
    magnitudes = features.double().abs().mean(dim=(2, 3)) @ head.weight.double().abs().T + head.bias.double().abs()
    assert logits.dtype == torch.float32
    assert maps.dtype == alone.dtype == case.dtype
    torch.testing.assert_close(logits.double(), maps.double().mean(dim=(2, 3)), rtol=1e-6, atol=1e-6 * case.scale)
    assert ((alone.double() - exact).abs() <= 4.5 * torch.finfo(case.dtype).eps * magnitudes).all()


@pytest.mark.parametrize("variant", ["cape", "naive"])
def test_one_location_is_the_vanilla_softmax(variant: str) -> None:
    head, features = make_head(variant), make_features(height=1, width=1)
    expected = slow_evidence(head, features).flatten(1).log_softmax(dim=1)
    torch.testing.assert_close(head(features), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("variant", ["cape", "naive"])
def test_one_class_is_certain(variant: str) -> None:
    head, features = make_head(variant, classes=1), make_features()
    assert head(features).abs().max() < 1e-14
