"""Values of every image behind the tables: a row per explainer, curves as means, files that replace earlier rows."""

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


def test_rows_of_a_key_are_replaced_and_equal_rows_give_equal_files(tmp_path, monkeypatch):
    monkeypatch.setattr(values, "VALUES", tmp_path)
    assert values.read_values("study") == []
    values.replace_values([{"seed": 1, "iou": [0.5]}, {"seed": 0, "iou": [0.25]}], "study", ("seed",))
    first = (tmp_path / "study.jsonl.gz").read_bytes()
    values.replace_values([{"seed": 1, "iou": [0.5]}], "study", ("seed",))
    assert (tmp_path / "study.jsonl.gz").read_bytes() == first
    values.replace_values([{"seed": 1, "iou": [0.75]}], "study", ("seed",))
    assert values.read_values("study") == [{"seed": 0, "iou": [0.25]}, {"seed": 1, "iou": [0.75]}]
