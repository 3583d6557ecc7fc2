"""Does the posterior know how wrong it is? Predicted spread of landmark positions against their error.

    python -m experiments.calibration --workdir=DIR [--split=test] [--samples=64] [--output=FOLDER]

Draws velocity fields from q(v | f; m), integrates each, and looks where they carry the landmarks:
the standard deviation of those positions is what the model predicts its error to be. The error is
that of the mean velocity's transform, which is what registration uses; both are in mm of the moving
scan. Writes calibration.csv (a row a landmark and pair), calibration.json (summary) and calibration.png.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from numpy.typing import NDArray
from scipy import stats

from experiments.run import command, provenance
from experiments.run.data import load_cohort
from lmreg_jax import _compilation_cache as compilation_cache
from lmreg_jax.cohort.case import images_of_pair
from lmreg_jax.cohort.cohort import Cohort, held_out_pairs
from lmreg_jax.core.landmarks import move_points
from lmreg_jax.core.objective import displacement_of, field_stride
from lmreg_jax.core.posterior import Posterior, draw
from lmreg_jax.errors import InputError, exits_cleanly
from lmreg_jax.evaluation.cohort import cases_of
from lmreg_jax.imaging.volume import apply_affine
from lmreg_jax.io.tables import replacing
from lmreg_jax.model import config as configuration
from lmreg_jax.model import registrar

Array = NDArray[Any]

LEVELS = (0.5, 0.8, 0.9, 0.95)  # of the ellipsoids whose share of the truths is counted
BINS = 8


class Row(NamedTuple):
    """A landmark of a pair: error and predicted standard deviation, each root mean square an axis."""

    pair: str
    landmark: str
    trained: bool  # on this kind of landmark
    error_mm: float
    predicted_sd_mm: float
    squared_distance: float  # Mahalanobis; chi-squared with 3 degrees of freedom where calibrated


def sampled_positions(
    register: registrar.Registrar, fixed: Array, moving: Array, points: Array, key: jax.Array, samples: int
) -> tuple[Array, Array]:
    """Where the mean field and `samples` draws carry points [K, 3]: voxels, [K, 3] and [S, K, 3]."""
    result = register(fixed, moving)
    posterior = Posterior(result.velocity_mean, result.velocity_log_variance)
    steps, places = register.config.objective.integration_steps, jnp.asarray(points, jnp.float32)
    drawn = [
        np.asarray(_carried(k, posterior, places, fixed.shape, steps), np.float64)
        for k in jax.random.split(key, samples)
    ]
    mean = move_points(jnp.asarray(result.displacement), places)
    return np.asarray(mean, np.float64), np.stack(drawn)


@partial(jax.jit, static_argnums=(3, 4))
def _carried(
    key: jax.Array, posterior: Posterior, points: jax.Array, shape: tuple[int, ...], steps: int
) -> jax.Array:
    """Where one draw carries the points, [K, 3] voxels."""
    stride = field_stride(shape, posterior.mean.shape[:3])
    return move_points(displacement_of(draw(key, posterior), shape, stride=stride, steps=steps), points)


def measure(
    pair: str, names: Sequence[str], trained: int, mean_mm: Array, drawn_mm: Array, truth_mm: Array
) -> list[Row]:
    """Rows of one pair. mean_mm, truth_mm [K, 3], drawn_mm [S, K, 3]; missing truths (NaN) are left out.

    The squared distance is e^T C^-1 e of the error e of the mean field, C the draws' covariance.
    """
    rows = []
    for i, name in enumerate(names):
        error = mean_mm[i] - truth_mm[i]
        if not np.isfinite(error).all():
            continue
        covariance = np.cov(drawn_mm[:, i].T)
        rows.append(
            Row(
                pair,
                name,
                i < trained,
                float(np.sqrt(np.mean(error**2))),
                float(np.sqrt(np.trace(covariance) / 3)),
                # Of few draws C is noisy, and its inverse too large on average: Hotelling's factor.
                float(error @ np.linalg.solve(covariance, error)) * (1 - 4 / (len(drawn_mm) - 1)),
            )
        )
    return rows


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures that say how far the predicted spread can be believed."""
    error, predicted = (np.array([getattr(r, n) for r in rows]) for n in ("error_mm", "predicted_sd_mm"))
    distance = np.array([r.squared_distance for r in rows])
    flat = np.ptp(error) == 0 or np.ptp(predicted) == 0  # No order to compare.
    return {
        "landmarks": len(rows),
        "rms_error_mm": float(np.sqrt(np.mean(error**2))),
        "rms_predicted_sd_mm": float(np.sqrt(np.mean(predicted**2))),
        "error_over_predicted": float(np.sqrt(np.mean(error**2) / np.mean(predicted**2))),
        "rank_correlation": None if flat else float(stats.spearmanr(predicted, error).statistic),
        "coverage": {str(p): float(np.mean(distance <= stats.chi2.ppf(p, 3))) for p in LEVELS},
    }


