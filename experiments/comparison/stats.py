"""Paired statistics of a comparison: the pair is the unit, landmarks of one pair are not independent.

In a ring of pairs each subject stands in two of them, once fixed and once moving: the pairs are not
quite independent either, so intervals are a little too narrow and p values a little too small.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[Any]

RESAMPLES = 9999
CONFIDENCE = 0.95
SEED = 0


class Interval(NamedTuple):
    """A mean and its bootstrap confidence interval; NaN where it cannot be had."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """One method against another on the pairs that both have: `first` minus `second`, by pairs."""

    first: str
    second: str
    pairs: int
    difference: Interval
    smaller: int  # pairs in which the first has the smaller value
    p: float  # Wilcoxon signed-rank, two-sided
    p_holm: float = float("nan")


def compare(first: str, second: str, one: ArrayLike, other: ArrayLike) -> Difference:
    """Values of two methods, one a pair in the same order; NaN (a hole) leaves the pair out."""
    change = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    change = change[np.isfinite(change)]
    return Difference(
        first, second, len(change), bootstrap(change), int(np.sum(change < 0)), signed_rank(change)
    )


def signed_rank(differences: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; exact up to 50 pairs where no ties forbid it.

    1 where all differences are 0, NaN without any. With ten pairs the least possible p is 0.002.
    """
    values = np.asarray(differences, np.float64)
    if not values.size:
        return float("nan")
    if not values.any():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small samples with ties: the normal approximation
        return float(stats.wilcoxon(values).pvalue)


def bootstrap(values: ArrayLike) -> Interval:
    """Mean and its 95 % interval: bias-corrected and accelerated, 9999 draws of whole pairs."""
    known = np.asarray(values, np.float64)
    if known.size < 2 or np.ptp(known) == 0:
        mean = float(known.mean()) if known.size else float("nan")
        end = mean if known.size > 1 else float("nan")
        return Interval(mean, end, end)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # near-constant values: the interval is NaN then, and shown so
        found = stats.bootstrap(
            (known,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="BCa",
            random_state=SEED,
        ).confidence_interval
    return Interval(float(known.mean()), float(found.low), float(found.high))


def holm(p: ArrayLike) -> Array:
    """Holm's step-down correction of a family of p values, in their order; NaN stay out of it.

    The k-th smallest of m is multiplied by m - k + 1, and none may fall below an earlier one.
    """
    values = np.asarray(p, np.float64)
    out = np.full(values.shape, np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return out


def corrected(family: list[Difference]) -> list[Difference]:
    """The same differences with `p_holm` filled in, as one family."""
    return [d._replace(p_holm=float(p)) for d, p in zip(family, holm([d.p for d in family]), strict=True)]
