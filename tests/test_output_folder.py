"""Output folders: files of the user are never touched, and one process at a time writes to a folder."""

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest
from helpers.outputs import content, fill, full_disk

from softcam_hub import output_folder
from softcam_hub.files import DRAFT, copy_file, draft_of, remove_drafts, write_json, write_text
from softcam_hub.output_folder import RECORD, OutputFolder

NAMES = ["result.json", "parts/*", "model/*.safetensors"]


def folder_of(path, **options):
    return OutputFolder(path, "training run", NAMES, **options)


def use(path, how, **options):
    folder = folder_of(path, **options)
    with folder.locked(how):
        folder.claim(how)
    return folder


# --- whose a folder is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["new", "continue", "replace"])
@pytest.mark.parametrize("theirs", ["notes.txt", "result.json", "parts/1.json", "parts/", "model/a.safetensors"])
def test_a_folder_without_a_record_is_refused_and_unchanged(theirs, how, tmp_path):
    if theirs.endswith("/"):
        (tmp_path / theirs).mkdir()
    else:
        fill(tmp_path, theirs)
    before, entries = content(tmp_path), sorted(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match=rf"holds '{theirs.split('/')[0]}' but no record of a training run"):
        use(tmp_path, how)
    assert content(tmp_path) == before
    assert sorted(tmp_path.iterdir()) == entries


@pytest.mark.parametrize("how", ["new", "continue", "replace"])
@pytest.mark.parametrize("made", [True, False])
def test_an_empty_folder_is_claimed_for_any_use(made, how, tmp_path):
    path = tmp_path / "deep" / "out"
    if made:
        path.mkdir(parents=True)
    use(path, how)
    assert json.loads((path / RECORD).read_text()) == {"kind": "training run", "format": 1, "names": NAMES}


def test_the_record_is_the_first_file(tmp_path):
    folder = folder_of(tmp_path / "out")
    with folder.locked("new"):
        assert content(tmp_path / "out") == {}
        folder.claim("new")
        assert list(content(tmp_path / "out")) == [RECORD]


def test_replacing_deletes_only_files_of_the_record(tmp_path):
    use(tmp_path, "new")
    fill(tmp_path, "result.json", "parts/1.json", "parts/deep/2.json", "model/a.safetensors")
    fill(tmp_path, "notes.txt", "model/notes.md", "photographs/cat.jpg", "parts-of-mine/1.json")
    use(tmp_path, "replace")
    left = {"notes.txt", "model/notes.md", "photographs/cat.jpg", "parts-of-mine/1.json", RECORD}
    assert set(content(tmp_path)) == left
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("name", ["parts", "model", "result.json", "model/a.safetensors"])
@pytest.mark.parametrize("how", ["continue", "replace"])
def test_a_file_where_a_folder_belongs_or_the_reverse_is_refused(name, how, tmp_path):
    use(tmp_path, "new")
    fill(tmp_path, f"{name}/mine.txt" if "." in name else name)
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=f"{name} is not a file of an earlier training run"):
        use(tmp_path, how)
    assert content(tmp_path) == before


@pytest.mark.parametrize("theirs", [".unfinished-thesis/chapter.tex", ".unfinished-1.md"])
def test_files_of_the_user_are_not_taken_for_drafts(theirs, tmp_path):
    fill(tmp_path, theirs)
    os.utime(tmp_path / theirs, (0, 0))
    os.utime((tmp_path / theirs).parent, (0, 0))
    remove_drafts(tmp_path, older_than=600)
    with pytest.raises(FileExistsError, match=f"holds '{theirs.split('/')[0]}'"):
        use(tmp_path, "continue")
    assert set(content(tmp_path)) == {theirs}


def test_a_new_run_does_not_replace_an_earlier_one(tmp_path):
    use(tmp_path, "new")
    use(tmp_path, "new")  # the earlier one ended before it wrote anything
    fill(tmp_path, "parts/1.json")
    with pytest.raises(FileExistsError, match=r"earlier training run \(parts/1.json\).*--overwrite"):
        use(tmp_path, "new")
    use(tmp_path, "continue")
    assert "parts/1.json" in content(tmp_path)


def test_a_file_that_the_user_added_later_is_not_replaced(tmp_path):
    use(tmp_path, "new")
    folder = OutputFolder(tmp_path, "training run", [*NAMES, "photo.png"])
    fill(tmp_path, "photo.png")
    for how in ("new", "continue", "replace"):
        with (
            pytest.raises(FileExistsError, match=r"photo\.png is not a file of an earlier training run"),
            folder.locked(how),
        ):
            folder.claim(how)
    assert content(tmp_path)["photo.png"] == b"content of photo.png"


def test_the_file_that_is_named_first_is_deleted_last(tmp_path, monkeypatch):
    use(tmp_path, "new")
    fill(tmp_path, "result.json", "parts/1", "parts/2", "model/a.safetensors")
    deleted, unlink = [], Path.unlink

    def record(path, **options):
        deleted.append(path.relative_to(tmp_path).parts[0])
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", record)
    use(tmp_path, "replace")
    assert deleted[:4] == ["model", "parts", "parts", "result.json"]


def test_names_of_earlier_runs_stay_in_the_record(tmp_path):
    use(tmp_path, "continue")
    folder = OutputFolder(tmp_path, "training run", ["other[[]1].png"])
    with folder.locked("continue"):
        folder.claim("continue")
    fill(tmp_path, "result.json", "other[1].png", "other1.png")
    use(tmp_path, "replace")
    assert set(content(tmp_path)) == {"other1.png", RECORD}


