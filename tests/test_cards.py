"""Cards say what rows say, load what they say, and fail the check when they have gaps or numbers of their own."""

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from helpers.hub_server import HubServer
from huggingface_hub import ModelCard
from safetensors.torch import save

import softcam_hub
from softcam_hub.commands import card as card_command
from softcam_hub.evaluation.config import BenchmarkConfig
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
from softcam_hub.models.classifier import split_name
from softcam_hub.registry import architectures

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FAMILIES = {row["model"]: row for row in read_rows(RESULTS / "families.jsonl")}
CARDS = {file.stem: file.read_text() for file in (ROOT / "model_cards").glob("*.md")}
LESIONS = json.loads((Path(softcam_hub.CAPE_LESIONS) / "metrics.json").read_text())
EXPLANATIONS = [
    {"recipe": "r", "explainer": "cape", "average_drop": 12.3456, "miou": 0.25, "images": 64, "seconds": 1.5},
    {"recipe": "r", "explainer": "grad-cam", "average_drop": 20.5, "adcc": 61.0, "images": 64, "seconds": 2.5},
]


def blocks(card):
    return re.findall(r"^```python\n(.*?)^```", card, flags=re.DOTALL | re.MULTILINE)


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(softcam_hub.CAPE_LESIONS, tmp_path / "model"))


# The committed cards.


def test_the_committed_cards_are_those_of_their_rows():
    render = tool("render_cards")
    assert list(render.problems(list(render.rendered()))) == []


def test_there_is_a_card_of_every_family_and_of_the_model_that_ships():
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
        assert ("until\nyou train it, its predictions and its maps mean nothing" in CARDS[name]) == (not row["exact"])
        assert ("nothing to train" in CARDS[name]) == (row["exact"] and row["family"] == "softcam")
        assert ("off-the-shelf" in CARDS[name]) == (row["exact"] and row["family"] == "cape")


slowly = pytest.param("softcam_vgg16", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["softcam_resnet50", "cape_resnet50", slowly])
def test_a_familys_row_is_true(name):
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
    assert f"adds up to: {LESIONS['test_completeness_error']:.1e}" in card.text
    assert f"torch {LESIONS['torch']}" in card.text


# What a card is made of.


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


def test_without_rows_there_is_no_section_of_explanations(folder):
    (folder / "rows.jsonl").unlink()
    assert "softcam-hub benchmark" not in render_trained_card(load_model_record(folder))


def test_the_explanations_of_a_card_say_on_what_and_how_they_were_measured(folder):
    settings = {"data": "/home/ada/eyes", "split": "validation", "annotated": 7, "limit": 64, "hold_out": 0.2}
    model = load_model_record(folder)
    native = {**EXPLANATIONS[0], **settings, "explains": "model", "explainers": "all"}
    rows = [native, {**native, "explainer": "grad-cam", "explains": "twin", "twin": "runs/ada/twin"}]
    text = render_trained_card(ModelRecord(model.config, explanations=rows))
    assert "on 64 images of `eyes` (validation), 7 of them annotated" in text
    command = (
        f"softcam-hub benchmark --model {PLACEHOLDER_REPO} --explainers all --split validation --limit 64 --data eyes"
    )
    assert f"{command} --hold_out 0.2 --output results\n" in text
    assert f"--model {PLACEHOLDER_REPO} --twin twin --explainers all" in text
    assert "native maps explain this model, the others its vanilla twin" in text
    (found,) = {(r.dataset_name, r.dataset_split) for r in ModelCard(text).data.eval_results}
    assert found == ("eyes", "validation")


def test_the_command_of_a_card_knows_the_defaults_of_a_benchmark():
    from softcam_hub.hub.cards.rendering import BENCHMARK

    defaults = {field.name: field.default for field in dataclasses.fields(BenchmarkConfig)}
    assert {name: defaults[name] for name in BENCHMARK} == BENCHMARK
    assert defaults.keys() - BENCHMARK.keys() == {"output", "per_image", "overwrite"}


