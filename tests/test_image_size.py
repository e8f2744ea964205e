"""Images at another size than the model's own: `explain`, the pipeline, the command line and benchmarks."""

import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomise
from PIL import Image
from timm.data import create_transform
from transformers import pipeline

import softcam_hub
from softcam_hub import CAPE_LESIONS, CAPEForImageClassification, benchmark
from softcam_hub.cli import main
from softcam_hub.data import load_lesions
from softcam_hub.loading import load_classifier
from softcam_hub.models.image_size import resize

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8))
SMALL_SWIN = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    randomise(CAPEForImageClassification.from_timm("cape_test_resnet", pretrained=False, num_labels=4)).save_pretrained(
        path
    )
    return path


@pytest.fixture(scope="module", params=["timm", "huggingface"])
def model(request, folder):
    if request.param == "timm":
        return load_classifier(folder).model
    return CAPEForImageClassification.from_pretrained(folder).eval()


def seen_at(model, *sides):
    return create_transform(**{**model.preprocessing, "input_size": (3, *sides)})(PICTURE)[None]


@pytest.mark.parametrize(("size", "sides"), [(320, (320, 320)), ((192, 320), (192, 320)), (np.int64(96), (96, 96))])
def test_a_picture_is_prepared_for_the_size(size, sides, model):
    explanation, expected = model.explain(PICTURE, size=size), model.explain(seen_at(model, *sides))
    assert torch.equal(explanation.maps, expected.maps)
    assert torch.equal(explanation.pixels, expected.pixels)
    assert explanation.pixels.shape[-2:] == sides
    assert explanation.maps.shape[-2:] == tuple(-(-side // 32) for side in sides)
    torch.testing.assert_close(explanation.maps.sum(dim=(2, 3)), explanation.probabilities, atol=1e-6, rtol=0)
    assert torch.equal(softcam_hub.explain(model, PICTURE, size=size).maps, expected.maps)


def test_a_tensor_is_resized(model):
    images = seen_at(model, 160, 160)
    expected = F.interpolate(images, (320, 320), mode="bicubic", antialias=True).clamp(images.min(), images.max())
    assert torch.equal(model.explain(images, size=320).maps, model.explain(expected).maps)
    assert torch.equal(model.explain(images, size=160).maps, model.explain(images).maps)
    assert model.as_batch(images, 160).data_ptr() == images.data_ptr()


def test_the_dtype_of_a_resized_tensor_stays():
    images = torch.rand(1, 3, 8, 8)
    half = resize(images.bfloat16(), (16, 16))
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, resize(images.bfloat16().float(), (16, 16)).bfloat16())


def test_a_list_may_hold_forms_of_different_sizes(model):
    forms = [PICTURE, torch.zeros(3, 100, 100), {"pixel_values": torch.zeros(1, 3, 160, 160)}]
    found = model.explain(forms, size=192)
    assert torch.equal(found.pixels[0], model.explain(PICTURE, size=192).pixels[0])
    assert found.pixels.shape == (3, 3, 192, 192)
    with pytest.raises(ValueError, match=r"got 128 in shape \(1, 128, 160, 3\): move the channels to the front"):
        model.explain(torch.zeros(1, 128, 160, 3), size=192)


def test_the_own_size_is_the_default(model):
    assert torch.equal(model.explain(PICTURE).maps, model.explain(PICTURE, size=model.input_size[1]).maps)


def test_cells_are_drawn_where_they_look_at_that_size():
    model = load_classifier(CAPE_LESIONS).model
    explanation = model.explain(load_lesions("test", 8)["image"][3], size=256)
    assert explanation.maps.shape[-2:] == (32, 32)
    assert explanation.layout().offset == pytest.approx(model.map_offset(256))


@pytest.mark.parametrize("size", [True, 0, -3, "448", 1e9, (3,), (3, 4, 5), 9000, (64, 9000)], ids=repr)
def test_sizes_that_are_none_are_refused(size, model):
    with pytest.raises((TypeError, ValueError), match="size"):
        model.explain(PICTURE, size=size)


FIXED = {
    "vit_tiny_patch16_224": {},
    "mvitv2_tiny": {},  # computes smaller images, with positions of other places
    "swin_tiny_patch4_window7_224": {},
}


@pytest.mark.parametrize("family", ["", "softcam_"])
@pytest.mark.parametrize("name", FIXED)
def test_a_network_of_one_size_says_how_to_get_another(name, family):
    model = timm.create_model(family + name, num_classes=3, **FIXED[name]).eval()
    for size in (192, (448, 448)):
        with pytest.raises(ValueError, match=r"takes images of 224x224 px only, and not of .*img_size=\(\d+, \d+\)"):
            load_classifier(model).at_size(size)
        if family:
            with pytest.raises(ValueError, match="takes images of 224x224 px only"):
                model.explain(PICTURE, size=size)
    assert load_classifier(model).at_size(224).preprocessing["input_size"] == (3, 224, 224)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("softcam_vit_tiny_patch16_224", {"dynamic_img_size": True, "depth": 2}),
        ("softcam_swinv2_tiny_window8_256", {"strict_img_size": False, **SMALL_SWIN}),
    ],
)
def test_networks_that_adapt_give_what_one_made_for_the_size_gives(name, options, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **options).eval()
    images = torch.rand(1, 3, 384, 384)
    found = model.explain(images, size=384)
    timm.models.save_for_hf(model, tmp_path)
    made = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=384).eval()
    torch.testing.assert_close(found.maps, made.explain(images).maps, atol=1e-4, rtol=1e-3)


