"""The benchmarks of evidence of several depths and of IDSDS: exactness at the start, and tables by hand."""

import pytest
import timm
import torch

from benchmarks.idsds import WITH, WITHOUT, idsds_table
from benchmarks.scales import ScaledEvidence, add, scales_table


@torch.no_grad()
def test_evidence_of_three_depths_begins_as_the_plain_network_and_its_mean_stays_the_logit():
    torch.manual_seed(0)
    model = timm.create_model("softcam_test_efficientnet", num_classes=3)
    network, images = ScaledEvidence(model, fine=True).eval(), torch.rand(2, 3, 64, 64)
    terms = network.terms(images)
    assert [term.shape[-1] for term in terms] == [8, 4, 2]
    torch.testing.assert_close(add(terms).mean(dim=(2, 3)), model(images))
    for head in network.heads:
        head.weight.normal_()
    terms = network.terms(images)
    means = sum(term.mean(dim=(2, 3)) for term in terms)
    torch.testing.assert_close(add(terms).mean(dim=(2, 3)), means)
    assert (means - model(images)).abs().max() > 0.01
    kept = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    finer = sum(term.mean(dim=(2, 3)) for term in terms[:2])
    torch.testing.assert_close(add(terms, kept).mean(dim=(2, 3)), torch.stack([means[0], finer[1]]))
    torch.testing.assert_close(
        add(terms)[0, :, 5, 3], terms[0][0, :, 5, 3] + terms[1][0, :, 2, 1] + terms[2][0, :, 1, 0]
    )


def test_the_table_tells_the_gain_on_small_annotations():
    def row(variant, values):
        scores = dict.fromkeys(("hit_rate", "pointing_game", "activation_precision"), values)
        values = {**scores, "area": [0.1, 0.2, 0.3]}
        return {
            "variant": variant,
            "seed": 0,
            "accuracy": 0.5,
            "images": 3,
            "values": values,
            "machine": "m",
            "torch": "t",
        }

    table = scales_table([row("scales", [1.0, 1.0, 0.0]), row("plain", [0.0, 1.0, 0.0])])
    plain, scales = table.splitlines()[-2:]
    assert plain.startswith("| plain | 50.0 | 33.3 | 0.0 |")
    assert scales.startswith("| scales | 50.0 | 66.7 (+33.3 [+0.0, +100.0]) | 100.0 (+100.0 [")


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
