"""Volumes on other grids: interpolation in RAS mm, smoothing before it, and where there are data.

(`downsampling` brings scans to much coarser grids.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.imaging.volume import Volume, apply_affine, spacing

Array = NDArray[Any]

FWHM = 2 * math.sqrt(2 * math.log(2))  # full width at half maximum of a unit Gaussian


def resample(
    volume: Volume,
    shape: Sequence[int],
    affine: Array,
    *,
    order: int = 1,
    fill: float | None,
    pull: Array | None = None,
) -> Array:
    """The volume on another grid: out(i) = volume(volume.affine^-1 pull affine i), [*shape].

    affine: target voxel -> target RAS mm; pull [4, 4]: target RAS mm -> the volume's RAS mm.
    Outside the volume's voxels: `fill`, or with None its edge goes on (0 where no voxel is near). For a
    coarser target, order >= 1 smooths first, by `smoothing`.
    """
    matrix = np.linalg.inv(volume.affine) @ (np.eye(4) if pull is None else pull) @ affine
    linear, offset = matrix[:3, :3], matrix[:3, 3].copy()
    sigma = smoothing(matrix) if order else np.zeros(3)
    reach = 2 if order < 2 else 12  # a spline's coefficients feel an edge 12 voxels away by 1e-7
    data, start = _needed_part(volume.data, shape, matrix, 4 * sigma + reach)
    if data is None:
        return np.full(tuple(shape), fill or 0, volume.data.dtype if order == 0 else np.float32)
    if data.dtype == bool:
        data = data.astype(np.uint8)
    if sigma.any():
        data = ndimage.gaussian_filter(data, sigma, output=np.float32, mode="nearest")
    dtype = data.dtype if order == 0 else np.float32
    out: Array = ndimage.affine_transform(
        data, linear, offset - start, tuple(shape), dtype, order=order, mode="nearest"
    )
    if fill is not None:
        out[~_inside(volume.data.shape, shape, linear, offset)] = fill
    return out


def smoothing(matrix: Array) -> Array:
    """Gaussian sigma [3], source voxels, before a resampling by `matrix` [4, 4], target -> source voxel.

    sigma^2 = (step^2 - 1) / FWHM^2 where the target is coarser [Cardoso 2015], else 0.
    """
    sigma = np.sqrt(np.maximum(np.sum(matrix[:3, :3] ** 2, axis=1) - 1, 0)) / FWHM
    return sigma if sigma.max() > 0.1 else np.zeros(3)  # there the kernel's neighbours weigh 1e-20


def inside(volume: Volume, shape: Sequence[int], affine: Array, *, pull: Array | None = None) -> Array:
    """Which voxels of a grid have their centre in one of the volume's voxels, bool [*shape].

    affine, pull: as in `resample`, which puts its `fill` exactly where this is False.
    """
    matrix = np.linalg.inv(volume.affine) @ (np.eye(4) if pull is None else pull) @ affine
    return _inside(volume.data.shape, shape, matrix[:3, :3], matrix[:3, 3])


def _needed_part(
    data: Array, shape: Sequence[int], matrix: Array, margin: Array
) -> tuple[Array | None, Array]:
    """The box of source voxels that the target reads, and its first index; None if there is none.

    An affine image of a box is bounded by the images of its corners. Saves most of the smoothing
    where the grid is a small part of a large scan.
    """
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.asarray(shape) - 1)
    reached = apply_affine(matrix, corners)
    low = np.floor(reached.min(0) - margin).astype(int)
    high = np.ceil(reached.max(0) + margin).astype(int) + 1
    low, high = np.maximum(low, 0), np.minimum(high, data.shape)
    if np.any(low >= high):
        return None, low
    return data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], low


def _inside(source: Sequence[int], shape: Sequence[int], linear: Array, offset: Array) -> Array:
    """Which target voxels' centres lie in a source voxel (a box: up to 1/2 off its centre).

    (scipy's own `constant` mode ends at the centres, so that rounding alone can lose a face.)
    """
    inside = np.ones(tuple(shape), bool)
    steps = np.ogrid[: shape[0], : shape[1], : shape[2]]
    for axis in range(3):
        index = np.full((1, 1, 1), offset[axis])
        for slope, step in zip(linear[axis], steps, strict=True):
            if abs(slope) * step.size > 1e-9:  # Axes that stay apart are cheap: a line of numbers each.
                index = index + slope * step
        inside &= (index >= -0.5 - 1e-6) & (index <= source[axis] - 0.5 + 1e-6)
    return inside


FINE_MM = 1.5  # of the grid between: the scans' own voxels, or not much coarser
REACH = 2  # coarse voxels around the grid that the filter sees: 4.7 of its sigma


def downsample(
    volume: Volume, shape: Sequence[int], affine: Array, *, fill: float, pull: Array | None = None
) -> Array:
    """The volume on a coarser grid, [*shape] float32: `resampling.resample`, its filter in the grid's frame.

    Read on a grid of about FINE_MM (the coarse one with a whole number of voxels to one), smoothed
    there by a Gaussian to the width that the coarse voxels ask for, every so many voxels taken. In fine
    voxels: sigma^2 = (factor^2 - width^2) / FWHM^2, width that of the fine or the scan's own voxels,
    whichever is larger. [Cardoso 2015] Beyond the scan its edge goes on for the filter, and what lies
    there is `fill`.
    """
    pull = np.eye(4) if pull is None else np.asarray(pull)
    factor = np.maximum(np.rint(spacing(pull @ affine) / FINE_MM), 1).astype(int)
    margin = REACH * factor
    fine = affine @ np.diag([*(1 / factor), 1.0])
    fine[:3, 3] -= fine[:3, :3] @ margin
    size = (np.asarray(shape) - 1) * factor + 1 + 2 * margin
    image = resample(volume, size, fine, fill=None, pull=pull)
    own = np.linalg.inv(pull @ fine)[:3, :3] @ volume.affine[:3, :3]  # a scan's voxel, in fine voxels
    width = np.maximum(np.sum(own**2, axis=1), 1.0)
    sigma = np.sqrt(np.maximum(factor**2 - width, 0)) / FWHM
    image = ndimage.gaussian_filter(image, sigma, mode="nearest")
    picked = tuple(slice(m, m + (n - 1) * k + 1, k) for m, n, k in zip(margin, shape, factor, strict=True))
    out = np.ascontiguousarray(image[picked])
    out[~inside(volume, shape, affine, pull=pull)] = fill
    return out
