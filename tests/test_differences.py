"""By how much results of experiments differ, how surely, and how many of them stand out."""

import numpy as np
import pytest

from benchmarks.experiments import differences


def test_interval_shrinks_with_videos():
    rng = np.random.default_rng(3)
    widths = []
    for videos in (40, 4000):
        mine, theirs = (rng.random((3, videos)) < share for share in (0.7, 0.5))
        difference, low, high, _ = differences.compare(mine.astype(float), theirs.astype(float))
        assert low < difference < high
        assert low < 0.2 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


@pytest.mark.parametrize(("of_seeds", "of_videos"), [(0.1, 0.0), (0.0, 0.3), (0.05, 0.3)])
def test_interval_of_three_seeds_holds_the_truth_nineteen_times_in_twenty(of_seeds, of_videos):
    """Trainings that differ, videos of which one method knows more than the other, and both."""
    rng = np.random.default_rng(5)
    held, trials = 0, 400
    for _ in range(trials):
        seeds = rng.normal(0, of_seeds, (2, 3, 1))
        mine, theirs = 0.5 + seeds + rng.normal(0, of_videos, (2, 1, 36))
        _, low, high, p = differences.compare(mine, theirs)
        assert (p > 0.05) == (low <= 0 <= high)
        held += low <= 0 <= high
    assert 0.93 <= held / trials <= 0.99


def test_videos_filmed_together_count_as_one_in_the_interval():
    """Six sequences of six videos, of which one method knows some better than the other does."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(6), 6)
    held, trials = {"groups": 0, "videos": 0}, 400
    for _ in range(trials):
        of_groups = rng.normal(0, 0.3, (2, 1, 6)).repeat(6, axis=2)
        mine, theirs = 0.5 + of_groups + rng.normal(0, 0.3, (2, 3, 36))
        for name, given in (("groups", groups), ("videos", None)):
            _, low, high, p = differences.compare(mine, theirs, given)
            assert (p > 0.05) == (low <= 0 <= high)
            held[name] += low <= 0 <= high
    assert 0.93 <= held["groups"] / trials <= 0.99
    assert held["videos"] / trials < 0.8
    alone = differences.compare(mine, theirs, rng.permutation(36))
    assert alone == pytest.approx(differences.compare(mine, theirs))
    assert differences.compare(mine, theirs, groups * 0)[1:] == (-np.inf, np.inf, 1)


def test_the_interval_of_groups_of_any_size_by_hand():
    mine, theirs = np.array([[1.0, 1.0, 0.0, 1.0]]), np.zeros((1, 4))
    difference, low, high, _ = differences.compare(mine, theirs, np.array(["a", "a", "b", "b"]))
    # The differences are 0.25, 0.25, -0.75 and 0.25 from their mean, the sums of groups +-0.5.
    error = (2 / 1 * (0.5**2 + 0.5**2) / 4**2) ** 0.5
    assert difference == 0.75
    assert (high - low) / 2 == pytest.approx(12.7062 * error, rel=1e-5)  # one degree of freedom


def test_interval_of_one_seed_is_of_videos():
    mine, theirs = np.random.default_rng(1).random((2, 1, 50))
    difference, low, high, _ = differences.compare(mine, theirs)
    error = (mine - theirs).std(ddof=1) / 50**0.5
    # Student's 0.975 quantile for 49 degrees of freedom.
    assert (high - difference) / error == pytest.approx(2.00958, rel=1e-5)
    assert (difference - low) / error == pytest.approx(2.00958, rel=1e-5)


@pytest.mark.parametrize(
    ("freedom", "table"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (35, 2.03011), (1e5, 1.95999)]
)
def test_quantile_of_student_is_that_of_the_tables(freedom, table):
    assert differences._student_quantile(freedom) == pytest.approx(table, rel=1e-5)


def test_interval_of_equal_results_is_zero():
    right = np.tile(np.arange(10) % 2, (2, 1)).astype(float)
    assert differences.compare(right, right) == (0, 0, 0, 1)
    assert differences.compare(right, right - 1) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    ("statistic", "freedom", "table"),
    [(0, 3, 1.0), (1, 1, 0.5), (2.92, 2, 0.1), (4.6041, 4, 0.01), (2.724, 35, 0.01)],
)
def test_tails_of_student_are_those_of_the_tables(statistic, freedom, table):
    assert differences._student_tails(statistic, freedom) == pytest.approx(
        table, rel=1e-3, abs=1e-9
    )


@pytest.mark.parametrize(
    ("likelihoods", "count"),
    [
        ([], 0),
        ([0.05], 1),
        ([0.06], 0),
        ([0.03, 0.02], 2),  # the least at 0.05 / 2, the other at 0.05
        ([0.03, 0.026], 0),
        ([0.5, 0.001, 0.016, 0.024], 3),
        ([0.5, 0.001, 0.024, 0.018], 1),  # the third would pass, the second did not
    ],
)
def test_holm_stops_at_the_first_that_does_not_stand_out(likelihoods, count):
    assert differences.holm(likelihoods) == count
