"""The stencil of one squaring is the composition, in value and derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lmreg_jax.core import _squaring as squaring
from lmreg_jax.core import fields

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-13  # float64, 27 products of size 1 in another order


def field(shape: tuple[int, ...], seed: int, largest: float = 1.0) -> np.ndarray:
    """Up to `largest` everywhere, the border too, with zeros and whole voxels among the values."""
    random = np.random.default_rng(seed)
    u = random.uniform(-largest, largest, (*shape, 3))
    u[random.random(u.shape) < 0.1] = 0
    u[random.random(u.shape) < 0.05] = largest
    u[random.random(u.shape) < 0.05] = -largest
    return u


def near(u: jax.Array) -> jax.Array:
    return jnp.moveaxis(squaring.square_near(jnp.moveaxis(u, -1, 0)), 0, -1)


@pytest.mark.parametrize("shape", [(5, 4, 6), (1, 2, 3), (7, 1, 1)])
def test_the_stencil_is_the_composition(shape: tuple[int, ...]) -> None:
    u = jnp.asarray(field(shape, 0))
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=u.shape))
    expected, pull = jax.vjp(lambda u: fields.compose(u, u), u)
    found, near_pull = jax.vjp(near, u)
    np.testing.assert_allclose(found, expected, atol=EXACT)
    # At whole voxels the slope jumps: both take the forward one, so -1 reads from the voxel below.
    inside = (jnp.abs(u) != 1).all(axis=-1, keepdims=True)
    np.testing.assert_allclose(near_pull(cotangent * inside)[0], pull(cotangent * inside)[0], atol=20 * EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_its_gradient_is_that_of_differences(seed: int) -> None:
    u = jnp.asarray(np.random.default_rng(seed).uniform(0.05, 0.95, (4, 3, 5, 3)))
    sign = jnp.asarray(np.random.default_rng(seed + 9).choice([-1.0, 1.0], u.shape))
    check_grads(near, (u * sign,), order=1, modes=["rev"], eps=1e-6, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("largest", [0.5, 40.0])
def test_integration_is_the_plain_loop_whatever_the_size(largest: float) -> None:
    """All squarings near, some; the examples of a batch share the branch, not the answer."""
    v = jnp.asarray(np.stack([field((6, 5, 4), 2, largest), field((6, 5, 4), 3, largest / 30)]))
    v = v + 1e-3  # off the whole voxels, where slopes jump
    cotangent = jnp.asarray(np.random.default_rng(4).normal(size=v.shape))

    def slope(forward_mode: bool) -> jax.Array:
        def inner(v: jax.Array) -> jax.Array:
            return jnp.sum(cotangent * jax.vmap(lambda w: fields.integrate(w, forward_mode=forward_mode))(v))

        return jax.jit(jax.grad(inner))(v)

    found = jax.jit(jax.vmap(fields.integrate))(v)
    expected = jax.vmap(lambda w: fields.integrate(w, forward_mode=True))(v)
    scale = float(jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(found, expected, atol=1e-12 * scale)
    expected_slope = slope(True)
    size = float(jnp.max(jnp.abs(expected_slope)))
    np.testing.assert_allclose(slope(False), expected_slope, atol=1e-10 * size)


def test_the_forward_mode_is_there_when_asked_for() -> None:
    v = jnp.asarray(np.random.default_rng(5).uniform(-2, 2, (4, 3, 5, 3)))
    check_grads(
        lambda v: fields.integrate(v, forward_mode=True), (v,), order=1, modes=["fwd"], eps=1e-6, rtol=1e-5
    )


def test_the_largest_magnitude_is_that_of_all_examples() -> None:
    values = jnp.array([[1.0, -5.0], [2.0, 3.0]])
    assert jax.vmap(lambda v: jnp.zeros(1) + squaring.largest(v))(values).tolist() == [[5], [5]]
    nested = jax.vmap(jax.vmap(lambda v: v * 0 + squaring.largest(v)))(values[:, :, None])
    assert np.all(np.asarray(nested) == 5)
