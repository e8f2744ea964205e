"""Cards say what rows say, load what they say, and fail the check when they have gaps or numbers of their own."""

import argparse
import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard

import softcam_hub
from softcam_hub.commands import card as card_command
from softcam_hub.evaluation.config import SPLITS, BenchmarkConfig
from softcam_hub.hub.cards import (
    PLACEHOLDER_REPO,
    ModelRecord,
    check_card,
    load_model_record,
    read_rows,
    render_family_card,
    render_trained_card,
    write_card,
)
from softcam_hub.hub.publishing import model_files
from softcam_hub.models.names import split_name
from softcam_hub.registry import architectures
from tools import render_cards

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FAMILIES = {row["model"]: row for row in read_rows(RESULTS / "families.jsonl")}
CARDS = {file.stem: file.read_text() for file in (ROOT / "model_cards").glob("*.md")}
LESIONS = json.loads((Path(softcam_hub.CAPE_LESIONS) / "metrics.json").read_text())
EXPLANATIONS = [
    {"recipe": "r", "explainer": "cape", "average_drop": 12.3456, "miou": 0.25, "images": 64, "seconds": 1.5},
    {"recipe": "r", "explainer": "grad-cam", "average_drop": 20.5, "adcc": 61.0, "images": 64, "seconds": 2.5},
]


# --- the committed cards -----------------------------------------------------------------------------------------------


def test_the_committed_cards_are_those_of_their_rows():
    assert list(render_cards.find_problems(list(render_cards.render_cards()))) == []


def test_every_family_and_the_shipped_model_have_a_card():
    architectures = ("resnet50", "vgg16", "swinv2_b")
    expected = {f"{family}_{name}" for family in ("softcam", "cape") for name in architectures} | {"cape_lesions"}
    assert CARDS.keys() == expected


@pytest.mark.parametrize("name", CARDS)
def test_metadata_is_what_the_hub_reads(name):
    data = ModelCard(CARDS[name]).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-classification")
    assert {"timm", "explainability", name.partition("_")[0]} <= set(data.tags)
    if name in FAMILIES:
        assert data.base_model.startswith(f"timm/{split_name(name)[1]}.")
        assert data.eval_results is None
        assert "No weights are released" in CARDS[name]


def test_a_card_is_honest_about_heads_that_must_be_trained():
    for name, row in FAMILIES.items():
        assert ("until you train the model, its predictions and its maps mean nothing" in CARDS[name]) == (
            not row["exact"]
        )
        assert ("nothing to train" in CARDS[name]) == (row["exact"] and row["family"] == "softcam")
        assert ("off-the-shelf" in CARDS[name]) == (row["exact"] and row["family"] == "cape")


slowly = pytest.param("softcam_vgg16", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["softcam_resnet50", "cape_resnet50", slowly])
def test_the_row_of_a_family_matches_its_model(name):
    row = FAMILIES[name]
    model = timm.create_model(name).eval()
    maps = model.explain(torch.rand(1, 3, row["image_size"], row["image_size"])).maps
    assert list(maps.shape[2:]) == row["map_size"]
    assert model.exact == row["exact"]
    assert row["million_parameters"] == sum(p.numel() for p in model.parameters()) / 1e6
    assert row["completeness_error"] < 1e-5


def test_scores_of_the_shipped_model_are_in_its_model_index():
    card = ModelCard((Path(softcam_hub.CAPE_LESIONS) / "README.md").read_text())
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found["accuracy"].metric_value == LESIONS["test_accuracy"]
    assert (found["accuracy"].dataset_type, found["accuracy"].dataset_split) == ("lesions", "test")
    assert f"| accuracy | {100 * LESIONS['test_accuracy']:.1f} % |" in card.text
    assert f"| AUC | {LESIONS['test_auc']:.3f} |" in card.text
    assert f"adds up to is {LESIONS['test_completeness_error']:.1e}" in card.text
    assert f"torch {LESIONS['torch']}" in card.text


