"""Registering a cohort's pairs and writing down how well it went: tables and figures.

`register(fixed, moving)` takes two [X, Y, Z] float32 images on the cohort's grid and returns an
object with `.warped` and `.displacement` (see `metrics` for its convention). What makes it, a
network, Elastix or the identity, does not matter here. Errors are in mm of the common grid.
"""

from __future__ import annotations

import csv
import io
import json
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lmreg_jax.cohort.cache import fresh
from lmreg_jax.cohort.case import images_of_pair
from lmreg_jax.errors import InputError
from lmreg_jax.evaluation import metrics
from lmreg_jax.evaluation.metrics import PairResult, Summary
from lmreg_jax.imaging.volume import replacing

if TYPE_CHECKING:
    from lmreg_jax.cohort.cohort import Case, Cohort

Pairs = Sequence[tuple[str, str]]

SLOW_SECONDS = 5.0  # a slower call is timed once: start-up noise no longer matters

COLUMNS = {
    "tre_initial_mm": "target registration error on the training landmarks before registration "
    "(after the affine alignment), mm",
    "tre_mm": "the same after registration",
    "tre_unseen_initial_mm": "error on the further points, of kinds never trained on, before, mm",
    "tre_unseen_mm": "the same after registration",
    "dice_initial": "Dice of the lung masks (both lungs as one) before",
    "dice": "the same after, the moving mask warped by nearest neighbour",
    "folding_percent": "share of all voxels of the grid with a Jacobian determinant <= 0, %",
    "sd_log_jacobian": "standard deviation of the logarithm of the determinant where positive, "
    "in the fixed lungs (without a lung mask: in the whole grid)",
    "seconds": "median time of a call after a warm-up, from the two images to displacement and "
    "warped image in host memory, s",
}
HEADS = [
    *("TRE initial (mm)", "TRE (mm)", "unseen TRE initial (mm)", "unseen TRE (mm)"),
    *("Dice initial", "Dice", "folding (%)", "sd log J", "time (s)"),
]


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
    for fixed, moving in tqdm(_cases(cohort, pairs), "evaluating", len(pairs), disable=not progress):
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
    for fixed, moving in _cases(cohort, pairs):
        u = _checked(_called(register, fixed, moving), fixed, moving)
        points = fixed.landmarks, moving.landmarks, cohort.spacing_mm
        scores["tre_initial_mm"].extend(metrics.target_registration_error(None, *points))
        scores["tre_mm"].extend(metrics.target_registration_error(u, *points))
        if fixed.lungs is not None and moving.lungs is not None:
            warped = metrics.warp_labels(moving.lungs, u)
            scores["dice"].append(metrics.dice(fixed.lungs, warped))
        determinant = metrics.jacobian_determinant(u)
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


def row(result: PairResult) -> dict[str, Summary]:
    """A pair's row, keyed as COLUMNS: of errors, mean and sd over its landmarks or points."""
    return {column: Summary.of(getattr(result, column)) for column in COLUMNS}


def summarise(results: Sequence[PairResult]) -> dict[str, Summary]:
    """The row "All": errors pooled over the landmarks of all pairs, the rest over pairs.

    Keyed as COLUMNS; [Hu, Table I] pools in the same way.
    """
    return {
        column: Summary.of(np.hstack([[], *(getattr(result, column) for result in results)]))
        for column in COLUMNS
    }


