"""The call of an explainer: shared work, classes, precisions, and everything restored afterwards."""

from contextlib import nullcontext

import pytest
import timm
import torch
from conftest import relative_error
from helpers.explainers import CAMS, CLASSES, EVERYWHERE, FEW, PIXELS, network, options_for
from helpers.shipped_model import load_shipped
from torch import nn

import softcam_hub
from softcam_hub.explainers.create import create_explainer
from softcam_hub.explainers.explained_model import ExplainedModel
from softcam_hub.explainers.methods import find_grid, list_explainers
from softcam_hub.figures import comparison
from softcam_hub.models.alignment import Alignment


def test_every_explainer_is_listed():
    native = ["softcam", "cape", "mu-cape"]
    assert sorted(list_explainers()) == sorted([*CAMS, *PIXELS, *native, "random", "centre"])


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("test_resnet", [*CAMS, *PIXELS]),
        ("softcam_test_resnet", [*CAMS, *PIXELS, "softcam"]),
        ("cape_test_resnet", ["cam", *EVERYWHERE, *PIXELS, "cape", "mu-cape"]),
        pytest.param("convnext_atto", EVERYWHERE, marks=pytest.mark.slow),
    ],
)
def test_several_methods_give_what_each_gives_alone(name, names):
    model, images = network(name)
    few = FEW if "integrated-gradients" in names else {"n": FEW["n"]}
    together = create_explainer(names, model, **few)(images, CLASSES)
    assert list(together) == names
    for one in names:
        alone = create_explainer(one, model, **options_for([one]))(images, CLASSES)
        side = (96, 96) if one in PIXELS else (3, 3)
        assert alone.shape == (2, 2, *side)
        assert (alone >= 0).all()
        assert not alone.requires_grad
        assert torch.allclose(alone, together[one], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "layer"), [("test_resnet", None), ("test_resnet", "layer3"), ("cape_test_resnet", None)]
)
def test_several_methods_share_one_forward_and_one_backward_per_class(name, layer):
    model, images = network(name)
    names = ["grad-cam", "grad-cam++", "layer-cam", "random", "centre"]
    names += {"test_resnet": [], "cape_test_resnet": ["cape", "mu-cape", "cam"]}[name]
    explainer = create_explainer(names, model, layer)
    forwards, backwards = [], []

    def count_backwards(_, __, output):
        if isinstance(output, torch.Tensor):  # native maps come in a pair with the logits, and have no gradient
            output.register_hook(lambda _: backwards.append(1))

    stem = getattr(model, "backbone", model).conv1
    handles = [
        stem.register_forward_hook(lambda *_: forwards.append(1)),
        model.get_classifier().register_forward_hook(count_backwards),
    ]
    explainer(images, CLASSES)
    for handle in handles:
        handle.remove()
    assert len(forwards) == 1
    closed = name == "test_resnet" and layer is None
    assert len(backwards) == (0 if closed else CLASSES.shape[1])


@pytest.mark.parametrize("name", EVERYWHERE)
def test_an_images_map_depends_on_its_own_class_and_not_on_its_batch(name):
    model, images = network("cape_test_resnet")
    explainer = create_explainer(name, model)
    together = explainer(images, CLASSES)
    for i in range(2):
        assert torch.allclose(explainer(images[i : i + 1], CLASSES[i : i + 1])[0], together[i], atol=1e-5)
    assert torch.equal(explainer(images, CLASSES), together)


def test_classes_are_an_index_or_lists_of_indices():
    model, images = network()
    explainer = create_explainer("grad-cam", model, signed=True)
    maps = explainer(images, [[0, 1, 2, 3, 4]])
    assert torch.allclose(explainer(images, 3), maps[:, 3:4], atol=1e-6)
    by_image = torch.stack([maps[0, 2:3], maps[1, 4:5]])
    assert torch.allclose(explainer(images, torch.tensor([2, 4])), by_image, atol=1e-6)
    predicted = model(images).argmax(dim=1)
    assert torch.equal(explainer(images), explainer(images, predicted))
    with pytest.raises(ValueError, match=r"^classes must be an int, \(2,\) or \(2, k\) for 2 images, got shape \(3,\)"):
        explainer(images, [1, 2, 3])
    with pytest.raises(ValueError, match="^class index 5 is out of range: this model has 5 classes, 0 to 4$"):
        explainer(images, 5)
    with pytest.raises(TypeError, match="^classes must be integer class indices"):
        explainer(images, torch.tensor([0.5, 1.0]))


