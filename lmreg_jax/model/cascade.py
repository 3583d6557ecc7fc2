"""The network applied several times, each pass to the moving image as the last one left it.

    v_0 = 0,   v_k = v_{k-1} + mu(m o exp(v_{k-1}), f),   k = 1 .. passes,

mu the mean of the network's posterior, with the same weights in every pass; its log-variance is the
last pass's. What comes out is one velocity, so that all else (eq. 1 to 10 of [Hu], the inverse by -v)
stays as it is with one pass, which is the paper's. After the recursive cascades of Zhao, Dong, Chang
and Xu (ICCV 2019), where displacements are composed; adding velocities is the first order of that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from lmreg_jax.core import fields
from lmreg_jax.core.objective import displacement_of, field_stride
from lmreg_jax.core.posterior import Posterior

Apply = Callable[..., Any]  # (params, moving, fixed) -> Posterior


def cascade(apply: Apply, passes: int | Array, *, integration_steps: int = 7) -> Apply:
    """`apply(params, moving, fixed)` of a network, images `[B, X, Y, Z]`, as `passes` passes of it.

    The gradient is that of the last pass alone, at the velocity where it starts: so `passes` may be
    a traced number, and the memory of a train step does not grow with it.
    """
    if isinstance(passes, int) and passes == 1:
        return apply

    def warped(velocity: Array, moving: Array) -> Array:
        stride = field_stride(moving.shape, velocity.shape[:3])
        displacement = displacement_of(velocity, moving.shape, stride=stride, steps=integration_steps)
        return fields.warp(moving, displacement)

    def applied(params: Any, moving: Array, fixed: Array) -> Posterior:
        fixed_params = lax.stop_gradient(params)

        def one_pass(_: Array, velocity: Array) -> Array:
            seen = jax.vmap(warped)(velocity, moving)
            return velocity + apply(fixed_params, seen, fixed).mean

        still = jax.eval_shape(apply, params, moving, fixed).mean
        start = lax.fori_loop(0, passes - 1, one_pass, jnp.zeros(still.shape, still.dtype))
        start = lax.stop_gradient(start)
        last = apply(params, jax.vmap(warped)(start, moving), fixed)
        return Posterior(start + last.mean, last.log_variance)

    return applied
