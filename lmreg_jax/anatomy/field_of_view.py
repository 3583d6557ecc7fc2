"""Which voxels of a scan were measured: reconstructions end in circles and wedges, files in boxes.

What a scanner or a resampling filled in is constant to the last bit, solid, and lies at the frame's
border; measured air has noise. What was measured is convex: a box, a cylinder, a cone, or their
intersection. The border of the measured part says nothing of anatomy: it is no skin and no pleura.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.imaging.volume import Volume, spacing

Array = NDArray[Any]

NO_HU = -1024.0  # below it nothing is measured
AIR_LIKE = (-1024.0, -950.0)  # padding of these values may as well be air without noise
COARSE_MM = 4.0  # voxels, picked and not averaged, among which the padding is looked for
LEAST_FACES = 0.002  # of the border's voxels hold a padding's value, in solid patches
CONCAVE = 0.05  # of the padding may lie between measured voxels, along an axis
NEAR_MM = 9.0  # from the padding (2 voxels at least): beyond the partial volumes of a skin
CONTACT_CM2 = 5.0  # of body or lung at the padding: less does not matter
CUBE = np.ones((3, 3, 3), bool)


def measured(volume: Volume) -> Array | None:
    """Which voxels of a CT in HU were measured, bool [X, Y, Z]; None: all that matter.

    Padding that touches neither body nor lungs is as good as the air that it stands for. A constant
    that can be air, as in synthetic scans, counts as padding only where noisy air ends at it, or
    where lungs lie open to it.
    """
    every = np.maximum((COARSE_MM / spacing(volume.affine) + 1e-3).astype(int), 1)
    picked = [
        np.unique(np.append(np.arange(0, n, step), n - 1))
        for n, step in zip(volume.data.shape, every, strict=True)
    ]
    square_cm = float(np.prod(spacing(volume.affine) * every)) ** (2 / 3) / 100  # of a coarse voxel's face
    small = volume.data[np.ix_(*picked)]
    padding = np.zeros(small.shape, bool)
    values = []
    for value in _border_values(small):
        solid = _at_border(small == value if value >= NO_HU else small < NO_HU)
        if solid.any() and _is_padding(value, solid, padding, small, square_cm):
            padding |= solid
            values.append(value)
    if not values or not _matters(padding, small, square_cm):
        return None
    near = ndimage.binary_dilation(padding, CUBE)
    nearest = [
        np.rint(np.interp(np.arange(n), index, np.arange(len(index)))).astype(int)
        for n, index in zip(volume.data.shape, picked, strict=True)
    ]
    out = near[np.ix_(*nearest)]
    constant = np.zeros(out.shape, bool)
    for value in values:
        constant |= volume.data < NO_HU if value < NO_HU else volume.data == value
    return np.asarray(~(out & constant))


def _border_values(data: Array) -> Sequence[float]:
    """Values of solid patches of the frame's six faces: those that cannot be measured first."""
    solid, count = [], 0
    for axis in range(3):
        for end in (0, -1):
            face = data.take(end, axis)
            a = face[:-1, :-1]
            same = (a == face[1:, :-1]) & (a == face[:-1, 1:]) & (a == face[1:, 1:])
            solid.append(a[same])
            count += face.size
    values, counts = np.unique(np.concatenate(solid), return_counts=True)
    values = values[counts >= LEAST_FACES * count]
    # All values below NO_HU are one padding: interpolation mixes it with what it borders on.
    none = values[values < NO_HU][:1]
    return [float(value) for value in (*none, *values[values >= NO_HU])]


def _at_border(mask: Array) -> Array:
    """The solid parts of a mask (opened by CUBE, going on beyond the frame) that reach the border."""
    core = ndimage.binary_erosion(mask, CUBE, border_value=1)
    opened = ndimage.binary_dilation(core, CUBE) & mask
    labels, _ = ndimage.label(opened)
    faces = [labels.take(end, axis).ravel() for axis in range(3) for end in (0, -1)]
    touching = np.zeros(int(labels.max()) + 1, bool)
    touching[np.concatenate(faces)] = True
    touching[0] = False
    return np.asarray(touching[labels])


def _is_padding(value: float, solid: Array, padding: Array, data: Array, square_cm: float) -> bool:
    """Whether a solid constant at the border is no tissue and no air."""
    if value < NO_HU:
        return True
    both = solid | padding
    between = np.zeros(both.shape, bool)
    for axis in range(3):
        ahead = np.maximum.accumulate(~both, axis)
        behind = np.flip(np.maximum.accumulate(np.flip(~both, axis), axis), axis)
        between |= ahead & behind & solid
    convex = bool(np.count_nonzero(between) <= CONCAVE * np.count_nonzero(solid))
    if not AIR_LIKE[0] <= value <= AIR_LIKE[1]:
        return convex
    if convex and _cuts_tissue(solid, both, data):
        return True
    near = _near(square_cm)
    shell = _shell(solid, near) & ~padding
    beside = data[shell]
    if convex and np.mean((beside >= NO_HU) & (beside < AIR_LIKE[1])) > 0.2:
        return True
    # No tissue between: a wall, however thin, keeps what is filled in from the lung.
    through = ndimage.binary_dilation(solid, mask=solid | (data < -500), iterations=near) & shell
    lung = ndimage.binary_opening((data > AIR_LIKE[1]) & (data < -500) & ~both, CUBE)
    return bool(np.count_nonzero(lung & through) * square_cm > CONTACT_CM2)


def _matters(padding: Array, data: Array, square_cm: float) -> bool:
    """Whether body or lung lies at the padding."""
    inner = ndimage.binary_opening((data > AIR_LIKE[1]) & ~padding, CUBE)
    return bool(np.count_nonzero(inner & _shell(padding, _near(square_cm))) * square_cm > CONTACT_CM2)


def _cuts_tissue(solid: Array, both: Array, data: Array) -> bool:
    """Whether a constant borders on noisy tissue as no skin does: at once, or straight along z.

    Noise: of tissue that a body without any, as synthetic scans have it, would not show.
    """
    beside = data[ndimage.binary_dilation(solid) & ~both]
    tissue = (beside > -200) & (beside < 300)
    inner = data[:, :, 1:].astype(np.float32) - data[:, :, :-1]
    soft = (np.abs(data[:, :, 1:] - 25.0) < 175) & (np.abs(data[:, :, :-1] - 25.0) < 175)
    if np.mean(tissue) < 0.2 or not soft.any() or np.median(np.abs(inner[soft])) < 1:
        return False
    partial = np.mean((beside > AIR_LIKE[1]) & (beside <= -200))
    steps = np.count_nonzero(solid[:, :, 1:] != solid[:, :, :-1])
    rim = np.count_nonzero(solid & ~ndimage.binary_erosion(solid, border_value=1))
    return bool(partial < 0.1 or steps < 0.02 * rim)


def _near(square_cm: float) -> int:
    """NEAR_MM in coarse voxels."""
    return max(2, round(NEAR_MM / (10 * np.sqrt(square_cm))))


def _shell(padding: Array, near: int) -> Array:
    """What is `near` voxels away from the padding, not less."""
    return np.asarray(
        ndimage.binary_dilation(padding, iterations=near)
        & ~ndimage.binary_dilation(padding, iterations=near - 1)
    )
