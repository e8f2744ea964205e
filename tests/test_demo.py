"""`make demo`: its data hold what they say, and a short run trains, explains and writes the picture."""

import sys

import torch
from PIL import Image

from softcam_hub import demo


def test_batches_are_deterministic_and_balanced():
    images, labels = demo.batch(6, 9)
    again, _ = demo.batch(6, 9)
    assert torch.equal(images, again)
    assert labels.bincount().tolist() == [3, 3, 3]
    assert images.min() >= -1
    assert images.max() <= 1
    assert not torch.equal(images[0], images[3])


def test_a_short_run_learns_and_writes_its_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path / "new" / "folder"), "--steps", "60"])
    demo.main()
    said = capsys.readouterr().out
    losses = [float(line.split("loss ")[1]) for line in said.splitlines() if "loss" in line]
    assert losses
    assert losses[-1] < 1.2
    assert "on 300 new images: accuracy" in said
    with Image.open(tmp_path / "new" / "folder" / "shapes.png") as picture:
        assert picture.width > 3 * picture.height
