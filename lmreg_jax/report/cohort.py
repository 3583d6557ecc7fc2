"""Figures of a cohort's registered pairs: all errors, the median and the worst pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmreg_jax.cohort.cache import fresh
from lmreg_jax.cohort.case import images_of_pair
from lmreg_jax.cohort.cohort import Cohort
from lmreg_jax.evaluation import metrics
from lmreg_jax.evaluation.cohort import Pairs, Register, cases_of, displacement_of
from lmreg_jax.evaluation.metrics import PairResult, Summary
from lmreg_jax.report import figures


def write_figures(
    folder: str | Path,
    register: Register,
    cohort: Cohort,
    pairs: Pairs,
    results: Sequence[PairResult] | None = None,
) -> list[Path]:
    """PNG files in `folder`: all pairs' errors, and pictures of the median and the worst pair.

    `results` of the same pairs spare measuring them again. Returns the files written.
    """
    folder = Path(folder)
    if results is None:
        results = [
            metrics.measure(cohort, f, m, displacement_of(register, f, m), float("nan"))
            for f, m in cases_of(cohort, pairs)
        ]
    known = any(Summary.of(result.tre_mm).n for result in results)
    written = [figures.tre_plot(folder / "tre.png", results)] if known else []
    for title, result in _shown(results).items():
        fixed, moving = fresh(cohort.case(result.fixed)), fresh(cohort.case(result.moving))
        images = images_of_pair(fixed, moving)
        answer = register(*images)
        kind, names = "landmarks", cohort.landmark_names
        if not np.isfinite(fixed.landmarks + moving.landmarks).all(axis=1).any():
            kind, names = "points", cohort.point_names
        written += figures.pair(
            folder / title.replace(" ", "_"),
            fixed=images[0],
            moving=images[1],
            warped=np.asarray(answer.warped),
            displacement=np.asarray(answer.displacement),
            spacing_mm=cohort.spacing_mm,
            fixed_points=getattr(fixed, kind),
            moving_points=getattr(moving, kind),
            names=names,
            title=f"{result.name}, {title} of {len(results)}",
        )
    return written


def _shown(results: Sequence[PairResult]) -> dict[str, PairResult]:
    """The "median" and the "worst" pair by mean TRE, else by lung Dice, else order; or the one."""

    def trouble(result: PairResult) -> tuple[float, float]:
        error, overlap = Summary.of(result.tre_mm).mean, result.dice
        return (0.0 if np.isnan(error) else error, 0.0 if np.isnan(overlap) else -overlap)

    ranked = sorted(results, key=trouble)
    if len(ranked) < 2:
        return {"pair 1": ranked[0]} if ranked else {}
    return {"median pair": ranked[(len(ranked) - 1) // 2], "worst pair": ranked[-1]}
