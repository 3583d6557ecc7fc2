"""Registering a cohort's pairs and writing down how well it went: tables and figures.

`register(fixed, moving)` takes two [X, Y, Z] float32 images on the cohort's grid and returns an
object with `.warped` and `.displacement` (see `metrics` for its convention). What makes it, a
network, Elastix or the identity, does not matter here. Errors are in mm of the common grid.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lmreg_jax.cohort.cache import fresh
from lmreg_jax.cohort.case import images_of_pair
from lmreg_jax.errors import InputError
from lmreg_jax.evaluation import metrics
from lmreg_jax.evaluation.metrics import PairResult, Summary
from lmreg_jax.imaging.transforms import jacobian_determinant

if TYPE_CHECKING:
    from lmreg_jax.cohort.case import Case
    from lmreg_jax.cohort.cohort import Cohort

Pairs = Sequence[tuple[str, str]]

SLOW_SECONDS = 5.0  # a slower call is timed once: start-up noise no longer matters


class Register(Protocol):
    """Two images [X, Y, Z] float32 in [0, 1] to (at least) the fields of `Registration`."""

    def __call__(self, fixed: Any, moving: Any, /) -> Any: ...


class Registration(NamedTuple):
    """The least that a `register` returns; the model's own result holds more."""

    warped: NDArray[Any]  # [X, Y, Z], the moving image brought onto the fixed one
    displacement: NDArray[Any]  # [X, Y, Z, 3], voxels, fixed -> moving


def identity_register(fixed: NDArray[Any], moving: NDArray[Any]) -> Registration:
    """The registration that moves nothing: u = 0."""
    return Registration(np.asarray(moving), np.zeros((*np.shape(fixed), 3), np.float32))


def evaluate_pairs(
    register: Register, cohort: Cohort, pairs: Pairs, *, progress: bool = True
) -> list[PairResult]:
    """Registers, times and measures every pair (fixed name, moving name), in the given order.

    The very first call is a warm-up (compilation). Raises InputError for an unknown case and for
    a displacement of another shape or with a value that is not finite.
    """
    results: list[PairResult] = []
    for fixed, moving in tqdm(cases_of(cohort, pairs), "evaluating", len(pairs), disable=not progress):
        if not results:
            _called(register, fixed, moving)
        displacement, seconds = _timed(register, fixed, moving)
        results.append(metrics.measure(cohort, fixed, moving, displacement, seconds))
    return results


def validation_scores(register: Register, cohort: Cohort, pairs: Pairs) -> dict[str, float]:
    """Means over all landmarks (tre_initial_mm, tre_mm) and pairs (dice, folding_percent), and two
    standard errors of means (tre_mm_error, dice_error).

    One untimed call a pair, for use during training. NaN where nothing was annotated.
    """
    scores: dict[str, list[Any]] = {
        key: [] for key in ("tre_initial_mm", "tre_mm", "dice", "folding_percent")
    }
    for fixed, moving in cases_of(cohort, pairs):
        u = displacement_of(register, fixed, moving)
        points = fixed.landmarks, moving.landmarks, cohort.spacing_mm
        scores["tre_initial_mm"].extend(metrics.target_registration_error(None, *points))
        scores["tre_mm"].extend(metrics.target_registration_error(u, *points))
        if fixed.lungs is not None and moving.lungs is not None:
            warped = metrics.warp_labels(moving.lungs, u)
            scores["dice"].append(metrics.dice(fixed.lungs, warped))
        determinant = jacobian_determinant(u)
        scores["folding_percent"].append(metrics.folding_percent(determinant))
    found = {key: Summary.of(values) for key, values in scores.items()}
    errors = {f"{key}_error": found[key].sd / max(found[key].n, 1) ** 0.5 for key in ("tre_mm", "dice")}
    return {key: summary.mean for key, summary in found.items()} | errors


def to_choose_by(scores: Mapping[str, float]) -> tuple[float, float]:
    """Of `validation_scores`: the number that is the smaller, the better, and its standard error.

    The TRE; without landmarks, where there is none, minus the lungs' overlap.
    """
    if np.isfinite(scores["tre_mm"]):
        score, error = scores["tre_mm"], scores["tre_mm_error"]
    else:
        score, error = -scores["dice"], scores["dice_error"]
    return float(score), float(np.nan_to_num(error))


def cases_of(cohort: Cohort, pairs: Pairs) -> Iterator[tuple[Case, Case]]:
    """The pairs' cases; names are looked up at once, arrays read from disk (and checked) in turn."""
    known = [(cohort.case(fixed), cohort.case(moving)) for fixed, moving in pairs]
    return ((fresh(fixed), fresh(moving)) for fixed, moving in known)


def displacement_of(register: Register, fixed: Case, moving: Case) -> NDArray[Any]:
    """u of one pair [X, Y, Z, 3], voxels. Raises InputError on another shape and on non-finite values."""
    return _checked(_called(register, fixed, moving), fixed, moving)


def _called(register: Register, fixed: Case, moving: Case) -> NDArray[Any]:
    """u of one pair, on the host: reading the arrays waits for an asynchronous device."""
    answer = register(*images_of_pair(fixed, moving))
    np.asarray(answer.warped)
    return np.asarray(answer.displacement)


def _checked(displacement: NDArray[Any], fixed: Case, moving: Case) -> NDArray[Any]:
    needed = (*fixed.image.shape, 3)
    if displacement.shape != needed:
        raise InputError(
            f"{moving.name} -> {fixed.name}: the displacement has shape {displacement.shape}, "
            f"needed is {needed}: register has to answer on the grid that it is given"
        )
    if not np.isfinite(displacement).all():
        raise InputError(
            f"{moving.name} -> {fixed.name}: the displacement has values that are not finite; "
            "the weights may have diverged: take an earlier checkpoint or a lower learning rate"
        )
    return displacement


def _timed(register: Register, fixed: Case, moving: Case) -> tuple[NDArray[Any], float]:
    """u and the median time of three calls, or of as many as it takes to meet a slow one."""
    seconds: list[float] = []
    while len(seconds) < 3 and (not seconds or seconds[-1] <= SLOW_SECONDS):
        start = time.perf_counter()
        displacement = _called(register, fixed, moving)
        seconds.append(time.perf_counter() - start)
    return _checked(displacement, fixed, moving), statistics.median(seconds)
