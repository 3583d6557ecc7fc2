"""Partial volume: how much of each voxel a solid or a tube fills, on an axis-aligned grid.

Positions in subject mm; a `Grid` is its first voxel's centre, its spacing and its shape.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Points = NDArray[np.float64]


class Grid(NamedTuple):
    """Voxel i, j, k has its centre at `low + spacing * (i, j, k)`, mm."""

    low: NDArray[np.float64]
    spacing: float
    shape: tuple[int, int, int]

    def axes(self) -> list[NDArray[np.float64]]:
        """The voxel centres' coordinates along each axis, mm."""
        return [
            start + self.spacing * np.arange(n)
            for start, n in zip(self.low, self.shape, strict=True)
        ]


def signed_distance(value: Array, spacing: float) -> Array:
    """f / |grad f|: an implicit function made a distance to first order, limited to 40 mm."""
    slopes = np.gradient(value, np.float32(spacing))
    slope = np.sqrt(slopes[0] ** 2 + slopes[1] ** 2 + slopes[2] ** 2)
    return np.clip(value / np.maximum(slope, np.float32(0.15)), -40, 40).astype(np.float32)


def interpolate(field: Array, lattice: Grid, grid: Grid) -> Array:
    """The lattice's field at the grid's voxels, trilinear, an axis at a time."""
    for axis, places in enumerate(grid.axes()):
        index = (places - lattice.low[axis]) / lattice.spacing
        below = np.clip(np.floor(index).astype(int), 0, field.shape[axis] - 2)
        weight = np.clip(index - below, 0, 1).astype(np.float32)
        weight = weight.reshape([-1 if a == axis else 1 for a in range(3)])
        lower = np.take(field, below, axis)
        upper = np.take(field, below + 1, axis)
        upper -= lower
        upper *= weight
        upper += lower
        field = upper
    return field


def occupancy(distance: Array, width: float) -> Array:
    """Part of a voxel of `width` mm inside a flat boundary at signed distance (negative inside)."""
    part = distance * np.float32(-1 / width)
    part += np.float32(0.5)
    return np.clip(part, 0, 1, out=part)


def tube_occupancy(distance: Array, radius: Array | float, width: float) -> Array:
    """Part of a voxel filled by a tube whose axis is `distance` away, all mm.

    A ramp of one voxel's width about a radius r' with r'^2 = r^2 - width^2 / 12; for thin tubes a
    cone of the same section. Either integrates to pi r^2: no vessel gains or loses with the grid.
    """
    thick = np.sqrt(np.maximum(np.square(radius) - width**2 / 12, 0))
    ramp = np.clip(0.5 - (distance - thick) / width, 0, 1)
    cone = np.maximum(1 - distance / width, 0) * (3 * np.square(radius) / width**2)
    return np.where(np.less(radius, 0.5774 * width), cone, ramp)


class Tubes(NamedTuple):
    """Straight pieces: start, end [N, 3] subject mm; radius at both [N, 2] mm."""

    start: Points
    end: Points
    radius: NDArray[np.float64]


def join(*parts: Tubes) -> Tubes:
    """All the pieces of several sets of tubes."""
    return Tubes(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def render_tubes(
    tubes: Tubes, grid: Grid, *, extra: tuple[float, ...] = (0.0,), relative: float = 0.0
) -> list[Array]:
    """Occupancy images of the tubes with each of the `extra` radii (mm) added; joints by maximum.

    relative: a further addition, as a part of the radius, that goes with a non-zero `extra`.
    """
    images = [np.zeros(grid.shape, np.float32) for _ in extra]
    axes = [a.astype(np.float32) for a in grid.axes()]
    margin = tubes.radius.max(1) * (1 + relative) + max(extra) + grid.spacing
    low = np.minimum(tubes.start, tubes.end) - margin[:, None]
    high = np.maximum(tubes.start, tubes.end) + margin[:, None]
    first = np.maximum(np.ceil((low - grid.low) / grid.spacing).astype(int), 0)
    last = np.minimum(np.floor((high - grid.low) / grid.spacing).astype(int) + 1, grid.shape)
    for i in np.flatnonzero((last > first).all(1)):
        box = tuple(slice(a, b) for a, b in zip(first[i], last[i], strict=True))
        start = tubes.start[i].astype(np.float32)
        along = (tubes.end[i] - tubes.start[i]).astype(np.float32)
        x, y, z = (axes[a][box[a]] - start[a] for a in range(3))
        square = (x * x)[:, None, None] + (y * y)[:, None] + z * z
        dot = (x * along[0])[:, None, None] + (y * along[1])[:, None] + z * along[2]
        length = np.float32(along @ along + 1e-6)
        t = np.clip(dot / length, 0, 1)
        distance = np.sqrt(np.maximum(square - t * (2 * dot - t * length), 0))
        radius = tubes.radius[i, 0] + (tubes.radius[i, 1] - tubes.radius[i, 0]) * t
        for image, more in zip(images, extra, strict=True):
            wide = radius * (1 + relative * (more > 0)) + np.float32(more)
            part = tube_occupancy(distance, wide, grid.spacing)
            view = image[box]
            np.maximum(view, part, out=view)
    return images


def block_mean(image: Array, factor: int) -> Array:
    """Means of factor^3 blocks: the coarse scan of a finer one."""
    if factor == 1:
        return image
    x, y, z = (n // factor for n in image.shape)
    return image.reshape(x, factor, y, factor, z, factor).mean((1, 3, 5))
