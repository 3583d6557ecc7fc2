"""The inverse of a transform that has no velocity to integrate backwards, by fixed points."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.imaging._slabs import evaluate_slabs, is_zero_on_border
from lmreg_jax.imaging.transforms import Transform
from lmreg_jax.imaging.volume import apply_affine, spacing

log = logging.getLogger(__name__)

Array = NDArray[Any]

TOLERANCE_MM = 0.002
ITERATIONS = 100
DAMPED_FROM = 10  # where -grad r has an eigenvalue below -1 only half steps converge
NOT_INVERTED = 10.0  # tolerances; what is further off than this is counted and said


def invert(transform: Transform, *, step_mm: float = 2.0) -> Transform:
    """T^-1 as a Transform: pre^-1 (id + w) B^-1 post^-1, w on a grid of `step_mm`.

    Each voxel's w is exact (see `_solve`); between voxels it is read trilinearly. A map that folds
    has no inverse: what could not be inverted is logged as a warning.
    """
    base, voxels = _factored(transform)
    grid = transform.grid
    reach = np.ceil(np.abs(voxels).max(axis=(1, 2, 3))) + 1  # id + r leaves its grid by so much
    step = step_mm / spacing(grid)
    shape = np.ceil((np.array(voxels.shape[1:]) - 1 + 2 * reach) / step).astype(int) + 1
    to_voxel = np.diag([*step, 1.0])
    to_voxel[:3, 3] = -reach
    out = np.empty((*shape, 3), np.float32)

    def work(slab: tuple[int, int]) -> int:
        index = np.indices((shape[0], shape[1], slab[1] - slab[0])).reshape(3, -1).T
        index[:, 2] += slab[0]
        w, failed = _solve(voxels, apply_affine(to_voxel, index), TOLERANCE_MM / spacing(grid).max())
        mm = w @ grid[:3, :3].T
        out[..., slab[0] : slab[1], :] = mm.reshape(shape[0], shape[1], -1, 3)
        return failed

    _say_failures(sum(evaluate_slabs(work, [int(n) for n in shape])), int(np.prod(shape)))
    pre, post = np.linalg.inv(transform.post @ base), np.linalg.inv(transform.pre)
    return Transform(pre, out, grid @ to_voxel, post)


def inverse_points(transform: Transform, points_mm: Array) -> Array:
    """T^-1(points) [K, 3], fixed RAS mm, of points in moving RAS mm, each solved for by itself."""
    base, voxels = _factored(transform)
    points = np.asarray(points_mm, np.float64).reshape(-1, 3)
    back = np.linalg.inv(transform.post @ base @ transform.grid)
    y = apply_affine(back, points)
    w, failed = _solve(voxels, y, TOLERANCE_MM / spacing(transform.grid).max())
    _say_failures(failed, len(points))
    return apply_affine(np.linalg.inv(transform.pre) @ transform.grid, y + w)


def _factored(transform: Transform) -> tuple[Array, Array]:
    """B [4, 4] and r [3, X, Y, Z] with id + d = B (id + r); r in voxels of its grid.

    B is the affine that fits best, so that a dense field that holds a large affine map converges; I
    where d is zero on its border, and so T is known to be affine beyond.
    """
    grid, field = transform.grid, transform.displacement
    fades = is_zero_on_border(field)
    base = np.eye(4) if fades else _best_affine(transform)
    rest = field if fades else _residual(field, grid, base)
    voxels = rest @ np.linalg.inv(grid[:3, :3]).T.astype(np.float32)
    return base, np.ascontiguousarray(np.moveaxis(voxels, -1, 0))


def _solve(field: Array, y: Array, tolerance: float) -> tuple[Array, int]:
    """w [K, 3] with w = -r(y + w) at positions y [K, 3], all in voxels of r; how many failed.

    A fixed point, which converges where |grad r| < 1 [Chen 2008]; half steps, taken from
    DAMPED_FROM on, converge wherever id + r does not fold. r goes on with its edge value.
    """
    y = np.asarray(y).T
    w = np.zeros(y.shape)
    active = np.flatnonzero(np.isfinite(y).all(axis=0))
    error = np.zeros(0)
    for iteration in range(ITERATIONS):
        at = y[:, active] + w[:, active]
        step = np.stack([ndimage.map_coordinates(r, at, order=1, mode="nearest") for r in field])
        step += w[:, active]
        w[:, active] -= step if iteration < DAMPED_FROM else step / 2
        error = np.abs(step).max(axis=0)
        active = active[error > tolerance]
        if not len(active):
            break
    return w.T, int(np.count_nonzero(error > NOT_INVERTED * tolerance))


def _say_failures(failed: int, total: int) -> None:
    if failed:
        log.warning("%d of %d points could not be inverted: the transform folds there", failed, total)


def _best_affine(transform: Transform) -> Array:
    """The affine [4, 4] nearest to x + d(x) over the grid, by least squares on some of its voxels."""
    size = transform.displacement.shape[:3]
    picked = [np.unique(np.linspace(0, n - 1, 24).astype(int)) for n in size]
    index = np.stack(np.meshgrid(*picked, indexing="ij"), axis=-1).reshape(-1, 3)
    x = apply_affine(transform.grid, index)
    y = x + transform.displacement[tuple(index.T)]
    centre = x.mean(axis=0)
    solution = np.linalg.lstsq(np.column_stack([x - centre, np.ones(len(x))]), y, rcond=None)[0]
    out = np.eye(4)
    out[:3, :3] = solution[:3].T
    out[:3, 3] = solution[3] - solution[:3].T @ centre
    return out


def _residual(field: Array, grid: Array, base: Array) -> Array:
    """r = B^-1 (x + d(x)) - x, mm, on the grid of d: [X, Y, Z, 3] float32."""
    back = np.linalg.inv(base)
    out = field @ back[:3, :3].T.astype(np.float32)
    matrix = back @ grid - grid
    axes = np.ogrid[: field.shape[0], : field.shape[1], : field.shape[2]]
    for row in range(3):
        for axis in range(3):
            out[..., row] += (matrix[row, axis] * axes[axis]).astype(np.float32)
        out[..., row] += np.float32(matrix[row, 3])
    return out
