"""Image and landmark files: the border between what is on disk and arrays.

Arrays are [X, Y, Z] of an image brought to RAS+ (x grows to the patient's right, y to the front,
z to the head). An affine [4, 4] takes a voxel index to RAS mm; voxel centres are at integers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.errors import InputError

log = logging.getLogger(__name__)

Array = NDArray[Any]

SPACING_LIMITS = (1e-3, 1e3)  # mm
SHEAR_LIMIT = 1e-3  # cosine between axes: half a millimetre over a chest; headers round at 1e-6


class Volume(NamedTuple):
    """An image with its place in space: data [X, Y, Z], affine [4, 4] voxel -> RAS mm."""

    data: Array
    affine: Array


def spacing(affine: Array) -> Array:
    """Voxel edge lengths [3] in mm: the column norms of the affine's linear part."""
    return np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0)


def apply_affine(affine: Array, points: Array) -> Array:
    """Points [..., 3] through a [4, 4] affine, in float64. NaN (missing) points stay NaN."""
    affine = np.asarray(affine, np.float64)
    return np.asarray(points, np.float64) @ affine[:3, :3].T + affine[:3, 3]


def check_axes(path: str | os.PathLike[str], affine: Array) -> None:
    """InputError where the voxels' axes lie in one plane; a warning where they are not at right angles."""
    axes = affine[:3, :3] / spacing(affine)
    if abs(np.linalg.det(axes)) < 1e-3:
        raise InputError(f"{path}: the header's affine is singular: its axes lie in one plane")
    for note in shear_notes(affine):
        log.warning("%s: %s", path, note)


def shear_notes(affine: Array) -> tuple[str, ...]:
    """What is to be said of axes that are not at right angles; () where they are.

    They are exact here, but NIfTI's qform and ITK's directions cannot say them.
    """
    axes = affine[:3, :3] / spacing(affine)
    largest = np.abs((axes.T @ axes)[np.triu_indices(3, 1)]).max()
    if largest <= SHEAR_LIMIT:
        return ()
    degrees = np.degrees(np.arccos(min(largest, 1.0)))
    return (
        f"sheared: two of its axes are at {degrees:.1f} degrees, not 90. It is read as it says, but ITK, ANTs"
        " and 3D Slicer show it, and what is written on its grid, without the shear: resample it first",
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


def cropped(mask: Volume) -> Volume:
    """The part of a mask that holds its non-zero voxels: what has to be kept in memory of it."""
    filled = [np.flatnonzero(mask.data.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    part = tuple(slice(index[0], index[-1] + 1) for index in filled)
    affine = mask.affine.copy()
    affine[:3, 3] = apply_affine(mask.affine, np.array([s.start for s in part]))
    return Volume(mask.data[part].copy(), affine)
