"""The folder of feature caches: files of other people stay, and full disks and kills cost one cache at most."""

import json
import os

import pytest
import torch
from helpers.caches import MB, cached, folder_of_caches, frozen, key, names_in, write_cache
from helpers.crashes import every_crash
from helpers.outputs import content, full_disk
from helpers.processes import finish, start

from softcam_hub.output_folder import RECORD
from softcam_hub.training import feature_cache
from softcam_hub.training.cache_folder import INDEX, make_room
from softcam_hub.training.feature_cache import cache_key

OURS = {"kind": "feature cache", "format": 1, "key": key("x")}
INDEX_OF_OLD = {"shape": [1, 1, 1], "processes": 1, "images": 250_000}


def foreign(folder, case):
    """Write a folder that has the name of a cache but is not certainly one."""
    made = write_cache(folder / key("x"), recorded=False)
    if case == "record of another kind":
        (made / RECORD).write_text(json.dumps({**OURS, "kind": "benchmark"}))
    elif case == "record of another cache":
        (made / RECORD).write_text(json.dumps({**OURS, "key": key("y")}))
    elif case == "damaged record":
        (made / RECORD).write_text("{")
    elif case == "index of something else":
        (made / INDEX).write_text(json.dumps({"title": "my photographs"}))
    elif case == "index that is a list":
        (made / INDEX).write_text("[]")
    elif case.startswith("another"):
        (made / RECORD).write_text(json.dumps(OURS))
        place = made / ("deep/notes.txt" if case == "another folder in it" else "notes.txt")
        place.parent.mkdir(exist_ok=True)
        place.write_text("mine")
    elif case == "link":
        (made / RECORD).write_text(json.dumps(OURS))
        made.rename(folder / "elsewhere")
        made.symlink_to(folder / "elsewhere")
    return made


CASES = [
    *("no record", "record of another kind", "record of another cache", "damaged record", "index of something else"),
    *("index that is a list", "another file in it", "another folder in it", "link"),
]


@pytest.mark.parametrize("case", CASES)
def test_folders_that_are_not_certainly_caches_are_never_deleted(case, tmp_path):
    made, before = foreign(tmp_path, case), content(tmp_path)
    os.utime(made, (0, 0))
    make_room(tmp_path, MB, limit=1.5 * MB)
    assert content(tmp_path) == before
    draft = made.rename(made.with_name(f"{made.name}.0123abcd.unfinished"))
    before = content(tmp_path)
    for file in draft.iterdir():
        os.utime(file, (0, 0))
    make_room(tmp_path, MB, limit=1.5 * MB)
    assert content(tmp_path) == before


@pytest.mark.parametrize("case", ["no record", "another file in it", "link"])
def test_a_foreign_folder_with_the_name_of_the_cache_is_refused(case, tmp_path):
    model, images = frozen(tmp_path)
    made = foreign(tmp_path / "features", case)
    target = made.rename(made.with_name(cache_key(model, images, "no")))
    before = content(tmp_path / "features")
    with pytest.raises(
        FileExistsError, match=rf"{target.name} is not replaced, because it is no feature cache: move it away"
    ):
        cached(model, images, tmp_path / "features")
    assert content(tmp_path / "features") == before


def test_caches_of_earlier_releases_are_read_and_deleted(tmp_path):
    model, images = frozen(tmp_path)
    found = cached(model, images, tmp_path / "features")
    (found.folder / RECORD).unlink()
    before = content(tmp_path / "features")
    assert torch.equal(cached(model, images, tmp_path / "features")[3]["features"], found[3]["features"])
    assert content(tmp_path / "features") == before
    old = write_cache(tmp_path / "old" / key("x"), recorded=False)
    (old / INDEX).write_text(json.dumps(INDEX_OF_OLD))
    make_room(tmp_path / "old", MB, limit=1.5 * MB)
    assert names_in(tmp_path / "old") == set()


def test_the_record_is_written_first(tmp_path, monkeypatch):
    seen, features = [], feature_cache._features

    def look(*arguments):
        seen.append({path.name for path in (tmp_path / "features").rglob("*") if path.is_file()})
        return features(*arguments)

    model, images = frozen(tmp_path)
    monkeypatch.setattr(feature_cache, "_features", look)
    found = cached(model, images, tmp_path / "features")
    assert seen[1] == {RECORD, "0.bin"}
    assert json.loads((found.folder / RECORD).read_text()) == {**OURS, "key": found.folder.name}


def test_a_full_disk_is_reported_and_other_caches_stay(tmp_path):
    model, images = frozen(tmp_path)
    other_model, other_images = frozen(tmp_path, seed=1)
    other = cached(other_model, other_images, tmp_path / "features")
    before = content(tmp_path / "features")
    message = r"could not be written to \S*features \(File too large\): .* --cache-dir, or .*--no-cache-features"
    with full_disk(1000), pytest.raises(OSError, match=message):
        cached(model, images, tmp_path / "features")
    assert content(tmp_path / "features") == before
    assert names_in(tmp_path / "features") == {other.folder.name}
    assert torch.equal(
        cached(model, images, tmp_path / "features")[20]["features"],
        cached(model, images, tmp_path / "elsewhere")[20]["features"],
    )


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    model, images = frozen(tmp_path)
    (tmp_path / "features").write_text("a file")
    with pytest.raises(OSError, match=r"cannot be written to \S*features \(File exists\): .* --cache-dir, or"):
        cached(model, images, tmp_path / "features")
    assert (tmp_path / "features").read_text() == "a file"


@pytest.mark.slow
@pytest.mark.parametrize("room", ["enough", "too little"])
def test_a_cache_that_is_killed_at_any_moment_is_computed_again(room, tmp_path):
    model, images = frozen(tmp_path / "run")
    features = folder_of_caches(tmp_path / "features", other=5)
    limit = 1.0 if room == "enough" else 1.02 * MB
    target = cache_key(model, images, "no")

    def read(root):
        return content(root / target), (root / key("other")).exists()

    assert every_crash(features, lambda: cached(model, images, features, limit), read=read) > 10
    for file in features.rglob("*"):
        os.utime(file, (0, 0))
    make_room(features, 0.0, limit=1.0, keep=features / target)
    assert names_in(features) == {target} | ({key("other")} if room == "enough" else set())


def _without_room(model, images, folder):
    with full_disk(1000), pytest.raises(OSError, match="could not be written to"):
        cached(model, images, folder)


@pytest.mark.slow
def test_a_full_disk_ends_both_processes(tmp_path):
    model, images = frozen(tmp_path)
    finish(start(_without_room, model, images, tmp_path / "features", processes=2))
    assert names_in(tmp_path / "features") == set()
