"""Names that other people chose are shown as text in a card, whatever they look like, and do not fail its check."""

import json

import pytest
import yaml

from softcam_hub.hub.cards import check_card, load_model_record, render_trained_card
from softcam_hub.hub.cards.checks import CODE_SPAN, FENCE
from softcam_hub.hub.cards.escaping import as_code, as_text

NAMES = {
    "gap": "TODO",
    "other gaps": "TBD FIXME",
    "template": "{{x}}",
    "statement": "{% if x %}",
    "no value": "None |",
    "script": "<script>alert(1)</script>",
    "bold": "<b>x</b>",
    "comment": "<!-- x",
    "heading": "# x",
    "link": "[a](https://x.org)",
    "picture": "![a](b.png)",
    "address": "https://x.org",
    "short address": "www.x.org",
    "pipe": "a | b",
    "backtick": "a ` b",
    "fence": "```python",
    "fence on a line of its own": "a\n```\n# b\n<script>",
    "break": "a\n\n# b\n",
    "control": "a\x1b[31m\x00",
    "emphasis": "*a* __b__ ~c~",
    "backslash": "\\",
    "entity": "&lt;b&gt;",
    "missing": "[More Information Needed]",
    "long": "x" * 5000,
    "quote": "\"'",
    "number": "12.5 %",
    "time": "31 ms",
    "decimal": "0.123",
    "list": "1. x",
    "dashes": "---",
}

MARKUP = (
    *("<script", "<b>", "<!--", "](https://x.org)", "![a]", "{{", "TODO", "\x1b", "x" * 100, "\n# b", "*a*"),
    *("www.x", "\n1. x", "\n- x"),
)


def prose_of(card):
    """The text of a card without its metadata, code blocks and citations."""
    text = card.split("\n---\n", 1)[1].split("## Citations")[0]
    return CODE_SPAN.sub("", FENCE.sub("", text))


def blocks_of(card, language):
    return [code for found, code in FENCE.findall(card) if found == language]


def checked_card(folder):
    record = load_model_record(folder)
    card = render_trained_card(record)
    check_card(card, record.rows, present={path.name for path in folder.iterdir()})
    return card


def edit(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("case", NAMES)
def test_names_of_classes_are_text(case, folder):
    config = json.loads((folder / "config.json").read_text())
    labels = [NAMES[case], *config["label_names"][1:]]
    edit(folder / "config.json", label_names=labels, id2label={**config["id2label"], "0": NAMES[case]})
    card = checked_card(folder)
    assert not [markup for markup in MARKUP if markup in card.split("## Citations")[0]]


@pytest.mark.parametrize("case", NAMES)
def test_names_of_data_are_text(case, folder):
    edit(folder / "metrics.json", data=NAMES[case])
    sentence = next(line for line in prose_of(checked_card(folder)).splitlines() if "trained on" in line)
    assert not [markup for markup in MARKUP if markup in sentence]


@pytest.mark.parametrize("case", NAMES)
def test_titles_and_names_of_scores_machines_seeds_and_trainers_are_text(case, folder):
    name = NAMES[case]
    (folder / "rows.jsonl").unlink()
    edit(folder / "metrics.json", **{f"test_{name}": 0.5}, machine=name, torch=name)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"seed": name}))
    record = load_model_record(folder)
    card = render_trained_card(record, name=name)
    check_card(card, record.rows, present={path.name for path in folder.iterdir()})
    prose = prose_of(card)
    assert not [markup for markup in MARKUP if markup in prose]


@pytest.mark.parametrize("case", NAMES)
def test_names_in_the_rows_of_a_benchmark_are_text(case, folder):
    name = NAMES[case]
    row = {"explainer": name, name: 0.25, "data": name, "split": name, "images": 4, "explainers": name, "twin": name}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    card = checked_card(folder)
    assert not [markup for markup in MARKUP if markup in prose_of(card)]
    (command,) = blocks_of(card, "bash")
    assert len(command.strip().splitlines()) == 1


@pytest.mark.parametrize("case", NAMES)
def test_settings_and_licences_are_kept_as_they_are(case, folder):
    settings = {"model": NAMES[case], "note": [NAMES[case]], "epochs": 3}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    record = load_model_record(folder, license=NAMES[case])
    card = render_trained_card(record)
    check_card(card, record.rows, present={path.name for path in folder.iterdir()})
    shown = yaml.safe_load(*blocks_of(card, "yaml"))
    assert shown["note"] == settings["note"]
    assert shown["epochs"] == 3
    assert yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))["license"] == NAMES[case]


def test_ordinary_names_stay_readable():
    for name in ("healthy", "torch 2.6.0+cu126", "Dr. Ada's set (2nd)", "a_b", "x86_64 @ 2.1GHz", "AC/DC"):
        assert as_text(name) == name
    assert as_text(7) == "7"
    assert (as_code("resnet50.a1_in1k"), as_code("")) == ("`resnet50.a1_in1k`", "")
