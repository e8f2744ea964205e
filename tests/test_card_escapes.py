"""Names of classes and data are shown as text in a card, whatever they look like, and do not fail its check."""

import json
import shutil

import pytest

import softcam_hub
from softcam_hub.hub.cards import check_card, load_model_record, render_trained_card

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
    "pipe": "a | b",
    "backtick": "a ` b",
    "fence": "```python",
    "break": "a\n\n# b\n",
    "control": "a\x1b[31m\x00",
    "emphasis": "*a* __b__ ~c~",
    "backslash": "\\",
    "entity": "&lt;b&gt;",
    "missing": "[More Information Needed]",
    "long": "x" * 5000,
    "quote": "\"'",
    "number": "12.5 %",
    "decimal": "0.123",
    "dashes": "---",
}


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(softcam_hub.CAPE_LESIONS, tmp_path / "model")


@pytest.mark.parametrize("case", NAMES)
def test_a_strange_class_is_text(case, folder):
    name, file = NAMES[case], folder / "config.json"
    config = json.loads(file.read_text())
    config["label_names"] = [name, *config["label_names"][1:]]
    config["id2label"]["0"] = name
    file.write_text(json.dumps(config))
    card = render_trained_card(load_model_record(folder))
    check_card(card, load_model_record(folder).rows, present={path.name for path in folder.iterdir()})
    for markup in (
        "<script",
        "<b>",
        "<!--",
        "](https://x.org)",
        "![a]",
        "{{",
        "TODO",
        "\x1b",
        "x" * 100,
        "\n# b",
        "*a*",
    ):
        assert markup not in card.split("## Citations")[0]


@pytest.mark.parametrize("case", NAMES)
def test_strange_data_are_text(case, folder):
    file = folder / "metrics.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "data": NAMES[case]}))
    body = render_trained_card(load_model_record(folder)).split("\n---\n", 1)[1]
    sentence = next(line for line in body.splitlines() if "Trained on" in line)
    assert "<script" not in sentence
    assert "](https" not in sentence
    assert "{{" not in sentence