def test_images_are_checked():
    explainer = create_explainer("grad-cam", network()[0])
    with pytest.raises(ValueError, match=r"add the batch dimension with images\[None\]$"):
        explainer(torch.rand(3, 96, 96), 0)
    with pytest.raises(TypeError, match="^expected images as a torch.Tensor"):
        explainer([[0.0]], 0)
    with pytest.raises(ValueError, match="^images have NaN or infinite values"):
        explainer(torch.full((1, 3, 96, 96), torch.nan), 0)
    with pytest.raises(ValueError, match=r"^expected at least one image, got none: their shape is \(0, 3, 96, 96\)$"):
        explainer(torch.rand(0, 3, 96, 96), 0)


@pytest.mark.parametrize("kind", ["softcam", "cape", "mu-cape"])
def test_native_maps_are_those_of_explain(kind):
    model, images = network(f"{kind.removeprefix('mu-')}_test_resnet")
    expected = model.explain(images, CLASSES, kind=kind).maps
    assert torch.allclose(create_explainer(kind, model, signed=True)(images, CLASSES), expected, atol=1e-6)
    assert torch.allclose(create_explainer(kind, model)(images, CLASSES), expected.relu(), atol=1e-6)
    with pytest.raises(ValueError, match=f"^'{kind}' maps are those of the head and have no layer: leave layer out$"):
        create_explainer(kind, model, "backbone.layer3")(images, 0)
    with pytest.raises(ValueError, match=f"^'{kind}' maps need a .* model: see softcam_hub.convert and build$"):
        create_explainer(kind, network()[0])(images, 0)


def test_random_maps_differ_by_image_and_class_but_not_by_call():
    model, images = network()
    maps = create_explainer("random", model)(images, CLASSES)
    assert len({tuple(one.flatten().tolist()) for one in maps.flatten(0, 1)}) == 4
    assert torch.equal(maps, create_explainer("random", model)(images, CLASSES))
    assert not torch.equal(maps, create_explainer("random", model, seed=1)(images, CLASSES))
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_the_random_map_of_a_class_does_not_depend_on_the_others():
    model, images = network()
    explainer = create_explainer("random", model)
    assert torch.equal(explainer(images, [[4, 1]])[:, 1], explainer(images, 1)[:, 0])


def test_the_centre_is_highest_and_symmetric():
    model, _ = network()
    maps = create_explainer("centre", model)(torch.randn(1, 3, 160, 96), 0)[0, 0]
    assert maps.shape == (5, 3)
    assert maps.argmax() == 7
    assert torch.allclose(maps, maps.flip(0).flip(1))


def test_names_and_options_are_checked():
    model, _ = network()
    with pytest.raises(ValueError, match="^unknown explainer 'gradcam': did you mean grad-cam\\?"):
        create_explainer("gradcam", model)
    with pytest.raises(ValueError, match="^unknown explainer 'xyz': expected one of cam, grad-cam"):
        create_explainer(["cam", "xyz"], model)
    with pytest.raises(TypeError, match=r"^expected the name of an explainer, or a list of names, got \w+: call "):
        create_explainer(model, "grad-cam")
    with pytest.raises(TypeError, match=r"^grad-cam: unknown option 'sigma', expected none$"):
        create_explainer("grad-cam", model, sigma=1.0)
    with pytest.raises(
        TypeError, match=r"^fd-cam, smooth-grad-cam\+\+: unknown option 'm', expected batch, n, seed, sigma$"
    ):
        create_explainer(["fd-cam", "smooth-grad-cam++"], model, m=1)


@pytest.mark.parametrize("name", ["cam", "grad-cam", "layer-cam", "integrated-gradients", "softcam"])
def test_maps_that_are_not_finite_are_an_error(name):
    model, images = network("softcam_test_resnet")
    model.head.weight.data[0, 0] = torch.nan
    with pytest.raises(
        ValueError, match=f"{name} gives maps with NaN or infinity for finite images: check the model's"
    ):
        create_explainer(name, model)(images, 0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "smooth-grad-cam++",
            {"sigma": float("nan")},
            "sigma is the standard deviation .* a number from 0 on, got nan",
        ),
        ("smooth-grad-cam++", {"sigma": -1.0}, "a number from 0 on, got -1.0"),
        ("fd-cam", {"batch": 0}, "batch is the number of images .*at least 1, got 0"),
        ("score-cam", {"batch": 0}, "batch is the number of images .*at least 1, got 0"),
    ],
)
def test_options_are_checked_where_they_are_used(name, options, message):
    model, images = network("test_resnet")
    with pytest.raises(ValueError, match=message):
        create_explainer(name, model, "layer3", **options)(images, 0)


