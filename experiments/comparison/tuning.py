"""Settings chosen on validation pairs: all are tried, the least error on the landmarks is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.comparison.methods import TITLES, Method, Result, run
from experiments.comparison.report import pooled
from experiments.comparison.tables import Cell, Table, cell
from lmreg_jax.cohort.cohort import Cohort, held_out_pairs
from lmreg_jax.evaluation.metrics import Summary


class Trial(NamedTuple):
    """One setting of one method on the validation pairs (no results: there were no pairs)."""

    method: str
    name: str
    settings: Any
    results: list[Result]
    kept: bool = False

    @property
    def rank(self) -> tuple[int, float, float]:
        """The less the better: failures, then TRE, then 1 - Dice where nothing was annotated."""
        failures = sum(r.measured is None for r in self.results)
        error, overlap = pooled(self.results, "tre_mm").mean, pooled(self.results, "dice").mean
        return (failures, 0.0 if np.isnan(error) else error, 0.0 if np.isnan(overlap) else -overlap)


def tuning_pairs(cohort: Cohort, most: int) -> list[tuple[str, str]]:
    """The validation pairs, then the same in the other order; `most` of them at most.

    Each order is a registration of its own for a program that is not symmetric.
    """
    pairs = held_out_pairs(cohort, "validation")
    return list(dict.fromkeys([*pairs, *((moving, fixed) for fixed, moving in pairs)]))[:most]


def tune(
    method: str,
    candidates: Mapping[str, Any],
    make: Callable[[Any], Method],
    cohort: Cohort,
    pairs: Sequence[tuple[str, str]],
    *,
    progress: bool = True,
) -> list[Trial]:
    """A trial for each candidate, one of them `kept`: the best, or the first without pairs."""
    trials = []
    for name, settings in candidates.items():
        results = run(make(settings), cohort, pairs, progress=progress) if pairs else []
        trials.append(Trial(method, name, settings, results))
    best = min(range(len(trials)), key=lambda i: trials[i].rank)
    return [trial._replace(kept=i == best) for i, trial in enumerate(trials)]


def kept(trials: Sequence[Trial]) -> Any:
    """The settings that were kept."""
    return next(trial.settings for trial in trials if trial.kept)


def table(trials: Sequence[Trial], pairs: Sequence[tuple[str, str]]) -> Table:
    """All trials; those that were kept in bold."""
    rows: list[list[str | Cell]] = []
    for t in trials:
        failed = sum(r.measured is None for r in t.results)
        rows.append(
            [
                f"{TITLES[t.method]}: {t.name}" + (" (kept)" if t.kept else ""),
                cell(pooled(t.results, "tre_mm"))._replace(best=t.kept, sd=np.nan),
                cell(pooled(t.results, "tre_unseen_mm"))._replace(sd=np.nan),
                cell(pooled(t.results, "dice"), 3)._replace(sd=np.nan),
                cell(pooled(t.results, "folding_percent"), 3)._replace(sd=np.nan),
                Cell(Summary.of([r.cpu_seconds for r in t.results]).mean, digits=1),
                str(failed or ""),
            ]
        )
    chosen = ", ".join(f"{moving} -> {fixed}" for fixed, moving in pairs) or "none"
    settings = "; ".join(f"{TITLES[t.method]}: {describe(t.settings)}" for t in trials if t.kept)
    return Table(
        "tuning",
        "Tuning of the baselines, on validation pairs",
        ["setting", "TRE (mm)", "unseen TRE (mm)", "Dice", "folding (%)", "CPU (s)", "failures"],
        rows,
        [
            f"Pairs: {chosen}. Each line changes the first of its method in what it names; kept is the "
            "least TRE on the landmarks. No test pair takes part. CPU: of all cores, a pair.",
            f"Kept: {settings}.",
        ],
    )


def describe(settings: Any) -> str:
    """name=value, ... of a settings tuple."""
    return ", ".join(f"{name}={value}" for name, value in settings._asdict().items())
