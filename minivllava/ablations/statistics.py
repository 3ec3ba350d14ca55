"""Intervals of means, paired differences between arms, and verdicts on claims, all from scipy.

Arms are compared seed by seed: two cells of one seed share the projector's start, the data and its order, so their
difference varies less than either. With five seeds a bootstrap interval is too narrow to judge by (it covers the truth
in about 85 % of cases, not 95); verdicts therefore rest on Student's t of the differences.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from minivllava.errors import DataError

LEVEL = 0.95


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % bootstrap interval (bias-corrected) of a mean over seeds; None for fewer than two, or if all are equal."""
    from scipy.stats import bootstrap

    if len(values) < 2 or _alike(values):  # nothing to draw from
        return None
    # 9999: scipy's default. BCa needs its jackknife to vary, which it does once the values do
    found = bootstrap((values,), np.mean, confidence_level=LEVEL, method="BCa", rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def t_interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a mean difference by Student's t; None for fewer than two, or if all are equal.

    Scores are counts of right answers, so a few seeds may well differ by the same number: that is no certainty.
    """
    from scipy.stats import sem, t

    if len(differences) < 2 or _alike(differences):
        return None
    low, high = t.interval(LEVEL, len(differences) - 1, loc=np.mean(differences), scale=sem(differences))
    return float(low), float(high)


def _alike(values: Sequence[float]) -> bool:
    """Whether scores in per cent are equal but for their rounding to three decimals."""
    return bool(np.ptp(values) < 0.005)


def paired_differences(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    """first - second by seed. Raises DataError unless both have the same seeds: none may be left out."""
    if set(first) != set(second):
        odd = ", ".join(map(str, sorted(set(first) ^ set(second))))
        raise DataError(f"Only one of two arms has seed {odd}: run the study again, which computes what is missing.")
    return {seed: first[seed] - second[seed] for seed in sorted(first)}


def verdict(direction: str, interval: tuple[float, float] | None, within: float = 0.0) -> str:
    """What the interval of a difference says of a claim: "agrees", "disagrees" or "undecided".

    "+" claims a positive difference: the whole interval must lie on one side of zero. "=" claims one of at most
    `within` points either way: the whole interval must lie inside, or all of it outside.
    """
    if interval is None:
        return "undecided"
    low, high = interval
    if direction == "+":
        return "agrees" if low > 0 else "disagrees" if high < 0 else "undecided"
    if -within <= low and high <= within:
        return "agrees"
    return "disagrees" if low > within or high < -within else "undecided"
