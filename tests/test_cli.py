"""`softcam-hub`: what each command prints and writes, exit codes, and every kind of bad image."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import softcam_hub
from softcam_hub.cli import main
from softcam_hub.commands.explain import ImageExplainer
from softcam_hub.data.lesions import load_lesions
from softcam_hub.loading import load_classifier
from softcam_hub.models.classes import find_class
from softcam_hub.output_folder import LOCK, RECORD

ROOT = Path(__file__).parents[1]
EXIF_ORIENTATION, TURNED_LEFT = 274, 6


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Write the same picture in many formats and modes, and some files that are not images."""
    folder = tmp_path_factory.mktemp("images")
    scene = load_lesions("test", 2, 128)[1]["image"]
    scene.save(folder / "plain.png")
    scene.convert("L").save(folder / "grey.png")
    deep = np.asarray(scene.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    scene.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", scene.size, "red")])
    scene.convert("CMYK").save(folder / "print.tif")
    clear = scene.convert("RGBA")
    clear.putalpha(Image.fromarray((np.arange(128) > 63).astype(np.uint8)[None].repeat(128, 0) * 255))
    clear.save(folder / "clear.png")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = TURNED_LEFT
    scene.rotate(90, expand=True).save(folder / "turned.png", exif=exif)
    (folder / "text.png").write_text("no image at all")
    whole = (folder / "plain.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.fixture(scope="module")
def explained(images, tmp_path_factory):
    """Explain that folder, and return exit code, messages, lines and output folder."""
    out = tmp_path_factory.mktemp("explained")
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(sys.stderr, "write", said.append)
        patch.setattr(sys.stdout, "write", said.append)
        code = main(["explain", str(images), str(images / "missing.png"), "--output", str(out), "--batch-size", "4"])
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return code, "".join(said), {Path(line["file"]).name: line for line in lines}, out


def test_unreadable_images_are_named_counted_and_skipped(explained):
    code, said, lines, _ = explained
    assert code == 1
    assert "4 of 11 could not be read" in said
    for name, reason in {
        "text.png": "is not an image",
        "cut.png": "truncated",
        "huge.png": "100 million pixels",
        "missing.png": "there is no such file",
    }.items():
        assert any(name in line and reason in line for line in said.splitlines())
        assert name not in lines
    assert "moving.gif has 2 pictures, and this is the first of them." in said
    assert set(lines) == {"plain.png", "grey.png", "deep.png", "moving.gif", "print.tif", "clear.png", "turned.png"}


def test_images_of_every_mode_are_converted_to_rgb(explained, images):
    _, _, lines, _ = explained
    scores = {name: line["probabilities"]["exudate"] for name, line in lines.items()}
    model = load_classifier(softcam_hub.CAPE_LESIONS).model

    def expected(picture):
        from timm.data import create_transform, resolve_model_data_config

        with torch.no_grad():
            pixels = create_transform(**resolve_model_data_config(model))(picture.convert("RGB"))
            return float(model(pixels[None]).softmax(1)[0, 3])

    scene = Image.open(images / "plain.png")
    white = Image.new("RGB", scene.size, "white")
    white.paste(scene.crop((64, 0, 128, 128)), (64, 0))
    for name, picture in {
        "plain.png": scene,
        "turned.png": scene,
        "grey.png": scene.convert("L"),
        "deep.png": scene.convert("L"),
        "clear.png": white,
        "print.tif": scene.convert("CMYK"),
        "moving.gif": Image.open(images / "moving.gif"),
    }.items():
        assert np.isclose(scores[name], expected(picture), atol=1e-4), name


def test_lines_and_pictures_show_the_explanation_of_the_model(explained, images):
    _, _, lines, out = explained
    line = lines["plain.png"]
    model = load_classifier(softcam_hub.CAPE_LESIONS).model
    assert list(line["probabilities"]) == model.pretrained_cfg["label_names"]
    assert np.isclose(sum(line["probabilities"].values()), 1)
    assert line["label"] == line["explained"][0] == max(line["probabilities"], key=line["probabilities"].get)
    assert line["score"] == line["probabilities"][line["label"]]
    assert line["kind"] == "cape"
    assert {entry["picture"] for entry in lines.values()} == {path.name for path in out.glob("*.png")}
    picture = Image.open(out / line["picture"])
    assert picture.width > 2 * picture.height  # three panels
    assert np.asarray(picture.convert("RGB")).std() > 10


def test_images_with_the_same_name_get_different_pictures(images, tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes((images / "plain.png").read_bytes())
    assert main(["explain", str(tmp_path), "--output", str(tmp_path / "out"), "--classes", "exudate", "0"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["picture"] for line in lines] == ["x.png", "x-2.png"]
    assert lines[0]["explained"] == ["exudate", "healthy"]
    assert "2 images explained" in capsys.readouterr().out


def test_kind_and_explainer_choose_the_maps(images, tmp_path):
    for number, options in enumerate((["--kind", "mu-cape"], ["--explainer", "grad-cam"], ["--top-k", "1"])):
        out = tmp_path / str(number)
        assert main(["explain", str(images / "plain.png"), "--output", str(out), *options]) == 0
    kinds = [json.loads((tmp_path / n / "predictions.jsonl").read_text())["kind"] for n in "012"]
    assert kinds == ["mu-cape", "grad-cam", "cape"]
    assert (tmp_path / "0" / "plain.png").read_bytes() != (tmp_path / "1" / "plain.png").read_bytes()
    assert Image.open(tmp_path / "2" / "plain.png").width < Image.open(tmp_path / "0" / "plain.png").width


def test_input_images_are_never_replaced(images, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.open(images / "plain.png").convert("RGB").save(photos / "eye.jpg")
    (photos / "eye.png").write_bytes((images / "plain.png").read_bytes())
    before = {file.name: file.read_bytes() for file in photos.iterdir()}
    for given, message in {"eye.png": "eye.png is to be explained", "eye.jpg": "holds 'eye.jpg' but no record"}.items():
        assert main(["explain", str(photos / given), "--output", str(photos)]) == 1
        assert message in capsys.readouterr().err
    assert main(["explain", str(photos), "--output", str(photos)]) == 1
    assert "there is no image in folder" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in photos.iterdir()} == before


def test_a_second_run_replaces_the_first_and_a_failed_one_nothing(images, tmp_path, capsys):
    (tmp_path / "eye.png").write_bytes((images / "plain.png").read_bytes())
    call = ["explain", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(call) == 0
    lines = tmp_path / "out" / "predictions.jsonl"
    first = lines.read_text()
    for mistake in (["--kind", "softcam"], ["--explainer", "gradcam"], ["--classes", "cat"]):
        assert main([*call, *mistake]) == 1
    assert main(["explain", str(tmp_path / "eye.pgn"), "--output", str(tmp_path / "out")]) == 1
    assert lines.read_text() == first
    assert main([*call, "--top-k", "1"]) == 0
    assert [json.loads(line)["file"] for line in lines.read_text().splitlines()] == [str(tmp_path / "eye.png")]
    assert {file.name for file in lines.parent.iterdir()} == {"eye.png", "predictions.jsonl", RECORD, LOCK}
    assert main(["explain", str(tmp_path / "out" / "eye.png"), "--output", str(tmp_path / "out")]) == 1
    assert "eye.png is to be explained, so no picture may replace it" in capsys.readouterr().err


def test_a_vanilla_folder_is_explained_with_its_kind_of_labels(images, tmp_path):
    model = softcam_hub.build("softcam_test_resnet", num_classes=3)
    for several in (False, True):
        folder, out = tmp_path / f"model-{several}", tmp_path / f"out-{several}"
        timm.models.save_for_hf(model, folder, model_config={"label_names": ["a", "b", "c"]})
        config = json.loads((folder / "config.json").read_text())
        told = {"problem_type": "multi_label_classification"} if several else {}
        (folder / "config.json").write_text(json.dumps({**config, **told}))
        assert main(["explain", str(images / "plain.png"), "--output", str(out), "--model", str(folder)]) == 0
        line = json.loads((out / "predictions.jsonl").read_text())
        assert list(line["probabilities"]) == ["a", "b", "c"]
        assert np.isclose(sum(line["probabilities"].values()), 1) == (not several)


def test_shared_labels_are_numbered():
    labels = load_classifier(softcam_hub.build("softcam_test_resnet")).labels
    assert len(set(labels)) == 1000
    assert {"crane (134)", "crane (517)"} <= set(labels)
    with pytest.raises(ValueError, match=r"did you mean 'crane \(134\)' or 'crane \(517\)'"):
        find_class("crane", labels)


def test_pictures_show_both_signs_and_stay_narrow(images, tmp_path):
    folder = tmp_path / "model"
    config = softcam_hub.SoftCAMConfig(architecture="softcam_test_resnet", num_labels=60)
    softcam_hub.SoftCAMForImageClassification(config).save_pretrained(folder)
    call = ["explain", str(images / "plain.png"), "--model", str(folder)]
    for name, options in {"own": ["--top-k", "60"], "post-hoc": ["--explainer", "cam"]}.items():
        assert main([*call, "--output", str(tmp_path / name), *options]) == 0
    pixels = np.asarray(Image.open(tmp_path / "own" / "plain.png")).astype(int)
    assert pixels.shape[1] < 1200
    warmth = pixels[..., 0] - pixels[..., 2]
    assert (warmth > 100).any()
    assert (warmth < -100).any(), "what speaks against a class"
    pixels = np.asarray(Image.open(tmp_path / "post-hoc" / "plain.png")).astype(int)
    assert not (pixels[..., 0] - pixels[..., 2] < -100).any(), "post-hoc maps are positive parts"


def test_images_are_resized_to_the_input_of_the_model_when_they_are_read(images):
    explain = ImageExplainer(
        load_classifier(softcam_hub.CAPE_LESIONS),
        argparse.Namespace(explainer=None, kind=None, classes=None, top_k=None, aligned=True, batch_size=16),
    )
    ((_, pixels),) = explain._read([images / "plain.png"])
    assert pixels.shape == (3, 128, 128)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["explain", "{image}", "--output", "{out}", "--classes", "cat"],
            "unknown class 'cat': the labels of this model are",
        ),
        (["explain", "{image}", "--output", "{out}", "--classes", "7"], "unknown class '7'"),
        (["explain", "{image}", "--output", "{out}", "--top-k", "0"], "--top-k must be at least 1"),
        (["explain", "{image}", "--output", "{out}", "--top-k", "2", "--classes", "0"], "give one of them"),
        (["explain", "{image}", "--output", "{out}", "--kind", "softcam"], "unknown map kind 'softcam'"),
        (["explain", "{image}", "--output", "{out}", "--explainer", "gradcam"], "did you mean grad-cam?"),
        (["explain", "{image}", "--output", "{image}"], "plain.png is a file: name a folder"),
        (["explain", "{empty}", "--output", "{out}"], "there is no image in folder"),
        (["explain", "{image}", "--output", "{out}", "--model", "no/such/model"], "there is no model 'no/such/model'"),
        (
            ["explain", "{image}", "--output", "{out}", "--model", "{foreign}"],
            "names no timm architecture, as the configurations of transformers' own models do not",
        ),
        (["list", "nothing*"], "no architecture matches 'nothing*'"),
        (["list", "vgg*", "--exact"], "8 architectures match 'vgg*', but none is exact: leave out --exact"),
        (["list", "resnet18", "--trained"], "none is one whose head must be trained: leave out --trained"),
        (["benchmark", "--output", "{out}", "--explainers", "cam"], "name one with vanilla"),
        (["benchmark"], "output is missing"),
        (["accuracy", "--output", "{out}"], "name training runs, or a classifier with vanilla"),
        (["benchmark", "--output", "{out}", "--data", "./nowhere"], "there is no folder"),
        (["export", "--output", "{empty}/below/model.onnx"], "there is no folder"),
        (["export", "--output", "{out}", "--model", "{empty}"], "there is no config.json in"),
        (["train", "--output", "{out}", "--data", "./nowhere"], "there is no folder"),
        (["train", "--output", "{image}", "--model", "test_resnet"], "plain.png is a file: name a folder"),
        (["accuracy", "{empty}/run", "--output", "{out}"], "is no finished run"),
        (["accuracy", "{foreign}/model", "--output", "{out}"], "foreign/model is no finished run: did you mean "),
        (["card", "{empty}"], "is not a model folder, because it has no config.json"),
        (["card", "{empty}", "--check"], "has no README.md"),
        (["push", "{empty}", "you/x", "--dry-run"], "is not a model folder, because it has no config.json"),
        (["push", "dmeo", "you/x", "--space", "--dry-run"], "there is no Space 'dmeo'"),
        (["demo", "--model", "{empty}"], "there is no config.json in"),
        (["export", "--output", "{empty}"], "is a folder: name the file"),
    ],
)
def test_a_mistake_ends_with_a_sentence(arguments, sentence, images, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "resnet", "architectures": ["ResNetModel"]}')
    (tmp_path / "foreign" / "settings.yaml").write_text("{}")
    places = {"image": images / "plain.png", **{name: tmp_path / name for name in ("out", "empty", "foreign")}}
    assert main([argument.format(**places) for argument in arguments]) == 1
    said = capsys.readouterr().err
    assert "softcam-hub: error: " in said
    assert sentence in said
    assert "Traceback" not in said


def test_bugs_keep_their_traceback_and_interrupts_end_with_130(monkeypatch, capsys):
    from softcam_hub.commands import list as listing

    def fail(error):
        def run(_):
            raise error

        monkeypatch.setattr(listing, "run", run)
        return main(["list"])

    with pytest.raises(KeyError):
        fail(KeyError("a bug"))
    assert fail(KeyboardInterrupt()) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.slow
def test_list_shows_map_sizes(capsys):
    assert main(["list", "resnet1[08]*", "--map-size"]) == 0
    printed = capsys.readouterr().out
    assert "resnet18 " in printed
    assert "7x7 at 224 px" in printed
    assert main(["list", "cape_test_vit", "--json", "--map_size"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    model = softcam_hub.build("cape_test_vit", num_classes=2)
    assert row["map_size"] == list(model.forward_features(torch.zeros(1, *model.input_size)).shape[-2:])


def test_list_shows_which_heads_are_exact(capsys):
    assert main(["list", "cape_vgg11*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["architecture"] for row in rows] == ["vgg11", "vgg11_bn"]
    assert not any(row["exact"] for row in rows)
    counts = {}
    for option in ("--exact", "--trained"):
        assert main(["list", "--json", option]) == 0
        counts[option] = len(json.loads(capsys.readouterr().out))
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert f"{sum(counts.values())} architectures" in printed
    assert "--map-size also measures their maps" in printed


def test_tables_of_benchmark_and_accuracy(tmp_path, capsys):
    model = load_classifier(softcam_hub.CAPE_LESIONS).model
    from softcam_hub.training.objective import VanillaForTraining

    VanillaForTraining(softcam_hub.to_vanilla(model), False, model.pretrained_cfg["label_names"]).save_pretrained(
        tmp_path / "vanilla"
    )
    data = [
        "--train-count",
        "8",
        "--eval-count",
        "4",
        "--output",
        str(tmp_path / "out"),
        "--vanilla",
        str(tmp_path / "vanilla"),
    ]
    assert main(["benchmark", "--explainers", "cape cam random", *data]) == 0
    said = capsys.readouterr().out
    assert "| cape | model |" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("rows.jsonl", "settings.json", "shards", "table1.md", "localisation.md", "curves.png", RECORD, LOCK),
    }
    assert main(["accuracy", *data]) == 0
    assert "| off-the-shelf (`test_resnet`) |" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "table2.jsonl").read_text().splitlines()]
    assert [row["variant"] for row in rows] == ["vanilla", "naive", "off-the-shelf"]


@pytest.mark.slow
def test_the_installed_program_runs(images, tmp_path):
    def call(*arguments, **options):
        return subprocess.run(
            [sys.executable, "-m", "softcam_hub", *arguments], cwd=tmp_path, capture_output=True, text=True, **options
        )

    found = call("explain", str(images), "--output", "out")
    assert found.returncode == 1
    assert "3 of 10 could not be read" in found.stderr
    assert "Traceback" not in found.stderr
    assert call("list", "resnet18", "--json").returncode == 0
    assert call("train", "--recipe", "lesions-demo", "--model", "resnet18", "--selective").returncode == 1


@pytest.mark.slow
def test_export_writes_what_onnxruntime_reads(tmp_path, capsys):
    import onnxruntime

    assert main(["export", "--output", str(tmp_path / "model.onnx")]) == 0
    assert "the same outputs" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    model = load_classifier(softcam_hub.CAPE_LESIONS).model
    pixels = torch.randn(2, 3, 128, 128)
    logits, maps = session.run(["logits", "maps"], {"pixel_values": pixels.numpy()})
    with torch.no_grad():
        assert np.allclose(logits, model(pixels).numpy(), atol=1e-4)
    assert maps.shape[1] == 4
