"""The table of a benchmark: the best of every measure, points, and intervals."""

import numpy as np
from helpers.benchmark import DATA, save_models, vanilla_model

from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.report import interval_table, table1


def test_table_names_the_best_and_counts_points():
    common = {
        "images": 2,
        "annotated": 0,
        "data": "d",
        "split": "test",
        "seed": 0,
        "torch": "",
        "timm": "",
        "device": "",
    }
    scores = ("average_drop", "increase_in_confidence", "average_drop_in_deletion", "adcc", "miou")
    rows = [
        {"explainer": name, "explains": "vanilla", **dict(zip(scores, values, strict=True)), **common}
        for name, values in {
            "cam": (10, 40, 30, 50, 20),
            "fd-cam": (20, 50, 30, 60, 30),
            "random": (5, 0, 0, 0, 99),
        }.items()
    ]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table1(rows).splitlines()[:5]]
    assert cells[2] == ["cam", "vanilla", "10.0", "40.0", "**30.0**", "50.0", "**20.0**", "**13**"]  # 3 + 2 + 3 + 2 + 3
    assert cells[3] == ["fd-cam", "vanilla", "20.0", "**50.0**", "**30.0**", "**60.0**", "30.0", "**13**"]
    assert cells[4] == ["random", "vanilla", "**5.0**", "0.0", "0.0", "0.0", "99.0", "-"]


def test_everything_that_cannot_be_told_from_the_best_is_bold():
    """AD of five explainers on 60 images: two are the best on different images, the others are clearly worse."""
    low = np.linspace(5, 30, 60)
    drops = {
        "cam": low,
        "fd-cam": np.roll(low, 31) + 0.5,
        "lift-cam": low + 3,
        "layer-cam": low + 40,
        "random": low + 3,
    }
    values = {(name, "vanilla"): {"average_drop": column} for name, column in drops.items()}
    common = {"images": 60, "annotated": 0, "data": "d", "split": "test", "seed": 0}
    common |= {"torch": "", "timm": "", "device": ""}
    rows = [
        {"explainer": name, "explains": "vanilla", "average_drop": column.mean(), **common}
        for name, column in drops.items()
    ]
    text = table1(rows, values)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:7]]
    assert [line[2] for line in cells] == ["**17.5**", "**18.0**", "20.5", "57.5", "20.5"]
    # plain ranks 1 to 4; of the significant ranks, cam and fd-cam share the first, lift-cam has the second
    assert [line[3].strip("*") for line in cells] == ["3", "2", "1", "0", "-"]
    assert [line[4].strip("*") for line in cells] == ["3", "3", "2", "1", "-"]
    assert "cannot be told from it" in text
    assert "cannot be told from it" not in table1(rows)
    assert table1(rows).count("**") == 4, "the best drop, and the best points"
    assert interval_table(rows) == ""


def test_one_image_has_no_interval(tmp_path):
    save_models(vanilla_model(), tmp_path / "models")
    options = {"explainers": "cape random", "measures": "table", "limit": 1, **DATA}
    rows = benchmark(tmp_path / "models" / "cape", tmp_path / "table", **options)
    assert not [name for row in rows for name in row if name.endswith("_interval")]
    text = (tmp_path / "table" / "table1.md").read_text()
    assert "intervals" not in text
    assert [line.count("**") for line in text.splitlines()[2:4]] == [10, 10], "nothing is told apart"
