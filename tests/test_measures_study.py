"""The measures are measured: maps that are known to be right or wrong, and the decisions of the measures."""

import torch

from benchmarks.measures.known_maps import BAD, GOOD, edges, load_model, make_cases, others, spread
from benchmarks.measures.study import decisions, rows_of
from benchmarks.measures.tables import fooled, measures_table
from softcam_hub.explanation_scores.faithfulness import pearson


def test_drops_are_spread_evenly_over_their_parts_and_rises_do_not_count():
    first, second = torch.zeros(2, 4, 4, dtype=torch.bool)
    first[0, :2], second[0, 1:] = True, True
    found = spread([first, second, first], torch.tensor([4.0, 6.0, -1.0]))
    assert found[0].tolist() == [2, 4, 2, 2]
    assert found[1:].abs().sum() == 0


def test_edges_are_where_the_brightness_changes():
    images = torch.zeros(1, 3, 6, 6)
    images[:, :, :, 3:] = 1
    found = edges(images)[0]
    assert (found[:, 2:4] == 4).all()
    assert found[:, :2].abs().sum() == found[:, 4:].abs().sum() == 0


def test_the_other_image_is_one_of_the_same_class():
    labels = torch.tensor([1, 2, 1, 2, 1])
    assert others(labels).tolist() == [2, 3, 4, 1, 0]


def test_decisions_by_hand():
    good, bad = torch.tensor([1.0, 2.0, 3.0, torch.nan]), torch.tensor([0.0, 2.0, 5.0, 0.0])
    assert decisions(good, bad, True)[:3].tolist() == [1, 0.5, 0]
    assert decisions(good, bad, False)[:3].tolist() == [0, 0.5, 1]
    assert decisions(good, bad, True)[3].isnan()


def test_rows_and_their_table():
    values = {GOOD: 1.0, **dict.fromkeys(BAD, 0.0), "random": 2.0}
    rows = rows_of("mean", lambda name: torch.full((10,), values[name]), True)
    assert {row["against"]: row["share"] for row in rows} == {**dict.fromkeys(BAD, 1.0), "random": 0.0, "mean": 0.8333}
    assert rows[0]["images"] == 10
    assert fooled(rows[:-1]) == "random"
    table = measures_table(rows)
    assert "| mean | 0 [0, 0] | **100 [100, 100]** |" in table
    assert table.rstrip().endswith("| **83 [83, 83]** | random |")


def test_the_right_map_lies_in_the_lesions_and_the_shifted_one_half_a_cell_further():
    cases = make_cases(load_model(), 4)
    assert cases.maps.keys() == {GOOD, *BAD}
    inside = (cases.maps[GOOD] * cases.masks).sum() / cases.maps[GOOD].sum()
    assert inside > 3 * cases.masks.float().mean(), "the network decides by the lesions"
    good, shifted = (cases.maps[name].flatten(1) for name in (GOOD, "shifted"))
    moved = cases.maps[GOOD].roll((4, 4), dims=(1, 2)).flatten(1)  # cells have 8 pixels
    assert (pearson(moved, shifted) > pearson(good, shifted) + 0.01).all()
    assert torch.equal(cases.maps["random"], make_cases(load_model(), 4).maps["random"])
