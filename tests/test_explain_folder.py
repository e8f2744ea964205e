"""The folder of `softcam-hub explain`: only pictures of earlier runs are replaced, and a kill costs nothing but time."""

import json
import os

import pytest
from helpers.crashes import every_crash
from helpers.outputs import content, fill, full_disk, used_by_another_process
from PIL import Image

from softcam_hub import output_folder
from softcam_hub.cli import main
from softcam_hub.commands.explain import LINES
from softcam_hub.commands.image_files import name_pictures
from softcam_hub.files import DRAFT
from softcam_hub.output_folder import RECORD


@pytest.fixture
def photos(tmp_path):
    """Write two images outside the output folder."""
    for number, name in enumerate(("eye.png", "ear.jpg")):
        image = Image.effect_noise((64, 64), 40 + number).convert("RGB")
        (tmp_path / "photos").mkdir(exist_ok=True)
        image.save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def explain(images, out, *options):
    return main(["explain", str(images), "--output", str(out), "--top-k", "1", *options])


def lines_of(out):
    return [json.loads(line) for line in (out / LINES).read_text().splitlines()]


# --- whose the folder is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", [LINES, "eye.png", "EAR.PNG", "notes.txt", "album/eye.png", "settings.yaml"])
def test_a_folder_of_somebody_else_is_refused(theirs, photos, tmp_path, capsys):
    fill(tmp_path / "out", theirs)
    assert explain(photos, tmp_path / "out") == 1
    assert f"it holds '{theirs.split('/')[0]}' but no record of an explanation run" in capsys.readouterr().err
    assert content(tmp_path / "out") == {theirs: f"content of {theirs}".encode()}


def test_a_link_that_leads_to_itself_is_refused(photos, tmp_path, capsys):
    (tmp_path / "out").symlink_to(tmp_path / "out")
    assert explain(photos, tmp_path / "out") == 1
    assert "out cannot be written" in capsys.readouterr().err


def test_the_output_of_another_command_is_refused(photos, tmp_path, capsys):
    folder = output_folder.OutputFolder(tmp_path / "out", "benchmark", ["rows.jsonl"])
    with folder.locked("new"):
        folder.claim("new")
    assert explain(photos, tmp_path / "out") == 1
    assert "holds the output of a benchmark, expected that of an explanation run" in capsys.readouterr().err


