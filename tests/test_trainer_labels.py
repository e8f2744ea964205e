"""Labels that a model accepts in `Trainer`, and labels that it refuses."""

import pytest
import torch
from helpers.trainer import SEVERAL, images_of, make, squares

BAD_LABELS = {
    "class out of range": (
        {},
        torch.tensor([0, 1, 2, 3]),
        "label 3 is out of range: this model has 3 classes, 0 to 2",
    ),
    "negative class": (
        {},
        torch.tensor([0, 1, 2, -1]),
        "label -1 is out of range: this model has 3 classes, 0 to 2",
    ),
    "floating-point classes": (
        {},
        torch.tensor([0.0, 1.0, 2.0, 0.0]),
        "expected labels as integer class indices (4,) or probabilities (4, 3), got torch.float32 of shape (4,)",
    ),
    "column of classes": (
        {},
        torch.tensor([[0], [1], [2], [0]]),
        "expected labels as integer class indices (4,) or probabilities (4, 3), got torch.int64 of shape (4, 1)",
    ),
    "multi-hot": (
        {},
        torch.eye(4, 3).long(),
        "expected labels as integer class indices (4,) or probabilities (4, 3), got torch.int64 of shape (4, 3): "
        "several labels per image need SoftCAM with problem_type='multi_label_classification'",
    ),
    "other batch": (
        {},
        torch.tensor([0, 1, 2]),
        "expected labels as integer class indices (4,) or probabilities (4, 3), got torch.int64 of shape (3,)",
    ),
    "classes for several labels": (
        SEVERAL,
        torch.tensor([0, 1, 2, 0]),
        "expected multi-hot labels of shape (4, 3), a 0 or 1 for each class, got shape (4,): for one class per image "
        "use problem_type='single_label_classification'",
    ),
    "too many labels": (
        SEVERAL,
        torch.zeros(4, 5),
        "expected multi-hot labels of shape (4, 3), a 0 or 1 for each class, got shape (4, 5)",
    ),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels_are_refused(name):
    config, labels, expected = BAD_LABELS[name]
    for model in (make("softcam", **config), *([] if config else [make("cape"), make("cape", mode="from-scratch")])):
        with pytest.raises((ValueError, TypeError)) as error:
            model(images_of(squares(4)), labels=labels)
        assert str(error.value) == expected


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 0]).int(), torch.eye(4)[:, :3]])
def test_good_labels_of_every_form_are_accepted(labels):
    assert torch.isfinite(make("cape")(images_of(squares(4)), labels=labels).loss)


def test_images_without_a_label_do_not_count():
    model, x = make("softcam"), images_of(squares(4))
    loss = model(x, labels=torch.tensor([0, 1, -100, -100])).loss
    assert torch.allclose(loss, model(x[:2], labels=torch.tensor([0, 1])).loss)
