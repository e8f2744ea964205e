"""What the page of the reproduction says about photographs: seeds, hours, and what is missing."""

from benchmarks.reproduction.circumstances import photographs


def run(study, seed, hours=2.0):
    return {"study": study, "seed": seed, "kind": "training", "seconds": 3600 * hours}


def test_seeds_hours_and_missing_studies_are_told():
    text = photographs([run("steel", 2), run("steel", 0), run("steel, 160 px", 0, 0.5), run("lesions", 0)])
    assert (
        "ran *steel* with seeds 0, 2; *steel, 160 px* with seed 0. Training took 4.5 hours by the clock in all" in text
    )
    assert "fewer than 3 seeds is shown, and decides nothing" in text
    assert "Not run yet: *steel, stride 32*, *steel, stride 8*, *steel, 320 px*." in text


def test_whole_studies_leave_nothing_to_say():
    studies = ("steel", "steel, stride 32", "steel, stride 8", "steel, 160 px", "steel, 320 px")
    text = photographs([run(study, seed) for study in studies for seed in range(3)])
    assert "decides nothing" not in text
    assert "Not run yet" not in text
