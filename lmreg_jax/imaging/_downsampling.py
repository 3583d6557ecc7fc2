"""A scan on a much coarser grid, smoothed along that grid's axes instead of the scan's own.

`resampling.resample` smooths on the scan's grid, along its axes. The same body stored on turned axes is
then seen through a turned filter, and a network that looks at 7 mm moves it by 0.07 mm otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.imaging.resampling import FWHM, inside, resample
from lmreg_jax.imaging.volume import Volume, spacing

Array = NDArray[Any]

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
