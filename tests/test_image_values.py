"""Values of every image behind the tables: a row per explainer, curves as means, files that replace earlier rows."""

import numpy as np

from benchmarks import values


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


def test_of_the_histogram_of_masses_the_numbers_of_cells_are_kept():
    lines = [line(0, "cape", mass_histogram=[2.0, 0.0, 15.0, 1.0, 0.25, 0.125]), line(1, "cape", mass_histogram=None)]
    (row,) = values.values_by_explainer(lines)
    assert row["mass_histogram"] == [[2, 0, 15, 1], None]
    assert values.image_values_by_explainer([row]) == {("cape", "model"): {}}


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