def test_the_model_index_has_each_score_once():
    for file in (Path(softcam_hub.CAPE_LESIONS) / "README.md", ROOT / "model_cards" / "cape_lesions.md"):
        (model,) = yaml.safe_load(file.read_text().split("---\n")[1])["model-index"]
        for result in model["results"]:
            for key in ("type", "name"):
                found = [metric[key] for metric in result["metrics"]]
                assert len(found) == len(set(found)) > 30
    names = {metric["type"]: metric["name"] for metric in result["metrics"]}
    assert names["miou_of_cape_maps"] == "miou of cape maps"
    assert names["miou_of_mu-cape_maps"] == "miou of mu-cape maps"
    assert names["completeness_error"] == "completeness error"


def test_of_two_rows_on_the_same_data_the_last_one_goes_into_the_model_index(folder):
    rows = [{**EXPLANATIONS[0], "miou": value, "data": data} for value, data in ((1.5, "a"), (2.5, "b"), (3.5, "a"))]
    card = render_trained_card(ModelRecord(load_model_record(folder).config, explanations=rows))
    found = [(r.dataset_name, r.metric_value) for r in ModelCard(card).data.eval_results if "miou" in r.metric_type]
    assert sorted(found) == [("a", 3.5), ("b", 2.5)]


@pytest.mark.parametrize(
    ("alignment", "sentence"),
    [
        (None, "Where the cells of this model look was not measured, so that heat maps show them as squares"),
        ({"start": [None, None]}, "Where the cells of this model look was not measured"),
        ({"start": [0.6, 1.28]}, "measured on this model: 0.42 cells above and 0.34 cells left of the middle of its"),
        (
            {"start": [7.6, None]},
            "0.45 cells below the middle of its square; along the other axis it was not measured.",
        ),
        ({"start": ["**0.5**", 1]}, "The `alignment` in `config.json` cannot be read, so that the model does not load"),
        ({"step": 3}, "The `alignment` in `config.json` cannot be read"),
        ([], "The `alignment` in `config.json` cannot be read"),
    ],
)
def test_a_card_says_where_the_cells_look(alignment, sentence, folder):
    config = json.loads((folder / "config.json").read_text())
    known = config["model_args"]["alignment"]
    config["model_args"]["alignment"] = {**known, **alignment} if isinstance(alignment, dict) else alignment
    (folder / "config.json").write_text(json.dumps(config))
    card = write_card(folder, overwrite=True).read_text()  # which checks every number
    assert card.count(sentence) == 1
    assert "**0.5**" not in card


def test_a_card_shows_speed_only_where_it_was_measured():
    assert "all maps" in CARDS["cape_resnet50"]
    assert "Only the numbers under *Exactness* were measured" in CARDS["cape_vgg16"]
    assert "ms" not in render_family_card(FAMILIES["cape_resnet50"], []).split("## Results")[1].split("##")[0].split()


@pytest.mark.parametrize("edit", ["number", "gap", "stray", "missing"])
def test_lint_fails_on_a_card_that_was_edited(edit, tmp_path, monkeypatch):
    monkeypatch.setattr(render_cards, "ROOT", tmp_path)
    monkeypatch.setattr(render_cards, "CARDS", tmp_path / "model_cards")
    shutil.copytree(ROOT / "model_cards", tmp_path / "model_cards")
    monkeypatch.setattr(
        render_cards, "CAPE_LESIONS", Path(shutil.copytree(softcam_hub.CAPE_LESIONS, tmp_path / "lesions"))
    )
    monkeypatch.setattr(sys, "argv", ["render_cards.py", "--check"])
    assert render_cards.main() == 0
    card = tmp_path / "model_cards" / "cape_lesions.md"
    {
        "number": lambda: card.write_text(card.read_text().replace("98.", "99.")),
        "gap": lambda: card.write_text(card.read_text() + "\n## Later\n"),
        "stray": lambda: (tmp_path / "model_cards" / "mine.md").write_text("# Mine"),
        "missing": card.unlink,
    }[edit]()
    assert render_cards.main() == 1


