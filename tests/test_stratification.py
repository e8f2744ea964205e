"""Images are divided into parts with equal shares of every class, and groups are never divided."""

import numpy as np

from softcam_hub.data.stratification import assign_parts, round_robin


def test_weighted_turns_keep_to_their_shares():
    assert round_robin(np.array([1 / 3] * 3), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    shares = np.array([0.8, 0.2])
    given = round_robin(shares, 1000)
    for start, stop in ((0, 1000), (3, 48), (500, 507)):
        assert abs((given[start:stop] == 1).sum() - 0.2 * (stop - start)) <= 1


def test_every_part_has_its_share_of_every_class():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 37, 11]))
    parts = assign_parts(labels, [0.2] * 5, seed=1)
    counts = np.array([np.bincount(labels[parts == part], minlength=3) for part in range(5)])
    assert (np.abs(counts - counts.sum(axis=0) / 5) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 1
    assert (assign_parts(labels, [0.2] * 5, seed=1) == parts).all()
    assert (assign_parts(labels, [0.2] * 5, seed=2) != parts).any()


def test_groups_are_never_divided():
    rng = np.random.default_rng(0)
    persons = np.repeat(np.arange(171), rng.integers(1, 30, 171))
    labels = rng.integers(0, 3, 171)[persons]
    parts = assign_parts(labels, [0.2] * 5, seed=0, groups=persons)
    assert all(len(set(parts[persons == person])) == 1 for person in range(171))
    counts = np.array([np.bincount(labels[parts == part], minlength=3) for part in range(5)])
    assert (np.abs(counts / counts.sum(axis=0) - 0.2) < 0.02).all()
    held = assign_parts(labels, [0.9, 0.1], seed=0, groups=persons)
    assert abs((held == 1).mean() - 0.1) < 0.02
