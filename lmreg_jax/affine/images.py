"""The affine step by intensities, in JAX: twelve numbers by a robust distance, coarse to fine.

Also what every affine step by intensities needs (`elastix`, too): both scans on one grid (`paired`), and
the doubts that a result has to pass (`accepted`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import minimize

from lmreg_jax.core import fields
from lmreg_jax.imaging.resampling import downsample, inside, resample
from lmreg_jax.imaging.volume import Volume, apply_affine, spacing

Array = NDArray[Any]

GRID_MM = 3.0  # an affine map has 12 numbers: finer images make it slower, not better
SIZES = 16  # grids have multiples of this many voxels along each axis: few compiled programs
OVERLAP_MM = 6.0  # grid on which masks are compared: a lung is 30 voxels high
MARGIN_MM = 20.0  # the chest wall, ribs included
WORST_LOSS = 0.05  # of lung Dice: ribs and skin are compared, too, so a little may be right
LEVELS = (4, 2, 2)  # voxels of GRID_MM to one; the last once more, from where the ridge no longer holds
OUTLIER = 0.4  # of [0, 1]: differences beyond count less and less
RIDGE = 3e-6  # a mm^2 of change: what the images hardly tell stays as it was
STOP = {"maxiter": 60, "ftol": 1e-6, "gtol": 1e-7, "maxcor": 12}  # of the descent
LENGTH_MM = 100.0  # at which a change of the matrix weighs as much as one of the shift


class Images(NamedTuple):
    """fixed, moving float32 [X, Y, Z], the latter after `initial`; mask bool: where to compare; affine
    [4, 4]: voxel -> fixed RAS mm (diagonal). lungs: both masks, where both are known."""

    fixed: Array
    moving: Array
    mask: Array | None
    affine: Array
    initial: Array
    lungs: tuple[Volume, Volume] | None


def align(
    fixed: Volume,
    moving: Volume,
    fixed_mask: Volume | None,
    moving_mask: Volume | None,
    initial: Array,
) -> Array:
    """Fixed RAS mm -> moving RAS mm, [4, 4]: the affine that brings both images together.

        minimise over A   mean_x rho((moving(A x) - fixed(x)) / OUTLIER) + RIDGE |A - start|^2,

    rho(r) = r^2 / (1 + r^2) [Geman and McClure 1987], by `descended`, from `initial` [4, 4]. fixed, moving:
    [X, Y, Z], each on its own grid, in [0, 1]; the masks, on any grids, tell where to look, widened by
    the chest wall. Raises RuntimeError where the result is not plausible.
    """
    images = paired(fixed, moving, fixed_mask, moving_mask, initial, by=resample)
    return accepted(images, [descended(images)])


def paired(
    fixed: Volume,
    moving: Volume,
    fixed_mask: Volume | None,
    moving_mask: Volume | None,
    initial: Array,
    by: Callable[..., Array] = downsample,
) -> Images:
    """Both images on one grid of GRID_MM over the lungs and their surroundings.

    by: reads an image on that grid; `downsample` by one filter, whatever the scans' voxels and axes, since
    it is the images' differences that are aligned; `resample`, in a fifth of the time, where they are
    smoothed further.
    """
    shape, affine = _grid_around(fixed, fixed_mask)
    mask = None
    if fixed_mask is not None:
        mask = resample(fixed_mask, shape, affine, order=0, fill=0) > 0
        if moving_mask is not None:
            mask |= resample(moving_mask, shape, affine, order=0, fill=0, pull=initial) > 0
        mask = ndimage.distance_transform_edt(~mask) * GRID_MM <= MARGIN_MM
        # What one scan does not show must not be compared with air.
        mask &= inside(fixed, shape, affine) & inside(moving, shape, affine, pull=initial)
    return Images(
        by(fixed, shape, affine, fill=0.0),
        by(moving, shape, affine, fill=0.0, pull=initial),
        mask,
        affine,
        initial,
        None if fixed_mask is None or moving_mask is None else (fixed_mask, moving_mask),
    )


def accepted(images: Images, residuals: Sequence[Array]) -> Array:
    """The pull with the last of `residuals` (fixed mm -> fixed mm, before `initial`) that is plausible.

    Raises RuntimeError, with the reason, where none is.
    """
    before = overlap(*images.lungs, images.initial) if images.lungs else 0.0
    doubt = ""
    for residual in reversed(residuals):
        doubt = _doubt(residual)
        pull = images.initial @ residual
        if images.lungs and not doubt and (after := overlap(*images.lungs, pull)) < before - WORST_LOSS:
            doubt = f"the masks' Dice fell from {before:.2f} to {after:.2f}"
        if not doubt:
            return np.asarray(pull)
    raise RuntimeError(doubt)


def descended(images: Images) -> Array:
    """What the descent adds to `initial`, fixed mm -> fixed mm, [4, 4]; deterministic.

    L-BFGS in the frame of the Gauss-Newton matrix, whose steps alone creep along the flat valleys that two
    people's images leave; sums in float64, so that it ends at the minimum and not where float32 sees no more.
    """
    weight = np.ones(images.fixed.shape) if images.mask is None else images.mask
    centre = apply_affine(images.affine, (np.array(images.fixed.shape) - 1) / 2)
    change = np.zeros(12)  # mm; of (x - centre) / LENGTH_MM, and 1
    for factor in LEVELS:
        f, m, w = (
            jnp.asarray(_block_means(image, factor)) for image in (images.fixed, images.moving, weight)
        )
        change = _descended(f, m, w, change, GRID_MM * factor)
    matrix, shift = np.split(change.reshape(3, 4), [3], axis=1)
    out = np.eye(4)
    out[:3, :3] += matrix / LENGTH_MM
    out[:3, 3] = shift[:, 0] - matrix @ centre / LENGTH_MM
    return out


def _descended(fixed: jax.Array, moving: jax.Array, weight: jax.Array, start: Array, edge: float) -> Array:
    """What the descent on one grid with voxels of `edge` mm makes of the change `start` [12], mm."""

    def told(function: Any, change: Array) -> list[Array]:
        voxels = jnp.asarray(change.reshape(3, 4) / edge, jnp.float32)
        return [
            np.asarray(part, np.float64) for part in function(fixed, moving, weight, voxels, LENGTH_MM / edge)
        ]

    (curvature,) = told(_curvature, start)
    curvature += 2 * RIDGE * edge**2 * np.eye(12)
    to_mm = edge * np.linalg.inv(np.linalg.cholesky(curvature)).T  # there all directions are as steep

    def objective(step: Array) -> tuple[float, Array]:
        change = to_mm @ step
        values, weights, slopes = (part.sum(axis=0) for part in told(_slabs, start + change))
        slope = slopes.ravel() / weights / edge + 2 * RIDGE * change
        return float(values / weights + RIDGE * change @ change), to_mm.T @ slope

    found = minimize(objective, np.zeros(12), jac=True, method="L-BFGS-B", options=STOP)
    return start + to_mm @ np.asarray(found.x)


def _places(shape: Sequence[int], change: jax.Array, length: float) -> tuple[jax.Array, jax.Array]:
    """(x - centre) / length and 1 [X, Y, Z, 4], and where `change` [3, 4] takes each voxel x [X, Y, Z, 3]."""
    grid, last = fields.identity_grid(tuple(shape)), jnp.array(shape, jnp.float32) - 1
    away = jnp.concatenate([(grid - last / 2) / length, jnp.ones((*shape, 1))], axis=-1)
    return away, grid + jnp.einsum("xyzk,ik->xyzi", away, change, precision="highest")


def _known(weight: jax.Array, there: jax.Array) -> jax.Array:
    """The weight of each voxel where the place in the moving image has weight, too."""
    last = jnp.array(weight.shape, jnp.float32) - 1
    within = jnp.all((there >= 0) & (there <= last), axis=-1)
    return weight * fields.sample(weight[..., None], there)[..., 0] * within


@jax.jit
def _slabs(
    fixed: jax.Array, moving: jax.Array, weight: jax.Array, change: jax.Array, length: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each plane of X: sums of the distances and of their weights, and what it adds to the slope [X, 3, 4]
    of their ratio, times all weights, by `change`, in voxels."""
    away, there = _places(fixed.shape, change, length)

    def parts(there: jax.Array) -> tuple[jax.Array, jax.Array]:
        known = _known(weight, there)
        squared = ((fields.sample(moving[..., None], there)[..., 0] - fixed) / OUTLIER) ** 2
        return known * squared / (1 + squared), known

    (values, known), pull_back = jax.vjp(parts, there)
    mean = values.sum() / known.sum()
    (slope,) = pull_back((jnp.ones_like(values), -jnp.full_like(known, mean)))
    slopes = jnp.einsum("xyzi,xyzk->xik", slope, away, precision="highest")
    return values.sum(axis=(1, 2)), known.sum(axis=(1, 2)), slopes


