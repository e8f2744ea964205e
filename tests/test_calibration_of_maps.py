"""Cells by their mass, and evidence where nothing is annotated: by hand and against slow definitions."""

import math

import numpy as np
import pytest
import torch

from softcam_hub.evaluation.localisation_rows import count_false_alarms
from softcam_hub.evaluation.statistics import bootstrap_of_counts, draw_counts
from softcam_hub.explanation_scores.calibration import (
    MASS_BORDERS,
    cell_masses,
    false_alarms,
    largest_evidence,
    mass_histograms,
    mean_evidence,
    reliability,
)

MAPS = torch.tensor([[[4.0, 0.0, 1.0], [2.0, -5.0, 3.0]], [[-1.0, -1.0, -2.0], [0.0, 0.0, 0.0]]])


def test_masses_by_hand():
    found = cell_masses(MAPS, torch.tensor([0.5, 0.9]))
    assert found[0].flatten().tolist() == pytest.approx([0.2, 0, 0.05, 0.1, 0, 0.15])
    assert found[1].abs().sum() == 0
    assert torch.allclose(cell_masses(1e30 * MAPS, torch.tensor([0.5, 0.9])), found)


def test_maps_that_add_up_to_the_probability_are_their_own_masses():
    maps = torch.rand(3, 5, 5) / 30
    assert torch.allclose(cell_masses(maps, maps.sum(dim=(1, 2))), maps)


def test_histograms_by_hand():
    masses = torch.tensor([[[0.0, 0.1], [0.2, 0.7]]])
    touched = torch.tensor([[[True, False], [True, True]]])
    found = mass_histograms(masses, touched, (0.1, 0.5))
    assert found.shape == (1, 3, 3)
    assert found[0, 0].tolist() == [1, 1, 1]
    assert found[0, 1].tolist() == [2, 1, 1]  # 0.1 belongs to the bin below it
    assert found[0, 2].tolist() == pytest.approx([0.1, 0.2, 0.7])
    assert reliability(found[0])[0].item() == 0.5
    assert reliability(torch.tensor([[1.0, 0], [4, 0], [0.3, 0]])).isnan().tolist() == [False, True]


def test_histograms_are_the_definition():
    generator = torch.Generator().manual_seed(0)
    masses = torch.rand(3, 6, 7, generator=generator) ** 8
    touched = torch.rand(3, 6, 7, generator=generator) > 0.6
    found = mass_histograms(masses, touched)
    borders = [-1, *MASS_BORDERS, 1]
    for image in range(3):
        cells = list(zip(masses[image].flatten().tolist(), touched[image].flatten().tolist(), strict=True))
        for number in range(len(MASS_BORDERS) + 1):
            inside = [cell for cell in cells if borders[number] < cell[0] <= borders[number + 1]]
            column = found[image, :, number].tolist()
            assert column == pytest.approx(
                [sum(hit for _, hit in inside), len(inside), sum(mass for mass, _ in inside)]
            )
    assert found[:, 1].sum() == 3 * 42


def test_evidence_by_hand():
    assert mean_evidence(MAPS).tolist() == pytest.approx([10 / 6, 0])
    assert largest_evidence(MAPS).tolist() == [4, 0]


def test_false_alarms_of_resamples_against_a_slow_transcription():
    """The images of a resample are written out, and scored by the function that takes images."""
    generator = np.random.default_rng(0)
    largest, annotated = generator.integers(12, size=40).astype(float), generator.uniform(size=40) < 0.4
    counts = draw_counts(40, 50, generator)
    counts[0] = annotated  # no healthy image
    counts[1] = ~annotated  # no diseased one
    found = count_false_alarms(largest, annotated)(counts)
    for number, row in enumerate(counts):
        drawn = np.repeat(np.arange(40), row)
        expected = false_alarms(torch.from_numpy(largest[drawn]), torch.from_numpy(annotated[drawn]))
        assert found[number] == pytest.approx(float(expected), nan_ok=True)
    assert np.isnan(found[:2]).all()
    assert len(np.unique(found[2:])) > 20


def test_intervals_of_false_alarms_cover_the_truth():
    """Of 60 diseased and 60 healthy images; a healthy one is above the median of all diseased ones in 16 %."""
    generator, covered = np.random.default_rng(1), []
    annotated = np.arange(120) < 60
    for _ in range(400):
        largest = generator.normal(size=120) + annotated
        low, high = bootstrap_of_counts(120, count_false_alarms(largest, annotated), resamples=399).interval()
        covered.append(low <= 0.158655 <= high)
    assert 0.93 <= np.mean(covered) <= 0.98


def test_false_alarms_by_hand():
    largest = torch.tensor([1.0, 2.5, 9.0, 0.5, 2.5, 3.0, 2.0, 0.2, torch.nan])
    annotated = torch.arange(9) < 3
    assert float(false_alarms(largest, annotated)) == pytest.approx((0 + 0.5 + 1 + 0 + 0) / 5)  # the median is 2.5
    assert float(false_alarms(torch.ones(9), annotated)) == 0.5  # a map that is always the same
    assert math.isnan(false_alarms(largest, annotated & False))
    assert math.isnan(false_alarms(largest[:3], annotated[:3]))


ERRORS = {
    "probabilities": (lambda: cell_masses(MAPS, torch.ones(3)), r"^expected 2 probabilities, one for each map, got"),
    "cells": (lambda: mass_histograms(MAPS, MAPS[:, :1] > 0), r"^masses and touched cells must have one shape"),
    "borders": (lambda: mass_histograms(MAPS, MAPS > 0, (0.5, 0.1)), r"^borders must be increasing numbers"),
    "images": (lambda: false_alarms(torch.ones(3), torch.ones(2, dtype=torch.bool)), r"two values for each image"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name):
    function, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        function()
