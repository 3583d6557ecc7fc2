"""The Laplacian prior p(v) = N(0, (lambda L)^-1) and the KL divergence from the posterior to it."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

READINGS = ("exact", "voxelmorph")


def degree(shape: tuple[int, ...], dtype: jnp.dtype | type = jnp.float32) -> Array:
    """Diagonal of D in L = D - N: each voxel's neighbours on the 6-neighbour grid, `[X, Y, Z]`."""
    total = jnp.zeros(shape, dtype)
    for axis, size in enumerate(shape):
        index = jnp.arange(size)
        along = (index > 0).astype(dtype) + (index < size - 1).astype(dtype)
        total = total + along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return total


def squared_differences(mean: Array) -> Array:
    """sum_a mean(diff_a(mean)^2) over the grid's axes a (forward differences); a scalar.

    Up to the border's share, N_h times this sum is the sum over all grid edges.
    """
    return sum(
        (jnp.mean(jnp.diff(mean, axis=a) ** 2) for a in range(3) if mean.shape[a] > 1),
        start=jnp.zeros((), mean.dtype),
    )


def kl_divergence(
    mean: Array, log_variance: Array, *, precision: float = 10.0, reading: str = "voxelmorph"
) -> Array:
    """KL[N(mean, exp(log_variance)) || N(0, (lambda L)^-1)] a voxel, up to a constant. [Hu eq. 6-7]

    1/(2 N) [ tr(lambda D Sigma - log Sigma) + mean^T lambda L mean ], N the field's voxels.
    mean, log_variance: `[X, Y, Z, 3]`, voxels; precision: lambda.

    - `exact`: 3/2 mean(lambda D Sigma - log Sigma) + lambda / (2 N) * sum over edges of diff^2.
    - `voxelmorph`: [Dalca]'s code, whose second term is lambda / 4 sum_a mean(diff_a^2), 6 times
      weaker. At convergence about 7.7 for lambda 10, by the first term alone: that is normal.
    """
    number_of_voxels = mean.size // mean.shape[-1]
    variance = precision * degree(mean.shape[:3], mean.dtype)[..., None] * jnp.exp(log_variance)
    trace = 1.5 * jnp.mean(variance - log_variance)
    if reading == "voxelmorph":
        return trace + precision / 4 * squared_differences(mean)
    if reading == "exact":
        edges = sum(jnp.sum(jnp.diff(mean, axis=a) ** 2) for a in range(3))
        return trace + precision / 2 * edges / number_of_voxels
    raise ValueError(f"reading is {reading!r}; one of {', '.join(READINGS)} is needed")
