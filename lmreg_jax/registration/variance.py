"""The velocity's variance that images and prior leave at a refined mean."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmreg_jax.core import fields, prior
from lmreg_jax.core.objective import Objective, displacement_of, field_stride, image_scale
from lmreg_jax.registration.grid import Pair


@partial(jax.jit, static_argnums=2)
def laplace_log_variance(pair: Pair, velocity: Array, objective: Objective) -> Array:
    """Log-variance `[x, y, z, 3]` that minimises eq. 7 at a given mean, in (field voxels)^2.

    1 / Sigma_i = lambda D_i + N d^2 E / dv_i^2, E the image term, N the field's voxels; its second
    derivative in the approximation of Gauss and Newton, and u for v to first order. Other image terms
    than the squared difference get that of squares, with the sigma that remains after alignment.
    """
    shape = pair.fixed.shape
    stride = field_stride(shape, velocity.shape[:3])
    u = displacement_of(velocity, shape, stride=stride, steps=objective.integration_steps)
    warped = fields.warp(pair.moving, u)
    known = pair.fixed_inside & fields.warp_nearest(pair.moving_inside, u)
    weight = jnp.asarray(image_scale(objective, stride), velocity.dtype)
    if objective.image != "ssd":
        remaining = jnp.sum(jnp.where(known, (pair.fixed - warped) ** 2, 0)) / jnp.maximum(known.sum(), 1)
        weight = image_scale(objective._replace(image_sigma=1.0), stride) / jnp.maximum(remaining, 1e-6)
    slope = jnp.stack(jnp.gradient(warped), axis=-1)
    curvature = 2 * weight / warped.size * jnp.where(known[..., None], slope * stride, 0) ** 2
    for axis in range(3):  # summed over the fine voxels that a field voxel moves, by its share squared
        share = fields.interpolation(shape[axis], velocity.shape[axis], stride).astype(np.float32) ** 2
        curvature = jnp.moveaxis(jnp.tensordot(share.T, curvature, axes=(1, axis)), 0, axis)
    number_of_voxels = velocity.size // 3
    degree = prior.degree(velocity.shape[:3])[..., None]
    return -jnp.log(objective.precision * degree + number_of_voxels * curvature)
