"""Networks with known reasons: which explainers name them, by hand."""

from pathlib import Path

import pytest

from benchmarks.causal.study import ROWS, SQUARES, counts, first_is_reason, row_of
from benchmarks.causal.tables import causal_table
from benchmarks.timing import read_rows
from softcam_hub.data.lesions import list_distractors

BEFORE = len(list_distractors("cue")) + SQUARES


def test_the_reason_is_first_only_if_it_is_above_all_others():
    assert first_is_reason([1.0, None, 2.0, 3.0], before=3) == 1
    assert first_is_reason([1.0, None, 2.0, 2.0], before=3) == 0
    assert first_is_reason([0.0, 5.0, None, 4.0, 6.0], before=3) == 1
    assert first_is_reason([0.0, 7.0, None, 4.0, 6.0], before=3) == 0


def line(effects, evidence, label=1, predicted=1, rank=0.5, explainer="cape"):
    scores = dict.fromkeys(("causal_rank", "causal_linear", "causal_rank_logit", "causal_linear_logit"), rank)
    return {
        "explainer": explainer,
        "explains": "model",
        "label": label,
        "predicted": predicted,
        "part_effects": effects,
        "part_evidence": evidence,
        "idle_share": 0.25,
        "background_share": None,
        **scores,
    }


def test_a_row_counts_images_that_show_the_reason_and_are_right():
    others, low = [0.0] * BEFORE, [0.1] * BEFORE
    named, missed = line([*others, 5.0], [*low, 0.6]), line([*others, 5.0], [*low, 0.05], rank=None)
    plain, unseen = line(others, low, label=0, predicted=0), line([*others, None], [*low, None])
    wrong = line([*others, 5.0], [*low, 0.6], predicted=0)
    assert [counts(one, BEFORE) for one in (named, missed, plain, unseen, wrong)] == [True, True, False, False, False]
    row = row_of("cue", "lesions-cape-ts", [named, missed, plain, unseen, wrong])
    assert (row["images"], row["accuracy"]) == (2, pytest.approx(4 / 5))
    assert (row["effect_is_reason"], row["evidence_is_reason"], row["causal_rank"]) == (1, 0.5, 0.5)
    assert (row["lesions_without_effect"], row["idle_share"]) == (1, 0.25)
    assert "background_share" not in row, "no image has a square"
    table = causal_table([row])
    assert "80 % of the images right, 2 that count, in 100 % of which the reason has the largest effect" in table
    assert "and in 100 % all lesions together have none" in table
    assert "| cue | `cape` | `lesions-cape-ts`, the model itself | 50 [0, 100] |" in table


def test_the_page_says_what_the_rows_say():
    text = " ".join((Path(__file__).parents[1] / "docs" / "scores.md").read_text(encoding="utf-8").split())
    rows = {(row["data"], row["explainer"]): row for row in read_rows(ROWS)}
    share = {key: f"{100 * row['evidence_is_reason']:.0f} %" for key, row in rows.items()}
    named = ("cape", "softcam", "grad-cam", "score-cam", "guided-backprop", "integrated-gradients")
    sentence = (
        "CAPE's names it in {} of the images, SoftCAM's in {}, Grad-CAM's in {}, Score-CAM's in {}, Guided Backprop's in "
        "{} and that of integrated gradients in {}."
    )
    assert sentence.format(*(share["cue", name] for name in named)) in text
    assert all(row["effect_is_reason"] == 1 for (data, _), row in rows.items() if data == "cue")
    coarse = {key: row["evidence_is_reason"] for key, row in rows.items() if key[0] == "lesions"}
    sharp = coarse.pop(("lesions", "guided-backprop")), coarse.pop(("lesions", "integrated-gradients"))
    assert max(coarse, key=coarse.get) == ("lesions", "cape")
    assert max(coarse.values()) < min(sharp)
    assert f"in more than {share['lesions', 'cape']} of the images" in text
