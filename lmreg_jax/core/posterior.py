"""The approximate posterior q(v | f; m) = N(mean, diag exp(log_variance)).  [Hu eq. 5]"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Posterior(NamedTuple):
    """Mean and log-variance of the stationary velocity, each `[..., x, y, z, 3]`, field voxels."""

    mean: Array
    log_variance: Array


def draw(key: Array, posterior: Posterior) -> Array:
    """v = mean + exp(log_variance / 2) * eps, eps ~ N(0, 1): a sample by re-parameterisation."""
    noise = jax.random.normal(key, posterior.mean.shape, posterior.mean.dtype)
    return posterior.mean + jnp.exp(posterior.log_variance / 2) * noise
