"""Many threads explain one model: the bits of one thread, and the model as it was."""

import copy
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from conftest import randomise

import softcam_hub
from softcam_hub import CAPEForImageClassification, create_explainer
from softcam_hub.models.evaluation_mode import _HOLDS, evaluation_mode

THREADS, CALLS = 8, 24


def images(count=CALLS):
    return torch.randn(count, 2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def in_threads(function, batches):
    """Results of `function` on every batch, from threads that start together."""
    gate = threading.Barrier(THREADS)

    def work(number):
        gate.wait()
        return [function(batch) for batch in batches[number::THREADS]]

    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(work, range(THREADS)))
    return [parts[index % THREADS][index // THREADS] for index in range(len(batches))]


def state_of(model):
    """Modes, statistics and hooks of a model."""
    modes = [module.training for module in model.modules()]
    hooks = sum(len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules())
    return modes, hooks, {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(model, before):
    modes, hooks, values = state_of(model)
    assert (modes, hooks) == before[:2]
    assert all(torch.equal(value, before[2][name]) for name, value in values.items())
    assert not _HOLDS


MODELS = {
    "cape": lambda: softcam_hub.build("cape_test_resnet", num_classes=4),
    "softcam": lambda: softcam_hub.build("softcam_test_resnet", num_classes=4),
    "tokens": lambda: softcam_hub.build("softcam_test_vit", num_classes=4, img_size=64),
    "transformers": lambda: CAPEForImageClassification.from_timm("cape_test_resnet", pretrained=False, num_labels=4),
    "frozen": lambda: CAPEForImageClassification.from_timm(
        "cape_test_resnet", pretrained=False, num_labels=4, freeze_backbone=True
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_explain_in_threads_gives_the_bits_of_one_thread_and_leaves_a_training_model_alone(name):
    model, batches = randomise(MODELS[name]()).train(), images()
    before = state_of(model)
    expected = [model.explain(batch, top_k=2) for batch in batches]
    found = in_threads(lambda batch: model.explain(batch, top_k=2), batches)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.maps, other.maps)
        assert torch.equal(one.probabilities, other.probabilities)
    assert_same_state(model, before)


EXPLAINERS = ["cam", "grad-cam", "grad-cam++", "layer-cam", "lift-cam", "fd-cam", "guided-backprop", "softcam"]


@pytest.mark.parametrize("training", [False, True])
def test_explainers_in_threads_give_the_bits_of_one_thread(training):
    model, batches = randomise(MODELS["softcam"]()).train(training), images()
    before = state_of(model)
    expected = [create_explainer(EXPLAINERS, model)(batch, 1) for batch in batches]
    shared = create_explainer(EXPLAINERS, model)
    calls = [shared, lambda batch, index: create_explainer(EXPLAINERS, model)(batch, index)]
    for call in calls:
        found = in_threads(lambda batch, call=call: call(batch, 1), batches)
        for one, other in zip(found, expected, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in EXPLAINERS)
        assert_same_state(model, before)


@pytest.mark.parametrize(("name", "layer"), [("test_resnet", "layer3"), ("test_vit", None), ("test_vit", "blocks.2")])
def test_explainers_with_hooks_in_threads(name, layer):
    options = {"img_size": 64} if name == "test_vit" else {}
    model, batches = randomise(timm.create_model(name, num_classes=4, **options)).train(), images()
    before = state_of(model)
    expected = [create_explainer("grad-cam", model, layer)(batch, 1) for batch in batches]
    shared = create_explainer("grad-cam", model, layer)
    found = in_threads(lambda batch: shared(batch, 1), batches)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert_same_state(model, before)


def test_different_methods_of_one_model_do_not_meet():
    model, batches = randomise(MODELS["softcam"]()).eval(), images()
    methods = ["guided-backprop", "grad-cam", "layer-cam"]
    explainers = {name: create_explainer(name, model, *["backbone.layer3"][: "cam" in name]) for name in methods}
    calls = [(methods[index % 3], batch) for index, batch in enumerate(batches)]
    expected = [explainers[name](batch, 1) for name, batch in calls]
    plain = [model.explain(batch).maps for batch in batches]

    def both(call):
        return explainers[call[0]](call[1], 1), model.explain(call[1]).maps

    for index, (maps, own) in enumerate(in_threads(both, calls)):
        assert torch.equal(maps, expected[index])
        assert torch.equal(own, plain[index])


def test_errors_in_threads_leave_a_training_model_alone():
    model, batches = randomise(MODELS["cape"]()).train(), list(images())
    before = state_of(model)
    explainer = create_explainer("grad-cam", model, "backbone.layer3")

    def explain(batch):
        try:
            return explainer(batch, 1).shape, model.explain(batch).maps.shape
        except RuntimeError as error:
            return str(error)

    model.backbone.layer4.register_forward_pre_hook(lambda module, args: fail_if_marked(args[0]))
    marked = [batch if index % 3 else batch.clone().fill_(1e30) for index, batch in enumerate(batches)]
    before = state_of(model)
    found = in_threads(explain, marked)
    assert [one == "marked" for one in found] == [index % 3 == 0 for index in range(CALLS)]
    assert_same_state(model, before)


def fail_if_marked(features):
    if features.abs().max() > 1e20:
        raise RuntimeError("marked")


def test_a_wrapper_and_the_model_inside_share_the_modes():
    model = torch.nn.Sequential(randomise(MODELS["cape"]()), torch.nn.Dropout()).train()
    model[0].head.eval()
    before = [module.training for module in model.modules()]
    for first, second in ((model, model[0]), (model[0], model), (model[0].backbone, model[0])):
        outer, inner = evaluation_mode(first), evaluation_mode(second)
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        assert not any(module.training for module in second.modules()), "the other one is still inside"
        inner.__exit__(None, None, None)
        assert [module.training for module in model.modules()] == before
    assert not _HOLDS


def test_nobody_waits_for_another_explanation():
    model = randomise(MODELS["cape"]()).eval()
    inside = threading.Barrier(2, timeout=60)
    model.backbone.layer4.register_forward_hook(lambda *_: (inside.wait(), None)[1])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda batch: model.explain(batch).maps, images(2)))


@pytest.mark.parametrize("training", [False, True])
def test_models_and_explainers_are_copied_and_pickled_as_ever(training):
    model, batch = randomise(MODELS["softcam"]()).train(training), images(1)[0]
    explainer = create_explainer("grad-cam", model, "backbone.layer3")
    expected, maps = model.explain(batch).maps, explainer(batch, 1)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), saved):
        assert torch.equal(copied.explain(batch).maps, expected)
        assert copied.training == training
    for copied in (copy.deepcopy(explainer), pickle.loads(pickle.dumps(explainer))):
        assert torch.equal(copied(batch, 1), maps)


def test_fd_cam_in_threads_leaves_torchs_number_of_threads():
    model, batches = randomise(MODELS["softcam"]()).eval(), images()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        explainer = create_explainer("fd-cam", model)
        in_threads(lambda batch: explainer(batch, 1), batches)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_one_recording_answers_for_several_classes():
    model, batch = randomise(MODELS["cape"]()).eval(), images(1)[0]
    activations = create_explainer("grad-cam", model, "backbone.layer3").explainers.model.record(batch)
    first, second = (activations.for_classes(torch.tensor([[index], [index]])) for index in (1, 2))
    gradients = [view.gradient for view in (first, second)]
    assert not torch.equal(*gradients)
    again = create_explainer("grad-cam", model, "backbone.layer3").explainers.model.record(batch)
    assert torch.equal(again.for_classes(torch.tensor([[2], [2]])).gradient, gradients[1])
    assert torch.equal(first.gradient, gradients[0])
    assert activations.classes.flatten().tolist() == activations.logits.argmax(dim=1).tolist(), "it stays as it was"
