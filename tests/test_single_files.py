"""Cards, exports and saved models: files are replaced whole or not at all, and only those that may be."""

import os
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
from helpers.benchmark import CLASSES, vanilla_model
from helpers.crashes import every_crash
from helpers.outputs import content, fill, full_disk
from torch.onnx._internal.exporter import _onnx_program

import softcam_hub
from softcam_hub import SoftCAMForImageClassification, export_onnx
from softcam_hub.cli import main
from softcam_hub.files import DRAFT
from softcam_hub.hub.cards import write_card
from softcam_hub.hub.publishing import PACKAGE, SPACES, model_files, space_files
from softcam_hub.training.objective import VanillaForTraining


@pytest.fixture
def folder(tmp_path):
    """Copy a model folder, and give it a card."""
    made = Path(shutil.copytree(softcam_hub.CAPE_LESIONS, tmp_path / "model"))
    (made / "README.md").write_text("words of mine")
    return made


# --- cards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"words of mine", b"", b"---\nlicense: mit\n---\n# Mine\n", b"\xff\xfe not UTF-8"])
def test_a_card_of_somebody_else_is_replaced_only_when_asked_for(text, folder, capsys):
    (folder / "README.md").write_bytes(text)
    before = content(folder)
    assert main(["card", str(folder), "--license", "mit"]) == 1
    assert "README.md exists already, and may hold your own text: --overwrite" in capsys.readouterr().err
    assert content(folder) == before
    assert main(["card", str(folder), "--license", "mit", "--overwrite"]) == 0
    after = content(folder)
    assert after.pop("README.md") != before.pop("README.md")
    assert after == before


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder"])
def test_a_card_is_not_written_through_a_link(kind, folder, tmp_path, capsys):
    (folder / "README.md").unlink()
    if kind == "link":
        fill(tmp_path, "elsewhere.md")
    if kind == "folder":
        fill(folder, "README.md/notes.txt")
    else:
        (folder / "README.md").symlink_to(tmp_path / "elsewhere.md")
    before = content(tmp_path)
    for options in ([], ["--overwrite"]):
        assert main(["card", str(folder), *options]) == 1
        assert f"README.md is a {kind.split()[-1]}" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_a_full_disk_leaves_the_old_card(folder, capsys):
    before = content(folder)
    with full_disk(500):
        assert main(["card", str(folder), "--license", "mit", "--overwrite"]) == 1
    said = capsys.readouterr().err
    assert "README.md could not be written (File too large); what was there before is unchanged. Make room" in said
    assert content(folder) == before


def test_a_card_with_a_gap_is_not_written(folder, monkeypatch):
    from softcam_hub.hub.cards import rendering

    before = content(folder)
    monkeypatch.setattr(rendering, "render_trained_card", lambda model: "---\nlicense: mit\n---\n# TODO\n")
    with pytest.raises(ValueError, match="the metadata of the card lacks library_name"):
        write_card(folder, overwrite=True)
    assert content(folder) == before


@pytest.mark.parametrize(("age", "left"), [(0, True), (1e6, False)])
def test_a_card_removes_old_drafts_only(age, left, folder):
    draft = folder / f"{DRAFT}0123.md"
    draft.write_text("half of a card")
    os.utime(draft, (draft.stat().st_mtime - age,) * 2)
    write_card(folder, "mit", overwrite=True)
    assert draft.exists() == left


def test_a_card_that_is_killed_at_any_moment_can_be_written_again(folder):
    def check():
        assert (folder / "README.md").read_text().startswith(("words of mine", "---"))

    def read(root):
        return {name: text for name, text in content(root).items() if not name.startswith(DRAFT)}

    assert every_crash(folder, lambda: write_card(folder, "mit", overwrite=True), read=read, check=check) >= 4


# --- pushes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft", [f"{DRAFT}1.md", f"{DRAFT}2.safetensors", f"{DRAFT}3.py", f"{DRAFT}4/config.json"])
def test_drafts_are_not_pushed(draft, tmp_path):
    SoftCAMForImageClassification.from_timm(vanilla_model()).save_pretrained(tmp_path)
    expected = model_files(tmp_path, "you/model").keys()
    fill(tmp_path, draft)
    assert model_files(tmp_path, "you/model").keys() == expected