@pytest.mark.parametrize("link", ["result.json", "parts", "parts/1.json", "model"])
@pytest.mark.parametrize("dangling", [True, False])
def test_nothing_is_written_or_deleted_through_a_link(link, dangling, tmp_path):
    out, target = tmp_path / "out", tmp_path / "elsewhere"
    use(out, "new")
    (out / link).parent.mkdir(exist_ok=True)
    if not dangling:
        target.mkdir()
        fill(target, "1.json", "a.safetensors")
    (out / link).symlink_to(target)
    for how in ("new", "continue", "replace"):
        with pytest.raises(FileExistsError, match=r"is a link|earlier training run"):
            use(out, how)
    assert (out / link).is_symlink()
    assert target.exists() != dangling


def test_earlier_output_without_a_record_can_be_continued_but_not_replaced(tmp_path):
    fill(tmp_path, "result.json", "notes.txt")
    with pytest.raises(FileExistsError, match="nothing says that its files may be deleted"):
        use(tmp_path, "replace", recognise=lambda path: True)
    with pytest.raises(FileExistsError, match="not an earlier training run"):
        use(tmp_path, "continue", recognise=lambda path: False)
    use(tmp_path, "continue", recognise=lambda path: (path / "result.json").is_file())
    assert set(content(tmp_path)) == {"result.json", "notes.txt", RECORD}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"kind": "training run", "format": 1, "names": "*"}', "is damaged"),
        ('{"kind": "training run", "format": 1, "names": [1]}', "is damaged"),
        ('{"kind": "training run", "format": 2, "names": ["*"]}', "format 2, but this release knows format 1"),
        ('{"kind": "\\u001b[31m", "format": 1, "names": ["*"]}', r"output of a \\x1b\[31m, expected"),
        ('{"kind": "benchmark", "format": 1, "names": ["*"]}', "output of a benchmark, expected that of a training"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(record, message, tmp_path):
    fill(tmp_path, "result.json")
    (tmp_path / RECORD).write_text(record)
    for how in ("new", "continue", "replace"):
        with pytest.raises((ValueError, FileExistsError), match=message):
            use(tmp_path, how)
    assert content(tmp_path)["result.json"] == b"content of result.json"


def test_a_folder_that_was_not_claimed_leaves_no_trace(tmp_path):
    folder = folder_of(tmp_path / "out")
    with pytest.raises(ValueError, match="no such model"), folder.locked("new"):
        raise ValueError("no such model")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with folder_of(tmp_path / "empty").locked("new"):
        pass
    assert list((tmp_path / "empty").iterdir()) == []


def test_an_output_that_is_a_file_is_refused(tmp_path):
    fill(tmp_path, "out")
    with pytest.raises(NotADirectoryError, match="out is a file: name a folder with --output"):
        use(tmp_path / "out", "new")


@pytest.mark.parametrize("resumes", [True, False])
def test_a_refusal_names_only_options_that_the_command_has(resumes, tmp_path):
    use(tmp_path / "out", "new")
    fill(tmp_path / "out", "result.json")
    with pytest.raises(FileExistsError, match="--overwrite") as refusal:
        use(tmp_path / "out", "new", resumes=resumes)
    assert ("--resume" in str(refusal.value)) == resumes


# --- one process at a time -------------------------------------------------------------------------------------------


def _hold(path, ready, done):
    with folder_of(path).locked("continue"):
        ready.set()
        done.wait(60)


def test_a_second_process_is_kept_out_until_the_first_one_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(output_folder, "LOCK_TIMEOUT", 0.2)
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, done))
    other.start()
    assert ready.wait(60)
    with pytest.raises(BlockingIOError, match="another process is writing to"), folder_of(tmp_path).locked("continue"):
        pass
    other.kill()
    other.join()
    monkeypatch.setattr(output_folder, "LOCK_TIMEOUT", 30)
    use(tmp_path, "continue")


# --- whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [None, "old"])
def test_a_writer_that_fails_leaves_the_old_file(old, tmp_path):
    target = tmp_path / "file.json"
    if old is not None:
        target.write_text(old)
    with pytest.raises(TypeError, match="must be str"), draft_of(target) as draft, draft.open("w") as file:
        file.writelines(["half", 2])
    assert content(tmp_path) == ({} if old is None else {"file.json": b"old"})


def test_a_full_disk_is_reported_and_leaves_the_old_file(tmp_path):
    target = tmp_path / "file.json"
    write_text(target, "old")
    with full_disk(1000), pytest.raises(OSError, match=r"file\.json could not be written.*unchanged"):
        write_json(target, ["x" * 5000])
    assert content(tmp_path) == {"file.json": b"old"}


def test_files_have_the_permissions_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_file_with_a_long_name_is_written(tmp_path):
    write_text(tmp_path / ("n" * 250), "text")
    copy_file(tmp_path / ("n" * 250), tmp_path / ("m" * 245 + ".json"))
    assert set(content(tmp_path).values()) == {b"text"}


def test_drafts_of_a_killed_run_are_removed_and_others_stay(tmp_path):
    use(tmp_path, "new")
    fill(tmp_path, f"{DRAFT}1.json", f"parts/{DRAFT}2/a", f"parts/deep/{DRAFT}3", f"photographs/{DRAFT}4", "parts/a")
    use(tmp_path, "continue")
    assert set(content(tmp_path)) == {f"photographs/{DRAFT}4", "parts/a", RECORD}


def test_a_draft_that_is_being_written_stays(tmp_path):
    fill(tmp_path, f"{DRAFT}new", f"{DRAFT}folder/a", f"{DRAFT}old")
    os.utime(tmp_path / f"{DRAFT}old", (0, 0))
    remove_drafts(tmp_path, older_than=600)
    assert set(content(tmp_path)) == {f"{DRAFT}new", f"{DRAFT}folder/a"}
