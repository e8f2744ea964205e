"""Models, explainers and tables of a benchmark: what fits together, and what is refused with a sentence."""

import pytest
import timm
import torch
from helpers.benchmark import DATA, save_models, vanilla_model

from softcam_hub import SoftCAMForImageClassification
from softcam_hub.evaluation import BenchmarkConfig, benchmark
from softcam_hub.evaluation.batch import Batch
from softcam_hub.evaluation.localisation import bounding_boxes
from softcam_hub.evaluation.measure import group_equal, measure
from softcam_hub.evaluation.models import DEFAULT_POST_HOC, ClassifierWithExplainers, assign_explainers, pair_models
from softcam_hub.evaluation.report import with_borda
from softcam_hub.loading import load_classifier


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_models(vanilla_model(), folder)
    return folder


def test_softcam_is_turned_into_its_vanilla_classifier_and_cape_is_not(models):
    softcam = pair_models(load_classifier(models / "softcam"), None)
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(softcam.vanilla.model(images), softcam.model.model(images), atol=1e-5)
    cape = pair_models(load_classifier(models / "cape"), None)
    parts, left_out = assign_explainers(None, cape)
    assert parts == {"model": ["cape", "mu-cape", "random", "centre"], "vanilla": []}
    assert set(left_out) == set(DEFAULT_POST_HOC)
    assert "name one with vanilla" in left_out["cam"]
    with pytest.raises(ValueError, match="'cam' is not possible here.*name one with vanilla"):
        assign_explainers(("cam",), cape)
    with pytest.raises(ValueError, match="need a softcam model"):
        assign_explainers(("softcam",), cape)
    alone = pair_models(load_classifier(models / "vanilla"), None)
    assert assign_explainers(None, alone)[0] == {"model": [], "vanilla": [*DEFAULT_POST_HOC, "random", "centre"]}
    with pytest.raises(ValueError, match="a vanilla classifier itself"):
        pair_models(alone.vanilla, alone.vanilla)
    with pytest.raises(ValueError, match="expected a vanilla timm model"):
        pair_models(cape.model, softcam.model)


def test_explainers_that_do_not_fit_are_left_out_with_their_reason():
    model = timm.create_model("test_convnext", num_classes=4).eval()  # no ReLU, and a norm after the pool
    classifier = load_classifier(model)
    explained = ClassifierWithExplainers("vanilla", classifier, ["cam", "grad-cam", "guided-backprop"], False)
    refused = explained.drop_impossible(torch.randn(1, 3, 64, 64), strict=False)
    assert explained.names == ("grad-cam",)
    assert "linear in the average" in refused["cam"]
    assert "nn.ReLU" in refused["guided-backprop"]
    with pytest.raises(ValueError, match="explainer 'cam' is not possible here"):
        ClassifierWithExplainers("vanilla", classifier, ["cam"], False).drop_impossible(
            torch.randn(1, 3, 64, 64), strict=True
        )


def test_a_damaged_shard_is_named(models, tmp_path):
    options = {"explainers": "cape", "measures": "table", "limit": 2, **DATA}
    benchmark(models / "cape", tmp_path, **options)
    (tmp_path / "shards" / "00000.json").write_text("[{")
    with pytest.raises(ValueError, match="00000.json is damaged"):
        benchmark(models / "cape", tmp_path, **options)


def test_models_and_options_that_do_not_fit_get_a_sentence(models, tmp_path):
    several = {**DATA, "data": "labels"}
    with pytest.raises(ValueError, match="CAPE gives one label per image, and these data have several"):
        benchmark(timm.create_model("cape_test_resnet", num_classes=3), tmp_path / "several", **several)
    with pytest.raises(ValueError, match="patch must be at most 64, the side of the model's images, got 65"):
        benchmark(models / "cape", tmp_path / "patch", explainers="cape", patch=65, **DATA)
    assert not (tmp_path / "patch").exists()
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 64), torch.nn.Flatten())
    with pytest.raises(TypeError, match=r"a Sequential does not say how many classes .*num_classes"):
        benchmark(plain, tmp_path / "plain", **DATA)


def test_a_hugging_face_model_is_measured_as_its_timm_model(models, tmp_path):
    model = SoftCAMForImageClassification.from_pretrained(models / "softcam")
    options = {"explainers": "softcam cam", "measures": "table", "limit": 2, **DATA}
    expected = benchmark(models / "softcam", tmp_path / "folder", **options)
    rows = benchmark(model, tmp_path / "model", **options)
    for row, other in zip(rows, expected, strict=True):
        assert row["model"] == "softcam_test_resnet"
        assert row["average_drop"] == other["average_drop"]


def test_a_model_that_predicts_nan_is_named(models, tmp_path):
    model = load_classifier(models / "cape").model
    model.head.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="the model predicts NaN"):
        benchmark(model, tmp_path, explainers="cape", **DATA)


def test_a_missing_captum_is_a_hint(models, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    with pytest.raises(ImportError, match=r"softcam-hub\[baselines\]"):
        benchmark(models / "softcam", tmp_path, explainers="integrated-gradients", **DATA)


def test_the_model_is_left_as_it_was(models, tmp_path):
    model = vanilla_model().train()
    model.layer4.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    benchmark(model, tmp_path, limit=3, **DATA)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_methods_with_the_same_maps_share_their_points(tmp_path):
    model = vanilla_model()
    model.pretrained_cfg["input_size"] = (3, 56, 56)  # a grid of 7x7, where weights / 49 round otherwise than weights
    names = ("cam", "grad-cam")
    rows = with_borda(benchmark(model, tmp_path, explainers=[*names, "layer-cam", "fd-cam"], measures="table", **DATA))
    points = {row["explainer"]: row["borda"] for row in rows}
    assert points["cam"] == points["grad-cam"]
    assert len(set(points.values())) > 1


def test_a_model_of_one_class():
    explained = ClassifierWithExplainers("vanilla", load_classifier(vanilla_model(1)), ["cam"], False)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[:, :8, :8] = True
    batch = Batch(explained, torch.randn(2, 3, 64, 64), torch.zeros(2, dtype=torch.long), masks)
    values = measure(batch, ("table", "localisation"), BenchmarkConfig("x"))["cam"]
    assert "iou" not in values  # there is no second class to tell apart
    assert torch.equal(batch.of_label(batch.heats["cam"]), batch.heats["cam"][:, 0])
    assert values["activation_precision"].shape == (2,)


def test_boxes_and_groups():
    masks = torch.zeros(2, 5, 7, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 4, 6] = True
    assert bounding_boxes(masks).tolist() == [[2, 1, 6, 3], [6, 4, 7, 5]]
    maps = torch.rand(2, 4, 4)
    assert group_equal({"a": maps, "b": maps + 1e-3, "c": maps + 1e-8}) == [["a", "c"], ["b"]]
