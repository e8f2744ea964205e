"""The study on photographs of steel: its manifest, what counts for localisation, its tables, and a small run."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.steel import CLASSES, make_photographs
from safetensors.torch import load_file

from benchmarks.imagenet_weights import imagenet_folder
from benchmarks.reproduction import claims, reproduce, softcam_claims, steel, study_tables
from benchmarks.reproduction.findings import ALL_LOCATED, Findings
from benchmarks.reproduction.steel import SteelChain, write_in_turns
from benchmarks.reproduction.studies import SMALL_BOXES, STEEL
from softcam_hub.loading import load_classifier

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


@pytest.mark.parametrize("given", ["", "missing"])
def test_the_command_names_what_is_missing_and_how_to_give_it(given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # make without PHOTOGRAPHS= gives an empty name, which is the folder of the command
    monkeypatch.setattr("sys.argv", ["reproduce", "--photographs", given])
    with pytest.raises(SystemExit) as ended:
        reproduce.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"there is no {Path(given) / 'manifest.csv'}" in said
    assert "PHOTOGRAPHS=" in said


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


def test_few_images_are_compared_by_their_values_where_these_are_kept():
    labels = [1, 2, 3, 5, 4, 1]  # 3 is the pitted surface, whose images do not count
    ours = [60.0, 70.0, 0.0, 80.0, 90.0, 65.0]
    theirs = [50.0, 62.0, 100.0, 69.0, 81.0, 54.0]
    counted = [index for index, label in enumerate(labels) if label != 3]

    def measured(run, explainer, values):
        mean = sum(values[index] for index in counted) / len(counted)
        common = {"run": run, "explainer": explainer, "of": "score-cam"}
        return [
            *rows("subset", **common, localization_precision=mean, annotated=5, images=6, average_drop=30.0),
            *rows("values", **common, label=labels, localization_precision=[[value / 100] * 30 for value in values]),
        ]

    found = [*measured("softcam", "softcam", ours), *measured("vanilla", "score-cam", theirs)]
    found += [*rows("training", run="vanilla"), *rows("training", run="softcam")]
    found += [row for name in (ALL_LOCATED, *CLASSES) for row in rows("localised", **{"class": name})]
    values = [row for row in found if row["kind"] == "values"]
    findings = Findings([row for row in found if row["kind"] != "values"], values=values)
    (part,) = softcam_claims.localises(findings, ("steel",))
    assert part.word == "yes"
    assert not part.lacks_interval
    assert part.figure.startswith("73.0 (73.0, 73.0, 73.0) against 63.2 (63.2, 63.2, 63.2) (score-cam, 5 images); diff")
    assert "difference +9.8 [" in part.figure
    table = study_tables.few_images(findings, "steel")
    assert "| score-cam | 6 | 30.0 ± 0.0 | 63.2 ± 0.0 |" in table
    assert "| softcam | 6 | 30.0 ± 0.0 | 73.0 ± 0.0 |" in table


def test_claims_on_scores_say_that_places_alone_were_measured():
    trained = Findings(rows("training", run="vanilla"))
    sentence = "Nothing of the study steel: of its maps the places alone were measured."
    assert [claim.code for claim in claims.CLAIMS if sentence in claims.section(trained, claim)] == ["S3", "C3"]


def test_every_run_on_steel_has_the_same_budget_and_start(tmp_path):
    make_photographs(tmp_path / "photographs", {"train": 2, "validation": 1, "test": 1})
    study = STEEL["steel"]
    chain = SteelChain("steel", study, 1, tmp_path / "photographs", tmp_path / "runs")
    configs = {recipe: chain.config(recipe) for recipe in ("vanilla", *study.runs)}
    budgets = {
        (c.optimization.epochs, c.optimization.batch_size, str(c.data), c.model.image_size, c.model.model_args)
        for c in configs.values()
    }
    assert len(budgets) == 1
    assert {config.run.seed for config in configs.values()} == {1}
    assert {config.model.init for config in configs.values() if config.model.mode != "post-fit"} == {str(chain.start)}
    assert {config.optimization.lr for config in configs.values() if config.model.mode != "post-fit"} == {5e-4}
    assert configs["softcam-sparse"].model.l1 == 0.3


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
    start = load_classifier(tmp_path / "runs" / "steel" / "0" / "start").model.state_dict()
    imagenet = load_file(imagenet_folder() / "model.safetensors")
    assert torch.equal(start["conv_stem.weight"], imagenet["conv_stem.weight"])
    assert 0.015 < start["classifier.weight"].std() < 0.025  # as the package's heads start


@pytest.mark.slow
def test_a_small_run_has_scores_beside_places_and_few_images_for_slow_methods(tmp_path, monkeypatch):
    monkeypatch.setattr(steel, "SUBSETS", {"integrated-gradients": 7})
    some = {name: steel.CLASS_ACTIVATION[name] for name in ("cam", "layer-cam")}
    monkeypatch.setattr(steel, "CLASS_ACTIVATION", some)  # test_benchmark.py measures every method
    make_photographs(tmp_path / "photographs", {"train": 2, "validation": 1, "test": 2})
    settings = {**STEEL["steel, stride 32"].settings, "image_size": 64, "epochs": 2, "batch_size": 6}
    study = replace(STEEL["steel"], runs=("softcam", "cape-pf"), limit=8, settings=settings)
    found = SteelChain("steel", study, 0, tmp_path / "photographs", tmp_path / "runs").rows()
    explained = {(row["run"], row["explainer"]): row for row in found if row["kind"] == "explanation"}
    assert {run for run, _ in explained} == {"vanilla", "softcam", "cape-pf"}
    others = {"guided-backprop", "random", "centre"}
    assert {name for run, name in explained if run == "vanilla"} == {*some, *others}
    assert {row["images"] for row in explained.values()} == {8}
    assert all({"adcc", "average_drop", "gini"} <= row.keys() for row in explained.values())
    assert {run for (run, _), row in explained.items() if "topk_sensitivity" in row} == {"vanilla", "softcam"}
    few = {row["run"]: row for row in found if row["kind"] == "subset"}
    assert {run: (row["images"], row["annotated"]) for run, row in few.items()} == dict.fromkeys(few, (7, 4))
    assert few.keys() == {"vanilla", "softcam"}
    assert all({"adcc", "localization_precision"} <= row.keys() for row in few.values())
    values = [row for row in found if row["kind"] == "values" and row.get("of") == "integrated-gradients"]
    assert [len(row["label"]) for row in values] == [7, 7]


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
