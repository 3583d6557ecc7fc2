"""Lung air in two: which piece is which lung, where they touch, and what is bowel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.anatomy.lungs import LEFT, RIGHT
from lmreg_jax.errors import InputError

Array = NDArray[Any]
OPEN_AIR_HU = -940.0  # darker is outside air, or gas in stomach and bowel
UNEVEN_HU = 400.0  # between the 10th and the 90th percentile; aerated lung: 190 to 330


NO_LUNGS = (
    "no lungs found: there is no air inside a body; the scan must be a chest CT in HU (or give "
    "lung masks, or lungs='none')"
)
LEAST_LITRES = 0.15  # less air is not a lung


def two_lungs(air: Array, hu: Array, edges: Array) -> list[Array]:
    """The two lungs, or one mask where there is one: all large pieces of air, parted by side.

    Lungs that a thin bridge joins are parted; then every voxel goes to the nearer core.
    """
    litre = float(np.prod(edges)) / 1e6
    labels, count = ndimage.label(air)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * litre
    large = [i for i in range(1, count + 1) if sizes[i] >= LEAST_LITRES]
    # Gas in stomach and bowel; half a litre as dark as that is an emphysematous lung.
    large = [i for i in large if sizes[i] > 0.5 or np.median(hu[labels == i]) > OPEN_AIR_HU]
    if not large:
        raise InputError(NO_LUNGS)
    large = [i for i in large if not _is_bowel(labels == i, labels == max(large, key=lambda k: sizes[k]), hu)]
    lungs = np.isin(labels, large)
    cores = parted(np.where(lungs, labels, 0), edges)
    if cores is None:
        return [lungs]
    box = ndimage.find_objects(lungs.astype(np.uint8))[0]
    nearest = ndimage.distance_transform_edt(
        cores[box] == 0, sampling=edges, return_distances=False, return_indices=True
    )
    owner = np.zeros_like(cores)
    owner[box] = cores[box][tuple(nearest)]
    return [lungs & (owner == i) for i in (1, 2)]


def _is_bowel(piece: Array, lung: Array, hu: Array) -> bool:
    """Whether a piece of air is gas or stool: below the diaphragm, and too dark or too uneven for lung.

    lung: the largest piece, which it is compared with.
    """
    heights = np.flatnonzero(lung.any((0, 1)))
    column = np.count_nonzero(lung, axis=(0, 1))[heights]
    base = heights[np.searchsorted(np.cumsum(column), 0.1 * column.sum())]
    middle = float(np.mean(np.nonzero(piece)[2]))
    low, median, high = np.percentile(hu[piece], (10, 50, 90))
    return bool(middle < base and (median < OPEN_AIR_HU or high - low > UNEVEN_HU))


def parted(labels: Array, edges: Array) -> Array | None:
    """Cores of the two lungs (1, 2) among the pieces of a mask, eroded until they come apart; or None."""
    cores = _cores(labels, edges)
    if cores is not None:
        return cores
    depth = ndimage.distance_transform_edt(labels > 0, sampling=edges)
    for radius in np.arange(1.0, 16.0) * edges.min():
        cores = _cores(ndimage.label(depth > radius)[0], edges)
        if cores is not None:
            return cores
    return None


def _cores(labels: Array, edges: Array) -> Array | None:
    """The two largest pieces as labels 1 and 2, if they can be the two lungs, else None.

    They can where the smaller holds a tenth of the larger, their centres lie 60 mm apart in x, and
    neither reaches past the other's centre (as both lungs in one piece would).
    """
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if np.count_nonzero(sizes) < 2:
        return None
    pair = np.argsort(sizes)[-2:]
    if sizes[pair[0]] < 0.1 * sizes[pair[1]]:
        return None
    profiles = [np.count_nonzero(labels == i, axis=(1, 2)) for i in pair]
    x = np.arange(labels.shape[0]) * edges[0]
    first, second = (float(np.average(x, weights=profile)) for profile in profiles)
    if abs(first - second) < 60:
        return None
    side = np.sign(second - first)
    past = (
        profiles[0][side * (x - second) > 0].sum() / profiles[0].sum(),
        profiles[1][side * (x - first) < 0].sum() / profiles[1].sum(),
    )
    if max(past) > 0.1:
        return None
    return np.asarray((labels == pair[0]) + 2 * (labels == pair[1]), np.uint8)


def sides(parts: list[Array], body: Array) -> dict[int, Array]:
    """{label: mask}. In RAS+ x grows to the right: the part at larger x is the right lung."""
    centres = [ndimage.center_of_mass(part)[0] for part in parts]
    if len(parts) == 1:
        middle = ndimage.center_of_mass(body)[0]
        return {RIGHT if centres[0] > middle else LEFT: parts[0]}
    left, right = np.argsort(centres)
    return {LEFT: parts[left], RIGHT: parts[right]}
