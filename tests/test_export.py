"""Exports: logits and maps are torch's in every precision, for other batches and sizes, and a bad export writes nothing."""

import builtins
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from conftest import randomise, relative_error
from helpers.random_weights import SMALL_CLIP, check_dependence, randomise_with_statistics
from torch import nn

from softcam_hub import CAPE_LESIONS, CAPEForImageClassification, export_onnx, export_torch, export_web, precisions
from softcam_hub.cli import main
from softcam_hub.models.alignment import Alignment
from softcam_hub.precisions import TOLERANCES, store_convolutions_in_8_bits

SMALL_SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "img_size": 64, "window_size": 4}
CASES = {
    "cape_test_resnet": {},
    "softcam_test_resnet": {"output_stride": 8},
    "cape_test_convnext": {},
    "softcam_test_efficientnet": {},
    "softcam_test_mambaout": {},
    "softcam_test_vit2": {"img_size": 64},
    "cape_swinv2_tiny_window8_256": SMALL_SWIN,
    "softcam_resnet50_clip": SMALL_CLIP,
}


@torch.no_grad()
def make(architecture):
    """Return the model of a case in training mode, with random weights whose maps depend on image and location."""
    images = torch.randn(6, 3, 64, 64)
    model = timm.create_model(architecture, num_classes=5, **CASES[architecture])
    randomise_with_statistics(model, images[2:]).eval()
    check_dependence(*model.head(model.forward_features(images[:2]), kind=model.head.kinds[0]))
    return model.train()


def run(path, images):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # a CPU lacks operations in half precision, and casts
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["logits", "maps"]
    return [torch.from_numpy(found) for found in session.run(None, {"pixel_values": images.numpy()})]


def run_archive(path, images):
    return torch.export.load(path).module()(images)


FASTEST = "cape_test_resnet"
"""The case of the fast tests: exporting takes four seconds."""


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=[] if name == FASTEST else pytest.mark.slow) for name in CASES]
)
@torch.no_grad()
def test_outputs_are_those_of_torch(architecture, tmp_path):
    model = make(architecture)
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


def test_an_export_leaves_the_random_state_as_it_is(tmp_path):
    model = timm.create_model(FASTEST, num_classes=5, **CASES[FASTEST])
    before = torch.get_rng_state()
    export_onnx(model, tmp_path / "model.onnx")
    assert torch.equal(torch.get_rng_state(), before)


def check_precision(architecture, export, precision, path, run, fixed=None):
    """Export a model, and compare the file with torch in float32 for other batches and sizes, or for a fixed size."""
    fixed = (64, 64) if "img_size" in CASES[architecture] else fixed
    sizes = [(64, 64), (96, 128)] if fixed is None else [fixed]
    model = make(architecture)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    export(model, path, precision=precision)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert model.training
    after = model.state_dict()
    assert all(
        weight.dtype == after[name].dtype and torch.equal(weight, after[name]) for name, weight in before.items()
    )
    model.eval()
    errors = []
    for batch, size in enumerate(sizes, start=1):
        images = torch.randn(batch, 3, *size)
        expected = model.head(model.forward_features(images), kind=model.head.kinds[0])
        outputs = run(path, images)
        assert all(output.dtype == torch.float32 for output in outputs)
        errors += [relative_error(output, one) for output, one in zip(outputs, expected, strict=True)]
    assert max(errors) < TOLERANCES[precision]
    assert precision == "fp32" or max(errors) > 1e-6, "the precision was not lowered"


FAST = (FASTEST, "int8")
TOO_DEEP = [("softcam_resnet50_clip", "int8")]
"""Its 52 random convolutions add up to more than the tolerance, as those of `resnet50` do; no other layer has 8 bits."""


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [
        pytest.param(name, precision, marks=[] if (name, precision) == FAST else pytest.mark.slow)
        for name in CASES
        for precision in ("fp16", "int8")
        if (name, precision) not in TOO_DEEP
    ],
)
@torch.no_grad()
def test_lower_precisions_stay_within_their_tolerance(architecture, precision, tmp_path):
    check_precision(architecture, export_onnx, precision, tmp_path / "model.onnx", run)


