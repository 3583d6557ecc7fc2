"""Whether points can belong to the scan that they are said to belong to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.anatomy.lungs import looks_like_ct
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume, apply_affine, spacing
from lmreg_jax.io.scan import LPS, Scan

Array = NDArray[Any]

COARSE_MM = 4.0  # a body is looked for at this step
SKIN_MM = 10.0  # points may lie this far outside of it
SOLID_HU = -500  # fat and more; the lungs are filled in
FEW, MOST = 0.2, 0.8  # shares of points inside: as given, and with x and y mirrored


def check_points(path: str | os.PathLike[str], points: Mapping[str, Array], scan: Scan) -> None:
    """InputError where points (RAS mm) lie outside the scan's frame or nearly all outside the body in
    it, or were read in LPS for RAS.

    The mix-up can be told only where mirroring x and y brings nearly all points from outside the body
    to its inside.
    """
    values = np.array(list(points.values())).reshape(-1, 3)
    mirrored = apply_affine(LPS, values)
    here, there = (float(np.mean(_in_body(p, scan.volume))) for p in (values, mirrored))
    if here <= FEW and there >= MOST:
        raise InputError(
            f"{path}: {100 * (1 - here):.0f} % of the points lie outside the body of {scan.path}, but "
            f"{100 * there:.0f} % inside with the signs of x and y changed: they seem to be LPS where RAS "
            "is needed, or the other way round; change these signs"
        )
    outside = [name for name, ok in zip(points, in_frame(values, scan.volume), strict=True) if not ok]
    if outside:
        shown = ", ".join(outside[:5]) + (" ..." if len(outside) > 5 else "")
        raise InputError(
            f"{path}: {len(outside)} of {len(points)} points lie outside the scan {scan.path} ({shown}); "
            "are they in RAS mm of this scan? Mend them or leave them out"
        )
    if here <= FEW:
        raise InputError(
            f"{path}: {100 * (1 - here):.0f} % of the points lie outside the body of {scan.path}: do they"
            " belong to this scan, in RAS mm?"
        )


def in_frame(points_mm: Array, volume: Volume) -> Array:
    """Which points [K, 3] RAS mm lie in some voxel of the volume, bool [K]."""
    index = apply_affine(np.linalg.inv(volume.affine), points_mm)
    return np.all((index >= -0.5) & (index <= np.array(volume.data.shape) - 0.5), axis=-1)


def _in_body(points_mm: Array, volume: Volume) -> Array:
    """Which points lie in the body of a CT, lungs included; of other images, in the frame."""
    inside = in_frame(points_mm, volume)
    if not inside.any() or not looks_like_ct(volume):
        return inside
    stride = np.maximum(np.rint(COARSE_MM / spacing(volume.affine)), 1).astype(int)
    solid = volume.data[:: stride[0], :: stride[1], :: stride[2]] > SOLID_HU
    parts, count = ndimage.label(solid)
    if count == 0:
        return inside
    body = parts == 1 + np.argmax(ndimage.sum_labels(solid, parts, np.arange(1, count + 1)))
    for k in range(body.shape[2]):
        body[:, :, k] = ndimage.binary_fill_holes(body[:, :, k])
    near = ndimage.distance_transform_edt(~body, sampling=stride * spacing(volume.affine)) <= SKIN_MM
    index = np.rint(apply_affine(np.linalg.inv(volume.affine), points_mm) / stride)
    index = np.clip(index, 0, np.array(body.shape) - 1).astype(int)
    return inside & near[tuple(index.T)]
