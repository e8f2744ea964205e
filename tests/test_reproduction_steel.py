"""The study on photographs of steel: its manifest, what counts for localisation, its tables, and a small run."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers.steel import CLASSES, make_photographs

from benchmarks.reproduction import claims, softcam_claims, study_tables
from benchmarks.reproduction.findings import ALL_LOCATED, Findings
from benchmarks.reproduction.steel import SteelChain, write_in_turns
from benchmarks.reproduction.studies import SMALL_BOXES, STEEL

SEEDS = (0, 1, 2)


def rows(kind, study="steel", **columns):
    return [{"study": study, "seed": seed, "kind": kind, **columns} for seed in SEEDS]


def test_classes_take_turns_and_paths_are_whole(tmp_path):
    make_photographs(tmp_path / "photographs", {"train": 1, "test": 2})
    write_in_turns(tmp_path / "photographs", tmp_path / "manifest.csv")
    with (tmp_path / "manifest.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 18
    assert [row["label"] for row in found if row["split"] == "test"] == CLASSES * 2
    assert all(row["image"].startswith(str(tmp_path / "photographs" / "images")) for row in found)


def test_a_folder_without_a_manifest_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*manifest.csv: obtain the photographs of NEU-DET"):
        write_in_turns(tmp_path, tmp_path / "new.csv")


def test_only_images_of_some_classes_count_for_localisation():
    def line(index, label, value):
        found = {"activation_precision": value, "localization_precision": [value] * 30, "annotated": True}
        what = {"index": index, "explainer": "cam", "explains": "vanilla", "label": label, "predicted": 0}
        return {**what, "confidence": 0.9, "activation_sensitivity": 0.5, "energy_pointing": 0.5, **found}

    chain = SimpleNamespace(splits=SimpleNamespace(classes=CLASSES), study=STEEL["steel"])
    lines = [line(0, 0, 1.0), line(1, 1, 0.2), line(2, 2, 0.4), line(3, 3, 1.0)]  # crazing and pitted surface do not
    found = SteelChain.located(chain, lines)["cam"]
    assert found["activation_precision"] == pytest.approx(30)
    assert found["localization_precision"] == pytest.approx(30)
    assert found["annotated"] == 2
    assert "accuracy" not in found
    assert SteelChain.located(chain, lines, ("crazing",))["cam"]["activation_precision"] == pytest.approx(100)


def test_s2_compares_slow_methods_on_the_images_that_they_explain():
    subset = {"annotated": 16, "of": "score-cam"}
    found = [
        *rows("training", run="vanilla"),
        *rows("training", run="softcam"),
        *rows("explanation", run="softcam", explainer="softcam", localization_precision=50.0),
        *rows("explanation", run="vanilla", explainer="cam", localization_precision=40.0),
        *rows("subset", run="vanilla", explainer="score-cam", localization_precision=48.0, **subset),
        *rows("subset", run="softcam", explainer="softcam", localization_precision=45.0, **subset),
    ]
    parts = softcam_claims.localises(Findings(found), ("steel",))
    assert [(part.measure, part.word) for part in parts] == [("top-k precision", "yes"), ("top-k precision", "no")]
    assert parts[1].figure == "45.0 ± 0.0 against 48.0 ± 0.0 (score-cam, 16 images)"


def test_tables_by_class_and_by_resolution():
    def placed(study, name, value, **more):
        measures = dict.fromkeys(("localization_precision", "activation_precision", "activation_sensitivity"), value)
        where = {"run": "vanilla", "explainer": "cam", "class": name}
        return rows("localised", study, **where, **measures, pointing_game=value + 1, **more)

    found = Findings(
        [
            *placed("steel", ALL_LOCATED, 40.0),
            *placed("steel", "scratches", 60.0),
            *placed("steel, stride 32", ALL_LOCATED, 30.0),
            *rows("training", "steel", run="vanilla", test_accuracy=0.97),
            *rows("training", "steel, stride 32", run="vanilla", test_accuracy=0.98),
        ]
    )
    assert "| cam | 40.0 / 40.0 | 60.0 / 60.0 |" in study_tables.by_class(found, "steel")
    table = study_tables.resolution(found, STEEL)
    assert "| 224 px | 16 | 14×14 | 97.0 ± 0.0 | 41.0 ± 0.0 | 40.0 ± 0.0 |" in table
    assert "| 224 px | 32 | 7×7 | 98.0 ± 0.0 | 31.0 ± 0.0 |" in table
    assert "## Map resolution" in claims.resolution_section(found)
    assert claims.resolution_section(Findings()) == ""


@pytest.mark.slow
def test_a_small_run_starts_from_imagenet_and_names_no_path(tmp_path):
    make_photographs(tmp_path / "photographs", {"train": 3, "validation": 2, "test": 2})
    study = STEEL["steel, stride 32"]
    study = replace(study, settings={**study.settings, "image_size": 64, "epochs": 2, "batch_size": 6})
    found = SteelChain("steel", study, 0, tmp_path / "photographs", tmp_path / "runs").rows()
    assert str(tmp_path) not in json.dumps(found)
    training = next(row for row in found if row["kind"] == "training")
    assert (training["data"], training["images"]) == ("neu-det", 18)
    placed = [row for row in found if row["kind"] == "localised"]
    assert [row["class"] for row in placed] == [ALL_LOCATED, *CLASSES]
    assert placed[0]["annotated"] == 2 * len(SMALL_BOXES)
    values = next(row for row in found if row["kind"] == "values")
    assert values["label"] == [0, 1, 2, 3, 4, 5] * 2


def test_places_alone_take_no_further_scores(monkeypatch, tmp_path):
    chain = SteelChain("steel", STEEL["steel"], 0, tmp_path, tmp_path, places_only=True)
    monkeypatch.setattr(chain, "benchmark", lambda *_, **__: pytest.fail("it measured more than places"))

    def locate(run_name, explainers):
        for name in explainers.split():
            common = {"run": run_name, "explainer": name, "pointing_game": 50.0, "images": 296}
            yield from (("localised", {**common, "class": one}) for one in (ALL_LOCATED, "scratches"))

    monkeypatch.setattr(chain, "locate", locate)
    found = list(chain.explanations())
    shown = [row for kind, row in found if kind == "explanation"]
    assert {row["run"] for row in shown} == {"vanilla", *STEEL["steel"].runs}
    assert {"cam", "guided-backprop", "centre"} < {row["explainer"] for row in shown}
    assert all("class" not in row and row["images"] == 296 for row in shown)
    assert not [kind for kind, _ in found if kind == "subset"]