def test_sizes_that_a_network_cannot_compute_are_named():
    model = timm.create_model("softcam_efficientformer_l1", num_classes=3).eval()
    for explain in (load_classifier(model).at_size, lambda size: model.explain(PICTURE, size=size)):
        with pytest.raises(ValueError, match=r"(cannot compute|takes) images of"):
            explain(256)


def test_other_errors_keep_their_name():
    model = timm.create_model("softcam_test_resnet", num_classes=3).eval()
    model.backbone.conv1 = torch.nn.Identity()
    with pytest.raises(RuntimeError, match="running_mean"):  # no size was asked for
        model.explain(PICTURE)


def test_a_trial_leaves_the_model_as_it_is():
    model = timm.create_model("resnet18").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classifier = load_classifier(model)
    assert classifier.at_size(None) is classifier
    larger = classifier.at_size((64, 96))
    assert larger.preprocessing == {**classifier.preprocessing, "input_size": (3, 64, 96)}
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_pipeline_takes_a_size(folder):
    explain = pipeline("image-explanation", model=str(folder))
    expected = explain.model.explain(PICTURE, size=320, top_k=2)
    rows = explain(PICTURE, size=320, top_k=2)
    assert torch.equal(torch.stack([row["map"] for row in rows]), expected.maps[0])
    assert rows[0]["heatmap"].size == (320, 320)
    assert [len(each) for each in explain([PICTURE, PICTURE], size=320, batch_size=2)] == [1, 1]


def test_the_command_line_takes_a_size(folder, tmp_path, capsys):
    PICTURE.save(tmp_path / "photo.png")
    options = ["explain", str(tmp_path / "photo.png"), "--model", str(folder), "--output", str(tmp_path / "out")]
    assert main([*options, "--size", "192x320"]) == 0
    (line,) = [json.loads(text) for text in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    expected = load_classifier(folder).model.explain(PICTURE, size=(192, 320))
    assert line["score"] == pytest.approx(float(expected.probabilities), abs=1e-6)
    for wrong in ("0", "1x2x3", "-5", "large", "192,320"):
        with pytest.raises(SystemExit):
            main([*options, "--size", wrong])
        assert "expected a side such as 448, or height and width such as 448x336" in capsys.readouterr().err


def test_a_benchmark_takes_a_size(tmp_path):
    options = {"data": "lesions", "data_size": 128, "eval_count": 12, "measures": "localisation"}
    rows = benchmark(CAPE_LESIONS, tmp_path / "96", image_size=96, explainers="cape", per_image=True, **options)
    data, model = load_lesions("test", 12), load_classifier(CAPE_LESIONS).model
    found = model.explain(list(data["image"]), size=96)
    assert rows[0]["image_size"] == 96
    assert rows[0]["accuracy"] == pytest.approx(100 * np.mean(found.classes[:, 0].numpy() == data["label"]))
    lines = [json.loads(line) for line in (tmp_path / "96" / "values.jsonl").read_text().splitlines()]
    assert [line["confidence"] for line in lines] == pytest.approx(found.probabilities[:, 0].tolist(), abs=1e-5)
    again = benchmark(CAPE_LESIONS, tmp_path / "96", image_size=np.int64(96), explainers="cape", **options)
    assert again[0]["image_size"] == 96
    with pytest.raises(TypeError, match="image_size must be a whole number, got '96 128'"):
        benchmark(CAPE_LESIONS, tmp_path / "no", image_size=(96, 128), **options)
    assert not (tmp_path / "no").exists()
    with pytest.raises(ValueError, match="image_size=96, but now it is None"):
        benchmark(CAPE_LESIONS, tmp_path / "96", explainers="cape", per_image=True, **options)


def test_a_vanilla_classifier_of_a_model_sees_the_same_size(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("softcam_resnet18", num_classes=4, output_stride=8)
    options = {"data": "lesions", "data_size": 64, "eval_count": 4, "measures": "localisation", "image_size": 64}
    rows = benchmark(model, tmp_path / "64", explainers="softcam cam", per_image=True, **options)
    lines = [json.loads(line) for line in (tmp_path / "64" / "values.jsonl").read_text().splitlines()]
    own, post_hoc = ([line["confidence"] for line in lines if line["explainer"] == name] for name in ("softcam", "cam"))
    assert own == pytest.approx(post_hoc, abs=1e-5)
    assert [row["image_size"] for row in rows] == [64, 64]
