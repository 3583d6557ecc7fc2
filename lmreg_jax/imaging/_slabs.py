"""Affine maps of large grids with a displacement field on top, worked through slab by slab.

A slab is a stack of planes (first, beyond last) along the last axis. A scan of 512 x 512 x 300 thus
never needs the coordinates of all its voxels, 1.9 GB in float64, at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]
Slab = tuple[int, int]

SLAB_VOXELS = 2**21  # voxels worked on at once by a thread: some 100 MB with their coordinates
THREADS = min(os.cpu_count() or 1, 4)  # scipy lets go of Python's lock while it interpolates
EDGE = 0.5 + 1e-6  # a voxel reaches half its edge beyond its centre, in ITK as here


class Map(NamedTuple):
    """The affine map of a grid's voxels i and the field on top: matrix i + field(to_field i)."""

    matrix: Array  # [4, 4], voxel i -> the wanted coordinates
    field: Array  # [3, X, Y, Z], float32, in the wanted coordinates
    to_field: Array  # [4, 4], voxel i -> voxel of the field
    fades: bool  # the field's border is zero: nothing has to be cut off outside


def is_zero_on_border(field: Array) -> bool:
    """Whether all outer faces of a field or image [X, Y, Z, ...] are zero."""
    return not any(field.take(end, axis).any() for axis in range(3) for end in (0, -1))


def evaluate_slabs(work: Callable[[Slab], Any], shape: Sequence[int], least: int = 1) -> list[Any]:
    """`work` on all slabs (first, beyond last) of the last axis, in a few threads; its answers."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, slabs(shape, least)))


def slabs(shape: Sequence[int], least: int = 1) -> list[Slab]:
    """(first, beyond last) along the last axis, at least `least` planes deep."""
    depth = shape[2]
    thickness = max(SLAB_VOXELS // max(shape[0] * shape[1], 1), least)
    return [(k, min(k + thickness, depth)) for k in range(0, depth, thickness)]


def in_order(work: Callable[[Slab], Array], shape: Sequence[int]) -> Iterator[Array]:
    """The answers of `work` in order, THREADS slabs at a time: few of them wait in memory."""
    waiting = slabs(shape)
    with ThreadPoolExecutor(THREADS) as pool:
        for i in range(0, len(waiting), THREADS):
            yield from pool.map(work, waiting[i : i + THREADS])


def positions(mapping: Map, shape: Sequence[int], slab: Slab) -> Array:
    """All three coordinates of a slab, [3, X, Y, n]."""
    return np.stack([coordinate(mapping, shape, slab, c) for c in range(3)])


def coordinate(mapping: Map, shape: Sequence[int], slab: Slab, component: int) -> Array:
    """One coordinate of a slab, [X, Y, n] float64."""
    first, stop = slab
    size = (shape[0], shape[1], stop - first)
    step = np.eye(4)
    step[2, 3] = first
    index = mapping.to_field @ step
    shift = _read(mapping.field[component], index, size)
    if not mapping.fades:
        where = [_along(index[axis], size) for axis in range(3)]
        shift[outside(where, mapping.field.shape[1:])] = 0
    return np.asarray(_along((mapping.matrix @ step)[component], size) + shift)


def outside(where: Sequence[Array] | Array, shape: Sequence[int]) -> Array:
    """Which positions, one array an axis, lie in no voxel (a box around its centre)."""
    out = np.zeros(np.shape(where[0]), bool)
    for axis in range(3):
        out |= (where[axis] < -EDGE) | (where[axis] > shape[axis] - 1 + EDGE)
    return out


def _along(row: Array, size: Sequence[int]) -> Array:
    """row . (i, j, k, 1) for all voxels of a grid, [*size]."""
    i, j, k = np.ogrid[: size[0], : size[1], : size[2]]
    return np.asarray((row[0] * i + row[3]) + row[1] * j + row[2] * k)


def _read(field: Array, index: Array, size: Sequence[int]) -> Array:
    """field(index i) for all voxels i of a grid, trilinear, extended by the edge: [*size] float32.

    Axis by axis where the grids are parallel, as they are in a fixed scan that is not oblique: a
    third of the time.
    """
    linear = index[:3, :3]
    if np.abs(linear - np.diag(linear.diagonal())).max() > 1e-12:
        return np.asarray(
            ndimage.affine_transform(
                field, linear, index[:3, 3], tuple(size), np.float32, order=1, mode="nearest"
            )
        )
    for axis in (2, 1, 0):
        position = np.clip(
            linear[axis, axis] * np.arange(size[axis]) + index[axis, 3], 0, field.shape[axis] - 1
        )
        lower = position.astype(int)
        upper = np.minimum(lower + 1, field.shape[axis] - 1)
        weight = (position - lower).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        low = field.take(lower, axis)
        field = low + weight * (field.take(upper, axis) - low)
    return field