def evaluate(
    register: registrar.Registrar,
    cohort: Cohort,
    pairs: Sequence[tuple[str, str]],
    samples: int,
    seed: int,
) -> list[Row]:
    """Rows of all pairs' landmarks and further points. Positions in mm of the moving case's own scan."""
    names = (*cohort.landmark_names, *cohort.point_names)
    rows: list[Row] = []
    for number, (fixed, moving) in enumerate(cases_of(cohort, pairs)):
        start, truth = (np.concatenate([c.landmarks, c.points]).astype(np.float64) for c in (fixed, moving))
        key = jax.random.fold_in(jax.random.key(seed), number)
        images = images_of_pair(fixed, moving)
        positions = sampled_positions(register, *images, np.nan_to_num(start), key, samples)
        truth[~np.isfinite(start).all(1)] = np.nan
        # The affine step's scale, too: what is predicted and what is wrong are mm of the moving scan.
        mean, drawn, truth = (apply_affine(moving.scan_from_grid, p) for p in (*positions, truth))
        title = f"{moving.name} -> {fixed.name}"
        rows += measure(title, names, len(cohort.landmark_names), mean, drawn, truth)
    return rows


def write(folder: Path, rows: Sequence[Row], samples: int) -> dict[str, Any]:
    """The three files, each whole or not at all; gives back what calibration.json holds."""
    groups = {"trained landmarks": True, "further points": False}
    results: dict[str, Any] = {"samples": samples, "all": summary(rows)}
    for title, trained in groups.items():
        if chosen := [r for r in rows if r.trained == trained]:
            results[title] = summary(chosen)
    with replacing(folder / "calibration.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    with (
        replacing(folder / "calibration.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(Row._fields)
        table.writerows(rows)
    figure(folder / "calibration.png", rows, groups)
    return results


def figure(path: Path, rows: Sequence[Row], groups: dict[str, bool]) -> None:
    """Left: error against predicted sd, landmark by landmark and in bins; right: coverage."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11, 5), layout="constrained")
    left, right = drawing.subplots(1, 2)
    probabilities = np.linspace(0.01, 0.99, 99)
    for (title, trained), colour in zip(groups.items(), ("tab:blue", "tab:orange"), strict=True):
        chosen = [r for r in rows if r.trained == trained]
        if not chosen:
            continue
        predicted, error = (
            np.array([getattr(r, n) for r in chosen]) for n in ("predicted_sd_mm", "error_mm")
        )
        left.scatter(predicted, error, s=7, alpha=0.35, color=colour, linewidths=0)
        parts = np.array_split(np.argsort(predicted), min(BINS, len(chosen)))
        binned = [(np.sqrt(np.mean(predicted[i] ** 2)), np.sqrt(np.mean(error[i] ** 2))) for i in parts]
        left.plot(
            *np.transpose(binned),
            "o-",
            color=colour,
            mec="black",
            lw=2,
            zorder=3,
            label=f"{title}, rms of groups",
        )
        distance = np.array([r.squared_distance for r in chosen])
        inside = [np.mean(distance <= stats.chi2.ppf(p, 3)) for p in probabilities]
        right.plot(probabilities, inside, color=colour, label=title)
    positive = [v for r in rows for v in (r.error_mm, r.predicted_sd_mm) if v > 0]
    limits = (min(positive, default=0.1), max(positive, default=1.0))
    left.plot(limits, limits, "k--", lw=1, label="calibrated")
    left.set(xscale="log", yscale="log", xlabel="predicted sd (mm an axis)", ylabel="error (mm an axis)")
    left.set_title("Error of the landmarks against their predicted spread")
    right.plot((0, 1), (0, 1), "k--", lw=1, label="calibrated")
    right.set(xlabel="probability of the ellipsoid", ylabel="share of true positions inside")
    right.set_title("How often the truth lies where the model expects it")
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        drawing.savefig(temporary, dpi=120, format="png")


def define_flags() -> None:
    """Not at import, as in `experiments.evaluate`."""
    flags.DEFINE_string("workdir", None, "Folder of a training.", required=True)
    flags.DEFINE_enum("split", "test", ("train", "validation", "test"), "Whose pairs.")
    flags.DEFINE_integer("samples", 64, "Draws of the velocity field a pair.", lower_bound=8)
    flags.DEFINE_string("output", "", "Folder for the files; default: the workdir.")


@exits_cleanly
def main(arguments: list[str]) -> None:
    command.no_arguments(arguments)
    compilation_cache.enable()
    values: Any = flags.FLAGS
    workdir = Path(values.workdir)
    config = configuration.read(workdir / configuration.FILE)
    cohort = load_cohort(config)
    pairs = held_out_pairs(cohort, values.split)
    register = registrar.load(workdir)
    rows = evaluate(register, cohort, pairs, values.samples, config.train.seed)
    if not rows:
        raise InputError(f"{cohort.root}: no {values.split} pair with landmarks; calibration needs some")
    output = Path(values.output) if values.output else workdir
    results = write(output, rows, values.samples)
    provenance.record(output, config, program="calibration")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    define_flags()
    command.run(main)
