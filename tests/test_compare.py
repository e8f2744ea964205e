"""`softcam-hub compare` on folders and files written by hand: what it reads, prints and refuses."""

import gzip
import json

import numpy as np
import pytest

from softcam_hub.cli import main
from softcam_hub.evaluation.comparison import compare
from softcam_hub.evaluation.localisation_rows import summarise_localisation
from softcam_hub.evaluation.shards import write_shard
from softcam_hub.evaluation.significance import holm
from softcam_hub.evaluation.statistics import bootstrap_means

IMAGES = 40


def make_lines(shifts, images=IMAGES, label=lambda index: index % 3, explains="vanilla"):
    """Lines of a benchmark; the pointing game is of every second image only."""
    generator = np.random.default_rng(0)
    iou, energy = generator.uniform(0.2, 0.6, images), generator.uniform(0.2, 0.6, images)
    return [
        {
            "index": index,
            "explainer": name,
            "explains": explains,
            "label": label(index),
            "predicted": 0,
            "annotated": index % 2 == 0,
            "iou": iou[index] + shift * (1 + index % 4),
            "energy_pointing": energy[(index + (name == "cape")) % images] if index % 2 == 0 else None,
        }
        for name, shift in shifts.items()
        for index in range(images)
    ]


def write_folder(folder, lines, kept=True, finished=True, **images):
    folder.mkdir(parents=True)
    (folder / "shards").mkdir()
    half = len({line["index"] for line in lines}) // 2
    for number, shard in enumerate((range(half), range(half, 10**6))):
        write_shard(folder / "shards" / f"{number:05d}.json", [line for line in lines if line["index"] in shard])
    (folder / "settings.json").write_text(json.dumps({"images": {"count": half * 2, "hash": "a", **images}}))
    if finished:
        (folder / "rows.jsonl").write_text('{"explainer": "cape"}\n')
    if kept:
        (folder / "values.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "results", make_lines({"cape": -0.01, "cam": 0.0, "grad-cam": 1e-9}))


def test_columns_without_any_value_are_left_out(tmp_path):
    lines = make_lines({"cape": -0.01, "cam": 0.0})
    for line in lines:
        line |= {"pixel_histogram": None, "box_ious": None}
    measures = [row["measure"] for row in compare([write_folder(tmp_path / "some", lines)], "cape", "cam")]
    assert measures == [
        row["measure"]
        for row in compare([write_folder(tmp_path / "all", make_lines({"cape": -0.01, "cam": 0.0}))], "cape", "cam")
    ]


def refused(capsys, *words):
    """Return the sentence with which the command ends."""
    assert main(["compare", *map(str, words)]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    return captured.err


def test_differences_are_those_of_the_images_and_p_is_adjusted_for_the_measures(folder):
    overlap, energy = compare([folder], "cape", "cam")
    assert (overlap["measure"], overlap["images"]) == ("miou", IMAGES)
    differences = np.array([-(1 + index % 4) for index in range(IMAGES)], dtype=float)  # in percent
    low, high = bootstrap_means([differences[None]]).interval()[:, 0]
    assert overlap["difference"] == pytest.approx(-2.5)
    assert overlap["first"] - overlap["second"] == pytest.approx(-2.5)
    assert (overlap["low"], overlap["high"]) == pytest.approx((low, high))
    assert (energy["measure"], energy["images"]) == ("energy_pointing", IMAGES // 2)
    assert [overlap["p_holm"], energy["p_holm"]] == holm([overlap["p"], energy["p"]]).tolist()
    assert (overlap["significant"], energy["significant"]) == (True, False)


def test_the_table_shows_means_difference_interval_and_both_p_values(folder, capsys):
    assert main(["compare", str(folder), "cape", "cam"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "| measure | images | cape | cam | difference | 95 % interval | p | p (Holm) |"
    row = compare([folder], "cape", "cam")[0]
    means = f"{row['first']:.1f} | {row['second']:.1f} | -2.5 | [{row['low']:.1f}, {row['high']:.1f}]"
    assert printed[2] == f"| mIoU ↓ | 40 | {means} | 0.001 | 0.001 * |"


def test_equal_maps_do_not_differ(folder):
    overlap = compare([folder], "cam", "grad-cam")[0]
    assert (overlap["difference"], overlap["low"], overlap["high"], overlap["p"]) == (0, 0, 0, 1)


def test_the_folder_its_rows_its_values_and_its_shards_give_the_same(folder, tmp_path):
    expected = compare([folder], "cape", "cam")
    for path in (folder / "rows.jsonl", folder / "values.jsonl", str(folder)):
        assert compare([path], "cape:vanilla", "cam") == expected
    packed = tmp_path / "values.jsonl.gz"
    packed.write_bytes(gzip.compress((folder / "values.jsonl").read_bytes()))
    assert compare([packed], "cape", "cam") == expected
    (folder / "values.jsonl").unlink()
    assert compare([folder], "cape", "cam") == expected
    lines = make_lines({"cape": -0.01, "cam": 0.0})
    rows = []
    for name in ("cape", "cam"):
        own = [line for line in lines if line["explainer"] == name]
        lists = {key: [line[key] for line in own] for key in ("label", "iou", "energy_pointing")}
        rows.append({"explainer": name, "explains": "twin", "study": "a", **lists})
    packed.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert compare([packed], "cape:vanilla", "cam") == expected, "a row for every explainer, with lists"
    packed.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in [*rows, *rows]).encode()))
    with pytest.raises(ValueError, match=r"has several values of cape:vanilla for an image: name one benchmark"):
        compare([packed], "cape", "cam")


def test_two_benchmarks_of_the_same_images_are_compared(folder, tmp_path, capsys):
    other = write_folder(tmp_path / "other", make_lines({"cape": 0.02}, explains="model"))
    found = compare([folder, other], "cape", "cape")[0]
    assert found["difference"] == pytest.approx(-7.5)
    assert main(["compare", str(folder), str(other / "values.jsonl"), "cam", "cape:model"]) == 0
    assert "| -5.0 |" in capsys.readouterr().out


def test_other_images_or_labels_are_refused(folder, tmp_path, capsys):
    lines = make_lines({"cape": 0.02})
    images = write_folder(tmp_path / "images", lines, hash="b")
    assert "were not measured on the same images" in refused(capsys, folder, images, "cape", "cape")
    fewer = write_folder(tmp_path / "fewer", make_lines({"cape": 0.02}, images=30))
    said = refused(capsys, folder / "values.jsonl", fewer / "values.jsonl", "cape", "cape")
    assert f"cape:vanilla of {folder / 'values.jsonl'} and cape:vanilla of {fewer / 'values.jsonl'} were not" in said
    assert "they have 40 and 30 images" in said
    labels = write_folder(tmp_path / "labels", make_lines({"cape": 0.02}, label=lambda index: index % 4))
    said = refused(capsys, folder / "values.jsonl", labels, "cape", "cape")
    assert "of which the label differs" in said


def test_unknown_and_unclear_explainers_are_named_with_those_that_exist(folder, tmp_path, capsys):
    assert "has no explainer 'gradcam': did you mean grad-cam? (it has cape, cam, grad-cam)" in refused(
        capsys, folder, "cape", "gradcam"
    )
    assert "has no explainer 'x' (it has cape, cam, grad-cam)" in refused(capsys, folder, "x", "cam")
    assert "'cape:model' is not one explainer" in refused(capsys, folder, "cape:model", "cam")
    assert "cape would be compared with itself" in refused(capsys, folder, "cape", "cape:vanilla")
    both = make_lines({"cam": 0.0, "cape": 0.1}) + make_lines({"cam": 0.1}, explains="model")
    clear = write_folder(tmp_path / "both", both)
    assert "write cam:vanilla or cam:model" in refused(capsys, clear, "cam", "cape")
    assert compare([clear], "cam:model", "cam:vanilla")[0]["difference"] == pytest.approx(25)


def test_missing_values_are_answered_with_the_command_that_keeps_them(folder, tmp_path, capsys):
    rows = tmp_path / "published" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"explainer": "cape", "explains": "model", "label": 1}\n')
    assert "has no values of the images: measure them with `softcam-hub benchmark --per-image`" in refused(
        capsys, rows, "cape", "cam"
    )
    unfinished = write_folder(tmp_path / "unfinished", make_lines({"cape": 0.0, "cam": 0.1}), False, False)
    assert "has not ended: run the same command again" in refused(capsys, unfinished, "cape", "cam")
    assert "there is no" in refused(capsys, tmp_path / "nowhere", "cape", "cam")
    assert "expected one benchmark or two, got 3" in refused(capsys, folder, folder, folder, "cape", "cam")


@pytest.mark.parametrize(
    "content",
    [b"", b"no JSON", b"[1]\n", b"\xff", b'{"explainer": "cape", "explains": "model", "label": [1], "iou": ["x"]}'],
)
@pytest.mark.parametrize("name", ["values.jsonl", "values.jsonl.gz"])
def test_damaged_files_are_named(content, name, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refused(capsys, tmp_path / name, "cape", "cam")
    (tmp_path / name).write_bytes(gzip.compress(content))
    assert str(tmp_path / name) in refused(capsys, tmp_path / name, "cape", "cam")


def test_one_image_has_no_interval(tmp_path, capsys):
    file = tmp_path / "values.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in make_lines({"cape": 0.1, "cam": 0.0}, images=1)))
    assert main(["compare", str(file), "cape", "cam"]) == 0
    assert "| mIoU ↓ | 1 | 55.5 | 45.5 | 10.0 | - | 1.000 | 1.000 |" in capsys.readouterr().out
    assert main(["compare", str(file), "cape", "cam", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert (row["low"], row["high"], row["significant"]) == (None, None, False)


def test_explainers_without_a_common_measure_are_refused(tmp_path, capsys):
    lines = make_lines({"cape": 0.1, "cam": 0.0})
    for line in lines:
        line.pop("iou" if line["explainer"] == "cam" else "energy_pointing")
    file = tmp_path / "values.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "no measure in common" in refused(capsys, file, "cape", "cam")


def test_measures_of_sums_are_compared_by_exchanging_whole_images(tmp_path):
    """PxAP and MaxBoxAccV2 are no means over images: whole histograms and rows of IoUs change sides."""
    lines, generator = make_lines({"cape": -0.01, "cam": 0.0}), np.random.default_rng(3)
    for line in lines:
        good = 0.9 if line["explainer"] == "cape" else 0.4
        annotated = line["annotated"]
        line["box_ious"] = (good * generator.uniform(0.5, 1, 20)).round(3).tolist() if annotated else None
        share = np.arange(1, 102) ** (4 * good)
        inside = generator.multinomial(50, share / share.sum())
        outside = generator.multinomial(400, np.full(101, 1 / 101))
        line["pixel_histogram"] = [*inside.tolist(), *outside.tolist()] if annotated else None
    folder = write_folder(tmp_path / "results", lines)
    found = {row["measure"]: row for row in compare([folder], "cape", "cam")}
    assert list(found) == ["miou", "energy_pointing", "pxap", "max_box_accuracy"]
    for name in ("pxap", "max_box_accuracy"):
        of_images = {
            one: summarise_localisation([line for line in lines if line["explainer"] == one]) for one in ("cape", "cam")
        }
        assert found[name]["first"] == pytest.approx(of_images["cape"][name])
        assert found[name]["second"] == pytest.approx(of_images["cam"][name])
        assert found[name]["images"] == IMAGES // 2
        assert found[name]["low"] > 0
        assert found[name]["significant"]
    swapped = {row["measure"]: row for row in compare([folder], "cam", "cape")}
    assert swapped["pxap"]["difference"] == -found["pxap"]["difference"]
    assert swapped["pxap"]["p"] == pytest.approx(found["pxap"]["p"], abs=0.02)
