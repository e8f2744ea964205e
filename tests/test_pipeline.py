"""`pipeline("image-explanation")` on every kind of input, against `explain` on the same preprocessed image."""

import base64

import datasets
import numpy as np
import pytest
import timm
import torch
from conftest import randomise
from helpers.data import encode
from helpers.file_server import serving
from PIL import Image
from transformers import AutoImageProcessor, TimmWrapperForImageClassification, pipeline

import softcam_hub
from softcam_hub import CAPEForImageClassification, SoftCAMForImageClassification
from softcam_hub.models.images import UnreadableImage
from softcam_hub.models.inputs import read_image

LABELS = {0: "cat", 1: "dog", 2: "owl"}
ARGUMENTS = {"pretrained": False, "id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    randomise(CAPEForImageClassification.from_timm("cape_test_resnet", **ARGUMENTS)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def explain(folder):
    return pipeline("image-explanation", model=str(folder))


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def expected(explain, folder, picture, **options):
    pixel_values = AutoImageProcessor.from_pretrained(folder)(picture)["pixel_values"]
    return explain.model.explain(pixel_values, **options)


def test_the_prediction_is_explained(explain, folder, picture):
    (row,) = explain(picture)
    found = expected(explain, folder, picture)
    assert row["label"] == LABELS[int(found.classes)]
    assert row["score"] == pytest.approx(float(found.probabilities))
    assert torch.equal(row["map"], found.maps[0, 0])
    assert float(row["map"].sum()) == pytest.approx(row["score"], abs=1e-6)
    assert row["heatmap"].size == (160, 160)


def test_the_heatmap_lies_over_what_the_model_saw(explain, picture):
    plain = Image.new("RGB", (160, 160), (10, 200, 30))
    grey = np.asarray(plain.convert("L"))[0, 0]
    (row,) = explain(plain)
    assert (np.abs(np.asarray(row["heatmap"]).astype(int) - int(grey)).max(axis=-1) <= 1).any()


@pytest.fixture
def served(tmp_path):
    """Return the address of a server of the test's folder."""
    with serving(tmp_path) as address:
        yield address


def test_every_form_of_input(explain, picture, tmp_path, served):
    file = tmp_path / "picture.png"
    picture.save(file)
    sources = (picture, str(file), file, f"{served}/picture.png", np.asarray(picture))
    rows = [explain(source)[0] for source in sources]
    assert all(torch.equal(row["map"], rows[0]["map"]) for row in rows)
    assert all(torch.equal(row["map"], rows[0]["map"]) for (row,) in explain([file, f"{served}/picture.png"]))


def test_grey_and_transparent_pictures(explain, picture):
    for mode in ("L", "RGBA", "P", "CMYK"):
        assert explain(picture.convert(mode))[0]["score"] > 0
    assert explain(np.asarray(picture.convert("L")))[0]["score"] > 0


def test_sixteen_bits_and_transparency_are_seen_as_in_training(explain, picture, tmp_path, served):
    grey = picture.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    clear = picture.convert("RGBA")
    clear.putalpha(0)
    white = Image.new("RGB", picture.size, "white")
    for one, same in ((deep, grey), (clear, white)):
        one.save(tmp_path / "one.png")
        for given in (one, str(tmp_path / "one.png"), f"{served}/one.png"):
            assert torch.equal(explain(given)[0]["map"], explain(same)[0]["map"])


def test_unreadable_images_are_named(explain, picture, tmp_path, served):
    picture.save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    for given in (tmp_path / "cut.png", f"{served}/cut.png"):
        with pytest.raises(UnreadableImage, match=r"cut\.png cannot be read: .*truncated"):
            explain(given)
    with pytest.raises(UnreadableImage, match="No such file"):
        explain(tmp_path / "none.png")


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_give_the_same_results(explain, picture, batch_size):
    pictures = [picture, picture.rotate(90, expand=True), picture.resize((99, 170))]
    alone = [explain(one, top_k=2) for one in pictures]
    together = explain(pictures, top_k=2, batch_size=batch_size)
    for single, batched in zip(alone, together, strict=True):
        assert [row["label"] for row in single] == [row["label"] for row in batched]
        assert all(torch.allclose(a["map"], b["map"], atol=1e-6) for a, b in zip(single, batched, strict=True))


def test_chosen_classes_and_kinds(explain, folder, picture):
    rows = explain(picture, classes=["owl", 0], kind="mu-cape")
    assert [row["label"] for row in rows] == ["owl", "cat"]
    found = expected(explain, folder, picture, classes=[[2, 0]], kind="mu-cape")
    assert all(torch.equal(row["map"], found.maps[0, rank]) for rank, row in enumerate(rows))
    assert explain(picture, classes="dog")[0]["label"] == "dog"


def test_several_labels_per_image_are_scored_one_by_one(picture, tmp_path):
    config = {**ARGUMENTS, "problem_type": "multi_label_classification"}
    model = SoftCAMForImageClassification.from_timm("softcam_test_resnet", **config).eval()
    model.save_pretrained(tmp_path)
    rows = pipeline("image-explanation", model=str(tmp_path))(picture, top_k=3)
    pixel_values = AutoImageProcessor.from_pretrained(tmp_path)(picture)["pixel_values"]
    scores = model(pixel_values).logits.sigmoid()[0]
    assert {row["label"]: row["score"] for row in rows} == {
        LABELS[index]: pytest.approx(float(score), abs=1e-6) for index, score in enumerate(scores)
    }


def test_the_stock_pipeline_agrees(explain, folder, picture):
    stock = pipeline("image-classification", model=str(folder))(picture)
    ours = explain(picture, top_k=3)
    assert [row["label"] for row in stock] == [row["label"] for row in ours]
    assert [row["score"] for row in stock] == pytest.approx([row["score"] for row in ours], abs=1e-6)


WRONG_CALLS = {
    "label": (
        lambda explain: explain(Image.new("RGB", (9, 9)), classes="cow"),
        "unknown class 'cow': the labels of this model are cat, dog, owl",
    ),
    "index": (
        lambda explain: explain(Image.new("RGB", (9, 9)), classes=3),
        "class index 3 is out of range: this model has 3 classes, 0 to 2",
    ),
    "kind": (
        lambda explain: explain(Image.new("RGB", (9, 9)), kind="softcam"),
        "unknown map kind 'softcam' for cape: expected one of cape, mu-cape, cam",
    ),
    "array": (
        lambda explain: explain(np.full((9, 9, 3), 128.0)),
        "expected floating-point numbers of an image array in [0, 1], got 128 to 128: scale them, or pass a normalised "
        "image as a tensor (3, H, W)",
    ),
}


@pytest.mark.parametrize("mistake", WRONG_CALLS)
def test_wrong_arguments_are_refused_with_a_sentence(explain, mistake):
    do, message = WRONG_CALLS[mistake]
    with pytest.raises(ValueError) as error:  # noqa: PT011, compared word for word below
        do(explain)
    assert str(error.value) == message


EMPTY = {
    "list": ([], "there is no image to explain: expected an image or a list of images, got an empty list"),
    "array": (np.zeros((0, 8, 3), np.uint8), "the image is empty: expected an image of at least one pixel"),
    "column": (np.zeros((8, 0, 3), np.uint8), "the image is empty: expected an image of at least one pixel"),
    "picture": (Image.new("RGB", (0, 0)), "the image is empty: expected an image of at least one pixel"),
    "name": ("", "the image is empty: expected an image of at least one pixel"),
    "picture in a list": ([Image.new("RGB", (9, 9)), Image.new("RGB", (0, 5))], "the image is empty"),
}


@pytest.mark.parametrize("case", EMPTY)
def test_empty_inputs_are_refused(case, explain):
    given, sentence = EMPTY[case]
    with pytest.raises(ValueError, match=f"^{sentence}"):
        explain(given)


def test_a_pipeline_without_a_model_asks_for_one():
    with pytest.raises(ValueError, match=r"^pipeline\('image-explanation'\) needs a model: name a model folder"):
        pipeline("image-explanation")


def test_timm_says_how_to_load_the_model_that_comes_along():
    with pytest.raises(ValueError, match="Use .*'local-dir:"):
        timm.create_model(softcam_hub.CAPE_LESIONS)
    assert timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True).num_classes == 4


