"""The table of IDSDS by hand."""

import pytest

from benchmarks.idsds import WITH, WITHOUT, idsds_table


def test_the_table_of_idsds_puts_the_published_score_first():
    common = {"recipe": "r", "explains": "model", "images": 7, "accuracy": 98.5, "torch": "t"}
    rows = [
        {
            **common,
            "learnt_from": learnt_from,
            "explainer": name,
            "idsds": value,
            "idsds_interval": [value - 0.1, value + 0.1],
        }
        for learnt_from, name, value in (
            (WITH, "cam", 0.2),
            (WITH, "cape", 0.3),
            (WITHOUT, "cam", 0.5),
            (WITHOUT, "cape", 0.4),
        )
    ]
    table = idsds_table(rows).splitlines()
    assert table[-2:] == [
        "| `cape` | `r` | 0.30 [0.20, 0.40] | 0.40 [0.30, 0.50] |",
        "| `cam` | `r` | 0.20 [0.10, 0.30] | 0.50 [0.40, 0.60] |",
    ]
    assert "`r`, deleted cells: 98.5 %" in table[0]
    with pytest.raises(KeyError):
        idsds_table(rows[:3])
