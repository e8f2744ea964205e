"""Evidence of several depths in use: folders, graphs, exports, where cells lie, and post-hoc methods."""

import copy
import json

import pytest
import timm
import torch
from conftest import randomise, relative_error
from helpers.scales import FAMILIES, MODELS, images, make
from transformers import AutoModelForImageClassification

import softcam_hub
from softcam_hub.explainers.explained_model import ExplainedModel
from softcam_hub.models.modeling import SoftCAMForImageClassification
from softcam_hub.models.saved_format import FORMAT, FORMAT_OF_ONE_SCALE

# --- doors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_folders_keep_the_scales(family, tmp_path):
    model, x = make(family), images()
    MODELS[family].from_timm(model).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["model_args"]
    assert (saved["scales"], saved["format"]) == (3, FORMAT)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    output = loaded(x, output_hidden_states=[-1, 1])
    assert relative_error(output.logits, model(x)) < 1e-5
    assert [state.shape[1] for state in output.hidden_states] == [32, model.num_features]
    assert len(loaded(x, output_hidden_states=True).hidden_states) == 5
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), model(x))


def test_a_model_of_one_scale_is_saved_as_before(tmp_path):
    model = softcam_hub.build("softcam_test_resnet", num_classes=2, scales=1)
    SoftCAMForImageClassification.from_timm(model).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"] == {"format": FORMAT_OF_ONE_SCALE}
    assert "head.fine_weight" not in model.state_dict()


@torch.no_grad()
def test_from_timm_takes_scales_for_a_vanilla_classifier():
    vanilla, x = randomise(timm.create_model("test_resnet", num_classes=5)).eval(), images()
    for source in (vanilla, softcam_hub.convert(vanilla)):
        with pytest.raises(ValueError, match="have no effect on a network that is made already"):
            SoftCAMForImageClassification.from_timm(source, model_args={"scales": 2, "output_stride": 8})
    assert SoftCAMForImageClassification.from_timm(softcam_hub.convert(vanilla, scales=2), model_args={"scales": 2})
    model = SoftCAMForImageClassification.from_timm(vanilla, model_args={"scales": 2}).eval()
    assert relative_error(model(x).logits, vanilla(x)) < 1e-5
    assert model(x).maps.shape == (2, 5, 4, 6)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_graphs_and_layouts(family):
    model, x = make(family), images()
    expected = model(x)
    torch._dynamo.reset()
    assert relative_error(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected) < 1e-5
    scripted = torch.jit.script(model)
    for size in ((64, 96), (100, 72)):
        other = images(*size)
        assert relative_error(scripted(other), model(other)) < 1e-5
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert relative_error(last(x.to(memory_format=torch.channels_last)), expected) < 1e-5
    assert relative_error(copy.deepcopy(model).double()(x.double()).float(), expected) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(x).softmax(dim=1) - expected.softmax(dim=1)).abs().max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("size", [(96, 128), (100, 72)])
@torch.no_grad()
def test_exported_files_take_images_of_any_size(size, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = make("cape"), images(*size)
    expected = model.head(model.forward_features(x), kind="cape")
    session = onnxruntime.InferenceSession(softcam_hub.export_onnx(model, tmp_path / "model.onnx"))
    archive = torch.export.load(softcam_hub.export_torch(model, tmp_path / "model.pt2")).module()
    of_onnx = map(torch.from_numpy, session.run(None, {"pixel_values": x.numpy()}))
    for outputs in (of_onnx, archive(x)):
        for output, each in zip(outputs, expected, strict=True):
            assert relative_error(output, each) < 1e-4


# --- post-hoc methods ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_post_hoc_maps_are_those_of_the_last_features():
    model, x = make(), images()
    classes = torch.tensor([[1], [4]])
    features = model.forward_features(x)
    last = model.last_features(features)
    weights = model.head.weight[classes[:, 0]] / (last.shape[2] * last.shape[3])
    maps = softcam_hub.create_explainer("grad-cam", model)(x, classes)
    torch.testing.assert_close(maps[:, 0], torch.einsum("bk,bkhw->bhw", weights, last).relu(), atol=1e-6, rtol=1e-4)
    own = softcam_hub.create_explainer("softcam", model, signed=True)
    torch.testing.assert_close(own(x, classes), model.explain(x, classes=classes).maps, atol=1e-5, rtol=1e-5)
    assert own.explain(x, classes).maps.shape == (2, 1, 8, 12)
    with pytest.raises(ValueError, match="cam needs logits that are linear in the average"):
        softcam_hub.create_explainer("cam", model)(x, classes)


@torch.no_grad()
def test_occluding_channels_of_the_last_features_leaves_the_finer_ones():
    model, x = make(), images()[:1]
    last = model.last_features(model.forward_features(x))
    whole = model.forward_features(x)
    edited = whole.clone()
    edited[:, :5] = 0
    explained = ExplainedModel(model)
    logits = explained.edited_logits(x, lambda features: torch.cat([0 * features[:, :5], features[:, 5:]], dim=1))
    torch.testing.assert_close(logits, model.head(edited))
    torch.testing.assert_close(
        explained.resume(x, torch.cat([last, 0 * last])),
        model.head(torch.cat([whole, torch.cat([0 * last, whole[:, last.shape[1] :]], dim=1)])),
    )
    scores = softcam_hub.create_explainer("score-cam", model, batch=50)(x)
    assert scores.shape == (1, 1, *last.shape[2:])
    assert "finer features count as a constant" in softcam_hub.create_explainer("grad-cam", model).note