@pytest.mark.parametrize("space", SPACES)
def test_drafts_are_not_pushed_with_a_space(space):
    name = SPACES[space].folder.name if SPACES[space].evaluated else "space"
    expected = space_files(space, f"you/{name}").keys()
    drafts = [SPACES[space].folder / f"{DRAFT}1.md", PACKAGE / "figures" / f"{DRAFT}2.py"]
    try:
        for draft in drafts:
            draft.write_text("half")
        assert space_files(space, f"you/{name}").keys() == expected
    finally:
        for draft in drafts:
            draft.unlink()


# --- exports ---------------------------------------------------------------------------------------------------------


def small():
    return timm.create_model("softcam_test_resnet", num_classes=2).eval()


@pytest.mark.slow
def test_an_export_replaces_a_file_only_when_asked_for(tmp_path, capsys):
    file = tmp_path / "model.onnx"
    file.write_text("somebody's")
    with pytest.raises(FileExistsError, match=r"model\.onnx exists already: --overwrite"):
        export_onnx(small(), file)
    assert main(["export", "--output", str(file)]) == 1
    assert "model.onnx exists already: --overwrite" in capsys.readouterr().err
    assert content(tmp_path) == {"model.onnx": b"somebody's"}
    assert main(["export", "--output", str(file), "--overwrite"]) == 0
    assert onnxruntime.InferenceSession(file).get_inputs()[0].name == "pixel_values"
    assert content(tmp_path).keys() == {"model.onnx"}


@pytest.mark.parametrize("dangling", [False, True])
def test_an_export_is_not_written_through_a_link(dangling, tmp_path):
    if not dangling:
        fill(tmp_path, "elsewhere.onnx")
    (tmp_path / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    before = content(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"model\.onnx is a link, and nothing is written through links"):
            export_onnx(small(), tmp_path / "model.onnx", overwrite=overwrite)
    assert content(tmp_path) == before


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_export(tmp_path):
    fill(tmp_path, "model.onnx")
    before = content(tmp_path)
    with full_disk(5000), pytest.raises(OSError, match=r"model\.onnx could not be written .*unchanged"):
        export_onnx(small(), tmp_path / "model.onnx", overwrite=True)
    assert content(tmp_path) == before


@pytest.mark.slow
def test_large_weights_lie_beside_the_file_and_belong_to_one_export(tmp_path, monkeypatch):
    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 0)
    files = []
    for overwrite in (False, True):
        file = export_onnx(small(), tmp_path / "model.onnx", overwrite=overwrite)
        onnxruntime.InferenceSession(file)
        tensors = onnx.load(file, load_external_data=False).graph.initializer
        files.append({entry.value for one in tensors for entry in one.external_data if entry.key == "location"})
    assert len(files[0] | files[1]) == 2
    assert content(tmp_path).keys() == {"model.onnx", *files[0], *files[1]}


# --- saved models ----------------------------------------------------------------------------------------------------

OLD = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
THEIRS = ["model_best.safetensors", "model-ema.safetensors", "modelling.safetensors.txt", "model-1-of-2.safetensors"]


def test_saving_deletes_weights_of_an_earlier_save_only(tmp_path):
    model = SoftCAMForImageClassification.from_timm(vanilla_model())
    fill(tmp_path, *OLD, *THEIRS, "notes.txt")
    model.save_pretrained(tmp_path)
    after = content(tmp_path)
    assert not set(OLD) & after.keys()
    assert {name: after[name] for name in (*THEIRS, "notes.txt")} == {
        name: f"content of {name}".encode() for name in (*THEIRS, "notes.txt")
    }
    assert "model.safetensors" in after


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "vanilla classifier"])
def test_a_model_that_is_killed_while_it_is_saved_can_be_saved_again(kind, tmp_path):
    model = SoftCAMForImageClassification.from_timm(vanilla_model())
    if kind == "vanilla classifier":
        model = VanillaForTraining(vanilla_model(), False, CLASSES)
    model.save_pretrained(tmp_path / "out")

    def check():
        names = [name for name in content(tmp_path / "out") if not name.startswith(DRAFT)]
        for name in names:
            assert (tmp_path / "out" / name).stat().st_size > 0

    def read(root):
        return {name: text for name, text in content(root).items() if not name.startswith(DRAFT)}

    def operation():
        model.save_pretrained(tmp_path / "out")

    assert every_crash(tmp_path / "out", operation, read=read, check=check, grouped=True) >= 4