TEXTS = [
    "no-such.png",
    "s3://bucket/x.png",
    "file:///etc/hostname",
    "zip://x.png::http://127.0.0.1/x.zip",
    "abcd",
    "A" * 5000,
    "\x1b[31m",
    "a\0b",
    "caf\udce9.png",
    " ",
    "data:image/png;base64,AAAA",
    "data:,x",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_that_name_no_image_are_refused_with_a_short_sentence(text):
    with pytest.raises(UnreadableImage, match="cannot be read: ") as caught:
        read_image(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "value", [None, 3, {"path": "x.png"}, object(), datasets.Image()], ids=lambda value: type(value).__name__
)
def test_values_of_other_types_are_refused_by_their_type(value):
    with pytest.raises(TypeError, match=f"expected a PIL image, .*, got {type(value).__name__}"):
        read_image(value)


def test_base64_is_read_with_and_without_line_breaks():
    text = base64.encodebytes(encode(Image.new("RGB", (12, 10)), format="PNG")).decode()
    for written in (text, "".join(text.split()), f"data:image/png;base64,{text}"):
        assert np.asarray(read_image(written)).shape == (10, 12, 3)


def test_a_model_without_maps_is_refused(folder):
    wrapper = TimmWrapperForImageClassification.from_pretrained(folder)
    with pytest.raises(
        ValueError, match="a TimmWrapperForImageClassification has no maps .* expected a SoftCAM or CAPE"
    ):
        pipeline("image-explanation", model=wrapper, image_processor=AutoImageProcessor.from_pretrained(folder))