def write_tables(folder: str | Path, results: Sequence[PairResult], cohort: Cohort) -> None:
    """`evaluation.csv`, `evaluation.json` and `evaluation.md`, each written whole or not at all."""
    folder = Path(folder)
    texts = {
        "evaluation.csv": _as_csv(results),
        "evaluation.json": json.dumps(_as_json(results, cohort), indent=2) + "\n",
        "evaluation.md": _as_markdown(results, cohort),
    }
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


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
    import lmreg_jax.report.figures as figures

    folder = Path(folder)
    if results is None:
        results = [
            metrics.measure(cohort, f, m, _checked(_called(register, f, m), f, m), float("nan"))
            for f, m in _cases(cohort, pairs)
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


def _cases(cohort: Cohort, pairs: Pairs) -> Iterator[tuple[Case, Case]]:
    """The pairs' cases; names are looked up at once, arrays read from disk (and checked) in turn."""
    known = [(cohort.case(fixed), cohort.case(moving)) for fixed, moving in pairs]
    return ((fresh(fixed), fresh(moving)) for fixed, moving in known)


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


def _as_csv(results: Sequence[PairResult]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["pair", *COLUMNS])
    for result in results:
        writer.writerow([result.name, *(_cell(value.mean) for value in row(result).values())])
    total = summarise(results).values()
    writer.writerow(["All", *(_cell(value.mean) for value in total)])
    writer.writerow(["All sd", *(_cell(value.sd) for value in total)])
    return text.getvalue()


def _cell(value: float) -> str:
    """Six significant digits; what is not known is an empty cell, never 0."""
    return "" if np.isnan(value) else f"{value:.6g}"


def _as_json(results: Sequence[PairResult], cohort: Cohort) -> dict[str, Any]:
    return plain(
        {
            "cohort": {
                "cases": len(cohort.cases),
                "alignment": cohort.alignment,
                "reference": cohort.reference,
                "shape": cohort.shape,
                "spacing_mm": cohort.spacing_mm,
            },
            "versions": versions(),
            "columns": COLUMNS,
            "all": {key: value._asdict() for key, value in summarise(results).items()},
            "pairs": [_pair_json(result, cohort) for result in results],
        }
    )


def _pair_json(result: PairResult, cohort: Cohort) -> dict[str, Any]:
    """One pair at full precision: the table's row, each landmark by its name, and the rest."""
    landmarks = ("tre_before_affine_mm", "tre_initial_mm", "tre_mm")
    points = ("tre_unseen_initial_mm", "tre_unseen_mm")
    return {
        "fixed": result.fixed,
        "moving": result.moving,
        **{key: value._asdict() for key, value in row(result).items()},
        "tre_before_affine_mm": Summary.of(result.tre_before_affine_mm)._asdict(),
        "landmarks": {
            name: {key: getattr(result, key)[i] for key in landmarks}
            for i, name in enumerate(cohort.landmark_names)
        },
        "points": {
            name: {key: getattr(result, key)[i] for key in points}
            for i, name in enumerate(cohort.point_names)
        },
        "dice_labels": {
            name: {"dice_initial": before, "dice": after}
            for name, (before, after) in result.dice_labels.items()
        },
        "dice_lungs_mean": dict(zip(("dice_initial", "dice"), result.dice_lungs_mean, strict=True)),
        "hausdorff95_initial_mm": result.hausdorff95_mm[0],
        "hausdorff95_mm": result.hausdorff95_mm[1],
    }


def plain(value: Any) -> Any:
    """Python's own types for `json`; what is not known (NaN) becomes null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    number = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(number, float) and not np.isfinite(number) else number


def versions() -> dict[str, str | None]:
    """What the numbers were made with; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("lmreg_jax", "jax", "flax", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _as_markdown(results: Sequence[PairResult], cohort: Cohort) -> str:
    rows: list[tuple[str, ...]] = [("pair", *HEADS), ("---", *["---:"] * len(HEADS))]
    for result in results:
        rows.append((result.name, *(_mean_sd(c, v) for c, v in row(result).items())))
    rows.append(("**All**", *(_mean_sd(c, v) for c, v in summarise(results).items())))
    size = " x ".join(str(n) for n in cohort.shape)
    spacing = " x ".join(f"{s:g}" for s in cohort.spacing_mm)
    lines = ["# Evaluation", "", *("| " + " | ".join(cells) + " |" for cells in rows), ""]
    lines += [
        f"{len(results)} pairs (moving -> fixed) on a grid of {size} voxels of {spacing} mm; "
        f"affine alignment: {cohort.alignment}. Mean ± sd: in a pair's row over its landmarks or "
        'points; in the row "All" over the landmarks of all pairs, else over the pairs. '
        "An empty cell: not annotated.",
        "",
        *(f"- {head}: {text}." for head, text in zip(HEADS, COLUMNS.values(), strict=True)),
        "",
    ]
    return "\n".join(lines)


def _mean_sd(column: str, value: Summary) -> str:
    digits = 3 if column in ("dice_initial", "dice", "sd_log_jacobian", "folding_percent") else 2
    if np.isnan(value.mean):
        return ""
    sd = "" if np.isnan(value.sd) else f" ± {value.sd:.{digits}f}"
    return f"{value.mean:.{digits}f}{sd}"
