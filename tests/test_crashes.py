"""Commands that are killed at any moment and run again write the same files as an undisturbed run."""

import os
import shutil
import tempfile

import pytest
from helpers.crashes import every_crash, watched
from helpers.outputs import content

from softcam_hub.files import copy_file, draft_of, remove_drafts, write_json, write_text
from softcam_hub.output_folder import OutputFolder

# --- the harness itself ----------------------------------------------------------------------------------------------


def test_copies_hold_what_was_there_before_a_change(tmp_path):
    root, place = tmp_path / "root", tmp_path / "copies"

    def operation():
        root.mkdir()
        (root / "a").write_text("1")
        try:
            (root / "b").write_text("2")
        finally:
            (root / "a").unlink()

    copies = {number: place / str(number) for number in range(4)}
    with watched(root, copies) as changes:
        operation()
    assert [str(change) for change in changes] == ["os.mkdir .", "open a", "open b", "os.remove a"]
    assert not copies[0].exists(), "there was no folder yet"
    assert [content(copies[number]) for number in (1, 2, 3)] == [{}, {"a": b"1"}, {"a": b"1", "b": b"2"}]
    assert content(root) == {"b": b"2"}
    shutil.rmtree(root)
    operation()
    assert len(changes) == 4, "the hook sleeps again"


def test_an_operation_that_changes_other_things_each_time_cannot_be_tried(tmp_path):
    times = iter(["first", "second"])
    with pytest.raises(AssertionError, match="two runs change other things"):
        every_crash(tmp_path, lambda: (tmp_path / next(times)).write_text("text"))


def test_every_kind_of_change_is_seen(tmp_path):
    root = tmp_path / "root"
    with watched(root) as changes:
        (root / "folder" / "deep").mkdir(parents=True)
        (root / "file").write_text("text")
        (root / "file").read_text()
        os.truncate(root / "file", 1)
        (root / "file").rename(tmp_path / "outside")
        (tmp_path / "outside").replace(root / "inside")
        (root / "link").symlink_to("inside")
        shutil.rmtree(root / "folder")
        (tmp_path / "elsewhere").write_text("text")
        with tempfile.TemporaryDirectory(dir=root):
            pass
    events = [change.event for change in changes]
    folders = ["os.mkdir"] * events.count("os.mkdir")  # of `parents` by trial and error
    rest = ["open", "os.truncate", "os.rename", "os.rename", "os.symlink", "os.rmdir", "os.rmdir", "os.rmdir"]
    assert [event for event in events if event != "os.mkdir"] == rest
    assert len(folders) >= 4
    assert {change.path for change in changes} >= {".", "folder/deep", "file", "inside", "link"}


def in_place(root):
    (root / "log").open("a").write("line")


def half_then_whole(root):
    if not (root / "file").exists():
        (root / "file").write_text("0123456789")


def forgetting(root):
    (root / "old").unlink(missing_ok=True)
    (root / "marker").write_text("done")


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (in_place, r"a crash at open other .* makes a difference: \['log'\]"),
        (half_then_whole, r"a crash at open other with half of the last file .* makes a difference: \['file'\]"),
    ],
)
def test_writers_that_a_kill_harms_are_found(operation, message, tmp_path):
    def twice():
        operation(tmp_path)
        (tmp_path / "other").write_text("")

    with pytest.raises(AssertionError, match=message):
        every_crash(tmp_path, twice)


def test_failed_reruns_and_lost_files_are_reported(tmp_path):
    (tmp_path / "old").write_text("old")

    def check():
        if not any(tmp_path.iterdir()):
            raise FileNotFoundError("neither old nor marker")

    with pytest.raises(AssertionError, match="after a crash at open marker .*FileNotFoundError: neither old nor"):
        every_crash(tmp_path, lambda: forgetting(tmp_path), check=check)


def test_many_changes_of_a_kind_may_be_tried_as_two(tmp_path):
    def operation():
        remove_drafts(tmp_path)
        for number in range(8):
            write_text(tmp_path / f"{number}.txt", str(number))

    assert every_crash(tmp_path, operation, grouped=True) < 14
    assert len(content(tmp_path)) == 8


# --- files and folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", ["text", "json", "copy", "draft"])
def test_a_file_is_the_old_or_the_new_one_at_any_moment(writer, tmp_path):
    out, source = tmp_path / "out", tmp_path / "source"
    folder = OutputFolder(out, "test", ["file"])
    source.write_text("new" * 1000)

    def write():
        if writer == "text":
            write_text(out / "file", "new" * 1000)
        elif writer == "json":
            write_json(out / "file", ["new"] * 1000)
        elif writer == "copy":
            copy_file(source, out / "file")
        else:
            with draft_of(out / "file") as draft:
                draft.write_text("new" * 1000)

    def operation():
        with folder.locked("continue"):
            folder.claim("continue")
            write()

    with folder.locked("new"):
        folder.claim("new")
        (out / "file").write_text("old")
        write()
        new = (out / "file").read_bytes()
        (out / "file").write_text("old")

    def check():
        assert (out / "file").read_bytes() in (b"old", new)

    assert every_crash(out, operation, check=check) >= 6
    assert (out / "file").read_bytes() == new


@pytest.mark.parametrize("use", ["new", "continue", "replace"])
@pytest.mark.parametrize("state", ["missing", "empty", "earlier output"])
def test_a_claim_that_was_killed_can_be_repeated(state, use, tmp_path):
    out = tmp_path / "out"
    folder = OutputFolder(out, "test", ["result.json", "parts/*"])

    def operation():
        with folder.locked(use):
            folder.claim(use)
            write_text(out / "result.json", "result")

    if state == "empty":
        out.mkdir()
    if state == "earlier output":
        with folder.locked("new"):
            folder.claim("new")
        if use != "new":
            (out / "parts" / "deep").mkdir(parents=True)
            for name in ("result.json", "parts/1", "parts/2", "parts/deep/3"):
                (out / name).write_text("old")
        (out / "notes.txt").write_text("mine")

    def check():
        assert state != "earlier output" or (out / "notes.txt").read_text() == "mine"

    again = None
    if use == "new":  # what the killed run has written is an earlier output now, which can be continued

        def again():
            with folder.locked("continue"):
                folder.claim("continue")
                write_text(out / "result.json", "result")

    assert every_crash(out, operation, again, check=check) >= 4