HALF_ARCHIVES = (FASTEST, "softcam_test_vit2", "softcam_resnet50_clip")
"""The same half networks are compared as ONNX files for every architecture above."""


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [
        pytest.param(name, precision, marks=[] if name == FASTEST else pytest.mark.slow)
        for precision, names in {"fp32": CASES, "fp16": HALF_ARCHIVES}.items()
        for name in names
    ],
)
@torch.no_grad()
def test_archives_are_those_of_torch(architecture, precision, tmp_path):
    fixed = (160, 160) if architecture == "softcam_test_resnet" else None  # its dilated pooling rounds in its padding
    check_precision(architecture, export_torch, precision, tmp_path / "model.pt2", run_archive, fixed)


@pytest.mark.slow
@torch.no_grad()
def test_a_large_network_in_8_bits_takes_a_quarter(tmp_path):
    model = randomise(timm.create_model("softcam_resnet50", num_classes=5)).eval()
    path = export_onnx(model, tmp_path / "model.onnx", precision="int8")
    weights = sum(weight.numel() for weight in model.parameters())
    assert weights < path.stat().st_size < 1.1 * weights
    images = torch.randn(1, 3, 96, 64)
    expected = model.head(model.forward_features(images), kind="softcam")
    errors = [relative_error(output, one) for output, one in zip(run(path, images), expected, strict=True)]
    assert max(errors) < TOLERANCES["int8"]


