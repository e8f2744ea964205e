"""The table of accuracies: runs, and CAPE with the weights of a vanilla classifier."""

import json

import numpy as np
import pytest
import torch
from helpers.benchmark import DATA, prepare_split, read_split, save_models, vanilla_model

from softcam_hub import convert
from softcam_hub.cli import main
from softcam_hub.evaluation.accuracy import accuracy, measure_vanilla, read_run, table2
from softcam_hub.loading import load_classifier


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_models(vanilla_model(), folder)
    return folder


def test_table_2_from_runs_and_from_the_vanilla_classifier(models, tmp_path):
    for run, (model, mode) in {"a": ("cape_test_resnet", "from-scratch"), "b": ("test_resnet", "direct")}.items():
        (tmp_path / run).mkdir()
        (tmp_path / run / "settings.yaml").write_text(f"model: {model}\nmode: {mode}\ndata: lesions\n")
        metrics = {"test_accuracy": 0.9, "test_confidence": 0.8}
        metrics |= {"test_disagreement": 0.05, "test_teacher_accuracy": 0.95} if run == "a" else {}
        (tmp_path / run / "metrics.json").write_text(json.dumps(metrics))
    vanilla = vanilla_model()
    rows = [read_run(tmp_path / "a")]
    rows += measure_vanilla(load_classifier(vanilla), read_split(), "lesions", 4, torch.device("cpu"))
    samples = prepare_split(vanilla)
    pixels = torch.stack([samples[index]["pixel_values"] for index in range(10)])
    labels = torch.stack([samples[index]["labels"] for index in range(10)])
    cape = convert(vanilla, "cape")
    with torch.no_grad():
        plain, shelf = vanilla(pixels), cape(pixels)
        naive = cape.head.evidence(cape.forward_features(pixels)).softmax(dim=1).mean(dim=(2, 3))  # eq. 4
    by_name = {row["variant"]: row for row in rows}
    for name, scores in (("vanilla", plain), ("off-the-shelf", shelf), ("naive", naive)):
        found = by_name[name]
        assert np.isclose(found["accuracy"], 100 * float((scores.argmax(1) == labels).float().mean()))
        if name != "vanilla":
            assert np.isclose(found["disagreement"], 100 * float((scores.argmax(1) != plain.argmax(1)).float().mean()))
    assert np.isclose(by_name["naive"]["confidence"], 100 * float(naive.amax(1).mean()), atol=1e-3)
    lines = table2([*rows, read_run(tmp_path / "b")]).splitlines()
    assert [line.split("|")[1].split()[0] for line in lines[2:7]] == [
        "vanilla",
        "vanilla",
        "naive",
        "off-the-shelf",
        "from",
    ]
    assert "| 90.00 | 5.00 | 80.00 | 95.00 | - |" in lines[6]
    two = measure_vanilla(load_classifier(vanilla), read_split(), "lesions", 4, torch.device("cpu"), limit=2)
    assert {row["images"] for row in two} == {2}
    assert np.isclose(two[0]["accuracy"], 100 * float((plain.argmax(1) == labels)[:2].float().mean()))
    with pytest.raises(FileNotFoundError, match="no finished run"):
        [read_run(tmp_path)]


def test_the_command_measures_as_many_images_as_the_limit_says(models, tmp_path, capsys):
    words = ["accuracy", "--vanilla", str(models / "vanilla"), "--output", str(tmp_path), "--limit", "2"]
    words += [word for name, value in DATA.items() if name != "data" for word in (f"--{name}", str(value))]
    assert main(words) == 0
    assert "| off-the-shelf (`test_resnet`) |" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "table2.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [2, 2, 2]


@pytest.mark.parametrize("option", ["image_size", "overwrite", "measures", "explainers"])
def test_settings_without_effect_on_the_table_are_refused(option, tmp_path):
    with pytest.raises(TypeError, match=rf"accuracy\(\) takes no {option}: expected output, split, limit, batch_size"):
        accuracy([], tmp_path, vanilla="resnet18", **{option: 64})


def test_options_of_explanations_are_unknown_to_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["accuracy", "--output", str(tmp_path), "--measures", "table"])
    assert stop.value.code == 2
    assert "--measures" in capsys.readouterr().err
