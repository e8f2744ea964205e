"""Paths of somebody's machine become their last part, and names of the Hub stay whole."""

import json

import pytest
import yaml

from softcam_hub.hub.cards import published_records
from softcam_hub.hub.cards.local_paths import hide_local_path, is_hub_id


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/ada/eyes", "eyes"),
        ("~/eyes", "eyes"),
        ("../ada/eyes/", "eyes"),
        ("a/b/c", "c"),
        ("local-dir:/home/ada/model", "model"),
        ("lesions", "lesions"),
        ("ada/eyes", "ada/eyes"),
        ("hf-hub:ada/eyes", "hf-hub:ada/eyes"),
        ("output_stride=8 drop_rate=0.1", "output_stride=8 drop_rate=0.1"),
        (
            'output_stride=8 pretrained_cfg_overlay={"file":"/data/ada/w.safetensors","num_classes":10}',
            'output_stride=8 pretrained_cfg_overlay={"file":"w.safetensors","num_classes":10}',
        ),
        ("checkpoint_path=../ada/w.pth img_size=96", "checkpoint_path=w.pth img_size=96"),
        ("https://example.org/a/b.csv", "https://example.org/a/b.csv"),
        (3, 3),
        (None, None),
        ("", ""),
    ],
)
def test_only_local_paths_are_shortened(value, shown):
    assert hide_local_path(value) == shown


def test_a_folder_that_is_called_like_a_repository_is_a_local_path(tmp_path, monkeypatch):
    assert is_hub_id("ada/eyes")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ada" / "eyes").mkdir(parents=True)
    assert not is_hub_id("ada/eyes")
    assert hide_local_path("ada/eyes") == "eyes"


def test_records_without_local_paths_are_published_as_they_are(tmp_path):
    (tmp_path / "metrics.json").write_text('{"data": "ada/eyes", "test_accuracy": 0.5}')
    (tmp_path / "recipe.yaml").write_text("data: ada/eyes\nlr: 0.1\n")
    (tmp_path / "rows.jsonl").write_text('{"explainer": "cape", "data": "lesions"}\n')
    assert dict(published_records(tmp_path)) == {}


def test_records_with_local_paths_are_rewritten(tmp_path):
    (tmp_path / "metrics.json").write_text('{"data": "/home/ada/eyes", "test_accuracy": 0.5}')
    (tmp_path / "recipe.yaml").write_text("data: /home/ada/eyes\nlr: 0.1\n")
    (tmp_path / "rows.jsonl").write_text('{"explainer": "cape", "data": "/home/ada/eyes"}\n')
    found = dict(published_records(tmp_path))
    assert json.loads(found["metrics.json"]) == {"data": "eyes", "test_accuracy": 0.5}
    assert yaml.safe_load(found["recipe.yaml"]) == {"data": "eyes", "lr": 0.1}
    assert json.loads(found["rows.jsonl"]) == {"explainer": "cape", "data": "eyes"}
