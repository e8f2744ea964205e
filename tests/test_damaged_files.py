"""Records that a broken disk or a person changed are named, with what to do, wherever they are read."""

import json

import numpy as np
import pytest
import torch

from softcam_hub.evaluation.accuracy import read_run
from softcam_hub.evaluation.shards import read_shard, write_shard
from softcam_hub.files import read_mapping
from softcam_hub.training.checks import check_held_out
from softcam_hub.training.feature_cache import CachedFeatures
from softcam_hub.training.folder import continue_settings
from softcam_hub.training.parsing import make_config

BROKEN = {"nothing": "", "cut": '{"a": [1, 2', "list": "[1]", "number": "3", "null": "null", "bytes": "\x00\x01"}


@pytest.mark.parametrize("name", ["metrics.json", "settings.yaml"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_record_is_named(case, name, tmp_path):
    (tmp_path / name).write_text(BROKEN[case])
    with pytest.raises(ValueError, match=rf"{name} (cannot be read|must hold names and values).*: start again"):
        read_mapping(tmp_path / name, "start again")


def test_a_record_that_is_no_text_is_named(tmp_path):
    (tmp_path / "metrics.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"metrics\.json cannot be read"):
        read_mapping(tmp_path / "metrics.json")


@pytest.mark.parametrize("case", BROKEN)
def test_a_run_with_broken_settings_is_not_resumed(case, tmp_path):
    (tmp_path / "settings.yaml").write_text(BROKEN[case])
    with pytest.raises(ValueError, match=r"settings\.yaml .*start the run again with --overwrite"):
        continue_settings(make_config(output=str(tmp_path), resume=True))


@pytest.mark.parametrize("case", BROKEN)
def test_a_start_from_a_run_with_broken_settings_is_refused(case, tmp_path):
    (tmp_path / "settings.yaml").write_text(BROKEN[case])
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"settings\.yaml "):
        check_held_out(str(tmp_path / "model"), make_config().flat())


def test_settings_without_every_entry_have_the_defaults(tmp_path):
    (tmp_path / "settings.yaml").write_text("model: resnet18\ndata: lesions\n")
    (tmp_path / "model").mkdir()
    check_held_out(str(tmp_path / "model"), make_config(data="lesions").flat())


RUNS = {
    "metrics cut": ('{"test_acc', "model: resnet18", r"metrics\.json cannot be read"),
    "metrics a list": ("[]", "model: resnet18", r"metrics\.json must hold names and values"),
    "metrics text": ('{"test_accuracy": "good"}', "model: resnet18", "test_accuracy='good', which is no number"),
    "settings empty": ("{}", "", r"settings\.yaml must hold names and values"),
    "settings without model": ("{}", "data: x", "names no model"),
    "settings with a strange mode": ("{}", "model: cape_resnet18\nmode: magic", "unknown mode"),
    "settings no YAML": ("{}", "model: [", r"settings\.yaml cannot be read"),
}


@pytest.mark.parametrize("case", RUNS)
def test_accuracies_of_a_damaged_run_are_refused(case, tmp_path):
    metrics, settings, message = RUNS[case]
    (tmp_path / "metrics.json").write_text(metrics)
    (tmp_path / "settings.yaml").write_text(settings)
    with pytest.raises(ValueError, match=f"{message}.*leave this run out"):
        read_run(tmp_path)


LINE = {"index": 0, "explainer": "cam", "explains": "vanilla", "label": 1, "predicted": 1, "annotated": True}
LINE |= {"measure": 0.5, "curve": [0.1, None]}
SHARDS = {
    "empty": "",
    "cut": json.dumps([LINE])[:-9],
    "mapping": json.dumps(LINE),
    "numbers": "[1, 2]",
    "null": "null",
    "no index": json.dumps([{**LINE, "index": None}]),
    "index text": json.dumps([{**LINE, "index": "0"}]),
    "no explainer": json.dumps([{**LINE, "explainer": None}]),
    "value text": json.dumps([{**LINE, "measure": "high"}]),
    "value mapping": json.dumps([{**LINE, "measure": {}}]),
    "no label": json.dumps([{name: value for name, value in LINE.items() if name != "label"}]),
    "no annotation": json.dumps([{**LINE, "annotated": None}]),
    "too deep": "[" * 100_000,
    "another value": json.dumps([LINE, {"sha256": "0" * 64}]),
    "curve text": json.dumps([{**LINE, "curve": ["a"]}]),
}


@pytest.mark.parametrize("case", SHARDS)
def test_a_damaged_shard_is_named(case, tmp_path):
    (tmp_path / "00000.json").write_text(SHARDS[case])
    with pytest.raises(ValueError, match=r"00000\.json .*remove it and run the same again"):
        read_shard(tmp_path / "00000.json")


def test_a_whole_shard_is_read(tmp_path):
    (tmp_path / "00000.json").write_text(json.dumps([LINE]))
    assert read_shard(tmp_path / "00000.json") == [LINE]
    write_shard(tmp_path / "00001.json", [LINE])
    assert read_shard(tmp_path / "00001.json") == [LINE]


INDEX = {"shape": [2, 3, 3], "processes": 1, "images": 4}
CACHES = {
    "empty": "",
    "list": "[1]",
    "no shape": json.dumps({**INDEX, "shape": None}),
    "shape of two": json.dumps({**INDEX, "shape": [2, 3]}),
    "negative shape": json.dumps({**INDEX, "shape": [2, -3, -3]}),
    "shape text": json.dumps({**INDEX, "shape": "233"}),
    "no processes": json.dumps({"shape": [2, 3, 3], "images": 4}),
    "zero processes": json.dumps({**INDEX, "processes": 0}),
    "other images": json.dumps({**INDEX, "images": 5}),
    "other shape": json.dumps({**INDEX, "shape": [2, 3, 4]}),
    "other processes": json.dumps({**INDEX, "processes": 2}),
}


@pytest.mark.parametrize("case", CACHES)
def test_a_damaged_cache_is_named(case, tmp_path):
    np.zeros((4, 2, 3, 3), "float32").tofile(tmp_path / "0.bin")
    (tmp_path / "index.json").write_text(json.dumps(INDEX))
    assert len(CachedFeatures(tmp_path, torch.zeros(4))) == 4
    (tmp_path / "index.json").write_text(CACHES[case])
    with pytest.raises((ValueError, OSError), match="delete the folder .*, and the features are computed again"):
        CachedFeatures(tmp_path, torch.zeros(4))
