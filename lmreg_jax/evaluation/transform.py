"""How well a transform brings two scans together, measured in mm on the scans' own grids.

Points: TRE = |T(p) - q|, p in the fixed, q in the moving scan. Masks: the moving one is pulled onto
the fixed one's grid (nearest voxel), then Dice and surface distances, for which DeepMind's
surface-distance is used: it weighs each piece of surface by its area, which counts where voxels are
longer than wide (Nikolov 2018); averages over surface voxels are off by half there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.evaluation import metrics
from lmreg_jax.imaging.transforms import Transform, covers, jacobian, transform_points, warp_labels
from lmreg_jax.imaging.volume import Volume, spacing

log = logging.getLogger(__name__)

Array = NDArray[Any]

HARDEST = 30
UNKNOWN = float("nan")
MANY_LABELS = 64  # more than a label map of a chest holds; a grey-value image has been taken for one


class PointErrors(NamedTuple):
    """Summary of TRE over n points, mm; hardest_30 is the mean of the 30 largest (NaN below 30)."""

    n: int
    mean: float
    sd: float
    median: float
    percentile_95: float
    hardest_30: float
    maximum: float


class Overlap(NamedTuple):
    """Of two masks, all labels as one; distances in mm, NaN where surface-distance is missing.

    dice_labels: of each label that both maps have.
    """

    dice: float
    dice_labels: dict[int, float]
    hausdorff95_mm: float
    mean_surface_mm: float


class Regularity(NamedTuple):
    """Of the Jacobian determinant on the fixed grid; the _mask figures inside the fixed mask."""

    folding_percent: float
    folding_percent_mask: float
    sd_log_jacobian: float
    sd_log_jacobian_mask: float


def point_errors(
    transform: Transform, fixed: Mapping[str, Array], moving: Mapping[str, Array], *, name: str = ""
) -> dict[str, float]:
    """|T(p) - q| in mm of each point that both have, {name: mm}, RAS mm in.  [Hu eq. 11]

    Raises InputError where no name is common, and where the transform (called `name`) says nothing
    about a point.
    """
    names = [name for name in fixed if name in moving]
    if not names:
        raise InputError(
            f"the points have no name in common: {', '.join(list(fixed)[:3])} ... in the fixed scan, "
            f"{', '.join(list(moving)[:3])} ... in the moving one"
        )
    alone = len(fixed) + len(moving) - 2 * len(names)
    if alone:
        log.warning("%d points are named in one of the two files only; left out", alone)
    p, q = (np.array([points[name] for name in names]) for points in (fixed, moving))
    defined = covers(transform, p)
    if not defined.all():
        raise InputError(
            f"{name or 'the transform'}: a displacement field that ends before "
            f"{np.count_nonzero(~defined)} of {len(p)} points; use the composite transform (.h5)"
        )
    errors = np.linalg.norm(transform_points(transform, p) - q, axis=1)
    return dict(zip(names, errors.tolist(), strict=True))


def summarise(errors: Mapping[str, float]) -> PointErrors:
    """Mean, sample sd, median, 95th percentile, hardest 30 and largest of errors in mm."""
    values = np.sort(np.array(list(errors.values()), np.float64))
    n = len(values)
    return PointErrors(
        n=n,
        mean=float(values.mean()) if n else UNKNOWN,
        sd=float(values.std(ddof=1)) if n > 1 else UNKNOWN,
        median=float(np.median(values)) if n else UNKNOWN,
        percentile_95=float(np.percentile(values, 95)) if n else UNKNOWN,
        hardest_30=float(values[-HARDEST:].mean()) if n >= HARDEST else UNKNOWN,
        maximum=float(values[-1]) if n else UNKNOWN,
    )


def overlap(transform: Transform, fixed: Volume, moving: Volume) -> Overlap:
    """Dice and surface distances of the fixed mask and the moving one pulled onto its grid."""
    warped = warp_labels(transform, moving, fixed.data.shape, fixed.affine)
    common = sorted(set(_labels(fixed.data)) & set(_labels(moving.data)))
    each = {label: metrics.dice(fixed.data, warped, label) for label in common} if len(common) > 1 else {}
    distances = surface_distances(fixed.data != 0, warped != 0, spacing(fixed.affine))
    return Overlap(metrics.dice(fixed.data, warped), each, *distances)


def surface_distances(a: Array, b: Array, spacing_mm: Array) -> tuple[float, float]:
    """HD95 (the larger of both directions) and symmetric mean surface distance of two masks, mm.

    NaN where a mask is empty, or where the package surface-distance is not installed (logged).
    """
    try:
        import surface_distance
    except ImportError:
        log.warning(
            'no surface distances: surface-distance is not installed (pip install "lmreg_jax[evaluate]")'
        )
        return UNKNOWN, UNKNOWN
    if not a.any() or not b.any():
        return UNKNOWN, UNKNOWN
    found = surface_distance.compute_surface_distances(a, b, tuple(float(s) for s in spacing_mm))
    both = surface_distance.compute_average_surface_distance(found)
    return float(surface_distance.compute_robust_hausdorff(found, 95)), float(np.mean(both))


def regularity(transform: Transform, fixed: Volume, mask: Volume | None) -> Regularity:
    """Folding (share of det DT <= 0, %) and sd of ln det DT: on the fixed grid, and in its mask."""
    determinant = jacobian(transform, fixed.data.shape, fixed.affine)
    inside = np.zeros(1, bool) if mask is None else determinant[mask.data != 0]
    return Regularity(
        metrics.folding_percent(determinant),
        UNKNOWN if mask is None else metrics.folding_percent(inside),
        metrics.sd_log_jacobian(determinant),
        UNKNOWN if mask is None else metrics.sd_log_jacobian(inside),
    )


def _labels(data: Array) -> list[int]:
    """The labels of a map, without 0; a boolean or single mask has one."""
    found = [int(label) for label in np.unique(data) if label]
    if len(found) > MANY_LABELS:
        raise InputError(
            f"a mask with {len(found)} different labels; is it an image? Whole numbers from 0 to "
            f"{MANY_LABELS} are expected"
        )
    return found
