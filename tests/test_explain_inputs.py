"""`explain` of both models and of the package: images and classes in every form in which people hold them."""

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import timm
import torch
from conftest import randomise
from helpers.data import encode
from helpers.file_server import serving
from PIL import Image
from timm.data import create_transform
from transformers import AutoImageProcessor, pipeline

import softcam_hub
from softcam_hub import CAPEForImageClassification, SoftCAMForImageClassification
from softcam_hub.loading import load_classifier

LABELS = ["cat", "dog", "owl", "crane", "crane"]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    """The same weights as a timm model and as a Hugging Face model, with their folder, processor and a file server."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    arguments = {"pretrained": False, "id2label": dict(enumerate(LABELS))}
    randomise(CAPEForImageClassification.from_timm("cape_test_resnet", **arguments)).save_pretrained(folder)
    PICTURE.save(folder / "picture.png")
    with serving(folder) as address:
        yield SimpleNamespace(
            folder=folder,
            address=address,
            timm=load_classifier(folder).model,
            huggingface=CAPEForImageClassification.from_pretrained(folder),
            processor=AutoImageProcessor.from_pretrained(folder),
        )


DOORS = pytest.mark.parametrize("door", ["timm", "huggingface"])


def batch(doors, count=1):
    transform = create_transform(**doors.timm.preprocessing)
    return torch.stack([transform(PICTURE.rotate(90 * number, expand=True)) for number in range(count)])


ARRAY = np.asarray(PICTURE)

FORMS = {
    "one image as a tensor": lambda doors: batch(doors)[0],
    "picture": lambda doors: PICTURE,
    "path": lambda doors: doors.folder / "picture.png",
    "path as text": lambda doors: str(doors.folder / "picture.png"),
    "URL": lambda doors: f"{doors.address}/picture.png",
    "encoded bytes": lambda doors: (doors.folder / "picture.png").read_bytes(),
    "array of bytes": lambda doors: ARRAY,
    "array of shares": lambda doors: (ARRAY / 255).astype(np.float32),
    "array of arrays": lambda doors: ARRAY[None],
    "picture as a tensor": lambda doors: torch.from_numpy(ARRAY.copy()).permute(2, 0, 1),
    "output of the processor": lambda doors: doors.processor(PICTURE),
    "dictionary": lambda doors: {"pixel_values": batch(doors)},
    "dictionary of arrays": lambda doors: {"pixel_values": [batch(doors)[0].numpy()]},
    "dictionary of tensors": lambda doors: {"pixel_values": list(batch(doors))},
    "list of a picture": lambda doors: [PICTURE],
    "list of a tensor": lambda doors: [batch(doors)[0]],
    "column of a data set": lambda doors: datasets.Dataset.from_dict({"image": [PICTURE]})["image"],
}


@DOORS
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same_bits(form, door, doors):
    model = getattr(doors, door)
    assert torch.equal(model.explain(FORMS[form](doors)).maps, model.explain(batch(doors)).maps)


def test_all_doors_agree_to_the_bit(doors):
    expected = doors.timm.explain(PICTURE, top_k=2)
    assert torch.equal(doors.huggingface.explain(**doors.processor(PICTURE), top_k=2).maps, expected.maps)
    rows = pipeline("image-explanation", model=str(doors.folder))(PICTURE, top_k=2)
    assert torch.equal(torch.stack([row["map"] for row in rows]), expected.maps[0])
    assert [row["label"] for row in rows] == expected.labels[0]
    for source in (
        doors.folder,
        str(doors.folder),
        f"local-dir:{doors.folder}",
        doors.timm,
        doors.huggingface,
        torch.nn.DataParallel(doors.timm),
    ):
        found = softcam_hub.explain(source, PICTURE, top_k=2)
        assert torch.equal(found.maps, expected.maps)
        assert found.labels == expected.labels
    assert torch.equal(softcam_hub.explain(doors.timm, PICTURE, "owl", kind="mu-cape").classes, torch.tensor([[2]]))


@DOORS
def test_a_path_may_begin_at_home(door, doors, monkeypatch):
    monkeypatch.setenv("HOME", str(doors.folder))
    monkeypatch.setenv("USERPROFILE", str(doors.folder))
    expected = getattr(doors, door).explain(PICTURE).maps
    for path in ("~/picture.png", Path("~/picture.png")):
        assert torch.equal(getattr(doors, door).explain(path).maps, expected)


@DOORS
def test_a_list_may_hold_different_forms(door, doors, tmp_path):
    PICTURE.rotate(90, expand=True).save(tmp_path / "turned.png")
    images = batch(doors, 3)
    mixed = [PICTURE, str(tmp_path / "turned.png"), images[2]]
    assert torch.equal(getattr(doors, door).explain(mixed).maps, getattr(doors, door).explain(images).maps)


def test_pictures_are_resized_to_what_the_model_was_built_for(doors):
    model = timm.create_model("cape_test_vit", img_size=96, num_classes=3)
    assert model.preprocessing["input_size"] == (3, 96, 96)
    assert model.explain(PICTURE).images[0].size == (96, 96)


def test_the_pictures_that_the_model_saw(doors):
    explanation = doors.timm.explain([PICTURE, PICTURE.rotate(90, expand=True)])
    mean, std = (torch.tensor(doors.timm.preprocessing[name])[:, None, None] for name in ("mean", "std"))
    for picture, image in zip(explanation.images, batch(doors, 2), strict=True):
        expected = ((image * std + mean) * 255).round().byte()
        assert torch.equal(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1), expected)
    grey = timm.create_model("softcam_test_resnet", in_chans=1, num_classes=3)
    assert grey.explain(torch.zeros(1, 64, 64)).image.mode == "RGB"
    spectral = timm.create_model("softcam_test_resnet", in_chans=5, num_classes=3).explain(torch.zeros(5, 64, 64))
    assert spectral.images is spectral.image is None


CLASSES = {
    "index": (1, 3, [[3]]),
    "label": (1, "owl", [[2]]),
    "digits": (1, "1", [[1]]),
    "shared label": (1, "crane (4)", [[4]]),
    "flat list of one image": (1, [0, 3], [[0, 3]]),
    "flat tensor of one image": (1, torch.tensor([0, 3]), [[0, 3]]),
    "flat list of one image with a label": (1, ["owl", 3], [[2, 3]]),
    "tuple": (1, ("owl", "cat"), [[2, 0]]),
    "index of every image": (2, 3, [[3], [3]]),
    "label of every image": (2, "dog", [[1], [1]]),
    "one index for each image": (2, [0, 3], [[0], [3]]),
    "one label for each image": (2, ["owl", "cat"], [[2], [0]]),
    "array of labels": (2, np.array(["owl", "cat"]), [[2], [0]]),
    "array of indices": (2, np.array([0, 3]), [[0], [3]]),
    "two for every image": (2, [[0, 3]], [[0, 3], [0, 3]]),
    "two labels for every image": (2, [["owl", "dog"]], [[2, 1], [2, 1]]),
    "two for each image": (2, [[0, 3], [1, 2]], [[0, 3], [1, 2]]),
    "two labels for each image": (2, [["cat", 3], [1, "owl"]], [[0, 3], [1, 2]]),
}


@DOORS
@pytest.mark.parametrize("case", CLASSES)
def test_every_form_of_classes(case, door, doors):
    count, classes, expected = CLASSES[case]
    explanation = getattr(doors, door).explain(batch(doors, count), classes)
    assert explanation.classes.tolist() == expected
    every = getattr(doors, door).explain(batch(doors, count), [[0, 1, 2, 3, 4]])
    chosen = torch.tensor(expected)[:, :, None, None].expand(-1, -1, *every.maps.shape[2:])
    assert torch.equal(explanation.maps, every.maps.gather(1, chosen))


ONE_COLUMN = {"image": PICTURE, "label": 3}

REFUSED = {
    "none": (
        TypeError,
        {"images": None},
        "explain() takes images, or pixel_values in their place: give one of the two",
    ),
    "both": (TypeError, {"pixel_values": ARRAY}, "explain() takes images, or pixel_values in their place: give one of"),
    "empty list": (ValueError, {"images": []}, "there is no image to explain: expected an image or a list of images"),
    "empty array": (ValueError, {"images": ARRAY[:0]}, "the image is empty: expected an image of at least one pixel"),
    "row of a data set": (
        ValueError,
        {"images": ONE_COLUMN},
        "expected the output of an image processor, with 'pixel_values', got the keys image, label: pass the image "
        "itself, such as row['image']",
    ),
    "number": (
        TypeError,
        {"images": 3},
        "expected a PIL image, an array (H, W, 3), the path of a file, an http(s) URL",
    ),
    "missing file": (
        ValueError,
        {"images": "cat.jpg"},
        "cat.jpg cannot be read: there is no such file, expected a PIL",
    ),
    "folder": (
        ValueError,
        {"images": Path(__file__).parent},
        f"{Path(__file__).parent} is a folder: pass the paths of",
    ),
    "two sizes": (
        ValueError,
        {"images": [torch.zeros(3, 64, 64), torch.zeros(3, 32, 32)]},
        "the images of a list must have one size after preprocessing, got [(3, 32, 32), (3, 64, 64)]: resize the",
    ),
    "channels first": (
        ValueError,
        {"images": ARRAY.transpose(2, 0, 1)},
        "expected an image array (H, W), (H, W, 3) or (H, W, 4), got shape (3, 200, 300): move its channels to the end "
        "with .transpose(1, 2, 0), or pass a normalised image as a tensor",
    ),
    "normalised array": (
        ValueError,
        {"images": ARRAY / 255 - 0.5},
        "expected floating-point numbers of an image array in [0, 1], got -0.5 to 0.4",
    ),
    "array with NaN": (
        ValueError,
        {"images": np.full((9, 9, 3), np.nan)},
        "expected floating-point numbers of an image array in [0, 1], got nan to nan",
    ),
    "sixteen bits": (
        ValueError,
        {"images": ARRAY.astype(np.uint16)},
        "expected an image array of bytes, or of floating-point numbers in [0, 1], got uint16: scale it to 0..255",
    ),
    "whole numbers in a tensor": (
        TypeError,
        {"images": torch.zeros(1, 3, 64, 64, dtype=torch.int64)},
        "expected floating-point images, got torch.int64: scale to [0, 1] and normalise them first",
    ),
    "channels last": (
        ValueError,
        {"images": torch.zeros(1, 64, 96, 3)},
        "expected images with 3 channels, got 64 in shape (1, 64, 96, 3): move the channels to the front with "
        ".movedim(-1, 1)",
    ),
    "picture as a tensor with channels last": (
        ValueError,
        {"images": torch.from_numpy(ARRAY.copy())},
        "expected a picture as a uint8 tensor (C, H, W), got shape (200, 300, 3): move the channels to the front with "
        ".movedim(-1, -3)",
    ),
    "unknown label": (
        ValueError,
        {"classes": "fox"},
        "unknown class 'fox': the labels of this model are cat, dog, owl",
    ),
    "misspelt label": (ValueError, {"classes": ["cta"]}, "unknown class 'cta': the labels of this model are cat"),
    "other case": (ValueError, {"classes": [["Cat"]]}, "unknown class 'Cat': did you mean 'cat'? The labels of this"),
    "near label": (ValueError, {"classes": "cats"}, "unknown class 'cats': did you mean 'cat'? The labels of this"),
    "shared label": (
        ValueError,
        {"classes": "crane"},
        "unknown class 'crane': did you mean 'crane (3)' or 'crane (4)'? The labels of this model are cat, dog, owl",
    ),
    "more classes than images": (
        ValueError,
        {"images": [PICTURE, PICTURE], "classes": [0, 1, 2]},
        "classes must be an int, (2,) or (2, k) for 2 images, got shape (3,): to explain several classes of every image "
        "pass [[3, 5]]",
    ),
    "ragged classes": (
        ValueError,
        {"images": [PICTURE, PICTURE], "classes": [["cat"], ["dog", "owl"]]},
        "classes must name the same number of classes for each image, got [[0], [1, 2]]: fill the shorter lists up",
    ),
    "no class": (ValueError, {"classes": []}, "classes must be an int, (1,) or (1, k) for 1 image, got shape (1, 0)"),
    "two images, two rows too many": (
        ValueError,
        {"images": [PICTURE, PICTURE], "classes": [[0], [1], [2]]},
        "classes must be an int, (2,) or (2, k) for 2 images, got shape (3, 1)",
    ),
    "half a class": (TypeError, {"classes": 0.5}, "classes must be integer class indices, got torch.float32"),
    "true as a number of classes": (ValueError, {"top_k": True}, "top_k must be a whole number from 1 to the number"),
}


@DOORS
@pytest.mark.parametrize("case", REFUSED)
def test_refused_inputs_get_a_sentence(case, door, doors):
    kind, arguments, sentence = REFUSED[case]
    with pytest.raises(kind) as error:
        getattr(doors, door).explain(**{"images": PICTURE, **arguments})
    assert str(error.value).startswith(sentence)


def test_pictures_for_a_model_of_other_channels():
    model = timm.create_model("softcam_test_resnet", in_chans=1, num_classes=3)
    sentence = "^pictures are read as RGB, but this model takes images with 1 channel: pass a tensor"
    with pytest.raises(ValueError, match=sentence):
        model.explain(PICTURE)


def test_a_tensor_of_bytes_that_are_no_integers_is_warned_of(doors):
    pixels = torch.from_numpy(ARRAY.copy()).movedim(-1, 0).float()
    with pytest.warns(UserWarning, match="values from 0 to 254, where normalised images have single digits") as caught:
        doors.timm.explain(pixels)
    assert caught[0].filename == __file__
    assert np.array_equal(doors.timm.explain(pixels.byte()).pixels, doors.timm.explain(PICTURE).pixels)


def test_a_tensor_that_is_not_normalised_is_warned_of(doors):
    pixels = torch.from_numpy(ARRAY.copy()).movedim(-1, 0).float() / 255
    with pytest.warns(UserWarning, match="between 0 and 1, as before the normalisation.*use Normalize") as caught:
        doors.timm.explain(pixels)
    assert caught[0].filename == __file__
    plain = timm.create_model("softcam_test_resnet", num_classes=3)
    plain.pretrained_cfg.update(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.explain(pixels)
        doors.timm.explain(PICTURE)
        doors.timm.explain(torch.zeros(1, 3, 64, 64))


VANILLA = {
    "name": (
        lambda _: "resnet50",
        "resnet50 is a vanilla classifier without maps of its own: name softcam_resnet50 or ",
    ),
    "name with tag": (
        lambda _: "resnet50.a1_in1k",
        "resnet50.a1_in1k is a vanilla classifier .*: name softcam_resnet50",
    ),
    "model": (lambda _: timm.create_model("test_resnet"), "test_resnet is a vanilla classifier .* cape_test_resnet, "),
    "folder": (lambda folder: folder, "test_resnet is a vanilla classifier"),
    "another library's model": (lambda _: torch.nn.Linear(2, 2), "Linear is a vanilla classifier"),
}


@pytest.mark.parametrize("case", VANILLA)
def test_a_vanilla_classifier_is_refused_with_a_way_out(case, tmp_path):
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=3), tmp_path, safe_serialization=True)
    make, sentence = VANILLA[case]
    way_out = r".*softcam_hub\.convert\(model\), .* softcam_hub\.create_explainer\('grad-cam', model\)$"
    with pytest.raises(TypeError, match=f"^{sentence}{way_out}"):
        softcam_hub.explain(make(tmp_path), PICTURE)


def test_a_model_that_does_not_exist():
    with pytest.raises(FileNotFoundError, match="^there is no model 'cape_resnet5': did you mean "):
        softcam_hub.explain("cape_resnet5", PICTURE)
    for source in ("", "local-dir:no/such"):
        with pytest.raises(FileNotFoundError, match=f"^there is no model '{source}': there is no such folder"):
            softcam_hub.explain(source, PICTURE)


def test_a_picture_in_the_place_of_the_model(doors):
    with pytest.raises(TypeError, match="^expected a model, its folder, its timm name or its Hub id, got Image$"):
        softcam_hub.explain(PICTURE, doors.timm)


def test_models_say_what_they_are_when_they_are_printed(doors):
    expected = "cape_test_resnet: family cape, exact, maps 5x5 of images 160x160, kinds cape, mu-cape, cam"
    assert repr(doors.timm).splitlines()[:2] == [expected, "Classifier("]
    assert repr(doors.huggingface).splitlines()[:2] == [expected, "CAPEForImageClassification("]
    fine = timm.create_model("softcam_test_resnet", output_stride=8)
    assert "maps 20x20 of images 160x160, kinds softcam, cam" in repr(fine).splitlines()[0]
    assert fine.explain(torch.zeros(3, 160, 160)).maps.shape[2:] == (20, 20)
    tokens = SoftCAMForImageClassification.from_timm("softcam_test_vit", pretrained=False, model_args={"img_size": 96})
    first = repr(tokens).splitlines()[0]
    assert "not exact, so that the head must be trained, maps 6x6 of images 96x96" in first


READ_ELSEWHERE = """
import sys
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
explanation = model.explain(sys.argv[2], classes="owl")
assert "softcam_hub" not in sys.modules and "matplotlib" not in sys.modules and "pandas" not in sys.modules
explanation.save("why.png")
print(explanation)
"""


@pytest.mark.slow
def test_a_pushed_copy_explains_a_path(doors, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", READ_ELSEWHERE, str(doors.folder), str(doors.folder / "picture.png")],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "home"), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == repr(doors.huggingface.explain(PICTURE, "owl"))
    assert encode(Image.open(tmp_path / "why.png"), format="PNG")
