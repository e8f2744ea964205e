"""What a card says of a model: scores, explanations, data, licence and recipe, and the command that writes it."""

import argparse
import dataclasses
import json
import re
from pathlib import Path

import pytest
import timm
import yaml
from helpers.cards import CARDS, EXPLANATIONS, LESIONS, RESULTS
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
    render_trained_card,
    write_card,
)
from softcam_hub.hub.publishing import model_files
from softcam_hub.registry import architectures


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
