"""Where within its voxels the surface of a lung mask runs, as the scan's HU have it.

A mask knows whole voxels only. Counting them places a lung's surface by the chance of the grid: the
same lungs in other voxels differ by some hundredths of a millimetre, and an affine map made of their
moments by three times as much at the skin, where it extrapolates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.imaging.intensity import AIR_HU
from lmreg_jax.imaging.volume import Volume

Array = NDArray[Any]

CLIPPED_HU = (-1024.0, 300.0)  # padding and bone must not pass for a steeper surface
LEAST_STEP = 1e-3  # HU: less is no slope


def surface_excess(mask: Array, hu: Array) -> tuple[tuple[Array, ...], Array]:
    """What a mask's surface voxels lack, or hold beyond it: index (3 arrays [K]), excess [K] in voxels.

    mask: bool [X, Y, Z]; hu: [X, Y, Z]. Surface voxels have a face to the other side. The share of one
    that is air follows from its distance to the level AIR_HU, in units of its extent along the slope:
    share = 1/2 - (hu - AIR_HU) / |(HU steps to the neighbours)|, in [0, 1]: exact for a slope along one
    axis, and right in the mean over all places of a surface in its voxels. The excess is share - 1
    (-1/2 to 0) in air inside the mask, share (0 to 1/2) in tissue outside, and 0 where the mask's
    surface is not that of the air: vessels closed over, airways left out, slices cut off.
    """
    near = np.zeros(mask.shape, bool)
    for axis in range(3):
        low, high = (
            tuple(part if a == axis else slice(None) for a in range(3))
            for part in (slice(None, -1), slice(1, None))
        )
        change = mask[low] != mask[high]
        near[low] |= change
        near[high] |= change
    index = np.nonzero(near)
    values = np.clip(hu[index], *CLIPPED_HU).astype(np.float32)
    steps = [_step(hu, index, axis) for axis in range(3)]
    step = np.maximum(np.sqrt(np.sum(np.square(steps), axis=0)), LEAST_STEP)
    share = np.clip(0.5 - (values - AIR_HU) / step, 0, 1)
    inside, air = mask[index], values < AIR_HU
    return index, np.where(inside & air, share - 1, np.where(~inside & ~air, share, 0.0))


def beneath(scan: Volume, mask: Volume, start: Array, shape: Array) -> Array:
    """The HU beneath a box of the mask's grid (first voxel `start`, may lie outside: edge values).

    The mask's grid is a part of the scan's: the same axes and voxels, perhaps fewer of them.
    """
    to_scan = np.linalg.inv(scan.affine) @ mask.affine
    first = np.rint(to_scan[:3, 3]).astype(int) + start
    picked = [
        np.clip(np.arange(a, a + n), 0, size - 1)
        for a, n, size in zip(first, shape, scan.data.shape, strict=True)
    ]
    return np.asarray(scan.data[np.ix_(*picked)])


def _step(hu: Array, index: tuple[Array, ...], axis: int) -> Array:
    """Change of the clipped HU from the voxels `index` to a neighbour along an axis, the larger of two.

    Central differences would halve a surface that is as sharp as a voxel is long.
    """
    here = np.clip(hu[index], *CLIPPED_HU).astype(np.float32)
    changes = []
    for step in (1, -1):
        place = np.clip(index[axis] + step, 0, hu.shape[axis] - 1)
        at = tuple(place if a == axis else index[a] for a in range(3))
        changes.append(np.abs(np.clip(hu[at], *CLIPPED_HU).astype(np.float32) - here))
    return np.maximum(*changes)