def test_8_bit_convolutions_by_hand():
    weights = np.array([[1.27, -0.634], [0.0, 0.0], [-254.0, 3.0]], np.float32)[:, :, None, None]
    parts = [onnx.numpy_helper.from_array(weights, name) for name in ("model.backbone.w", "model.head.w")]
    nodes = [
        onnx.helper.make_node("Conv", ["x", "model.backbone.w"], ["a"]),
        onnx.helper.make_node("Conv", ["x", "model.head.w"], ["b"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "a", "b")]
    graph = onnx.helper.make_graph(nodes, "two", ends[:1], ends[1:], parts)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    store_convolutions_in_8_bits(model)
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    assert stored.keys() == {"model.backbone.w_int8", "model.backbone.w_scale", "model.head.w"}
    assert stored["model.backbone.w_int8"][:, :, 0, 0].tolist() == [[127, -63], [0, 0], [-127, 2]]  # 1.5 to even
    assert stored["model.backbone.w_scale"].ravel().tolist() == pytest.approx([0.01, 1, 2])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    a, b = session.run(["a", "b"], {"x": np.ones((1, 2, 1, 1), np.float32)})
    assert a.ravel().tolist() == pytest.approx([0.64, 0, -250])
    assert b.ravel().tolist() == pytest.approx([0.636, 0, -251])


@pytest.mark.slow
def test_large_weights_in_8_bits_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(precisions, "LARGE", 0)
    path = export_onnx(
        timm.create_model("cape_test_convnext", num_classes=2), tmp_path / "model.onnx", precision="int8"
    )
    beside = [file.name for file in tmp_path.iterdir() if file != path]
    assert len(beside) == 1
    assert beside[0].endswith(".onnx.data")
    assert run(path, torch.randn(1, 3, 64, 64))[0].shape == (1, 2)


@torch.no_grad()
def test_a_network_that_pads_as_tensorflow_has_the_size_of_the_model(tmp_path):
    model = randomise(timm.create_model("softcam_tf_mobilenetv3_small_minimal_100", num_classes=3)).eval()
    path = export_torch(model, tmp_path / "model.pt2")  # with a dynamic size, torch.export does not end
    images = torch.randn(1, *model.input_size)
    assert relative_error(run_archive(path, images)[0], model(images)) < 1e-4


@torch.no_grad()
def test_logits_that_are_all_zero_are_exported(tmp_path):
    """A new head may start with zeros."""
    model = timm.create_model("softcam_test_resnet", num_classes=3).eval()
    model.head.weight.zero_()
    model.head.bias.zero_()
    images = torch.randn(2, 3, 64, 64)
    logits, maps = run_archive(export_torch(model, tmp_path / "model.pt2"), images)
    assert torch.allclose(logits, model(images), atol=1e-5)
    assert torch.allclose(
        maps, model.head(model.forward_features(images), kind=model.head_class.kinds[0])[1], atol=1e-5
    )


@pytest.mark.slow
@torch.no_grad()
def test_an_archive_whose_size_torch_cannot_keep_open_has_the_size_of_the_model(tmp_path, caplog):
    model = randomise(timm.create_model("softcam_cpubone_nano", num_classes=3)).eval()
    path = export_torch(model, tmp_path / "model.pt2")
    assert "takes images of the model's own size" in caplog.text
    images = torch.randn(2, *model.input_size)
    assert relative_error(run_archive(path, images)[0], model(images)) < 1e-4


@torch.no_grad()
def test_a_model_in_half_precision_is_exported_in_the_precision_that_was_asked_for(tmp_path):
    model = timm.create_model("softcam_test_resnet", num_classes=3).bfloat16()
    images = torch.randn(2, 3, 64, 64)
    logits, maps = run_archive(export_torch(model, tmp_path / "model.pt2"), images)
    assert next(model.parameters()).dtype == torch.bfloat16
    expected, expected_maps = (whole := model.float().eval()).head(whole.forward_features(images), kind="softcam")
    assert relative_error(logits, expected) < 1e-4
    assert relative_error(maps, expected_maps) < 1e-4


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_file_says_where_the_cells_lie(tmp_path):
    model = timm.create_model(f"local-dir:{CAPE_LESIONS}", pretrained=True)
    found = metadata(export_onnx(model, tmp_path / "model.onnx"))
    assert found["map_kind"] == "cape"
    place = json.loads(found["alignment"])
    assert Alignment.from_dict(place) == model.alignment
    assert json.loads(found["map_offset"]) == list(model.map_offset())
    assert json.loads(found["labels"]) == ["healthy", "microaneurysm", "haemorrhage", "exudate"]
    assert json.loads(found["preprocessing"]) == json.loads(json.dumps(model.preprocessing))
    assert json.loads(found["multi_label"]) is False
    assert found["precision"] == "fp32"
    grid = model.explain(torch.zeros(1, 3, 128, 128)).grid
    assert [(place["start"][axis], place["step"][axis]) for axis in (0, 1)] == [grid.axis(0), grid.axis(1)]


@pytest.mark.slow
def test_an_archive_holds_the_same_metadata_and_no_path_of_this_machine(tmp_path):
    model = timm.create_model(f"local-dir:{CAPE_LESIONS}", pretrained=True)
    path, extra = export_torch(model, tmp_path / "model.pt2", precision="fp16"), {"metadata.json": ""}
    torch.export.load(path, extra_files=extra)
    found = json.loads(extra["metadata.json"])
    assert found["precision"] == "fp16"
    assert found["labels"] == list(model.labels)
    assert found["map_offset"] == list(model.map_offset())
    assert found.keys() == {
        *("map_kind", "precision", "labels", "multi_label", "preprocessing", "alignment", "map_offset")
    }
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if b"site-packages" in archive.read(name)]


@pytest.mark.slow
def test_a_file_of_unknown_place_says_only_what_its_maps_are(tmp_path, caplog):
    model = timm.create_model("softcam_test_resnet", num_classes=2)
    path = export_onnx(model, tmp_path / "model.onnx")
    assert metadata(path).keys() == {"map_kind", "precision", "labels", "multi_label", "preprocessing"}
    assert metadata(path)["map_kind"] == "softcam"
    assert b"site-packages" not in path.read_bytes(), "traces name folders of this machine"
    assert "measuring" not in caplog.text
    model.train()(torch.randn(4, 3, 64, 64))  # statistics as of a model that has learnt
    model.measures_on_first_use = True
    export_onnx(model, tmp_path / "measured.onnx")
    assert "measuring once" in caplog.text


