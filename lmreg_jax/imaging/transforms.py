"""The spatial transform of a pair of scans, in RAS mm, and what is computed with it.

T takes a point of the fixed scan to the point of the moving scan that corresponds to it, so that
warped(x) = moving(T(x)); images are pulled by T, points are pushed by it. NumPy and SciPy only.
Large grids are worked through in slabs along their last axis, so that a scan of 512 x 512 x 300
never needs its whole field in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from lmreg_jax.imaging._slabs import (
    Map,
    Slab,
    coordinate,
    evaluate_slabs,
    in_order,
    is_zero_on_border,
    outside,
    positions,
)
from lmreg_jax.imaging.volume import Volume, apply_affine

Array = NDArray[Any]


class Transform(NamedTuple):
    """T(x) = post (h + d(h)), h = pre x: fixed RAS mm -> moving RAS mm.

    d is read trilinearly. Beyond the outermost voxels' outer faces it is zero, and between centre
    and face it keeps its edge value, as in ITK's DisplacementFieldTransform. The transform of a
    registration has pre = I, post = affine; its inverse has pre = affine^-1, post = I.
    """

    pre: Array  # [4, 4], mm -> mm
    displacement: Array  # d [X, Y, Z, 3], float32, RAS mm
    grid: Array  # [4, 4], voxel of d -> RAS mm of h
    post: Array  # [4, 4], mm -> mm


def affine_transform(matrix: Array) -> Transform:
    """The Transform of a [4, 4] affine alone, fixed RAS mm -> moving RAS mm."""
    zero = np.zeros((2, 2, 2, 3), np.float32)
    return Transform(np.eye(4), zero, np.eye(4), np.asarray(matrix, np.float64))


def identity_transform() -> Transform:
    """The Transform that moves nothing: scanner coordinates taken as they are."""
    return affine_transform(np.eye(4))


def transform_points(transform: Transform, points_mm: Array) -> Array:
    """T(points) [..., 3] in moving RAS mm, float64, of points in fixed RAS mm. NaN stays NaN."""
    points = np.asarray(points_mm, np.float64)
    inner = apply_affine(transform.pre, points.reshape(-1, 3))
    index = apply_affine(np.linalg.inv(transform.grid), inner)
    missing = np.isnan(index).any(axis=-1, keepdims=True)
    where = np.moveaxis(np.where(missing, 0.0, index), -1, 0)
    field = transform.displacement
    shift = [ndimage.map_coordinates(field[..., c], where, np.float64, 1, "nearest") for c in range(3)]
    shift_mm = np.where(outside(where, field.shape)[..., None], 0.0, np.stack(shift, axis=-1))
    return apply_affine(transform.post, np.where(missing, np.nan, inner + shift_mm)).reshape(points.shape)


def covers(transform: Transform, points_mm: Array) -> Array:
    """Which of the points [..., 3] T is defined at, bool [...].

    A field that is zero on its border goes on as zero. One that is not, such as an affine map
    written as a dense field, says nothing beyond its grid.
    """
    inner = apply_affine(transform.pre, points_mm)
    index = np.moveaxis(apply_affine(np.linalg.inv(transform.grid), inner), -1, 0)
    return is_zero_on_border(transform.displacement) | ~outside(index, transform.displacement.shape)


def warp_image(
    transform: Transform,
    moving: Volume,
    shape: Sequence[int],
    affine: Array,
    *,
    order: int = 1,
    fill: float,
) -> Array:
    """moving(T(x)) at the voxel centres x of a grid, [*shape]: float32, or moving's type at order 0.

    affine: voxel of that grid -> fixed RAS mm. Trilinear (order 1) or nearest (order 0), without
    smoothing; `fill` where T(x) lies in no voxel of moving. As ITK's resampling does it.
    """
    source = np.linalg.inv(moving.affine)
    mapping = _mapping(transform, source @ transform.post, affine)
    data = moving.data.astype(np.uint8) if moving.data.dtype == bool else moving.data
    out = np.empty(tuple(shape), np.float32 if order else data.dtype)

    def work(slab: Slab) -> None:
        where = positions(mapping, shape, slab)
        part = ndimage.map_coordinates(data, where, out.dtype, order, "nearest")
        part[outside(where, data.shape)] = fill
        out[..., slab[0] : slab[1]] = part

    evaluate_slabs(work, shape)
    return out


def warp_labels(
    transform: Transform, moving: Volume, shape: Sequence[int], affine: Array, *, vote: bool = False
) -> Array:
    """A label map pulled to a grid, [*shape] in its own type; 0 outside. Never a new label.

    By the nearest voxel, or with `vote` by the label whose trilinear weights add up to most among
    the 8 neighbours: smoother surfaces, the same as interpolating each label's mask by itself.
    """
    if not vote:
        return warp_image(transform, moving, shape, affine, order=0, fill=0)
    source = np.linalg.inv(moving.affine)
    mapping = _mapping(transform, source @ transform.post, affine)
    out = np.empty(tuple(shape), moving.data.dtype)

    def work(slab: Slab) -> None:
        out[..., slab[0] : slab[1]] = _vote(moving.data, positions(mapping, shape, slab))

    evaluate_slabs(work, shape)
    return out


def dense_displacement(transform: Transform, shape: Sequence[int], affine: Array) -> Iterator[Array]:
    """T(x) - x in RAS mm at a grid's voxel centres, slab by slab along its last axis.

    Each slab [X, Y, n, 3] float32; affine: voxel of the grid -> fixed RAS mm.
    """
    components = [displacement_component(transform, shape, affine, c) for c in range(3)]
    for parts in zip(*components, strict=True):
        yield np.stack(parts, axis=-1)


def displacement_component(
    transform: Transform, shape: Sequence[int], affine: Array, component: int
) -> Iterator[Array]:
    """One component of T(x) - x in RAS mm, slabs [X, Y, n] float32 along the last axis."""
    mapping = _mapping(transform, transform.post, affine)
    mapping = mapping._replace(matrix=mapping.matrix - np.asarray(affine))
    yield from in_order(lambda slab: coordinate(mapping, shape, slab, component), shape)


def jacobian(transform: Transform, shape: Sequence[int], affine: Array) -> Array:
    """det DT(x) of the whole map, its affine parts included, at a grid's voxel centres, float32.

    Central differences of d on its own grid (one-sided on its border), read trilinearly from there:
    what folds between two voxels of d shows on every finer grid in the same place.
    """
    constant = float(np.linalg.det(transform.post[:3, :3]) * np.linalg.det(transform.pre[:3, :3]))
    if not transform.displacement.any():
        return np.full(tuple(shape), constant, np.float32)
    excess = constant * (_determinant(transform) - 1)
    mapping = Map(
        matrix=np.zeros((4, 4)),
        field=excess[None].astype(np.float32),
        to_field=np.linalg.inv(transform.grid) @ transform.pre @ affine,
        fades=is_zero_on_border(excess),
    )
    out = np.empty(tuple(shape), np.float32)

    def work(slab: Slab) -> None:
        out[..., slab[0] : slab[1]] = constant + coordinate(mapping, shape, slab, 0)

    evaluate_slabs(work, shape)
    return out


def _determinant(transform: Transform) -> Array:
    """det D(id + d) on the grid of d, [X, Y, Z] float32: the same number in mm and in voxels."""
    field = transform.displacement
    to_voxels = np.linalg.inv(transform.grid[:3, :3]).T
    out = np.empty(field.shape[:3], np.float32)

    def work(slab: Slab) -> None:
        low = max(slab[0] - 1, 0)  # a neighbour on each side, for central differences
        part = jacobian_determinant(field[:, :, low : slab[1] + 1] @ to_voxels)
        out[..., slab[0] : slab[1]] = part[..., slab[0] - low : slab[1] - low]

    evaluate_slabs(work, field.shape[:3], least=2)
    return out


def _mapping(transform: Transform, to: Array, affine: Array) -> Map:
    """to (h + d(h)) at the voxels of a grid; `to` [4, 4] takes mm to the wanted coordinates."""
    inner = transform.pre @ affine
    linear = np.asarray(to)[:3, :3].astype(np.float32)
    field = np.moveaxis(transform.displacement @ linear.T, -1, 0)
    index = np.linalg.inv(transform.grid) @ inner
    return Map(to @ inner, np.ascontiguousarray(field), index, is_zero_on_border(transform.displacement))


def _vote(labels: Array, where: Array) -> Array:
    """The label with the largest sum of trilinear weights at positions [3, ...]; ties to the first.

    Among the 8 corners only, so that the work does not grow with the number of labels.
    """
    lower = np.floor(where).astype(np.int64)
    upper_weight = (where - lower).astype(np.float32)
    corners, weights = [], []
    for corner in itertools.product((0, 1), repeat=3):
        index = [np.clip(lower[a] + c, 0, labels.shape[a] - 1) for a, c in enumerate(corner)]
        corners.append(labels[tuple(index)])
        x, y, z = (upper_weight[a] if c else 1 - upper_weight[a] for a, c in enumerate(corner))
        weights.append(x * y * z)
    out = corners[0]
    mixed = np.any([c != out for c in corners[1:]], axis=0)
    found, shares = np.array([c[mixed] for c in corners]), np.array([w[mixed] for w in weights])
    totals = [np.sum(shares * (found == label), axis=0) for label in found]
    out[mixed] = np.take_along_axis(found, np.argmax(totals, axis=0)[None], axis=0)[0]
    out[outside(where, labels.shape)] = 0
    return out


def jacobian_determinant(displacement: ArrayLike) -> Array:
    """det D(id + u) [X, Y, Z]: central differences inside, one-sided at the border.

    The same number in voxels and in mm, since both ends of u live on one grid. Exact for a field
    that is linear in position. Each axis needs two voxels.
    """
    field = np.asarray(displacement, np.float64)
    rows = [list(np.gradient(field[..., i])) for i in range(3)]
    for i in range(3):
        rows[i][i] += 1.0
    (a, b, c), (d, e, f), (g, h, i) = rows
    return np.asarray(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))
