"""How well two images were registered: landmark error, overlap, regularity. NumPy only, sums in float64.

Conventions: arrays [X, Y, Z], voxel centres at integer indices; `displacement` [X, Y, Z, 3] is in
voxels and points from the fixed grid into the moving image, so that a fixed landmark p goes to
p + u(p) and warped(x) = moving(x + u(x)). Outside the grid everything keeps its edge value.
Nothing here shares code with the model: what is reported is computed independently of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from lmreg_jax.imaging.transforms import jacobian_determinant

if TYPE_CHECKING:
    from lmreg_jax.cohort.case import Case
    from lmreg_jax.cohort.cohort import Cohort

Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]
BeforeAfter = tuple[float, float]

LUNGS = {"left_lung": 1, "right_lung": 2}
LOBES = {"left_upper": 1, "left_lower": 2, "right_upper": 3, "right_middle": 4, "right_lower": 5}


class Summary(NamedTuple):
    """Mean and sample standard deviation of `n` values; NaN where there are too few."""

    mean: float
    sd: float
    n: int

    @classmethod
    def of(cls, values: ArrayLike) -> Summary:
        known = np.atleast_1d(np.asarray(values, np.float64))
        known = known[~np.isnan(known)]
        mean = float(known.mean()) if known.size else float("nan")
        sd = float(known.std(ddof=1)) if known.size > 1 else float("nan")
        return cls(mean, sd, int(known.size))


class PairResult(NamedTuple):
    """One registered pair: the tables' columns, then what only the JSON file holds.

    Errors are arrays, one value a landmark [K] or point [P], in mm, NaN where it is missing.
    """

    fixed: str
    moving: str
    tre_initial_mm: Floats
    tre_mm: Floats
    tre_unseen_initial_mm: Floats
    tre_unseen_mm: Floats
    dice_initial: float
    dice: float
    folding_percent: float
    sd_log_jacobian: float
    seconds: float
    tre_before_affine_mm: Floats  # [K], each landmark in its own scanner's coordinates
    dice_labels: dict[str, BeforeAfter]  # each lung and lobe in both: before, after
    dice_lungs_mean: BeforeAfter  # mean over the single lungs: before, after
    hausdorff95_mm: BeforeAfter  # of the lung masks: before, after

    @property
    def name(self) -> str:
        return f"{self.moving} -> {self.fixed}"


def measure(
    cohort: Cohort, fixed: Case, moving: Case, displacement: NDArray[Any], seconds: float
) -> PairResult:
    """All numbers of one pair from its displacement [X, Y, Z, 3] (voxels, fixed -> moving)."""
    points = fixed.landmarks, moving.landmarks, cohort.spacing_mm
    unseen = fixed.points, moving.points, cohort.spacing_mm
    scanner = fixed.landmarks_mm, moving.landmarks_mm, (1.0, 1.0, 1.0)
    determinant = jacobian_determinant(displacement)
    lungs = _labels(fixed.lungs, moving.lungs, displacement)
    lobes = _labels(fixed.lobes, moving.lobes, displacement)
    sides_known = all((mask == LUNGS["right_lung"]).any() for mask in lungs[:2])
    each_lung = _label_dice(lungs, LUNGS) if sides_known else {}
    return PairResult(
        fixed=fixed.name,
        moving=moving.name,
        tre_initial_mm=target_registration_error(None, *points),
        tre_mm=target_registration_error(displacement, *points),
        tre_unseen_initial_mm=target_registration_error(None, *unseen),
        tre_unseen_mm=target_registration_error(displacement, *unseen),
        dice_initial=dice(lungs[0], lungs[1]),
        dice=dice(lungs[0], lungs[2]),
        folding_percent=folding_percent(determinant),
        sd_log_jacobian=sd_log_jacobian(determinant, fixed.lungs),
        seconds=seconds,
        tre_before_affine_mm=target_registration_error(None, *scanner),
        dice_labels=each_lung | _label_dice(lobes, LOBES),
        dice_lungs_mean=(
            Summary.of([before for before, _ in each_lung.values()]).mean,
            Summary.of([after for _, after in each_lung.values()]).mean,
        ),
        hausdorff95_mm=(
            hausdorff95(lungs[0], lungs[1], cohort.spacing_mm),
            hausdorff95(lungs[0], lungs[2], cohort.spacing_mm),
        ),
    )


def sample_displacement(displacement: ArrayLike, points: ArrayLike) -> Floats:
    """u(p) [K, 3], read trilinearly at `points` [K, 3] (voxels, need not be integer).

    Points outside the grid read the nearest edge value; NaN points give NaN.
    """
    field = np.asarray(displacement, np.float64)
    where = np.asarray(points, np.float64).reshape(-1, 3)
    missing = np.asarray(np.isnan(where).any(axis=1))
    inside = np.where(missing[:, None], 0.0, where).T
    values = [ndimage.map_coordinates(field[..., i], inside, order=1, mode="nearest") for i in range(3)]
    return np.where(missing[:, None], np.nan, np.stack(values, axis=-1))


def target_registration_error(
    displacement: ArrayLike | None,
    fixed_points: ArrayLike,
    moving_points: ArrayLike,
    spacing_mm: Sequence[float] | Floats,
) -> Floats:
    """|spacing * (p + u(p) - q)| [K] in mm; `displacement` None means u = 0.   [Hu eq. 10, 11]

    fixed_points p, moving_points q: [K, 3] in voxels. NaN where p or q is missing (NaN); infinite
    where both are known and u is not finite, so that a failed field never looks like a gap.
    """
    fixed = np.asarray(fixed_points, np.float64).reshape(-1, 3)
    moving = np.asarray(moving_points, np.float64).reshape(-1, 3)
    known = np.isfinite(fixed).all(axis=1) & np.isfinite(moving).all(axis=1)
    shift = 0.0 if displacement is None else sample_displacement(displacement, fixed)
    error = np.linalg.norm((fixed + shift - moving) * np.asarray(spacing_mm, np.float64), axis=1)
    return np.where(known, np.where(np.isfinite(error), error, np.inf), np.nan)


def warp_labels(labels: NDArray[Any], displacement: ArrayLike) -> NDArray[Any]:
    """labels(x + u(x)) by nearest neighbour, edge-clamped: [X, Y, Z], the labels' own type."""
    field = np.asarray(displacement)
    index = []
    for axis, size in enumerate(labels.shape):
        start = np.arange(size).reshape([-1 if i == axis else 1 for i in range(3)])
        nearest = np.floor(start + field[..., axis].astype(np.float64) + 0.5)
        index.append(np.clip(nearest, 0, size - 1).astype(np.intp))
    return labels[tuple(index)]


