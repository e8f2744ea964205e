"""What goes wrong during a run: values that are not finite, and pictures that cannot be drawn."""

import json
import math

import pytest
from datasets import Dataset as Table, DatasetDict
from helpers.training import SIZE, TRAIN, train, training_of
from PIL import Image

from softcam_hub.training import NotFinite
from softcam_hub.training.optimization import EpochSampler
from softcam_hub.training.reporting import read_log


def test_an_infinite_loss_names_step_images_and_checkpoint(tmp_path):
    options = {"schedule": "step", "decay_epochs": 1, "decay_rate": 1e30}
    with pytest.raises(NotFinite) as error:
        train(tmp_path, **options, epochs=4)
    message = str(error.value)
    assert f"the last good checkpoint is {tmp_path}/checkpoints/step-000000006" in message
    step = int(message.split("at update ")[1].split()[0])
    assert 7 <= step <= 9
    assert "(epoch 2)" in message
    named = json.loads("[" + message.split("[")[1].split("]")[0] + "]")
    order = EpochSampler(TRAIN, 48, 0)
    order.set_epoch(1)
    assert named == [index for _, index in list(order)[8 * (step - 7) : 8 * (step - 6)]]
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")][-1] == step - 1
    assert not (tmp_path / "metrics.json").exists()


def test_an_infinite_loss_before_any_checkpoint_says_so(tmp_path):
    with pytest.raises(NotFinite, match="there is no checkpoint yet. Lower lr"):
        train(tmp_path, lr=1e30)


def test_weights_that_explode_in_the_last_update_are_no_checkpoint(tmp_path):
    options = {"schedule": "constant", "lr": 1e30, "batch_size": 48}  # one update, whose loss is still finite
    with pytest.raises(
        NotFinite, match="a weight is nan after update 1; there is no checkpoint yet. Lower lr or set clip"
    ):
        train(tmp_path / "a", **options, optimizer="momentum", weight_decay=1e30, epochs=1, validation_split="")
    assert not list((tmp_path / "a").glob("checkpoints/*"))
    assert not (tmp_path / "a" / "model").exists()
    with pytest.raises(NotFinite, match="the validation loss is nan after update 1; there is no checkpoint yet"):
        train(tmp_path / "b", **options, optimizer="momentum", weight_decay=1e30, epochs=1)
    assert not (tmp_path / "b" / "best").exists()


def test_an_infinite_test_loss_ends_the_run(tmp_path):
    training = training_of(tmp_path)
    training.check_finite("the test loss", 0.5)
    training.step = 3
    training._save()
    with pytest.raises(
        NotFinite, match="the test loss is inf after update 3; the last good checkpoint is .*/step-000000003"
    ):
        training.check_finite("the test loss", math.inf)


def test_an_undefined_score_is_null_in_the_log(tmp_path):
    same = Table.from_dict({"image": [Image.new("RGB", (SIZE, SIZE))] * 6, "label": [1] * 6})
    train_rows = Table.from_dict({"image": [Image.new("RGB", (SIZE, SIZE))] * 16, "label": [0, 1] * 8})
    DatasetDict({"train": train_rows, "validation": same}).save_to_disk(tmp_path / "data")
    train(tmp_path / "run", draw=True, data=str(tmp_path / "data"), epochs=1)
    text = (tmp_path / "run" / "log.jsonl").read_text()
    assert "NaN" not in text
    assert '"validation_auc": null' in text
    assert (tmp_path / "run" / "curve.png").exists()


def with_boxes(folder, last):
    """Write a manifest whose last test image has a given box, and return its path."""
    lines = ["image,label,split,boxes"]
    for number in range(24):
        split = "train" if number < 16 else "validation" if number < 20 else "test"
        Image.new("RGB", (SIZE, SIZE), (9 * number, 60, 60)).save(folder / f"{number}.png")
        box = last if number == 20 else [0, 0, 9, 9]
        lines.append(f'{number}.png,{"ab"[number % 2]},{split},"[{box}]"')
    (folder / "data.csv").write_text("\n".join(lines))
    return str(folder / "data.csv")


def test_a_box_beyond_its_image_costs_a_picture_and_not_the_run(tmp_path, caplog):
    data = with_boxes(tmp_path, [0, 0, SIZE + 1, 9])
    metrics = train(tmp_path / "run", draw=True, data=data, epochs=1)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    assert (tmp_path / "run" / "model" / "README.md").exists()
    assert not (tmp_path / "run" / "examples.png").exists()
    assert "not all pictures of" in caplog.text
    assert f"row 0 of split 'test' (20.png): the box [0, 0, {SIZE + 1}, 9] does not fit its image" in caplog.text


def test_an_invalid_box_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="row 0 of split 'test' \\(20.png\\): \\[0, 9, 9, 9\\] is not a box"):
        train(tmp_path / "run", data=with_boxes(tmp_path, [0, 9, 9, 9]))
