"""Values of every image behind the tables: a row per explainer, curves as means, files that replace earlier rows."""

import numpy as np

from benchmarks import tables, values
from softcam_hub.evaluation.statistics import bootstrap_means


def line(index, explainer, explains="model", **measures):
    what = {"index": index, "explainer": explainer, "explains": explains, "label": 1, "predicted": 1, "annotated": True}
    return {**what, **measures}


def test_lines_become_a_row_for_every_explainer_and_model():
    lines = [
        line(0, "cam", iou=0.123456, precision=[0.0, 1.0, 0.5]),
        line(0, "cam", "vanilla", iou=0.9, precision=None),
        line(1, "cam", iou=None, precision=[1.0, 1.0, 1.0]),
        line(1, "cam", "vanilla", iou=0.8, precision=None),
    ]
    assert values.values_by_explainer(lines) == [
        {"explainer": "cam", "explains": "model", "label": [1, 1], "iou": [0.1235, None], "precision": [0.5, 1.0]},
        {"explainer": "cam", "explains": "vanilla", "label": [1, 1], "iou": [0.9, 0.8], "precision": [None, None]},
    ]


def test_an_increase_of_the_confidence_in_its_last_digits_is_kept():
    confidences = {"confidence": 0.99998641, "kept": 0.99998647, "removed": 0.5}
    (row,) = values.values_by_explainer([line(0, "cam", **confidences), line(1, "cam", **confidences | {"kept": 0.9})])
    assert values.image_values_by_explainer([row])["cam", "model"]["increase_in_confidence"].tolist() == [100, 0]


def test_rows_of_a_key_are_replaced_and_equal_rows_give_equal_files(tmp_path, monkeypatch):
    monkeypatch.setattr(values, "VALUES", tmp_path)
    assert values.read_values("study") == []
    values.replace_values([{"seed": 1, "iou": [0.5]}, {"seed": 0, "iou": [0.25]}], "study", ("seed",))
    first = (tmp_path / "study.jsonl.gz").read_bytes()
    values.replace_values([{"seed": 1, "iou": [0.5]}], "study", ("seed",))
    assert (tmp_path / "study.jsonl.gz").read_bytes() == first
    values.replace_values([{"seed": 1, "iou": [0.75]}], "study", ("seed",))
    assert values.read_values("study") == [{"seed": 0, "iou": [0.25]}, {"seed": 1, "iou": [0.75]}]


def rows_of(**ious):
    lists = [(name, [0.01 * (shift + index) for index in range(30)]) for name, shift in ious.items()]
    return [{"explainer": name, "explains": "model", "label": [0] * 30, "iou": column} for name, column in lists]


def test_rows_of_values_give_the_measures_of_all_images():
    found = values.image_values_by_explainer(rows_of(cam=0, cape=30))
    assert list(found) == [("cam", "model"), ("cape", "model")]
    assert np.allclose(found["cape", "model"]["miou"], np.arange(30, 60))
    assert list(found["cape", "model"]) == ["miou"]


def test_the_table_of_explanations_marks_all_that_cannot_be_told_from_the_best(monkeypatch):
    measured = rows_of(cam=1, cape=0, random=30)
    measured[1]["iou"] = measured[1]["iou"][15:] + measured[1]["iou"][:15]  # better by 1 on average, on other images
    found = values.image_values_by_explainer(measured)
    common = {
        "images": 30,
        "annotated": 0,
        "data": "d",
        "split": "test",
        "seed": 0,
        "torch": "1",
        "timm": "2",
        "device": "cpu",
    }
    rows = []
    for (explainer, explains), measures in found.items():
        ends = bootstrap_means([measures["miou"][None]]).interval()[:, 0].tolist()
        rows.append({"explainer": explainer, "explains": explains, "miou": measures["miou"].mean(), **common})
        rows[-1]["miou_interval"] = ends
    monkeypatch.setattr(tables, "read_values", lambda name: [])
    assert "| cam | model | 15.5 |\n| cape | model | **14.5** |" in tables.explanations_table(rows)
    monkeypatch.setattr(tables, "read_values", lambda name: measured)
    text = tables.explanations_table(rows)
    assert "| cam | model | **15.5** |\n| cape | model | **14.5** |\n| random | model | 44.5 |" in text
    low, high = rows[0]["miou_interval"]
    assert f"| cam | model | [{low:.1f}, {high:.1f}] |" in text
    assert "cannot be told from it" in text
    assert tables.with_interval(rows[0], "miou") == f"15.5 [{low:.1f}, {high:.1f}]"
    assert tables.with_interval({"miou": 15.5}, "miou") == "15.5"