def test_a_norm_of_the_pooled_features_is_noted():
    model = timm.create_model("softcam_convnext_atto", num_classes=5)
    note = "what the head's hidden layers compute from the pooled features counts as a constant"
    assert create_explainer("grad-cam", model).note == note
    assert create_explainer("grad-cam", model, "backbone.stages.2").note == ""
    assert create_explainer(["grad-cam"], network()[0]).note == ""


def everything_hooked(model):
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, name)) for module in model.modules() for name in names)


def state_of(model):
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": everything_hooked(model),
        "grads": [parameter.grad for parameter in model.parameters()],
        "needs": [parameter.requires_grad for parameter in model.parameters()],
        "values": [tensor.sum().item() for tensor in model.state_dict().values()],
        "rng": torch.get_rng_state().tolist(),
        "switches": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "attributes": sorted(key for module in model.modules() for key in vars(module)),
    }


@pytest.mark.parametrize("name", ["test_resnet", "cape_test_resnet"])
def test_explaining_changes_no_hook_mode_or_gradient(name):
    model, images = network(name)
    model.train()
    list(model.modules())[3].eval()
    before = state_of(model)
    create_explainer([*EVERYWHERE, *PIXELS], model, **FEW)(images, CLASSES)
    assert state_of(model) == before
    create_explainer(EVERYWHERE, model, "layer3" if name == "test_resnet" else "backbone.layer3", n=2)(images, CLASSES)
    assert state_of(model) == before
    assert images.grad is None
    assert not images.requires_grad


@pytest.mark.parametrize(
    ("method", "layer"),
    [
        *((method, layer) for method in ("grad-cam", "lift-cam", "fd-cam", "score-cam") for layer in (None, "layer3")),
        *((method, None) for method in PIXELS),
    ],
)
@pytest.mark.parametrize("run", [0, 1, 2])
def test_hooks_modes_and_gradients_are_restored_after_an_exception(method, layer, run):
    model, images = network()
    runs = iter(range(100))

    class Stumble(nn.Module):
        def forward(self, x):
            if next(runs) >= run:
                raise KeyError("stumbled")
            return x

    model.fc = nn.Sequential(model.fc, Stumble())
    before = state_of(model.train())
    forwards = {"grad-cam": 1, "lift-cam": 2 if layer else 1, "fd-cam": 9 if layer else 1, "guided-backprop": 1}
    forwards = forwards.get(method, 3)
    with pytest.raises(KeyError, match="stumbled") if run < forwards else nullcontext():
        create_explainer(method, model, layer)(images, CLASSES)
    assert state_of(model) == before


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize(("names", "layer"), [([*EVERYWHERE, "lift-cam"], "layer3"), (PIXELS, None)])
def test_frozen_models_and_callers_without_gradients(caller, names, layer):
    model, images = network()
    few = options_for(names)
    expected = create_explainer(names, model, layer, **few)(images, CLASSES)
    model.requires_grad_(False)
    with caller():
        found = create_explainer(names, model, layer, **few)(images.clone(), CLASSES.clone())
        assert torch.is_inference_mode_enabled() == (caller is torch.inference_mode)
    for name in names:
        assert torch.allclose(found[name], expected[name], atol=1e-6), name
        assert not found[name].requires_grad