@pytest.mark.slow
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
    sentence = r"^the exported logits differ from torch's by .*, and no file was written: allow more in Python with"
    with pytest.raises(RuntimeError, match=sentence):
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


@pytest.mark.parametrize("export", [export_onnx, export_torch, export_web])
def test_a_vanilla_classifier_or_a_missing_folder_is_refused(export, tmp_path):
    name = {export_onnx: "x.onnx", export_torch: "x.pt2", export_web: "x"}[export]
    with pytest.raises(TypeError, match=rf"{export.__name__}\(\) takes a self-explaining model, got ResNet: .*convert"):
        export(timm.create_model("test_resnet"), tmp_path / name)
    if export is not export_web:
        with pytest.raises(FileNotFoundError, match="there is no folder .*missing to write x"):
            export(timm.create_model("softcam_test_resnet"), tmp_path / "missing" / name)
    assert not list(tmp_path.iterdir())


def test_the_documentation_states_the_tolerances():
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `(fp32|fp16|int8)`.* \| (\S+) \|$", page, re.MULTILINE))
    assert {precision: float(tolerance) for precision, tolerance in stated.items()} == TOLERANCES


@pytest.mark.parametrize(
    ("export", "name", "precision", "sentence"),
    [
        (export_onnx, "model.onnx", "fp8", r"^unknown precision 'fp8': expected one of fp32, fp16, int8$"),
        (
            export_torch,
            "model.pt2",
            "int8",
            r"^the format torch has no precision int8: choose one of fp32, fp16",
        ),
        (
            export_torch,
            "model.onnx",
            "fp32",
            r"^an archive of torch\.export must have a name that ends with \.pt2, got",
        ),
        (export_onnx, "model.pt2", "fp32", r"^an ONNX file cannot have a name that ends with \.pt2, got model\.pt2"),
    ],
)
def test_a_choice_that_does_not_exist(export, name, precision, sentence, tmp_path):
    model = timm.create_model("softcam_test_resnet", num_classes=2)
    with pytest.raises(ValueError, match=sentence):
        export(model, tmp_path / name, precision=precision)
    assert not list(tmp_path.iterdir())


def test_an_archive_does_not_replace_a_file_of_somebody_else(tmp_path, capsys):
    file = tmp_path / "model.pt2"
    file.write_text("somebody's")
    with pytest.raises(FileExistsError, match=r"model\.pt2 exists already: --overwrite"):
        export_torch(timm.create_model("softcam_test_resnet", num_classes=2), file)
    assert main(["export", "--output", str(file), "--format", "torch"]) == 1
    assert "model.pt2 exists already: --overwrite" in capsys.readouterr().err
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["somebody's"]


def test_a_lower_precision_that_deviates_too_far_is_refused_with_advice(tmp_path):
    model = timm.create_model("softcam_test_resnet", num_classes=2)
    with pytest.raises(RuntimeError, match="than 1e-07, and no file was written: export in fp32, which differs least"):
        export_torch(randomise(model), tmp_path / "model.pt2", tolerance=1e-7, precision="fp16")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_writes_an_archive(tmp_path, capsys):
    file = tmp_path / "model.pt2"
    assert main(["export", "--output", str(file), "--format", "torch", "--precision", "fp16"]) == 0
    assert "in fp16, within 3e-02 of the largest output of torch" in capsys.readouterr().out
    assert run_archive(file, torch.zeros(1, 3, 128, 128))[1].shape == (1, 4, 16, 16)
    assert main(["export", "--output", str(tmp_path / "x.pt2"), "--format", "torch", "--precision", "int8"]) == 1
    assert "the format torch has no precision int8" in capsys.readouterr().err