def test_lint_fails_on_a_row_that_changed(tmp_path, monkeypatch, capsys):
    rows = shutil.copytree(RESULTS, tmp_path / "results")
    lesions = rows / "lesions.jsonl"
    lesions.write_text(lesions.read_text().replace(str(LESIONS["test_auc"]), "0.5"))
    monkeypatch.setattr(render_cards, "RESULTS", rows)
    found = list(render_cards.find_problems(list(render_cards.render_cards())))
    assert len(found) == 2
    assert all("but no row has that number" in problem for problem in found)


# --- the content of a card ---------------------------------------------------------------------------------------------


def test_explanation_scores_of_the_own_maps_go_into_the_model_index_and_all_into_a_table(folder):
    lines = "".join(json.dumps(row) + "\n" for row in EXPLANATIONS)
    (folder / "rows.jsonl").write_text(lines)
    model = load_model_record(folder)
    text = render_trained_card(model)
    check_card(text, model.rows, set(model.pictures))
    assert "| maps | average drop | miou | adcc |" in text
    assert "| `cape` | 12.346 | 0.250 | - |" in text
    assert "| `grad-cam` | 20.500 | - | 61.000 |" in text
    found = {result.metric_name: result.metric_value for result in ModelCard(text).data.eval_results}
    assert found["average drop of cape maps"] == 12.3456
    assert "adcc of cape maps" not in found
    assert not any("grad-cam" in name for name in found)
    assert "softcam-hub benchmark" in text


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        ({}, "Whether the maps follow what the network uses was not tested"),
        ({"causal_linear": 0.45, "causal_linear_interval": [0.381, 0.52]}, "The maps follow what the network uses."),
        ({"causal_linear": 0.05, "causal_linear_interval": [-0.02, 0.13]}, "Nothing shows that the maps follow"),
        ({"causal_linear": 0.45}, "was not tested"),
    ],
)
def test_a_card_of_maps_that_cancel_asks_the_removal_of_parts(measured, sentence, folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "test_cancelled_share": 0.8}))
    rows = [{"explainer": "cam", "explains": "vanilla", "causal_linear": 0.9, "causal_linear_interval": [0.8, 1]}]
    rows.append({"explainer": "cape", "explains": "model", **measured})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = " ".join(write_card(folder, overwrite=True).read_text().split())  # which checks every number
    assert "80.0 % of the evidence cancels" in text
    assert sentence in text
    if len(measured) == 2:
        low, high = measured["causal_linear_interval"]
        assert f"correlation of {measured['causal_linear']} (bootstrap interval {low:.2f} to {high:.2f})" in text
    (folder / "metrics.json").write_text(json.dumps({**metrics, "test_cancelled_share": 0.6}))
    assert "cancels" not in write_card(folder, overwrite=True).read_text()


def test_without_rows_there_is_no_section_of_explanations(folder):
    (folder / "rows.jsonl").unlink()
    assert "softcam-hub benchmark" not in render_trained_card(load_model_record(folder))


def test_the_explanations_of_a_card_say_on_what_and_how_they_were_measured(folder):
    settings = {"data": "/home/ada/eyes", "split": "validation", "annotated": 7, "limit": 64, "hold_out": 0.2}
    model = load_model_record(folder)
    native = {**EXPLANATIONS[0], **settings, "explains": "model", "explainers": "all"}
    rows = [native, {**native, "explainer": "grad-cam", "explains": "vanilla", "vanilla": "runs/ada/vanilla"}]
    text = render_trained_card(ModelRecord(model.config, explanations=rows))
    assert "on 64 images of `eyes` (validation), 7 of them annotated" in text
    command = (
        f"softcam-hub benchmark --model {PLACEHOLDER_REPO} --explainers all --split validation --limit 64 --no-aligned "
        "--data eyes"
    )
    assert f"{command} --hold-out 0.2 --output results\n" in text
    assert f"--model {PLACEHOLDER_REPO} --vanilla vanilla --explainers all" in text
    assert "own maps explain this model, and the others explain its\nvanilla classifier" in text
    (found,) = {(r.dataset_name, r.dataset_split) for r in ModelCard(text).data.eval_results}
    assert found == ("eyes", "validation")