def test_weights_made_under_inference_mode_are_refused():
    with torch.inference_mode():
        model = timm.create_model("test_resnet", num_classes=5)
    with pytest.raises(ValueError, match=r"^the model's weights were made under torch.inference_mode\(\)"):
        create_explainer("grad-cam", model)(torch.randn(1, 3, 96, 96), 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model, images = network()
    expected = create_explainer(CAMS, model, n=2)(images, CLASSES)
    found = create_explainer(CAMS, model.to(dtype), n=2)(images.to(dtype), CLASSES)
    for name in CAMS:
        assert found[name].dtype == torch.promote_types(dtype, torch.float32)
        if dtype == torch.float64:
            assert relative_error(found[name].float(), expected[name]) < 1e-4, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layer", [None, "layer3"])
def test_on_a_gpu(layer):
    model, images = network()
    names = [*EVERYWHERE, "lift-cam", *(PIXELS if layer is None else [])]
    few = options_for(names)
    expected = create_explainer(names, model, layer, **few)(images, CLASSES)
    found = create_explainer(names, model.cuda(), layer, **few)(images.cuda(), CLASSES)
    for name in names:
        assert relative_error(found[name].cpu(), expected[name]) < 1e-2, name


def test_score_cam_shows_progress_if_asked(capsys):
    model, images = network()
    create_explainer("score-cam", model)(images, 0)
    assert not capsys.readouterr().err
    create_explainer("score-cam", model, progress=True)(images, 0)
    assert "score-cam: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*CAMS, *PIXELS, "softcam", "random", "centre"])
def test_maps_of_the_features_lie_where_these_look(name):
    model, images = network("softcam_test_resnet")
    model.alignment = Alignment((2.0, 3.0), (32.0, 32.0), (96, 96))
    maps = torch.zeros(2, 1, 3, 3)
    moves = name not in (*PIXELS, "random", "centre")
    for explained in (model, softcam_hub.to_vanilla(model)):
        grid = find_grid(name, ExplainedModel(explained), images, maps)
        assert (grid.image_size, grid.cells) == ((96, 96), (3, 3))
        assert grid.alignment == (model.alignment if moves else None)
        assert not find_grid(
            name, ExplainedModel(explained, "backbone.layer3" if explained is model else "layer3"), images, maps
        ).is_aligned
    timm_model, _ = network("test_resnet")
    assert not find_grid(name, ExplainedModel(timm_model), images, maps).is_aligned


def test_explanations_are_those_of_the_model_and_lie_where_the_network_looks():
    model = load_shipped()
    images = torch.randn(2, 3, 128, 128)
    ours = model.explain(images, [[0], [2]])
    found = create_explainer(["cape", "cam", "random", "integrated-gradients"], model).explain(images, [0, 2])
    assert torch.equal(found["cape"].maps, ours.maps)
    assert torch.allclose(found["cape"].probabilities, ours.probabilities)
    assert torch.equal(found["cape"].heatmaps(128), ours.heatmaps(128))
    assert found["cape"].labels == ours.labels
    assert found["cam"].layout().offset == model.map_offset()
    assert not torch.equal(found["cam"].heatmaps(128), found["cam"].heatmaps(128, aligned=False))
    for name in ("random", "integrated-gradients"):
        unmoved = found[name].heatmaps(128, aligned=False)
        assert torch.equal(found[name].heatmaps(128), unmoved), "they have no cells to move"
    one = create_explainer("cam", model).explain(images, [0, 2])
    assert torch.equal(one.maps, found["cam"].maps)
    assert one.kind == "post-hoc cam"
    assert one[0].image.size == (128, 128)
    pictures = ours.images
    drawn = comparison(pictures, found)
    plain = comparison(pictures, {name: one.maps for name, one in found.items()})
    assert drawn.size == plain.size
    assert drawn.tobytes() != plain.tobytes()


def test_maps_that_average_to_the_logit_keep_their_sign_in_an_explanation():
    torch.manual_seed(0)
    model, images = timm.create_model("softcam_test_resnet", num_classes=3).eval(), torch.randn(2, 3, 64, 64)
    found = create_explainer(["softcam", "cam"], model).explain(images, 0)
    assert torch.equal(found["softcam"].maps, model.explain(images, 0).maps)
    assert (found["softcam"].maps < 0).any()
    with torch.no_grad():
        assert torch.allclose(found["softcam"].maps.mean(dim=(2, 3))[:, 0], model(images)[:, 0], atol=1e-6)
    assert (found["cam"].maps >= 0).all()
    assert (create_explainer("softcam", model)(images, 0) >= 0).all(), "plain maps are the positive part"


def test_explanations_of_a_vanilla_classifier_choose_its_prediction():
    timm_model, images = network("test_resnet")
    found = create_explainer("grad-cam", timm_model).explain(images)
    probabilities = timm_model(images).softmax(dim=1)
    assert found.classes[:, 0].tolist() == probabilities.argmax(dim=1).tolist()
    assert torch.allclose(found.probabilities[:, 0], probabilities.amax(dim=1))
    assert torch.equal(found.maps, create_explainer("grad-cam", timm_model)(images))
    assert found.heatmaps(images.shape[2:]).shape == (len(images), 1, *images.shape[2:])
