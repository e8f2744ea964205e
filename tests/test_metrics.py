"""Scores of a whole split, against scikit-learn and against loops that follow the definitions."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as theirs

from softcam_hub.training import metrics


def predictions(count=200, classes=4, absent=(), seed=0):
    """Return random probabilities that correlate with random labels, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    there = torch.tensor([label for label in range(classes) if label not in absent])
    labels = there[torch.randint(len(there), (count,), generator=generator)]
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1
    return logits.softmax(dim=1), labels


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_scores_are_those_of_scikit_learn(classes):
    probabilities, labels = predictions(classes=classes, seed=classes)
    found = metrics.classification_scores(probabilities, labels)
    predicted, truth = probabilities.argmax(1).numpy(), labels.numpy()
    shown = probabilities[:, 1].numpy() if classes == 2 else probabilities.double().numpy()
    if classes > 2:
        shown /= shown.sum(axis=1, keepdims=True)
    expected = {
        "accuracy": theirs.accuracy_score(truth, predicted),
        "balanced_accuracy": theirs.balanced_accuracy_score(truth, predicted),
        "auc": theirs.roc_auc_score(truth, shown, multi_class="ovr", average="macro"),
        "kappa": theirs.cohen_kappa_score(truth, predicted, weights="quadratic"),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_a_class_that_no_image_has_is_left_out_of_the_means():
    probabilities, labels = predictions(classes=5, absent=(1, 4))
    predicted, truth = probabilities.argmax(1), labels.numpy()
    confusion = metrics.confusion_matrix(predicted, labels, 5)
    assert confusion.tolist() == theirs.confusion_matrix(truth, predicted.numpy(), labels=range(5)).tolist()
    recalls = [(predicted[labels == label] == label).double().mean().item() for label in (0, 2, 3)]
    assert metrics.balanced_accuracy(confusion) == pytest.approx(np.mean(recalls))
    one_hot = torch.nn.functional.one_hot(labels, 5)
    each = [theirs.roc_auc_score(truth == label, probabilities[:, label].numpy()) for label in (0, 2, 3)]
    assert metrics.auc(probabilities, one_hot) == pytest.approx(np.mean(each))
    expected = theirs.cohen_kappa_score(truth, predicted.numpy(), labels=range(5), weights="quadratic")
    assert metrics.quadratic_kappa(confusion) == pytest.approx(expected)


def test_ties_count_half_in_the_auc():
    scores = torch.tensor([[0.5], [0.5], [0.5], [0.2], [0.2], [0.9]])
    present = torch.tensor([[1], [0], [0], [1], [0], [1]])
    pairs = [(p, a) for p in (0.5, 0.2, 0.9) for a in (0.5, 0.5, 0.2)]
    by_hand = sum(1.0 if p > a else 0.5 if p == a else 0.0 for p, a in pairs) / 9
    assert metrics.auc(scores, present) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(theirs.roc_auc_score(present.numpy()[:, 0], scores.numpy()[:, 0]))
    assert metrics.auc(torch.zeros(6, 1), present) == 0.5


def test_scores_of_several_labels_per_image():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(60, 3, generator=generator) < 0.3).float()
    labels[:, 2] = 1.0  # every image has it: no AUC
    probabilities = (torch.randn(60, 3, generator=generator) + labels).sigmoid()
    found = metrics.classification_scores(probabilities, labels)
    assert found["accuracy"] == pytest.approx(((probabilities > 0.5).numpy() == labels.numpy()).mean())
    expected = theirs.roc_auc_score(labels[:, :2].numpy(), probabilities[:, :2].numpy(), average="macro")
    assert found["auc"] == pytest.approx(expected)
    assert found.keys() == {"accuracy", "auc"}


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_against_a_loop(bins):
    probabilities, labels = predictions()
    confidence, predicted = probabilities.max(dim=1)
    expected = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [i for i, value in enumerate(confidence.tolist()) if low < value <= high]
        if inside:
            right = sum(int(predicted[i] == labels[i]) for i in inside) / len(inside)
            sure = sum(confidence[i].item() for i in inside) / len(inside)
            expected += len(inside) / len(labels) * abs(right - sure)
    assert metrics.calibration_error(probabilities, labels, bins) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_by_hand():
    probabilities = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.4, 0.6], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 1, 1])
    # sure of three, of which two are right: |3 - 2|; 0.6 sure of one that is right: |0.6 - 1|
    assert metrics.calibration_error(probabilities, labels) == pytest.approx((1 + 0.4) / 4)


def test_scores_of_a_single_class():
    probabilities, labels = torch.ones(3, 1), torch.zeros(3, dtype=torch.long)
    found = metrics.classification_scores(probabilities, labels)
    assert math.isnan(found.pop("auc"))
    assert found == {"accuracy": 1.0, "balanced_accuracy": 1.0, "kappa": 0.0, "calibration_error": 0.0}
