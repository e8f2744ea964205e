"""Cached features of a frozen backbone: they are those that would have been computed, or are computed again."""

import json
import os
import shutil
import time

import numpy as np
import pytest
import torch
from helpers.caches import FROZEN, MB, cached, folder_of_caches, frozen, key, names_in, write_cache
from helpers.training import equal, part, train, weights

from softcam_hub.files import ABANDONED
from softcam_hub.models.evaluation_mode import evaluation_mode
from softcam_hub.training import feature_cache
from softcam_hub.training.cache_folder import INDEX, make_room
from softcam_hub.training.feature_cache import CachedFeatures, cache_key


@pytest.fixture
def cache(tmp_path):
    model, images = frozen(tmp_path)
    return model, images, tmp_path / "features", cached(model, images, tmp_path / "features")


def write(folder, features, processes):
    """Write a finished cache as a number of processes would."""
    folder.mkdir(parents=True)
    for rank in range(processes):
        features[rank::processes].tofile(folder / f"{rank}.bin")
    index = {"shape": features.shape[1:], "processes": processes, "images": len(features)}
    (folder / INDEX).write_text(json.dumps(index))


def test_cached_features_are_those_of_the_backbone(cache):
    model, images, folder, found = cache
    assert len(found) == len(images) == 21
    pixels = torch.stack([images[index]["pixel_values"] for index in range(21)])
    with torch.no_grad(), evaluation_mode(model):
        expected = model.forward_features(pixels)
    batch = found.__getitems__([(0, 20), (0, 3), 7])
    assert batch["index"].tolist() == [20, 3, 7]
    assert batch["labels"].tolist() == [images.samples.labels[index] for index in (20, 3, 7)]
    assert torch.allclose(batch["features"], expected[[20, 3, 7]], atol=1e-6)
    assert torch.equal(found[3]["features"], batch["features"][1])
    again = cached(model.train(), images, folder)
    assert torch.equal(again[20]["features"], batch["features"][0])
    assert [path.name for path in folder.iterdir()] == [again.folder.name]


def test_a_second_run_reads_the_cache(cache, monkeypatch):
    model, images, folder, found = cache
    (found.folder / "0.bin").write_bytes(np.full((21, *found.shape), 7, np.float32).tobytes())
    assert cached(model, images, folder)[0]["features"].unique().tolist() == [7]


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 30])
def test_a_cache_of_any_number_of_processes_is_read(processes, tmp_path):
    features = np.random.default_rng(0).normal(size=(21, 4, 2, 3)).astype(np.float32)
    write(tmp_path / "cache", features, processes)
    found = CachedFeatures(tmp_path / "cache", torch.arange(21))
    batch = found.__getitems__([(1, index) for index in range(21)])
    assert np.array_equal(batch["features"].numpy(), features)
    assert batch["labels"].tolist() == list(range(21))


def test_a_cut_off_file_is_refused_by_name(cache):
    model, images, folder, found = cache
    file = found.folder / "0.bin"
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(
        OSError, match="0.bin has \\d+ bytes instead of \\d+: delete the folder .*, and the features are computed again"
    ):
        cached(model, images, folder)


def test_a_cache_without_its_index_is_computed_again(cache):
    model, images, folder, found = cache
    expected = found[5]["features"].clone()
    (found.folder / INDEX).unlink()
    (found.folder / "0.bin").write_bytes(b"half")
    assert torch.equal(cached(model, images, folder)[5]["features"], expected)


def drafted(found, age):
    """Turn a cache into the draft of a run that was killed `age` seconds ago."""
    draft = found.folder.with_name(f"{found.folder.name}.0123abcd.unfinished")
    found.folder.rename(draft)
    os.truncate(draft / "0.bin", 1000)
    for file in draft.iterdir():
        os.utime(file, (time.time() - age,) * 2)
    return draft


@pytest.mark.parametrize("age", [0, 2 * ABANDONED])
def test_an_unfinished_cache_is_never_read_and_is_deleted_when_it_is_old(age, cache):
    model, images, folder, found = cache
    expected, draft = found[5]["features"].clone(), drafted(found, age)
    assert torch.equal(cached(model, images, folder)[5]["features"], expected)
    assert draft.exists() == (age == 0), "another run may be writing it"


@pytest.mark.parametrize("whole", [True, False])
def test_two_runs_compute_the_same_cache_at_once(whole, tmp_path, monkeypatch):
    model, images = frozen(tmp_path)
    features, calls = feature_cache._features, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:  # after the shape: the first run has opened its file
            other = cached(model, images, tmp_path / "features")
            if not whole:
                (other.folder / INDEX).unlink()
        return features(*arguments)

    monkeypatch.setattr(feature_cache, "_features", interrupted)
    first = cached(model, images, tmp_path / "features")
    assert len(calls) > 4
    with torch.no_grad(), evaluation_mode(model):
        expected = model.forward_features(images[20]["pixel_values"][None])[0]
    assert torch.allclose(first[20]["features"], expected, atol=1e-6)
    assert names_in(tmp_path / "features") == {first.folder.name}


