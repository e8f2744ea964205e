"""What a head holds while it learns: no large tensor too many, and gradients that are those of autograd."""

import weakref

import pytest
import torch
from helpers.heads import KINDS, Calling, make_features, make_head
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from softcam_hub.models.heads import CAPEHead, EvidenceHead


class LargestTensor(TorchDispatchMode):
    """Counts the elements of the largest tensor that any operation returns, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


def largest_tensor(head: EvidenceHead, features: Tensor, kind: str | None) -> int:
    """The largest tensor that logits, or logits and maps of a `kind`, make with their gradients."""
    with LargestTensor() as largest:
        outputs = (head(features),) if kind is None else head(features, kind=kind)
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    return largest.elements


@pytest.mark.parametrize(("variant", "kind"), [*KINDS, ("cape", None), ("naive", None)])
def test_memory_grows_with_locations_not_their_square(variant: str, kind: str | None) -> None:
    head, features = make_head(variant, classes=10), make_features(height=8, width=8).requires_grad_()
    evidence = 2 * 10 * 8 * 8
    assert evidence <= largest_tensor(head, features, kind) <= 2 * evidence


def test_softcam_logits_alone_make_no_maps() -> None:
    head, features = make_head("softcam", classes=50), make_features(height=8, width=8).requires_grad_()
    assert largest_tensor(head, features, kind=None) <= features.numel()
    assert largest_tensor(head, features, kind="softcam") >= 2 * 50 * 8 * 8


class LiveMaps(TorchDispatchMode):
    """Count the tensors of the size of the evidence that are alive at once, from the results of all operations."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.alive, self.most = size, {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() >= self.size:
                storage = tensor.untyped_storage()
                self.alive[storage.data_ptr()] = weakref.ref(storage)
        self.alive = {key: storage for key, storage in self.alive.items() if storage() is not None}
        self.most = max(self.most, len(self.alive))
        return output


@pytest.mark.parametrize("naive", [False, True])
def test_training_cape_holds_at_most_four_maps_of_evidence(naive: bool) -> None:
    head = CAPEHead(3, 50, naive=naive)
    evidence = torch.randn(4, 50, 8, 8, requires_grad=True)
    with LiveMaps(evidence.untyped_storage().nbytes()) as live:
        logits = head.compose(evidence)
        torch.autograd.grad(logits, [evidence, head.log_temperature], torch.randn_like(logits))
    assert live.most <= 3  # and the evidence itself
    with LiveMaps(evidence.untyped_storage().nbytes()) as plain:
        logits = head.log_parts(evidence).flatten(2).logsumexp(dim=2)
        torch.autograd.grad(logits, [evidence, head.log_temperature], torch.randn_like(logits))
    assert plain.most > live.most


@pytest.mark.parametrize("naive", [False, True])
def test_gradients_of_trained_logits_are_autograds_to_the_second_order(naive: bool) -> None:
    torch.manual_seed(0)
    head = CAPEHead(3, 4, naive=naive).double()
    evidence, temperature = torch.randn(2, 4, 3, 2).double().requires_grad_(), torch.tensor([0.3]).double()

    def closed(evidence: Tensor, temperature: Tensor) -> Tensor:
        return functional_call(Calling(head, head.compose), {"head.log_temperature": temperature}, (evidence,))

    def plain(evidence: Tensor, temperature: Tensor) -> Tensor:
        called = Calling(head, lambda values: head.log_parts(values).flatten(2).logsumexp(dim=2))
        return functional_call(called, {"head.log_temperature": temperature}, (evidence,))

    inputs, weights = (evidence, temperature.requires_grad_()), torch.randn(2, 4).double()
    ours, theirs = (torch.autograd.grad((f(*inputs) * weights).sum(), inputs) for f in (closed, plain))
    for own, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradgradcheck(closed, inputs)


@pytest.mark.parametrize("frozen", ["head", "features"])
def test_second_derivatives_of_a_part_that_is_frozen(frozen: str) -> None:
    torch.manual_seed(0)
    head = CAPEHead(3, 4).double().requires_grad_(frozen != "head")
    evidence = torch.randn(2, 4, 3, 2).double().requires_grad_(frozen == "head")
    with torch.no_grad():
        head.log_temperature.fill_(0.3)
    source = evidence if frozen == "head" else head.log_temperature
    (first,) = torch.autograd.grad(head.compose(evidence)[:, 0].sum(), source, create_graph=True)
    plain = head.log_parts(evidence).flatten(2).logsumexp(dim=2)[:, 0].sum()
    (expected,) = torch.autograd.grad(plain, source, create_graph=True)
    torch.testing.assert_close(first, expected, rtol=1e-12, atol=1e-14)
    ours, theirs = (torch.autograd.grad(one.square().sum(), source)[0] for one in (first, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_trained_logits_admit_gradients_of_single_samples() -> None:
    torch.manual_seed(0)
    head, features = CAPEHead(3, 4).double(), torch.randn(5, 3, 2, 2).double()
    parameters = {name: value.detach() for name, value in head.named_parameters()}

    def loss(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(head, parameters, (one[None],))[0, 1]

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, features)
    for index, one in enumerate(features):
        head.zero_grad()
        head(one[None])[0, 1].backward()
        for name, parameter in head.named_parameters():
            torch.testing.assert_close(found[name][index], parameter.grad)