@jax.jit
def _curvature(
    fixed: jax.Array, moving: jax.Array, weight: jax.Array, change: jax.Array, length: float
) -> tuple[jax.Array]:
    """The Gauss-Newton matrix [12, 12] of the objective, in voxels, by the mean of both images' slopes."""
    away, there = _places(fixed.shape, change, length)
    seen = fields.sample(jnp.stack([moving, *jnp.gradient(moving)], axis=-1), there)
    known = _known(weight, there)
    slope = (seen[..., 1:] + jnp.stack(jnp.gradient(fixed), axis=-1)) / 2 / OUTLIER
    residual = (seen[..., 0] - fixed) / OUTLIER
    weighted = (2 * known / known.sum() / (1 + residual**2) ** 2)[..., None] * slope
    # A row is slope (x) away: the sums of its squares are those of the two factors' squares.
    matrix = jnp.einsum("xyzi,xyzj,xyzk,xyzl->ikjl", weighted, slope, away, away, optimize="optimal")
    return (matrix.reshape(12, 12),)


def _block_means(image: Array, factor: int) -> Array:
    """Means over blocks of factor^3 voxels of an image whose sizes are multiples of it."""
    x, y, z = (n // factor for n in image.shape)
    return np.asarray(image, np.float32).reshape(x, factor, y, factor, z, factor).mean(axis=(1, 3, 5))


def overlap(fixed: Volume, moving: Volume, pull: Array) -> float:
    """Dice of two masks after a pull, on a grid of about OVERLAP_MM around the fixed one."""
    step = np.maximum(OVERLAP_MM / spacing(fixed.affine), 1.0)
    shape = [int(n) for n in np.ceil(np.array(fixed.data.shape) / step) + 4]
    affine = fixed.affine @ np.diag([*step, 1.0])
    affine[:3, 3] = apply_affine(affine, np.full(3, -2.0))
    one = resample(fixed, shape, affine, order=0, fill=0) > 0
    other = resample(moving, shape, affine, order=0, fill=0, pull=pull) > 0
    return float(2 * np.count_nonzero(one & other) / max(int(one.sum()) + int(other.sum()), 1))


def _grid_around(fixed: Volume, mask: Volume | None) -> tuple[tuple[int, int, int], Array]:
    """A grid of GRID_MM over the mask and its surroundings, or over the image without a mask."""
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(fixed.data.shape) - 1)
    mm = apply_affine(fixed.affine, corners)
    margin = 0.0
    if mask is not None:
        mm, margin = apply_affine(mask.affine, np.argwhere(mask.data)), 2 * MARGIN_MM
    # Whole multiples of its voxels, so that the grid hardly depends on the voxels of the scan.
    low, high = (GRID_MM * np.round(mm / GRID_MM) for mm in (mm.min(0) - margin, mm.max(0) + margin))
    size = np.ceil((high - low) / GRID_MM).astype(int) + 1
    x, y, z = (-(-size // SIZES) * SIZES).tolist()
    affine = np.diag([GRID_MM, GRID_MM, GRID_MM, 1.0])
    affine[:3, 3] = low
    return (x, y, z), affine


def _doubt(residual: Array) -> str:
    """Why what is added to an alignment cannot be right; "" where nothing speaks against it."""
    if not np.isfinite(residual).all():
        return "implausible result, not all of it are numbers"
    stretch = np.linalg.svd(residual[:3, :3], compute_uv=False)
    if stretch.min() < 0.5 or stretch.max() > 2.0:
        return f"implausible result, it stretches by {stretch.round(2).tolist()}"
    return ""
