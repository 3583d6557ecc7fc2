"""From a scan to what the network sees: intensity windows, lung masks, the common grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.anatomy.lungs import LEFT, RIGHT, LungReport, cut_off, looks_like_ct, lung_report
from lmreg_jax.anatomy.segmentation import segment_lungs
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume, apply_affine

Array = NDArray[Any]

__all__ = [
    "LEFT",
    "RIGHT",
    "LungReport",
    "bounding_box_mm",
    "centred_grid",
    "cut_off",
    "fill_missing",
    "image_centre",
    "looks_like_ct",
    "lung_centred_grid",
    "lung_report",
    "segment_lungs",
    "window",
    "window_percentile",
]


def window(data: Array, limits: tuple[float, float]) -> Array:
    """Intensities to [0, 1], float32: (data - low) / (high - low), clipped."""
    low, high = (float(limit) for limit in limits)
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"window ({low:g}, {high:g}): two finite numbers, low < high, are needed")
    scaled = (np.asarray(data, np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0, 1, out=scaled)


def window_percentile(data: Array, percentiles: tuple[float, float]) -> Array:
    """Intensities to [0, 1] between two percentiles of the data, where they have no unit."""
    low, high = (float(value) for value in percentiles)
    if not 0 <= low < high <= 100:
        raise InputError(f"window percentiles ({low:g}, {high:g}): 0 <= low < high <= 100 is needed")
    limits = np.percentile(data, [low, high])
    if not limits[0] < limits[1]:
        raise InputError(
            f"the image has the value {limits[0]:g} at both percentiles {low:g} and {high:g}; it "
            "is (nearly) constant, or they must lie further apart"
        )
    return window(data, (limits[0], limits[1]))


def fill_missing(
    fixed: Array, moving: Array, fixed_inside: Array, moving_inside: Array
) -> tuple[Array, Array]:
    """Two affinely aligned images [X, Y, Z] on one grid, each shown where the other has no data.

    *_inside: bool [X, Y, Z], where a scan has data. A scan that ends in the lung (a base cut off)
    would show its edge as a wall of air, and the other lung would be pulled onto it; equal
    intensities ask for no motion. Where neither has data both keep what they have (air).
    """
    return (
        np.where(moving_inside & ~fixed_inside, moving, fixed),
        np.where(fixed_inside & ~moving_inside, fixed, moving),
    )


def bounding_box_mm(volume: Volume) -> tuple[Array, Array]:
    """The box [3], [3] in RAS mm around the centres of the non-zero voxels (any affine)."""
    mask = np.asarray(volume.data) != 0
    columns = np.argwhere(mask.any(axis=2))
    if not len(columns):
        raise InputError("the mask is empty: there is nothing to centre on")
    # A linear function over a column of voxels is extreme at its ends: no need to look between.
    i, j = columns.T
    first = np.argmax(mask[i, j], axis=1)
    last = mask.shape[2] - 1 - np.argmax(mask[i, j, ::-1], axis=1)
    ends = [np.column_stack([columns, k]) for k in (first, last)]
    points = apply_affine(volume.affine, np.concatenate(ends))
    return points.min(0), points.max(0)


def centred_grid(centre: Array, shape: Sequence[int], spacing_mm: Array) -> Array:
    """The affine [4, 4] of an axis-aligned RAS+ grid whose middle lies at `centre` (RAS mm)."""
    affine = np.diag([*np.asarray(spacing_mm, np.float64), 1.0])
    affine[:3, 3] = centre - affine.diagonal()[:3] * (np.asarray(shape) - 1) / 2
    return affine


def lung_centred_grid(mask: Volume, shape: Sequence[int], spacing_mm: Array) -> Array:
    """The affine [4, 4] of an RAS+ grid centred on the bounding box of the mask's non-zero voxels.

    spacing_mm [3]. Raises InputError on an empty mask.
    """
    low, high = bounding_box_mm(mask)
    return centred_grid((low + high) / 2, shape, spacing_mm)


def image_centre(volume: Volume) -> Array:
    """The middle of the image's frame, RAS mm."""
    return apply_affine(volume.affine, (np.asarray(volume.data.shape) - 1) / 2)