def dice(a: ArrayLike, b: ArrayLike, label: int | None = None) -> float:
    """2 |A n B| / (|A| + |B|) of two label maps; NaN where both are empty.   [Hu eq. 12]

    With `label`, the voxels that carry it; without, all voxels that are not 0 (their union).
    """
    first = np.asarray(a) != 0 if label is None else np.asarray(a) == label
    second = np.asarray(b) != 0 if label is None else np.asarray(b) == label
    total = int(first.sum()) + int(second.sum())
    return 2.0 * int((first & second).sum()) / total if total else float("nan")


def hausdorff95(a: ArrayLike, b: ArrayLike, spacing_mm: Sequence[float] | Floats) -> float:
    """The larger of the two directed 95th percentiles of surface distance, in mm.

    A surface is the mask's voxels with a 6-neighbour outside it (the frame's outside counts as
    such). NaN where a mask is empty. Only the box around both masks is searched.
    """
    first, second = np.asarray(a) != 0, np.asarray(b) != 0
    if not first.any() or not second.any():
        return float("nan")
    box = ndimage.find_objects((first | second).astype(np.uint8))[0]
    edges = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (first, second)]
    far = [ndimage.distance_transform_edt(~edge, sampling=tuple(spacing_mm)) for edge in edges]
    directed = [np.percentile(far[1][edges[0]], 95), np.percentile(far[0][edges[1]], 95)]
    return float(max(directed))


def folding_percent(determinant: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Share in per cent of voxels (of `mask`, or all) whose Jacobian determinant is not positive.

    A determinant that is not a number counts as folded. NaN for an empty mask.
    """
    values = _inside(determinant, mask)
    return 100.0 * (values.size - np.count_nonzero(values > 0)) / values.size if values.size else float("nan")


def sd_log_jacobian(determinant: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Standard deviation of ln det over the voxels (of `mask`, or all) with det > 0.

    0 for a rigid or uniformly scaling map. NaN where there is no such voxel.
    """
    values = _inside(determinant, mask)
    values = values[values > 0]
    return float(np.std(np.log(values, dtype=np.float64))) if values.size else float("nan")


def _inside(determinant: ArrayLike, mask: ArrayLike | None) -> NDArray[Any]:
    values = np.asarray(determinant)  # as they are: in float64 a large scan's take a gigabyte
    return values if mask is None else values[np.asarray(mask) != 0]


def _labels(fixed: Labels | None, moving: Labels | None, u: ArrayLike) -> tuple[Labels, ...]:
    """Label maps (fixed, moving, warped); empty ones, all metrics NaN, where one is missing."""
    if fixed is None or moving is None:
        return (np.zeros((1, 1, 1), np.uint8),) * 3
    return fixed, moving, warp_labels(moving, u)


def _label_dice(maps: tuple[Labels, ...], names: dict[str, int]) -> dict[str, BeforeAfter]:
    """Dice before and after of each label that both the fixed and the moving map have."""
    fixed, moving, warped = maps
    return {
        name: (dice(fixed, moving, label), dice(fixed, warped, label))
        for name, label in names.items()
        if (fixed == label).any() and (moving == label).any()
    }
