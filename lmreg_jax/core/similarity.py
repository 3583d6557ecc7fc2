"""Image terms: how unlike a warped moving image is the fixed one. By name in `IMAGE_TERMS`. And the
demons' force, the way that a difference asks for.

To add one: write the function here, enter it in the table, name it in `config.objective.image`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def mean_squared_error(fixed: Array, warped: Array) -> Array:
    """mean (f - m o psi)^2, the exponent of eq. 3 before it is divided by sigma^2.  [Hu eq. 3]

    Both `[X, Y, Z]`, intensities in [0, 1]. The objective scales it (see `objective.image_scale`).
    """
    return jnp.mean((fixed - warped) ** 2)


def local_correlation(fixed: Array, warped: Array, *, window: int = 9) -> Array:
    """Squared local correlation coefficient at each voxel, `[X, Y, Z]`, 0 to 1. [Avants 2008]

    Windows of window^3 voxels, cut at the border (a mean is over the voxels that exist, not over
    zeros outside). The images' means are removed first: the variance is a difference of two
    sums, and in float32 on HU-like data it is otherwise off by a per cent. A flat window
    correlates with nothing: 0.
    """

    def box(values: Array) -> Array:
        for axis in range(3):
            size = tuple(window if a == axis else 1 for a in range(3))
            # A literal 0: under jit an array's 0 is unknown, and the sum then has no derivative.
            values = lax.reduce_window(values, 0.0, lax.add, size, (1, 1, 1), "SAME")
        return values

    fixed = fixed - lax.stop_gradient(jnp.mean(fixed))
    warped = warped - lax.stop_gradient(jnp.mean(warped))
    count = _window_sizes(fixed.shape, window).astype(fixed.dtype)
    fixed_mean, warped_mean = box(fixed) / count, box(warped) / count
    covariance = box(fixed * warped) / count - fixed_mean * warped_mean
    fixed_variance = jnp.maximum(box(fixed**2) / count - fixed_mean**2, 0)
    warped_variance = jnp.maximum(box(warped**2) / count - warped_mean**2, 0)
    # 1e-8 is the square of a variance of 1e-4, a noise of 1 % of the window: below it, flat.
    return covariance**2 / (fixed_variance * warped_variance + 1e-8)


def _window_sizes(shape: tuple[int, ...], window: int) -> Array:
    """Voxels of the grid in each one's window. (As the sum of a window over ones, XLA's compiler would
    fold it into a constant voxel by voxel, which takes seconds.)"""
    sizes = jnp.ones(shape)
    for axis, n in enumerate(shape):
        index, half = np.arange(n), window // 2
        along = np.minimum(index + half, n - 1) - np.maximum(index - half, 0) + 1
        sizes = sizes * along.reshape([-1 if a == axis else 1 for a in range(3)])
    return sizes


def one_minus_local_correlation(fixed: Array, warped: Array, *, window: int = 9) -> Array:
    """1 - mean squared local correlation over window^3 voxels; a scalar, 0 for equal structure."""
    return 1 - jnp.mean(local_correlation(fixed, warped, window=window))


FORCE_FLOOR = 1e-3  # the square of 0.03, 44 HU of a window of 1400: the noise of a low-dose CT


def demons_force(fixed: Array, warped: Array) -> Array:
    """The displacement in voxels that would make `warped` equal `fixed`, from their values in each voxel.

    F = (f - w) J / (|J|^2 + (f - w)^2 + FORCE_FLOOR),  J = (grad f + grad w) / 2.
    [Thirion 1998, eq. 4; both images' slopes as in Wang et al. 2005]

    Both `[X, Y, Z]`, intensities in [0, 1], at least 2 voxels along each axis. Returns `[X, Y, Z, 3]`,
    at most half a voxel long; 0 where the images agree. The floor keeps noise in air and in uniform
    tissue from asking for motion: with 1e-4 in its place passes beyond the trained ones ran away.
    """
    difference = (fixed - warped)[..., None]
    slope = jnp.stack(jnp.gradient((fixed + warped) / 2), axis=-1)
    return difference * slope / (jnp.sum(slope**2, axis=-1, keepdims=True) + difference**2 + FORCE_FLOOR)


IMAGE_TERMS: dict[str, Callable[[Array, Array], Array]] = {
    "ssd": mean_squared_error,
    "lncc": one_minus_local_correlation,  # 9^3 voxels, as VoxelMorph
    "lncc5": partial(one_minus_local_correlation, window=5),  # as ANTs' radius of 2: closer, less smooth
}
