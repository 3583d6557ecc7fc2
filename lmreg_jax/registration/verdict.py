"""Whether a registration may be used: `good`, `check` or `poor`, with reasons in plain words.

Overlap of the lungs says little about what lies inside them. So the airways judge: the fixed scan's
airway centreline, carried by the transform, has to come to lie in the moving scan's, and the other way
round. The thresholds are a judgement: no registration spoilt on purpose has been measured yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from lmreg_jax.anatomy.chest import Side
from lmreg_jax.imaging.transforms import Transform, transform_points
from lmreg_jax.io.points import in_frame
from lmreg_jax.registration.scans import Registered, lung_points

Array = NDArray[Any]

FEWEST = 12  # centreline points of a tree that can judge
LIMITS: dict[str, tuple[float, float]] = {  # (check, poor): above, or below where check > poor
    "airway_mm": (4.0, 8.0),
    "lung_dice": (0.93, 0.85),
    "side_dice": (0.90, 0.75),
    "folding_percent": (0.01, 1.0),
    "sd_log_jacobian": (0.6, 1.0),
    "landmark_mm": (6.0, 12.0),
    "seen_percent": (85.0, 50.0),
}
WORDS = {
    "airway_mm": "the airways lie {:.1f} mm apart",
    "lung_dice": "the lungs overlap by a Dice of {:.3f} only",
    "side_dice": "one lung overlaps by a Dice of {:.3f} only",
    "folding_percent": "the transform folds in {:.2f} % of the voxels",
    "sd_log_jacobian": "the local volume change varies a lot (sd of log J {:.2f})",
    "landmark_mm": "the landmarks end {:.1f} mm apart",
    "seen_percent": "the moving scan shows {:.0f} % of the fixed lungs only",
}
ORDER = ("good", "check", "poor")


class Verdict(NamedTuple):
    """value: good, check or poor; reasons, the worst first; figures: what was judged."""

    value: str
    reasons: tuple[str, ...]
    figures: Mapping[str, float]


def verdict(figures: Mapping[str, float], doubts: tuple[str, ...] = ()) -> Verdict:
    """The worst of what each figure of LIMITS says; figures that are missing or NaN say nothing, but
    without `airway_mm` and `landmark_mm` nothing inside the lungs was checked, and no result is good.

    doubts: reasons to look at the result, whatever the figures say.
    """
    graded: list[tuple[int, str]] = [(1, doubt) for doubt in doubts]
    for name, (check, poor) in LIMITS.items():
        value = figures.get(name, float("nan"))
        if not np.isfinite(value):
            continue
        sign = 1 if check < poor else -1
        grade = int(sign * value > sign * check) + int(sign * value > sign * poor)
        if grade:
            graded.append((grade, WORDS[name].format(value)))
    inside = [figures.get(name, float("nan")) for name in ("airway_mm", "landmark_mm")]
    if not np.isfinite(inside).any():
        graded.append((1, "no airways were found in both scans: only the lungs' outline was checked"))
    worst = max((grade for grade, _ in graded), default=0)
    ranked = sorted(graded, key=lambda item: -item[0])
    return Verdict(ORDER[worst], tuple(text for _, text in ranked), dict(figures))


def judged(
    summary: Mapping[str, Any],
    found: Registered,
    fixed: Side,
    moving: Side,
    airways: tuple[Array, Array] | None = None,
) -> Verdict:
    """The verdict on a registered pair. summary: of `measures.summary`; airways: both scans' centrelines
    [N, 3], RAS mm, of which the fixed one is carried to the moving scan and the other way round."""
    dice = {side: values["after"] for side, values in summary["dice"].items()}
    there = transform_points(found.forward, lung_points(fixed.lungs))
    figures = {
        "lung_dice": dice["both"],
        "side_dice": min(dice.get("left", dice["both"]), dice.get("right", dice["both"])),
        "folding_percent": summary["regularity"]["folding_percent"],
        "sd_log_jacobian": summary["regularity"]["sd_log_jacobian_lungs"],
        "seen_percent": 100 * float(in_frame(there, moving.scan.volume).mean()),
    }
    if airways is not None:
        figures["airway_mm"] = airway_distance(found.forward, found.inverse, *airways)
    if "landmarks" in summary and not summary["landmarks"].get("guided"):
        figures["landmark_mm"] = summary["landmarks"]["mean_mm"]["after"]
    return verdict(figures)


def airway_distance(forward: Transform, inverse: Transform, fixed: Array, moving: Array) -> float:
    """Mean distance in mm between two airway centrelines after registration; NaN where one is missing.

    fixed [N, 3], moving [M, 3]: centreline points, RAS mm of each scan. Each is carried to the other
    scan and compared with the nearest point there; the smaller of the two means counts, since one scan
    may show further branches than the other.
    """
    if min(len(fixed), len(moving)) < FEWEST:
        return float("nan")
    ways = ((forward, fixed, moving), (inverse, moving, fixed))
    means = [
        cKDTree(there).query(transform_points(transform, here))[0].mean() for transform, here, there in ways
    ]
    return float(min(means))