def test_the_record_names_the_pictures(photos, tmp_path):
    assert explain(photos, tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record == {"kind": "explanation run", "format": 1, "names": [LINES, "ear.png", "eye.png"]}
    assert content(tmp_path / "out").keys() == {LINES, "ear.png", "eye.png", RECORD}


def test_names_with_wildcards_are_taken_literally(photos, tmp_path):
    (photos / "eye.png").rename(photos / "e[1]?*.png")
    (photos / "ear.jpg").unlink()
    assert explain(photos, tmp_path / "out") == 0
    fill(tmp_path / "out", "e1xy.png")
    assert explain(photos, tmp_path / "out") == 0
    assert content(tmp_path / "out").keys() == {LINES, "e[1]?*.png", RECORD, "e1xy.png"}


def test_a_second_run_replaces_its_pictures_and_keeps_other_files(photos, tmp_path):
    out = tmp_path / "out"
    assert explain(photos / "eye.png", out) == 0
    fill(out, "notes.txt", "album/nose.png")
    first = content(out)
    Image.new("RGB", (64, 64), "red").save(photos / "eye.png")
    assert explain(photos, out) == 0
    second = content(out)
    assert second["eye.png"] != first["eye.png"]
    assert [line["picture"] for line in lines_of(out)] == ["ear.png", "eye.png"]
    for name in ("notes.txt", "album/nose.png"):
        assert second[name] == first[name]
    assert second.keys() - first.keys() == {"ear.png"}


def test_a_photograph_that_came_later_is_not_replaced(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert explain(photos / "eye.png", out) == 0
    fill(out, "ear.png")
    before = content(out)
    assert explain(photos, out) == 1
    assert "ear.png is not a file of an earlier explanation run, so it is not replaced" in capsys.readouterr().err
    assert content(out) == before


@pytest.mark.parametrize("given", ["eye.png", ".", "../photos/eye.png"])
def test_input_images_are_not_overwritten(given, photos, tmp_path, capsys):
    assert explain(photos / "ear.jpg", tmp_path / "out") == 0
    before = content(photos)
    assert explain(photos / given, photos) == 1
    said = capsys.readouterr().err
    assert (
        "there is no image in folder" in said if given == "." else "eye.png is to be explained, so no picture" in said
    )
    assert explain(tmp_path / "out" / "ear.png", tmp_path / "out") == 1
    assert "ear.png is to be explained, so no picture may replace it" in capsys.readouterr().err
    assert content(photos) == before


@pytest.mark.parametrize("link", ["eye.png", LINES])
@pytest.mark.parametrize("dangling", [False, True])
def test_links_are_not_followed(link, dangling, photos, tmp_path, capsys):
    out, target = tmp_path / "out", tmp_path / "elsewhere.png"
    assert explain(photos, out) == 0
    if not dangling:
        target.write_text("somebody's")
    (out / link).unlink()
    (out / link).symlink_to(target)
    before = content(tmp_path)
    assert explain(photos, out) == 1
    assert "is a link, and nothing is written through links" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_a_link_in_a_new_folder_is_not_followed(photos, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "eye.png").symlink_to(tmp_path / "nothing.png")
    assert explain(photos, tmp_path / "out") == 1
    assert "it holds 'eye.png' but no record" in capsys.readouterr().err
    assert not (tmp_path / "nothing.png").exists()


# --- mistakes, full disks, second runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [("--kind", "softcam"), ("--explainer", "gradcam"), ("--classes", "cat")])
def test_a_wrong_option_leaves_no_folder(options, photos, tmp_path):
    words = ["explain", str(photos), "--output", str(tmp_path / "out"), *options]
    assert main(words) == 1
    assert not (tmp_path / "out").exists()


def test_lines_appear_only_when_all_are_written(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert explain(photos / "eye.png", out) == 0
    before = (out / LINES).read_bytes()
    (photos / "eye.png").write_text("no image")
    assert explain(photos / "eye.png", out) == 1
    assert "1 of 1 could not be read" in capsys.readouterr().err
    assert (out / LINES).read_bytes() == before
    assert explain(photos, out) == 1
    assert [line["picture"] for line in lines_of(out)] == ["ear.png"]


def test_a_full_disk_is_reported_and_the_earlier_run_stays(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert explain(photos, out) == 0
    before = content(out)
    with full_disk(1000):
        assert explain(photos, out, "--kind", "mu-cape") == 1
    said = capsys.readouterr().err
    assert "ear.png could not be written (File too large); what was there before is unchanged. Make room" in said
    assert content(out) == before


def test_a_second_run_in_the_folder_is_refused(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(output_folder, "LOCK_TIMEOUT", 0.1)
    (tmp_path / "out").mkdir()
    with used_by_another_process(tmp_path / "out"):
        assert explain(photos, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert (
        f"another process is writing to {tmp_path / 'out'}: wait until it has ended, or choose another --output" in said
    )
    assert content(tmp_path / "out") == {}


# --- kills -----------------------------------------------------------------------------------------------------------


def test_drafts_of_a_killed_run_are_neither_explained_nor_kept(photos, tmp_path):
    out = tmp_path / "out"
    assert explain(photos, out) == 0
    before = content(out)
    fill(out, f"{DRAFT}0123.png", f"{DRAFT}4567.jsonl")
    fill(photos, f"{DRAFT}89ab.png")
    assert explain(photos, out) == 0
    assert content(out) == before
    assert os.listdir(photos).count(f"{DRAFT}89ab.png") == 1


def test_no_picture_is_named_as_a_draft(photos):
    file = photos / f"{DRAFT}eye.png"
    assert name_pictures([file, photos / f"_{DRAFT}eye.jpg"]) == {
        file: f"_{DRAFT}eye.png",
        photos / f"_{DRAFT}eye.jpg": f"_{DRAFT}eye-2.png",
    }


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_that_is_killed_at_any_moment_can_be_repeated(earlier, photos, tmp_path):
    out = tmp_path / "out"
    if earlier:
        assert explain(photos / "eye.png", out) == 0
        fill(out, "notes.txt")
        Image.new("RGB", (64, 64), "red").save(photos / "eye.png")

    def operation():
        assert explain(photos, out) == 0

    def check():
        assert not earlier or (len(lines_of(out)) in (1, 2) and (out / "notes.txt").exists())

    assert every_crash(out, operation, check=check) > 15