def test_the_command_of_a_card_knows_the_defaults_of_a_benchmark():
    from softcam_hub.hub.cards.tables import BENCHMARK_DEFAULTS

    defaults = {field.name: field.default for field in dataclasses.fields(BenchmarkConfig)}
    defaults["split"] = defaults["split"] or SPLITS[0]  # the test split, where there is one
    assert {name: defaults[name] for name in BENCHMARK_DEFAULTS} == BENCHMARK_DEFAULTS
    assert defaults.keys() - BENCHMARK_DEFAULTS.keys() == {"output", "per_image", "overwrite"}


@pytest.mark.parametrize("line", ['{"file": "eye.png"}', "[1]", "3", '{"explainer": [1]}'])
def test_rows_that_do_not_come_from_a_benchmark_are_refused(line, folder):
    (folder / "rows.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"line 1 of .*rows\.jsonl names no explainer: expected the rows\.jsonl"):
        load_model_record(folder)


def test_the_shipped_rows_are_the_committed_ones():
    shipped = load_model_record(Path(softcam_hub.CAPE_LESIONS)).explanations
    rows = read_rows(RESULTS / "explanations.jsonl")
    committed = [row for row in rows if row["recipe"] == "lesions-cape" and row["seed"] == 0]
    differing = ("recipe", "explains")
    strip = [{name: value for name, value in row.items() if name not in differing} for row in (*shipped, *committed)]
    assert strip[: len(shipped)] == strip[len(shipped) :]
    card_command.run(argparse.Namespace(folder=Path(softcam_hub.CAPE_LESIONS), check=True))


def test_a_model_without_any_record_gets_a_card_that_says_so(folder):
    for name in ("metrics.json", "recipe.yaml", "examples.png", "README.md", "rows.jsonl"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["model_args"]["alignment"]
    (folder / "config.json").write_text(json.dumps(config))
    write_card(folder)
    text = (folder / "README.md").read_text()
    check_card(text, [], set())
    data = ModelCard(text).data
    assert (data.license, data.eval_results) == ("unknown", None)
    for sentence in (
        "No scores were recorded",
        "training were not recorded",
        "was not measured",
        "No licence is stated",
    ):
        assert sentence in text
    assert "![" not in text


def test_the_weights_that_training_started_from_are_named_with_their_licence():
    config = load_model_record(Path(softcam_hub.CAPE_LESIONS)).config
    started = {"model": "cape_resnet50.tv_in1k", "pretrained": True}
    model = ModelRecord({**config, "architecture": "cape_resnet50"}, settings=started)
    data = ModelCard(render_trained_card(model)).data
    assert (data.base_model, data.license) == ("timm/resnet50.tv_in1k", "bsd-3-clause")
    assert (
        ModelCard(render_trained_card(ModelRecord(config, settings={**started, "pretrained": False}))).data.base_model
        is None
    )


def test_every_registered_tag_has_a_licence_of_its_own():
    from softcam_hub.hub.cards.metadata import find_base_model

    known = architectures()
    for name in timm.list_pretrained():
        backbone, _, tag = name.partition(".")
        if backbone in known:
            found = find_base_model({"model": f"cape_{backbone}.{tag}", "pretrained": True}, backbone)
            assert found == timm.models.get_pretrained_cfg(name)
    config = {**load_model_record(Path(softcam_hub.CAPE_LESIONS)).config, "architecture": "cape_fastvit_mci0"}
    started = {"model": "cape_fastvit_mci0.apple_mclip", "pretrained": True}
    data = ModelCard(render_trained_card(ModelRecord(config, settings=started))).data
    assert (data.base_model, data.license) == ("apple/mobileclip_s0_timm", "apple-amlr")


def test_a_card_shows_the_last_part_of_a_local_path(folder):
    config = load_model_record(folder).config
    for data in ("/home/ada/patients/cohort", str(folder.parent / "cohort"), "../ada/cohort", "~/ada/cohort"):
        card = render_trained_card(
            ModelRecord(config, {"data": data, "test_accuracy": 0.5}, {"data": data, "teacher": data})
        )
        assert "trained on `cohort`" in card
        assert "teacher: cohort\n" in card
        assert "ada" not in card
        assert ModelCard(card).data.eval_results[0].dataset_name == "cohort"


def test_a_card_of_several_labels_does_not_speak_of_a_softmax(folder):
    config = {**load_model_record(folder).config, "architecture": "softcam_test_resnet"}
    assert "A softmax compares classes" in render_trained_card(ModelRecord(config))
    card = render_trained_card(ModelRecord({**config, "problem_type": "multi_label_classification"}))
    assert "softmax compares" not in card
    assert "the probabilities do not add up to one" in card
    assert "of which an image may have several" in card


def test_data_on_the_hub_is_named_and_local_data_is_not(folder):
    config = load_model_record(folder).config
    named = ModelCard(render_trained_card(ModelRecord(config, {"data": "ada/pictures"}))).data.datasets
    assert named == ["ada/pictures"]
    for local in ("lesions", str(folder), "/data/a/b", ""):
        assert ModelCard(render_trained_card(ModelRecord(config, {"data": local}))).data.datasets is None


def test_generated_data_is_said_to_be_generated(folder):
    config = load_model_record(folder).config
    for data, generated in {"lesions": True, "screening": True, "lesions-of-ada": False, "ada/lesions": False}.items():
        assert ("trained on generated images" in render_trained_card(ModelRecord(config, {"data": data}))) == generated


def test_the_recipe_of_a_card_is_that_of_the_run():
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", CARDS["cape_lesions"], flags=re.DOTALL)[1])
    ran = yaml.safe_load((Path(softcam_hub.CAPE_LESIONS) / "recipe.yaml").read_text())
    assert recipe.items() <= ran.items()
    assert {"model", "data", "epochs", "lr", "seed"} <= recipe.keys()
    assert "output" not in recipe


def test_cape_and_softcam_cards_say_different_things():
    softcam, cape = CARDS["softcam_resnet50"], CARDS["cape_resnet50"]
    assert "a class's logit *is* the mean of its map" in softcam
    assert "the predicted probability of the class *is* the sum of its map" in cape
    assert "logit *is*" not in cape
    assert softcam.index("djoumessi") < softcam.index("chowdhury")


def test_a_card_names_a_placeholder_until_it_is_pushed(folder):
    assert PLACEHOLDER_REPO in (folder / "README.md").read_text()
    assert PLACEHOLDER_REPO.encode() not in model_files(folder, "ada/eyes")["README.md"]


# --- the command -------------------------------------------------------------------------------------------------------


def command(*words):
    parser = argparse.ArgumentParser()
    card_command.add_arguments(parser)
    card_command.run(parser.parse_args([str(word) for word in words]))


def test_the_command_writes_and_checks(folder, capsys):
    with pytest.raises(FileExistsError, match=r"--overwrite \(overwrite=True\) replaces it"):
        command(folder, "--license", "apache-2.0")
    command(folder, "--license", "apache-2.0", "--overwrite")
    assert ModelCard.load(folder / "README.md").data.license == "apache-2.0"
    command(folder, "--check")
    assert "has no gaps" in capsys.readouterr().out
    command(folder, "--overwrite")
    assert ModelCard.load(folder / "README.md").data.license == "apache-2.0", "kept"
    assert "softcam-hub benchmark" in (folder / "README.md").read_text()
    card = folder / "README.md"
    shown = f"{100 * LESIONS['test_accuracy']:.1f} %"
    assert shown in card.read_text()
    card.write_text(card.read_text().replace(shown, "99.7 %"))
    with pytest.raises(ValueError, match="says 99.7 %"):
        command(folder, "--check")
    card.unlink()
    with pytest.raises(FileNotFoundError, match=r"no README\.md"):
        command(folder, "--check")


@pytest.mark.parametrize(("name", "text"), [("metrics.json", "{"), ("metrics.json", "[]"), ("recipe.yaml", "a: [")])
def test_broken_records_are_named(name, text, folder):
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        write_card(folder, overwrite=True)
