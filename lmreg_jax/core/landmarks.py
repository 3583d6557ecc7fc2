"""Landmarks under a displacement field (positions in voxels, never rounded)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lmreg_jax.core.fields import sample


def displacement_at(displacement: Array, points: Array) -> Array:
    """psi(p): the field read at points `[K, 3]` (voxels), trilinear; `[K, 3]`.  [Hu eq. 8, 9]"""
    return sample(displacement, points)


def move_points(displacement: Array, points: Array) -> Array:
    """l_f o psi = l_f + psi(l_f), `[K, 3]` voxels of the moving image.  [Hu eq. 10]"""
    return points + displacement_at(displacement, points)


def masked_mean_squared_distance(
    points: Array, others: Array, mask: Array, scale: Array | float = 1.0
) -> Array:
    """Mean over the present landmarks of |scale * (points - others)|^2; 0 where none is present.

    points, others: `[K, 3]`, voxels; mask: `[K]`, true where the pair exists; scale: number or
    `[3]` (the spacing for mm^2, 1 for voxel^2). Squares, so the derivative at distance 0 is 0 and
    not NaN. Values behind a false mask may be anything, NaN too.
    """
    present = mask.astype(points.dtype)
    residual = jnp.where(mask[:, None], points - others, 0) * scale
    return jnp.sum(residual**2) / jnp.maximum(jnp.sum(present), 1)


def target_registration_error(
    displacement: Array, fixed_points: Array, moving_points: Array, spacing_mm: Array
) -> Array:
    """TRE of each landmark in mm, `[K]`: |spacing * (p + u(p) - q)|.  [Hu eq. 11]

    A metric, not for derivatives (the norm has none at 0).
    """
    residual = (move_points(displacement, fixed_points) - moving_points) * spacing_mm
    return jnp.linalg.norm(residual, axis=-1)