CHANGES = {
    "weights": {"seed": 1},
    "data": {"validation_split": "test"},
    "preprocessing": {"eval_crop": 0.5},
    "size": {"image_size": 48},
    "map size": {"model_args": "output_stride=16"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_backbone_or_other_images_have_another_cache(change, tmp_path):
    model, images = frozen(tmp_path)
    changes = CHANGES[change] | ({"test_split": ""} if change == "data" else {})
    other_model, other_images = frozen(tmp_path, **changes)
    assert cache_key(model, images, "no") != cache_key(other_model, other_images, "no")
    assert cache_key(model, images, "no") != cache_key(model, images, "bf16")
    same_model, same_images = frozen(tmp_path)
    assert cache_key(model, images, "no") == cache_key(same_model, same_images, "no")


def test_the_key_depends_on_every_statistic_of_the_backbone(cache):
    model, images, *_ = cache
    before = cache_key(model, images, "no")
    with torch.no_grad():
        model.head.weight.add_(1)
    assert cache_key(model, images, "no") == before
    next(buffer for name, buffer in model.backbone.named_buffers() if name.endswith("running_var"))[0] += 1e-3
    assert cache_key(model, images, "no") != before


def keys(*names):
    return {key(name) for name in names}


def test_the_caches_not_used_for_longest_are_deleted_first(tmp_path):
    folder = folder_of_caches(tmp_path, young=1, oldest=9, old=5)
    make_room(folder, MB, limit=4.1 * MB)
    assert names_in(folder) == keys("young", "old", "oldest")
    make_room(folder, MB, limit=3.1 * MB)
    assert names_in(folder) == keys("young", "old")
    make_room(folder, 2.5 * MB, limit=3.1 * MB)
    assert names_in(folder) == set()


def test_the_other_cache_of_a_run_is_kept(tmp_path):
    folder = folder_of_caches(tmp_path, mine=9, young=1)
    make_room(folder, MB, limit=2.1 * MB, keep=folder / key("mine"))
    assert names_in(folder) == keys("mine")
    with pytest.raises(ValueError, match="would take .* GB, more than cache_limit"):
        make_room(folder, 1.5 * MB, limit=2.1 * MB, keep=folder / key("mine"))
    assert names_in(folder) == keys("mine")


def test_features_that_cannot_fit_are_refused_before_anything_is_deleted(tmp_path, monkeypatch):
    folder = folder_of_caches(tmp_path, old=5)
    with pytest.raises(
        ValueError, match="would take 3.0 GB, more than cache_limit=2: raise it, or .*--no-cache-features"
    ):
        make_room(folder, 3, limit=2)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5e8})())
    with pytest.raises(
        OSError, match="would take 1.0 GB, but .* has 0.5 GB left: .* --cache-dir, or .*--no-cache-features"
    ):
        make_room(folder, 1, limit=2)
    assert names_in(folder) == keys("old")


def test_only_caches_and_old_drafts_are_deleted(tmp_path):
    folder = folder_of_caches(tmp_path, old=5, young=1)
    theirs = {"photos", "0123abcd", f"{key('x')}.backup", f"{key('x')}-2"}
    for name in theirs:
        write_cache(folder / name)
    unrecorded = {key("theirs"), f"{key('theirs')}.0123abcd.unfinished"}
    for name in unrecorded:
        for file in (write_cache(folder / name, recorded=False), folder / name / "0.bin"):
            os.utime(file, (0, 0))
    theirs |= unrecorded
    new, stale = (write_cache(folder / f"{key(name)}.0123abcd.unfinished") for name in ("new", "stale"))
    for file in stale.iterdir():
        os.utime(file, (time.time() - 2 * ABANDONED,) * 2)
    make_room(folder, MB, limit=3.1 * MB)  # foreign folders do not count
    assert names_in(folder) == theirs | keys("young") | {new.name}


def test_a_limit_stops_the_run_before_training(tmp_path):
    with pytest.raises(ValueError, match="more than cache_limit=1e-06"):
        train(tmp_path, **FROZEN, cache_limit=1e-6)
    assert not (tmp_path / "log.jsonl").exists()


def test_runs_share_a_cache(tmp_path):
    train(tmp_path / "a", **FROZEN, epochs=1, cache_dir=str(tmp_path / "features"))
    first = names_in(tmp_path / "features")
    assert len(first) == 2, "training and validation images"
    train(tmp_path / "b", **{**FROZEN, "lr": 0.5}, epochs=1, cache_dir=str(tmp_path / "features"))
    assert names_in(tmp_path / "features") == first
    assert equal(part(weights(tmp_path / "a"), "backbone."), part(weights(tmp_path / "b"), "backbone."))
    shutil.rmtree(tmp_path / "features")
    train(tmp_path / "c", **{**FROZEN, "lr": 0.5}, epochs=1)
    assert equal(weights(tmp_path / "b"), weights(tmp_path / "c"))


def test_a_run_with_augmentation_has_no_cache(tmp_path):
    train(tmp_path, **{**FROZEN, "augment": True}, epochs=1)
    assert not (tmp_path / "features").exists()
