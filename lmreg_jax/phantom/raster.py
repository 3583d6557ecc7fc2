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
        return [start + self.spacing * np.arange(n) for start, n in zip(self.low, self.shape, strict=True)]


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
    section = np.square(radius)
    thick = np.sqrt(np.maximum(section - np.float32(width**2 / 12), 0))
    ramp = np.clip((thick - distance) * np.float32(1 / width) + np.float32(0.5), 0, 1)
    cone = np.maximum(1 - distance * np.float32(1 / width), 0)
    cone *= section * np.float32(3 / width**2)
    return np.where(np.less(radius, 0.5774 * width), cone, ramp).astype(np.float32)


class Tubes(NamedTuple):
    """Straight pieces: start, end [N, 3] subject mm; radius at both [N, 2] mm."""

    start: Points
    end: Points
    radius: NDArray[np.float64]


def join(*parts: Tubes) -> Tubes:
    """All the pieces of several sets of tubes."""
    return Tubes(*(np.concatenate(field) for field in zip(*parts, strict=True)))


BATCH_SIDE, BATCH = 8, 1500  # tubes whose boxes fit 8^3 voxels are drawn 1500 at a time


def render_tubes(
    tubes: Tubes, grid: Grid, *, extra: tuple[float, ...] = (0.0,), relative: float = 0.0
) -> list[Array]:
    """Occupancy images of the tubes with each of the `extra` radii (mm) added; joints by maximum.

    relative: a further addition, as a part of the radius, that goes with a non-zero `extra`.
    """
    images = [np.zeros(grid.shape, np.float32) for _ in extra]
    margin = tubes.radius.max(1) * (1 + relative) + max(extra) + grid.spacing
    low = np.minimum(tubes.start, tubes.end) - margin[:, None]
    high = np.maximum(tubes.start, tubes.end) + margin[:, None]
    first = np.maximum(np.ceil((low - grid.low) / grid.spacing).astype(int), 0)
    last = np.minimum(np.floor((high - grid.low) / grid.spacing).astype(int) + 1, grid.shape)
    seen = (last > first).all(1)
    side = (last - first).max(1)
    drawn: list[tuple[NDArray[np.int64], tuple[int, ...]]] = []
    small = seen & (side <= min(BATCH_SIDE, *grid.shape))
    for length in range(2, BATCH_SIDE + 1, 2):
        length = min(length, *grid.shape)
        which = np.flatnonzero(small & (side <= length))
        small[which] = False
        drawn += [
            (part, (length,) * 3) for part in np.split(which, range(BATCH, len(which), BATCH)) if len(part)
        ]
    large = np.flatnonzero(seen & (side > min(BATCH_SIDE, *grid.shape)))
    drawn += [(large[i : i + 1], tuple(last[j] - first[j])) for i, j in enumerate(large)]
    for which, shape in drawn:
        corner = np.minimum(first[which], np.array(grid.shape) - shape)
        _draw(images, Tubes(*(field[which] for field in tubes)), corner, shape, grid, extra, relative)
    return images


def _draw(
    images: list[Array],
    tubes: Tubes,
    corner: NDArray[np.int64],
    shape: tuple[int, ...],
    grid: Grid,
    extra: tuple[float, ...],
    relative: float,
) -> None:
    """Draws tubes into boxes of one `shape` at their own corners [N, 3] (voxel indices)."""
    steps = [corner[:, a, None] + np.arange(shape[a]) for a in range(3)]
    x, y, z = (
        (grid.low[a] + grid.spacing * steps[a] - tubes.start[:, a, None]).astype(np.float32) for a in range(3)
    )
    along = (tubes.end - tubes.start).astype(np.float32)
    every = (slice(None), None, None, None)

    def outer(u: Array, v: Array, w: Array) -> Array:
        return u[:, :, None, None] + v[:, None, :, None] + w[:, None, None, :]

    dot = outer(x * along[:, :1], y * along[:, 1:2], z * along[:, 2:])
    length = (along**2).sum(1)[every] + np.float32(1e-6)
    t = np.clip(dot / length, 0, 1)
    square = outer(x * x, y * y, z * z)
    distance = np.sqrt(np.maximum(square - t * (2 * dot - t * length), 0))
    radii = tubes.radius.astype(np.float32)
    radius = radii[:, 0][every] + (radii[:, 1] - radii[:, 0])[every] * t
    for image, more in zip(images, extra, strict=True):
        wide = radius * np.float32(1 + relative * (more > 0)) + np.float32(more)
        part = tube_occupancy(distance, wide, grid.spacing)
        if len(corner) == 1:
            view = image[tuple(slice(c, c + n) for c, n in zip(corner[0], shape, strict=True))]
            np.maximum(view, part[0], out=view)
            continue
        where = np.ravel_multi_index(
            (steps[0][:, :, None, None], steps[1][:, None, :, None], steps[2][:, None, None, :]),
            image.shape,
        )
        np.maximum.at(image.reshape(-1), where.ravel(), part.ravel())


def block_mean(image: Array, factor: int) -> Array:
    """Means of factor^3 blocks: the coarse scan of a finer one."""
    if factor == 1:
        return image
    x, y, z = (n // factor for n in image.shape)
    return image.reshape(x, factor, y, factor, z, factor).mean((1, 3, 5))