@pytest.mark.parametrize("line", ['{"file": "eye.png"}', "[1]", "3"])
def test_rows_that_are_of_no_benchmark_are_named(line, folder):
    (folder / "rows.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"line 1 of .*rows\.jsonl names no explainer: expected the rows\.jsonl"):
        load_model_record(folder)


def test_the_shipped_rows_are_the_committed_ones():
    shipped = load_model_record(Path(softcam_hub.CAPE_LESIONS)).explanations
    committed = [row for row in read_rows(RESULTS / "explanations.jsonl") if row["recipe"] == "lesions-cape"]
    differing = ("recipe", "explains")
    strip = [{name: value for name, value in row.items() if name not in differing} for row in (*shipped, *committed)]
    assert strip[: len(shipped)] == strip[len(shipped) :]
    card_command.run(argparse.Namespace(folder=Path(softcam_hub.CAPE_LESIONS), check=True))


def test_a_model_without_any_record_gets_a_card_that_says_so(folder):
    for name in ("metrics.json", "recipe.yaml", "examples.png", "README.md", "rows.jsonl"):
        (folder / name).unlink()
    write_card(folder)
    text = (folder / "README.md").read_text()
    check_card(text, [], set())
    data = ModelCard(text).data
    assert (data.license, data.eval_results) == ("unknown", None)
    for sentence in ("No scores are recorded", "not recorded beside it", "was not measured", "No licence is stated"):
        assert sentence in text
    assert "![" not in text


def test_weights_that_were_started_from_are_named_with_their_licence():
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
    from softcam_hub.hub.cards.rendering import _started_from

    known = architectures()
    for name in timm.list_pretrained():
        backbone, _, tag = name.partition(".")
        if backbone in known:
            found = _started_from({"model": f"cape_{backbone}.{tag}", "pretrained": True}, backbone)
            assert found == timm.models.get_pretrained_cfg(name)
    config = {**load_model_record(Path(softcam_hub.CAPE_LESIONS)).config, "architecture": "cape_fastvit_mci0"}
    started = {"model": "cape_fastvit_mci0.apple_mclip", "pretrained": True}
    data = ModelCard(render_trained_card(ModelRecord(config, settings=started))).data
    assert (data.base_model, data.license) == ("apple/mobileclip_s0_timm", "apple-amlr")


def test_of_a_local_path_a_card_tells_the_last_part(folder):
    config = load_model_record(folder).config
    for data in ("/home/ada/patients/cohort", str(folder.parent / "cohort"), "../ada/cohort", "~/ada/cohort"):
        card = render_trained_card(
            ModelRecord(config, {"data": data, "test_accuracy": 0.5}, {"data": data, "teacher": data})
        )
        assert "Trained on `cohort`" in card
        assert "teacher: cohort\n" in card
        assert "ada" not in card
        assert ModelCard(card).data.eval_results[0].dataset_name == "cohort"


def test_a_card_of_several_labels_does_not_speak_of_a_softmax(folder):
    config = {**load_model_record(folder).config, "architecture": "softcam_test_resnet"}
    assert "A softmax compares classes" in render_trained_card(ModelRecord(config))
    card = render_trained_card(ModelRecord({**config, "problem_type": "multi_label_classification"}))
    assert "softmax compares" not in card
    assert "they do not add up to one" in card
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
        assert (
            "Trained on generated pictures" in render_trained_card(ModelRecord(config, {"data": data}))
        ) == generated


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


# What makes a card invalid.

CARD = """---
license: mit
library_name: transformers
pipeline_tag: image-classification
tags: [timm]
model-index:
- name: m
  results:
  - task: {type: image-classification}
    dataset: {name: d, type: d}
    metrics: [{type: accuracy, value: 0.875}]
---
# Model

In 2024 we had 3 ideas, and 12.5 % of them worked, in `0.777` s. See [paper](https://x.org/1.5).

| score | value |
| --- | ---: |
| batch 8 | 87.5 % |
| time | 31 ms (0.0310 s) |
| error | 8.2e-08 |

```python
print(0.123)
```
"""
ROWS = [{"accuracy": 0.875, "nested": [{"worked": 0.125}], "batch": 8, "seconds": 0.03098, "error": 8.1857e-08}]


def test_a_good_card_passes():
    check_card(CARD, ROWS)
    check_card(CARD)


SPOILED = {
    "number in a table": (("87.5 %", "88.5 %"), "says 88.5 %"),
    "one digit off": (("31 ms", "32 ms"), "says 32 ms"),
    "more digits than the row": (("0.0310 s", "0.0311 s"), "says 0.0311"),
    "number in a sentence": (("12.5 %", "12.6 %"), "says 12.6 %"),
    "decimal in a sentence": (("3 ideas", "3.5 ideas"), "says 3.5"),
    "exponent": (("8.2e-08", "8.2e-07"), "says 8.2e-07"),
    "whole number in a table": (("batch 8", "batch 9"), "says 9"),
    "number in the model-index": (("value: 0.875", "value: 0.8751"), "says 0.8751"),
    "empty cell": (("| 87.5 % |", "|  |"), "empty cell"),
    "empty metadata": (("license: mit", "license: ''"), "lacks license"),
    "missing metadata": (("tags: [timm]\n", ""), "lacks tags"),
    "empty list in metadata": (("tags: [timm]", "tags: [timm]\ndatasets: []"), "leaves datasets empty"),
    "empty name in the model-index": (("name: d,", "name: '',"), "leaves model-index.0.results.0.dataset.name empty"),
    "placeholder": (("3 ideas", "{{ ideas }} ideas"), "gap"),
    "more information": (("3 ideas", "[More Information Needed]"), "gap"),
    "no value": (("87.5 % |", "None |"), "gap"),
    "empty section": (("# Model", "# Empty\n\n# Model"), "says nothing under '# Empty'"),
    "empty last section": (("```python\nprint(0.123)\n```\n", "## End\n"), "says nothing under '## End'"),
    "broken code": (("print(0.123)", "print(0.123"), "does not parse"),
    "open block": (("0.123)\n```", "0.123)"), "does not close"),
    "no heading": (("# Model", "Model"), "no heading"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_card_fails(case):
    (before, after), message = SPOILED[case]
    assert CARD.count(before) == 1
    with pytest.raises(ValueError, match=re.escape(message)):
        check_card(CARD.replace(before, after), ROWS)


def test_pictures_must_be_there():
    card = CARD + "\n![x](a.png) ![y](https://x.org/b.png)\n"
    check_card(card, ROWS, {"a.png"})
    with pytest.raises(ValueError, match=r"shows a\.png"):
        check_card(card, ROWS, set())


def test_a_heading_above_a_heading_of_a_lower_level_is_no_gap():
    check_card(CARD.replace("# Model", "# Model\n\n## Part"), ROWS)


@pytest.mark.parametrize("edit", ["number", "gap", "stray", "missing"])
def test_lint_fails_on_a_card_that_was_edited(edit, tmp_path, monkeypatch):
    render = tool("render_cards")
    monkeypatch.setattr(render, "ROOT", tmp_path)
    monkeypatch.setattr(render, "CARDS", tmp_path / "model_cards")
    shutil.copytree(ROOT / "model_cards", tmp_path / "model_cards")
    monkeypatch.setattr(render, "CAPE_LESIONS", Path(shutil.copytree(softcam_hub.CAPE_LESIONS, tmp_path / "lesions")))
    monkeypatch.setattr(sys, "argv", ["render_cards.py", "--check"])
    assert render.main() == 0
    card = tmp_path / "model_cards" / "cape_lesions.md"
    {
        "number": lambda: card.write_text(card.read_text().replace("98.", "99.")),
        "gap": lambda: card.write_text(card.read_text() + "\n## Later\n"),
        "stray": lambda: (tmp_path / "model_cards" / "mine.md").write_text("# Mine"),
        "missing": card.unlink,
    }[edit]()
    assert render.main() == 1


def test_lint_fails_on_a_row_that_changed(tmp_path, monkeypatch, capsys):
    render = tool("render_cards")
    rows = shutil.copytree(RESULTS, tmp_path / "results")
    lesions = rows / "lesions.jsonl"
    lesions.write_text(lesions.read_text().replace(str(LESIONS["test_auc"]), "0.5"))
    monkeypatch.setattr(render, "RESULTS", rows)
    found = list(render.problems(list(render.rendered())))
    assert len(found) == 2
    assert all("but no row has that number" in problem for problem in found)


# The command line.


def command(*words):
    parser = argparse.ArgumentParser()
    card_command.add_arguments(parser)
    card_command.run(parser.parse_args([str(word) for word in words]))


def test_the_command_writes_and_checks(folder, capsys):
    with pytest.raises(FileExistsError, match="--overwrite replaces it"):
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


# The code blocks, as a reader runs them.


def run(script, hub, home):
    home.mkdir(exist_ok=True)
    (home / "card.py").write_text(script)
    environment = {**os.environ, **hub.env(home)}
    line = [sys.executable, "card.py"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout


ABSENT = "import sys\nsys.modules['softcam_hub'] = None\n"


def run_blocks(cards, hub, home):
    """All blocks in one process, and the last one that needs nothing of ours in another, without our package."""
    found = [block for card in cards for block in blocks(card)]
    told = run("\n".join(found), hub, home)
    return told, run(ABSENT + [block for block in found if "trust_remote_code" in block][-1], hub, home)


@pytest.mark.slow
def test_the_blocks_of_the_shipped_models_card_run(tmp_path):
    with HubServer() as hub:
        files = model_files(Path(softcam_hub.CAPE_LESIONS), "tester/tiny")
        content = {name: made if isinstance(made, bytes) else made.read_bytes() for name, made in files.items()}
        hub.add_repo("tester/tiny", content)
        told, alone = run_blocks([content["README.md"].decode()], hub, tmp_path / "home")
    assert told.count("microaneurysm") >= 1
    assert "torch.Size([1, 4]) torch.Size([1, 4, 16, 16])" in alone


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet50", "vgg16", "swinv2_b"])
def test_the_blocks_of_the_families_cards_run(backbone, tmp_path):
    row = FAMILIES[f"cape_{backbone}"]
    weights = timm.create_model(row["base_model"].removeprefix("timm/")).state_dict()
    with HubServer() as hub:
        content = save({key: value.contiguous() for key, value in weights.items()})
        hub.add_repo(row["base_model"], {"model.safetensors": content})
        cards = [CARDS[f"{family}_{backbone}"] for family in ("softcam", "cape")]
        told, alone = run_blocks(cards, hub, tmp_path / "home")
    maps = f"torch.Size([1, 2, {row['map_size'][0]}, {row['map_size'][1]}])"
    assert told.count(f"{maps}\ntensor") == 2  # of timm's weights
    assert told.count(f"torch.Size([1, 2]) {maps}") == 2  # of the Auto classes
    assert f"torch.Size([1, 2]) {maps}" in alone


def test_a_card_shows_speed_only_where_it_was_measured():
    assert "all maps" in CARDS["cape_resnet50"]
    assert "Nothing but what stands under *Exactness*" in CARDS["cape_vgg16"]
    assert "ms" not in render_family_card(FAMILIES["cape_resnet50"], []).split("## Results")[1].split("##")[0].split()


def test_a_card_names_a_place_until_it_is_pushed(folder):
    assert PLACEHOLDER_REPO in (folder / "README.md").read_text()
    assert PLACEHOLDER_REPO.encode() not in model_files(folder, "ada/eyes")["README.md"]
