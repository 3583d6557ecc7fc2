"""Which lung is which in a mask, checked against the scan it belongs to.

Labels are 1 left, 2 right here and in [Hu 2020]; lungmask and others have it the other way round, lobes
have five, and many masks do not tell. The picture decides: in RAS mm the right lung has the larger x.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.anatomy._two_lungs import parted
from lmreg_jax.anatomy.lungs import LEFT, RIGHT
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.intensity import AIR_HU
from lmreg_jax.imaging.resampling import resample
from lmreg_jax.imaging.volume import Volume, spacing

Array = NDArray[Any]

COARSE_MM = 4.0  # grid of the checks: a whole scan would take seconds
MOST_OF_SCAN = 0.6  # lungs fill at most a third of a scan; more is a body mask, or an inverted one
AIR_INSIDE = 0.3  # of a lung mask is air at least, even where half of the lung is consolidated
MIRRORED = 0.1  # by which a flipped mask must fit better: left and right lung differ by 0.15 and more
FLIPS = {
    (0,): "left and right",
    (1,): "front and back",
    (2,): "head and feet",
    (0, 1): "x and y (LPS as RAS)",
}


def given_lungs(name: str, mask: Volume, scan: Volume) -> tuple[Volume, tuple[str, ...]]:
    """A lung mask with labels 1 left, 2 right (uint8), and notes on what was changed.

    mask: whole numbers, of any labels, on a separate grid or the scan's. Raises InputError, naming the
    mask `name`, where it does not lie on the lungs of the scan, or is mirrored against it.
    """
    every = np.maximum((COARSE_MM / spacing(mask.affine) + 1e-3).astype(int), 1)
    coarse = Volume(
        mask.data[:: every[0], :: every[1], :: every[2]], mask.affine @ np.diag([*every.astype(float), 1.0])
    )
    hu = resample(scan, coarse.data.shape, coarse.affine, order=0, fill=-1024)
    check_lungs(name, coarse.data != 0, hu)
    labels = np.unique(mask.data)
    if set(labels.tolist()) == {0, LEFT, RIGHT}:
        left, right = (np.mean(np.nonzero(coarse.data == label)[0]) for label in (LEFT, RIGHT))
        if left < right:
            return Volume(mask.data.astype(np.uint8, copy=False), mask.affine), ()
        swapped = np.array([0, RIGHT, LEFT], np.uint8)[mask.data.astype(np.uint8)]
        note = "the lung mask numbers the right lung 1 and the left 2 (as lungmask does): exchanged"
        return Volume(swapped, mask.affine), (note,)
    owner = _owner(coarse.data != 0, hu, spacing(coarse.affine))
    nearest = [np.minimum(np.rint(np.arange(n) / k).astype(int), m - 1)
               for n, k, m in zip(mask.data.shape, every, owner.shape, strict=True)]  # fmt: skip
    return Volume(np.where(mask.data != 0, owner[np.ix_(*nearest)], 0).astype(np.uint8), mask.affine), ()


def check_lungs(name: str, lungs: Array, hu: Array) -> None:
    """InputError where a mask (bool, on the grid of hu) is not of the lungs, or mirrored against them."""
    if np.mean(lungs) > MOST_OF_SCAN:
        raise InputError(
            f"{name}: marks {100 * np.mean(lungs):.0f} % of the scan; lungs fill far less: 0 must be outside,"
            " and 1 (or 1 left, 2 right) the lungs"
        )
    air = hu < AIR_HU
    fit = _fit(lungs, air)
    for axes, words in FLIPS.items():
        if _fit(np.flip(lungs, axes), air) > fit + MIRRORED:
            raise InputError(
                f"{name}: does not lie on the lungs of its scan, but would with {words} exchanged: it was"
                " stored without the scan's orientation; write it on the scan's own grid"
            )
    inside = float(np.mean(air[lungs])) if lungs.any() else 0.0
    if inside < AIR_INSIDE:
        raise InputError(
            f"{name}: only {100 * inside:.0f} % of it is air in its scan (below {AIR_HU:g} HU); it does not"
            " lie on the lungs: is it of another scan, or flipped?"
        )


def _fit(lungs: Array, air: Array) -> float:
    """Share of air in a mask, less that in the voxels around it."""
    around = ndimage.binary_dilation(lungs) & ~lungs
    if not lungs.any() or not around.any():
        return 0.0
    return float(np.mean(air[lungs]) - np.mean(air[around]))


def _owner(lungs: Array, hu: Array, edges: Array) -> Array:
    """LEFT or RIGHT at each voxel, for a mask that does not tell."""
    box = tuple(
        slice(max(s.start - 1, 0), s.stop + 1) for s in ndimage.find_objects(lungs.astype(np.uint8))[0]
    )
    owner = np.zeros(lungs.shape, np.uint8)
    cores = parted(ndimage.label(lungs)[0], edges)
    if cores is not None:
        nearest = ndimage.distance_transform_edt(
            cores == 0, sampling=edges, return_distances=False, return_indices=True
        )
        first = cores[tuple(nearest)]
        one, two = (np.mean(np.nonzero(cores == i)[0]) for i in (1, 2))
        owner[...] = np.where((first == 1) == (one < two), LEFT, RIGHT)
        return owner
    tissue = np.nonzero(hu[:, :, box[2]] > AIR_HU)[0]
    middle = float(np.median(tissue)) if tissue.size else (lungs.shape[0] - 1) / 2
    x = np.nonzero(lungs)[0]
    share = float(np.mean(x > middle))
    owner[...] = RIGHT if share > 0.5 else LEFT
    if 0.2 < share < 0.8:  # both lungs in one piece
        owner[:] = np.where(np.arange(len(owner)) > middle, RIGHT, LEFT)[:, None, None]
    return owner
