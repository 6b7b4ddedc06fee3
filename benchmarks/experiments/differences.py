"""How surely one share of right videos is above another, by Student's intervals."""

import numpy as np

__all__ = ["compare", "holm"]


def compare(
    mine: np.ndarray, theirs: np.ndarray, groups: np.ndarray | None = None
) -> tuple[float, float, float, float]:
    """Difference of two means, its 95 % interval, over other videos and other trainings, and how
    likely one as large would be, either way, if there were none.

    mine, theirs: (seeds, videos), 0 to 1, the same videos in the same order. groups: (videos,), the
    same for videos that were filmed together, whose differences then may go together too; each
    alone where it is None. The variance is that of each side's mean over seeds and that of the
    difference over groups, which both sides share; the quantile is Student's with the degrees of
    freedom of Welch and Satterthwaite. What a seed and a video have in common counts on both
    accounts, so that the interval is rather too wide. One seed says nothing of seeds, and the
    interval then holds for these trainings alone. One group says nothing of others: there it is
    without end.
    """
    parts = [
        (right.mean(axis=1).var(ddof=1) / len(right), len(right) - 1)
        for right in (mine, theirs)
        if len(right) > 1
    ]
    difference = float(mine.mean() - theirs.mean())
    apart = mine.mean(axis=0) - theirs.mean(axis=0) - difference
    _, group = np.unique(np.arange(len(apart)) if groups is None else groups, return_inverse=True)
    sums = np.bincount(group, apart)
    if len(sums) == 1:
        return difference, -np.inf, np.inf, 1.0
    parts.append((len(sums) / (len(sums) - 1) * (sums**2).sum() / len(apart) ** 2, len(sums) - 1))
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return difference, difference, difference, float(difference == 0)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = _student_quantile(freedom) * variance**0.5
    p = _student_tails(abs(difference) / variance**0.5, freedom)
    return difference, difference - half, difference + half, p


def _student_quantile(freedom: float) -> float:
    """How far to either side of 0 lie 95 % of Student's distribution of `freedom` >= 1."""
    angles, shares = _student(freedom)
    return float(freedom**0.5 * np.tan(np.interp(0.95, shares, angles)))


def _student_tails(statistic: float, freedom: float) -> float:
    """How much of it lies beyond a statistic >= 0 and its negative."""
    angles, shares = _student(freedom)
    return float(1 - np.interp(np.arctan(statistic / freedom**0.5), angles, shares))


def _student(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles, and the share of Student's distribution between each and its negative.

    At sqrt(freedom) * tan(angle) the density goes with cos(angle) ** (freedom - 1).
    """
    angles = np.pi / 2 * np.linspace(0, 1, 20_001) ** 3  # close where many degrees have all of it
    density = np.cos(angles) ** (freedom - 1)
    area = np.cumsum((density[1:] + density[:-1]) * np.diff(angles))
    return angles, np.concatenate([[0.0], area / area[-1]])


def holm(likelihoods: list[float], level: float = 0.05) -> int:
    """How many of several comparisons stand out at `level`, corrected for their number."""
    ordered = sorted(likelihoods)
    for count, p in enumerate(ordered):
        if p * (len(ordered) - count) > level:
            return count
    return len(ordered)
