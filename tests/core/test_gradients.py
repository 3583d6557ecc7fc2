"""Derivatives against finite differences in float64, and where interpolation has a kink."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lmreg_jax.core import fields, landmarks, prior, similarity
from lmreg_jax.core import objective as eq7
from lmreg_jax.core.posterior import Posterior
from tests import numerics

pytestmark = pytest.mark.usefixtures("float64")

SHAPE = (4, 5, 6)
SEEDS = (0, 1, 2)  # each checks one random direction

fixed, moving = (numerics.smooth_image(SHAPE, s) for s in (0, 1))


def field(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Displacements of -0.9 .. -0.1 or 0.1 .. 0.9 voxels: no position near a kink."""
    random = np.random.default_rng(seed)
    return random.uniform(0.1, 0.9, (*shape, 3)) * random.choice([-1, 1], (*shape, 3))


def points(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, np.array(SHAPE) - 1, (5, 3)) + random.uniform(0.1, 0.9, (5, 3))


def whole(mean: jax.Array, log_variance: jax.Array, reading: str, image: str) -> jax.Array:
    """Eq. 7 as a function of the posterior, the mean its velocity: all steps down to the loss."""
    objective = eq7.Objective(reading, image=image, landmark_unit="mm", spacing_mm=(2, 1, 3))
    u = eq7.displacement_of(mean, SHAPE, stride=2, steps=2)
    by_name = eq7.terms(
        objective, Posterior(mean, log_variance), u, fixed, moving, points(0), points(1), np.ones(5)
    )
    return eq7.total(objective, by_name)


COARSE = (2, 3, 3)
FUNCTIONS: dict[str, tuple[Callable[..., jax.Array], Callable[[int], tuple[np.ndarray, ...]]]] = {
    "sample": (fields.sample, lambda s: (field(s), points(s))),
    "warp": (fields.warp, lambda s: (moving, field(s))),
    "compose": (fields.compose, lambda s: (field(s), field(s + 9))),
    "integrate": (lambda v: fields.integrate(v, steps=2), lambda s: (field(s),)),
    "upsample": (lambda u: fields.upsample(u, SHAPE), lambda s: (field(s, COARSE),)),
    "jacobian_determinant": (fields.jacobian_determinant, lambda s: (field(s),)),
    "move_points": (landmarks.move_points, lambda s: (field(s), points(s))),
    "landmark distance": (
        lambda p, q: landmarks.masked_mean_squared_distance(p, q, np.array([1, 0, 1, 1, 0]), 2.0),
        lambda s: (points(s), points(s + 9)),
    ),
    "kl exact": (
        lambda m, v: prior.kl_divergence(m, v, reading="exact"),
        lambda s: (field(s), field(s + 9)),
    ),
    "kl voxelmorph": (prior.kl_divergence, lambda s: (field(s), field(s + 9))),
    "ssd": (similarity.mean_squared_error, lambda s: (field(s)[..., 0], field(s + 9)[..., 0])),
    "lncc": (
        similarity.one_minus_local_correlation,
        lambda s: (field(s)[..., 0], field(s + 9)[..., 0]),
    ),
    "lncc5": (similarity.IMAGE_TERMS["lncc5"], lambda s: (field(s)[..., 0], field(s + 9)[..., 0])),
    "eq. 7 exact": (
        lambda m, v: whole(m, v, "exact", "ssd"),
        lambda s: (0.3 * field(s, COARSE), field(s + 9, COARSE) - 3),
    ),
    "eq. 7 voxelmorph, lncc": (
        lambda m, v: whole(m, v, "voxelmorph", "lncc"),
        lambda s: (0.3 * field(s, COARSE), field(s + 9, COARSE) - 3),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_finite_differences(name: str) -> None:
    """Central differences of step 1e-5: errors of 1e-10 (third order) and 1e-16 / 1e-5 (rounding),
    times the third derivatives and values here, of size 1e3 at most."""
    function, arguments = FUNCTIONS[name]
    function = jax.jit(function)
    for seed in SEEDS:
        check_grads(function, arguments(seed), order=1, modes=["rev"], eps=1e-5, rtol=1e-6, atol=1e-7)


def mean_square(displacement: jax.Array) -> jax.Array:
    return similarity.mean_squared_error(fixed, fields.warp(moving, displacement))


@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 0, -2), (0, -1, 1)])
def test_at_integer_displacements_the_slope_is_the_forward_difference(
    shift: tuple[int, int, int],
) -> None:
    """d/du_a mean (f - m(x + u))^2 = -2/N (f - m) (m(. + e_a) - m): full at coordinate 0 as well,
    0 from the last voxel on and outside."""
    u = np.broadcast_to(np.array(shift, float), (*SHAPE, 3))
    where = numerics.grid(SHAPE) + u
    last = np.array(SHAPE) - 1
    value = numerics.sample(moving, where)
    expected = np.zeros((*SHAPE, 3))
    for axis in range(3):
        forward = numerics.sample(moving, where + np.eye(3)[axis]) - value
        inside = (where[..., axis] >= 0) & (where[..., axis] < last[axis])
        slope = -2 * (fixed - value) * forward / value.size
        expected[..., axis] = np.where(inside, slope, 0)
    found = jax.jit(jax.grad(mean_square))(jnp.asarray(u))
    np.testing.assert_allclose(found, expected, atol=1e-14)
    assert np.abs(expected[0]).max() > 1e-4  # there is something to learn at the first plane too


def test_a_velocity_of_zero_learns() -> None:
    """The start of every training: each component of the field gets a gradient."""
    zero = jnp.zeros((*COARSE, 3))
    found = jax.jit(jax.grad(whole), static_argnums=(2, 3))(zero, zero - 3, "exact", "ssd")
    assert np.isfinite(found).all()
    assert (np.abs(np.asarray(found)).max((0, 1, 2)) > 1e-3).all()


def test_a_point_at_coordinate_zero_passes_its_whole_gradient() -> None:
    """`jnp.clip` would pass half: a clamped position on its bound."""
    values = jnp.arange(6.0).reshape(6, 1, 1)
    slope = jax.jit(jax.grad(lambda x: fields.sample(values, jnp.array([x, 0.0, 0.0]))))
    positions = [-1.0, -0.5, 0.0, 0.5, 2.0, 4.9, 5.0, 5.5, 7.0]
    assert [float(slope(x)) for x in positions] == [0, 0, 1, 1, 1, 1, 0, 0, 0]
