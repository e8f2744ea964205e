"""The committed cards are those of their rows, load what they say, and fail the check with numbers of their own."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from helpers.cards import CARDS, EXPLANATIONS, LESIONS, RESULTS, ROOT
from huggingface_hub import ModelCard

import softcam_hub
from softcam_hub.hub.cards import (
    ModelRecord,
    load_model_record,
    read_rows,
    render_family_card,
    render_trained_card,
    write_card,
)
from softcam_hub.models.names import split_name
from tools import render_cards

FAMILIES = {row["model"]: row for row in read_rows(RESULTS / "families.jsonl")}


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
