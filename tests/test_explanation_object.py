"""An explanation to work with: text, indexing, devices, arrays, tables, pictures and figures."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.pictures import NAMES
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

import softcam_hub
from softcam_hub import Explanation
from softcam_hub.figures import overlay


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = timm.create_model("cape_test_resnet", num_classes=4)
    made.pretrained_cfg["label_names"] = NAMES
    return made


@pytest.fixture(scope="module")
def explanation(model):
    torch.manual_seed(1)
    return model.explain(torch.randn(3, 3, 96, 64), top_k=2)


def by_hand(count=1, classes=2, kind="cape", names=None):
    maps = torch.full((count, classes, 2, 3), 0.5 / 6)
    index = torch.arange(classes).expand(count, -1)
    return Explanation(maps, index, maps.sum(dim=(2, 3)), kind, names)


def test_text_is_short():
    assert repr(by_hand(names=NAMES)) == "Explanation(cape maps 2x3: healthy 50.0%, microaneurysm 50.0%)"
    assert repr(by_hand(2)) == "Explanation(2 images, cape maps 2x3\n    0 50.0%, 1 50.0%\n    0 50.0%, 1 50.0%)"
    many = repr(by_hand(100, 1000)).splitlines()
    assert len(many) == 6
    assert many[1].endswith("7 50.0%, ...")
    assert many[-1] == "    and 96 images more)"
    assert repr(by_hand(5)).endswith("\n    and 1 image more)")
    assert "\\n" in repr(by_hand(classes=1, names=["two\nlines"]))


def test_an_explanation_is_a_sequence_of_those_of_its_images(explanation):
    assert len(explanation) == 3
    ones = list(explanation)
    assert [len(one) for one in ones] == [1, 1, 1]
    for index, one in enumerate(ones):
        for name in ("maps", "classes", "probabilities", "pixels"):
            assert torch.equal(getattr(one, name), getattr(explanation, name)[index : index + 1])
        assert one.kind == explanation.kind
        assert one.labels == [explanation.labels[index]]
    assert torch.equal(explanation[-1].maps, explanation.maps[2:])
    assert torch.equal(explanation[1:].maps, explanation.maps[1:])
    for index in (np.int64(1), torch.tensor(1)):
        assert torch.equal(explanation[index].maps, explanation.maps[1:2])
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"^image {index} is not among the 3 explained images$"):
            explanation[index]


def test_labels_and_pictures(explanation):
    assert explanation.labels == [[NAMES[index] for index in row] for row in explanation.classes.tolist()]
    assert [picture.size for picture in explanation.images] == [(64, 96)] * 3
    assert explanation[1].image.tobytes() == explanation.images[1].tobytes()
    with pytest.raises(ValueError, match=r"but this explanation has 3: take explanation\[i\].image$"):
        explanation.image  # noqa: B018
    assert by_hand().labels == [["0", "1"]]
    assert by_hand().images is by_hand().image is None


def test_classes_of_a_difference_by_label(model):
    explanation = model.explain(torch.randn(2, 3, 64, 64), [[2, 0, 3]])
    assert torch.equal(explanation.difference(NAMES[0], NAMES[3]), explanation.difference(0, 3))


def test_devices_dtypes_and_arrays(explanation):
    half = explanation.to(dtype=torch.float16)
    assert half.maps.dtype == half.probabilities.dtype == torch.float16
    assert (half.classes.dtype, half.pixels.dtype) == (torch.int64, torch.uint8)
    assert torch.equal(explanation.to(torch.float16).maps, half.maps)
    elsewhere = explanation.to("meta")
    assert all(getattr(elsewhere, name).is_meta for name in ("maps", "classes", "probabilities", "pixels"))
    assert by_hand().to("meta").pixels is None
    assert torch.equal(explanation.cpu().maps, explanation.maps)
    arrays = explanation.to(dtype=torch.bfloat16).numpy()
    assert {name: (values.dtype, values.shape) for name, values in arrays.items()} == {
        "maps": (np.float32, explanation.maps.shape),
        "probabilities": (np.float32, (3, 2)),
        "classes": (np.int64, (3, 2)),
    }


def test_a_table_has_a_row_for_each_class_of_each_image(explanation):
    table = explanation.to_pandas()
    assert list(table.columns) == ["image", "class", "label", "probability", "kind"]
    assert table["image"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table["class"].tolist() == explanation.classes.flatten().tolist()
    assert table["label"].tolist() == [label for row in explanation.labels for label in row]
    assert table["probability"].tolist() == pytest.approx(explanation.probabilities.flatten().tolist())
    assert set(table["kind"]) == {"cape"}


def test_the_overlay_lies_over_the_picture_that_the_model_saw(explanation):
    found = explanation.overlay(2, rank=1, opacity=0.5)
    expected = overlay(explanation.images[2], explanation.heatmaps((96, 64))[2, 1], 0.5)
    assert found.tobytes() == expected.tobytes()


MISTAKES = {
    "opacity": (lambda e: e.overlay(opacity=7), ValueError, "opacity must be between 0 and 1, got 7"),
    "image": (lambda e: e.overlay(5), IndexError, "image 5 is not among the 3 explained images"),
    "label as an image": (
        lambda e: e.overlay("owl"),
        TypeError,
        "an image of an explanation has a number, and several are taken by a slice: got str",
    ),
    "two numbers": (lambda e: e[0, 1], TypeError, "an image of an explanation has a number"),
    "unknown label": (lambda e: e.difference("fox"), ValueError, "unknown class 'fox': the labels of this model are"),
    "nothing to draw": (lambda e: e[3:].plot(), ValueError, "this explanation has no image to draw"),
    "rank": (lambda e: e.overlay(0, 2), IndexError, "rank 2 is not among the 2 explained classes of the image"),
    "no picture": (lambda e: by_hand().overlay(), ValueError, "this explanation does not know its pictures: draw heat"),
    "suffix": (
        lambda e: e.save("why.doc"),
        ValueError,
        "cannot save an explanation as 'why.doc': expected one of .",
    ),
    "no suffix": (lambda e: e.save("why"), ValueError, "cannot save an explanation as 'why': expected one of ."),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_a_sentence(mistake, explanation):
    do, kind, sentence = MISTAKES[mistake]
    with pytest.raises(kind) as error:
        do(explanation)
    assert str(error.value).startswith(sentence)


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def bars(figure):
    """Labels of the colour bars, from the bottom to the top of each."""
    return [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes if axes.axison]


def test_a_figure_has_labels_percentages_and_a_colour_bar_for_each_image(explanation):
    figure = explanation.plot()
    assert isinstance(figure, Figure)
    expected = []
    for index, (labels, row) in enumerate(zip(explanation.labels, explanation.probabilities, strict=True)):
        shares = [f"{share:.1%}" for share in row.tolist()]
        expected += [f"image {index}", *map("\n".join, zip(labels, shares, strict=True))]
    assert titles(figure) == expected
    limits = [f"{100 * float(maps.max()):.3g}%" for maps in explanation.maps]
    assert [(low, high) for low, _, high in bars(figure)] == [("0%", limit) for limit in limits]
    assert figure.get_supxlabel() == "CAPE maps. The cells of a map add up to the probability of its class."
    assert titles(explanation[0].plot())[0] == "image"
    assert not pyplot.get_fignums()


def test_figures_of_signed_maps_of_many_classes_and_without_pictures():
    signed = by_hand(
        kind="softcam", names=["$x_1$", "a name of a class that is so long that it needs two lines or more"]
    )
    figure = signed.plot()
    assert titles(figure) == ["$x_1$\n50.0%", "a name of a class that is\nso long that it needs two…\n50.0%"]
    assert bars(figure) == [["-0.0833", "0", "+0.0833"]]
    assert "Orange speaks for the class and blue against it" in figure.get_supxlabel()
    figure.canvas.draw()
    many = by_hand(1, 20).plot()
    assert len(titles(many)) == 8
    assert many.get_supxlabel().replace("\n", " ").endswith("Shown: 8 of 20 explained classes.")
    assert bars(Explanation(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1).long(), torch.zeros(1, 1), "cape").plot())


@pytest.mark.slow
def test_figures_are_written_and_shown_in_notebooks(explanation, tmp_path, monkeypatch):
    for name in ("why.png", "why.JPG", "why.pdf", "why.svg"):
        explanation.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    explanation.save("~/home.png")
    assert (tmp_path / "home.png").read_bytes() == (tmp_path / "why.png").read_bytes()
    whole = Image.open(tmp_path / "why.png")
    assert np.asarray(whole.convert("RGB")).std() > 10
    shown = Image.open(io.BytesIO(explanation._repr_png_()))
    assert shown.height / shown.width == pytest.approx(whole.height / whole.width, abs=0.01)
    assert explanation[3:]._repr_png_() is None
    seven = by_hand(7)
    assert seven._repr_png_() == seven[:4]._repr_png_()


WITHOUT = """
import sys
for name in ("matplotlib", "pandas"):
    sys.modules[name] = None
import torch
from models.explanation import Explanation
explanation = Explanation(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1).long(), torch.zeros(1, 1), "cape")
assert explanation._repr_png_() is None
for do in (explanation.plot, lambda: explanation.save("x.png"), explanation.to_pandas):
    try:
        do()
    except ImportError as error:
        print(error)
"""


@pytest.mark.slow
def test_without_matplotlib_and_pandas_a_line_says_what_to_install(tmp_path):
    """The folder of the models alone, as it travels to the Hub."""
    shutil.copytree(Path(softcam_hub.__file__).parent / "models", tmp_path / "models")
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    hint = "figures of explanations need matplotlib: pip install matplotlib"
    assert done.stdout.splitlines() == [hint, hint, "to_pandas() needs pandas: pip install pandas"]
