"""The table of the agreement of explainers on photographs, and the command without its runs."""

import pytest

from benchmarks import agreement


def row(explainer, **correlation):
    values = {"cam": 1.0, "guided-backprop": 0.5, "cape": -0.25, "mu-cape": None} | correlation
    return {
        "explainer": explainer,
        "correlation": values,
        "compared_images": dict.fromkeys(values, 120) | {"cape": 118},
    }


def test_a_line_for_every_explainer_and_no_number_for_itself_or_for_no_value():
    text = agreement.agreement_table([row("cam"), row("random", cam=0.0)])
    assert "| `cam` | - | 0.500 | -0.250 | - |\n" in text
    assert "| `random` | 0.000 | 0.500 | -0.250 | - |\n" in text
    assert "means over 120 test photographs of steel (118 at least" in text


def test_without_the_runs_of_the_study_the_command_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["agreement", "--runs", str(tmp_path)])
    with pytest.raises(SystemExit, match="has no run cape-pf: run `make reproduce-steel` first"):
        agreement.main()
