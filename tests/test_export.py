"""ONNX: logits and maps in onnxruntime are torch's, for other batches and sizes, and a bad export writes nothing."""

import builtins
import json

import onnxruntime
import pytest
import timm
import torch
from conftest import randomise, relative_error
from torch import nn

from softcam_hub import CAPE_LESIONS, CAPEForImageClassification, export_onnx
from softcam_hub.models.alignment import Alignment

SMALL_SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "img_size": 64, "window_size": 4}
CASES = {
    "cape_test_resnet": {},
    "softcam_test_resnet": {"output_stride": 8},
    "cape_test_convnext": {},
    "softcam_test_mambaout": {},
    "softcam_test_vit2": {"img_size": 64},
    "cape_swinv2_tiny_window8_256": SMALL_SWIN,
}


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["logits", "maps"]
    return [torch.from_numpy(found) for found in session.run(None, {"pixel_values": images.numpy()})]


SLOW = ("softcam_test_resnet", "softcam_test_vit2", "cape_swinv2_tiny_window8_256")
"""Cases that the fast tests leave out: exporting takes four seconds."""


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
)
@torch.no_grad()
def test_outputs_are_those_of_torch(architecture, tmp_path):
    model = randomise(timm.create_model(architecture, num_classes=5, **CASES[architecture])).train()
    path = export_onnx(model, tmp_path / "model.onnx")
    assert model.training
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    model.eval()
    sizes = [(64, 64)] if "img_size" in CASES[architecture] else [(64, 64), (96, 128), (224, 160)]
    for batch, size in enumerate(sizes, start=1):
        images = torch.randn(batch, 3, *size)
        logits, maps = run(path, images)
        expected_logits, expected_maps = model.head(model.forward_features(images), kind=model.head.kinds[0])
        assert relative_error(logits, expected_logits) < 1e-4
        assert relative_error(maps, expected_maps) < 1e-4


@torch.no_grad()
def test_hugging_face_model(tmp_path):
    model = CAPEForImageClassification.from_timm("cape_test_resnet", pretrained=False, num_labels=3).eval()
    images = torch.randn(3, 3, 96, 64)
    logits, maps = run(export_onnx(model, tmp_path / "model.onnx"), images)
    assert relative_error(logits, model(images).logits) < 1e-4
    assert torch.allclose(maps.sum(dim=(2, 3)), logits.softmax(dim=1), atol=1e-6)


def metadata(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map


def test_the_file_says_where_the_cells_lie(tmp_path):
    model = timm.create_model(f"local-dir:{CAPE_LESIONS}", pretrained=True)
    found = metadata(export_onnx(model, tmp_path / "model.onnx"))
    assert found["map_kind"] == "cape"
    place = json.loads(found["alignment"])
    assert Alignment.from_dict(place) == model.alignment
    grid = model.explain(torch.zeros(1, 3, 128, 128)).grid
    assert [(place["start"][axis], place["step"][axis]) for axis in (0, 1)] == [grid.axis(0), grid.axis(1)]


def test_a_file_of_unknown_place_says_only_what_its_maps_are(tmp_path, caplog):
    model = timm.create_model("softcam_test_resnet", num_classes=2)
    assert metadata(export_onnx(model, tmp_path / "model.onnx")) == {"map_kind": "softcam"}
    assert "measuring" not in caplog.text
    model.train()(torch.randn(4, 3, 64, 64))  # statistics as of a model that has learnt
    model.measures_on_first_use = True
    export_onnx(model, tmp_path / "measured.onnx")
    assert "measuring once" in caplog.text


def test_a_deviating_export_is_refused_and_leaves_the_old_file(tmp_path):
    class Drifting(nn.Module):
        """Gives something else each time torch is asked."""

        calls = 0.0

        def forward(self, x):
            Drifting.calls += 1.0
            return x * Drifting.calls

    model = timm.create_model("softcam_test_resnet", num_classes=2)
    model.backbone.maxpool = Drifting()
    (tmp_path / "model.onnx").write_text("the old one")
    with pytest.raises(RuntimeError, match=r"^the exported logits differ from torch's by .*: no file was written$"):
        export_onnx(model, tmp_path / "model.onnx", overwrite=True)
    assert (tmp_path / "model.onnx").read_text() == "the old one"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    original = builtins.__import__

    def without_onnx(name, *args, **kwargs):
        if name == "onnxscript":
            raise ImportError(name=name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    model = timm.create_model("softcam_test_resnet", num_classes=2)
    expected = r"^ONNX export needs extra packages: pip install 'softcam-hub\[onnx\]' \(onnxscript is missing\)$"
    with pytest.raises(ImportError, match=expected):
        export_onnx(model, tmp_path / "model.onnx")


def test_a_model_without_classes_or_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"^export_onnx\(\) needs classes: this model has num_classes=0"):
        export_onnx(timm.create_model("cape_test_resnet", num_classes=0), tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        export_onnx(timm.create_model("cape_test_resnet", num_classes=2), tmp_path / "nowhere" / "model.onnx")
