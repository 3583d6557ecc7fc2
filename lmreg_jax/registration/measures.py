"""What can be said of a registered pair in numbers, on the fixed scan's own voxels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.anatomy.chest import Side
from lmreg_jax.anatomy.lungs import NAMES
from lmreg_jax.evaluation import metrics
from lmreg_jax.imaging.transforms import (
    Transform,
    affine_transform,
    jacobian,
    transform_points,
    warp_image,
    warp_labels,
)
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.registration.scans import Registered, lung_points

Array = NDArray[Any]


def dice(fixed: Side, moving: Side, transforms: Mapping[str, Transform]) -> dict[str, dict[str, float]]:
    """{"both" | "left" | "right": {name of a transform: Dice of the lungs}}, in the common field of view.

    The common field of view is where all the transforms find data in the moving scan: the same voxels
    for each, so that the numbers compare, and a lung that a scan cuts off counts for neither.
    """
    shape, affine = fixed.lungs.data.shape, fixed.lungs.affine
    # Labels counted from 1, so that 0 is what no voxel of the moving scan reaches: one pass tells both.
    own = fixed.lungs.data.astype(np.uint8) + np.uint8(1)
    other = Volume(moving.lungs.data.astype(np.uint8) + np.uint8(1), moving.lungs.affine)
    if moving.measured is not None:
        other.data[~moving.measured] = 0
    warped, common = {}, np.ones(shape, bool) if fixed.measured is None else fixed.measured.copy()
    for name, transform in transforms.items():
        warped[name] = warp_labels(transform, other, shape, affine)
        common &= warped[name] > 0
    for counted in (own, *warped.values()):
        counted[~common] = 1
        counted -= 1
    labels: dict[str, int | None] = {"both": None}
    for label, name in NAMES.items():
        if all(np.any(side.lungs.data == label) for side in (fixed, moving)):
            labels[name] = label
    return {
        key: {name: metrics.dice(own, w, label) for name, w in warped.items()}
        for key, label in labels.items()
    }


def regularity(determinant: Array, fixed: Side) -> dict[str, float]:
    """Of the Jacobian determinant on the fixed grid: folding in per cent, range, sd of its log in lungs."""
    lungs = fixed.lungs.data != 0
    return {
        "folding_percent": metrics.folding_percent(determinant),
        "folding_percent_lungs": metrics.folding_percent(determinant, lungs),
        "smallest_jacobian": float(determinant.min()),
        "largest_jacobian": float(determinant.max()),
        "sd_log_jacobian_lungs": metrics.sd_log_jacobian(determinant, lungs),
    }


def motion(found: Registered, fixed: Side) -> dict[str, dict[str, float]]:
    """In mm, over the fixed lungs: what was moved beyond the affine step, and how well it inverts.

    "deformation": |A^-1 T(x) - x|; "refinement": what the refinement changed of the network's T;
    "inverse_error": |T^-1(T(x)) - x|.
    """
    points = lung_points(fixed.lungs)
    there = transform_points(found.forward, points)
    back = np.linalg.inv(found.affine.pull)
    out = {
        "deformation": _summary(apply_affine(back, there) - points),
        "inverse_error": _summary(transform_points(found.inverse, there) - points),
    }
    if found.network is not None:
        out["refinement"] = _summary(there - transform_points(found.network, points))
    return out


def landmark_errors(
    found: Registered, fixed: Mapping[str, Array], moving: Mapping[str, Array]
) -> dict[str, Any]:
    """TRE in mm of the points that both have, by name and summarised: "scanner", "affine", "after".

    fixed, moving: {name: [3] RAS mm}. "scanner": in scanner coordinates as they are.
    """
    names, p, q = metrics.common_points(fixed, moving)
    moved = {
        "scanner": p,
        "affine": transform_points(affine_transform(found.affine.pull), p),
        "after": transform_points(found.forward, p),
    }
    if found.network is not None:
        moved["network"] = transform_points(found.network, p)
    errors = {name: metrics.target_registration_error(None, m, q) for name, m in moved.items()}
    return {
        "names": names,
        "mm": {name: e.tolist() for name, e in errors.items()},
        "mean_mm": {name: metrics.Summary.of(e).mean for name, e in errors.items()},
        "sd_mm": {name: metrics.Summary.of(e).sd for name, e in errors.items()},
    }


def summary(
    found: Registered,
    fixed: Side,
    moving: Side,
    landmarks: tuple[Mapping[str, Array], Mapping[str, Array]] | None = None,
    determinant: Array | None = None,
) -> dict[str, Any]:
    """{"dice", "regularity", "motion"} and, with landmarks of both scans, "landmarks"; see each.

    determinant: the transform's Jacobian determinant on the fixed grid, where it is at hand.
    """
    transforms = {"affine": affine_transform(found.affine.pull)}
    if found.network is not None:
        transforms["network"] = found.network
    transforms["after"] = found.forward
    if determinant is None:
        determinant = jacobian(found.forward, fixed.lungs.data.shape, fixed.lungs.affine)
    numbers: dict[str, Any] = {
        "dice": dice(fixed, moving, transforms),
        "regularity": regularity(determinant, fixed),
        "motion": motion(found, fixed),
    }
    if landmarks is not None:
        numbers["landmarks"] = landmark_errors(found, *landmarks)
    return numbers


def uncertainty_on(found: Registered, shape: tuple[int, ...], affine: Array) -> Array:
    """The displacement's sd in mm at a grid's voxel centres, [*shape] float32; -1 where it is unknown."""
    if found.uncertainty is None:
        return np.full(tuple(shape), -1, np.float32)
    still = affine_transform(np.eye(4))
    return warp_image(still, found.uncertainty, shape, affine, fill=-1.0)


def _summary(vectors: Array) -> dict[str, float]:
    length = np.linalg.norm(vectors, axis=-1)
    return {
        "mean_mm": float(length.mean()),
        "p95_mm": float(np.percentile(length, 95)),
        "largest_mm": float(length.max()),
    }
