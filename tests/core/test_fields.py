"""`fields` against closed forms, SciPy and its own symmetries."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.ndimage import map_coordinates

from lmreg_jax.core import fields
from tests import numerics

pytestmark = pytest.mark.usefixtures("float64")

SHAPE = (6, 7, 9)
# float64 sums of a few hundred terms of size 10: 1e-13 would do, 1e-11 leaves room for any order.
EXACT = 1e-11
# Compiled whole: op by op, each new shape costs a compilation for each operation.
sample = jax.jit(fields.sample)
sample_by_corners = jax.jit(fields._sample_by_corners)  # An image's way on a GPU.
warp = jax.jit(fields.warp)
compose = jax.jit(fields.compose)
integrate = jax.jit(fields.integrate, static_argnames="steps")
upsample = jax.jit(fields.upsample, static_argnames=("shape", "factor"))
jacobian_determinant = jax.jit(fields.jacobian_determinant)

POSITIONS = {
    "inside": lambda random: random.uniform(0, np.array(SHAPE) - 1, (40, 3)),
    "integer": lambda random: random.integers(0, SHAPE, (40, 3)).astype(float),
    "half": lambda random: random.integers(-1, SHAPE, (40, 3)) + 0.5,
    "outside": lambda random: random.uniform(-30, 30, (40, 3)),
    "far": lambda random: random.choice([-1e8, 1e8, 2.0], (40, 3)),
    "corners": lambda random: random.integers(0, 2, (40, 3)) * (np.array(SHAPE) - 1.0),
}


def linear(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The field matrix @ (x - centre)."""
    return (numerics.grid(shape) - (np.array(shape) - 1) / 2) @ matrix.T


@pytest.mark.parametrize("where", POSITIONS)
@pytest.mark.parametrize("channels", [(), (2,)])
def test_sample_is_scipys_and_its_reference(where: str, channels: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    values, positions = random.normal(size=(*SHAPE, *channels)), POSITIONS[where](random)
    expected = numerics.sample(values, positions)
    for function in (sample, sample_by_corners, jax.jit(reference)):
        np.testing.assert_allclose(function(values, positions), expected, atol=EXACT)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, bool])
def test_whole_numbers_are_sampled_as_numbers(dtype: Any) -> None:
    """Masks and HU: a difference of two voxels must not be taken in their own narrow type."""
    random = np.random.default_rng(0)
    values, positions = random.integers(-100, 256, SHAPE).astype(dtype), POSITIONS["inside"](random)
    expected = numerics.sample(values.astype(np.float64), positions)
    np.testing.assert_allclose(sample(values, positions), expected, atol=1e-4)


def reference(values: jax.Array, positions: jax.Array) -> jax.Array:
    """JAX's own interpolation, a channel at a time."""
    if values.ndim == 4:
        return jnp.stack([reference(channel, positions) for channel in jnp.moveaxis(values, -1, 0)], -1)
    return map_coordinates(values, list(jnp.moveaxis(positions, -1, 0)), order=1, mode="nearest")


@jax.jit
def slopes(values: jax.Array, positions: jax.Array, weights: jax.Array) -> list[Any]:
    """Derivatives of a weighted sum over samples by values and positions, by each way."""
    return [
        jax.grad(lambda v, p, f=f: jnp.sum(weights * f(v, p)), argnums=(0, 1))(values, positions)
        for f in (fields.sample, fields._sample_by_corners, reference)
    ]


@pytest.mark.parametrize("where", POSITIONS)
@pytest.mark.parametrize("channels", [(), (2,)])
def test_sample_has_the_derivatives_of_its_reference(where: str, channels: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    values, positions = random.normal(size=(*SHAPE, *channels)), POSITIONS[where](random)
    weights = random.normal(size=(len(positions), *channels))
    *ours, reference = slopes(values, positions, weights)
    for found in ours:
        np.testing.assert_allclose(found[0], reference[0], atol=EXACT)
        np.testing.assert_allclose(found[1], reference[1], atol=EXACT)


@pytest.mark.parametrize("channels", [(), (2,)])
def test_sample_of_a_batch_in_forward_mode_is_its_reference_one_by_one(channels: tuple[int, ...]) -> None:
    random = np.random.default_rng(3)
    values, tangent = random.normal(size=(2, 3, *SHAPE, *channels))
    positions, moved = random.uniform(-2, 9, (2, 3, 5, 3))
    batched = jax.jit(lambda *at: jax.jvp(jax.vmap(fields.sample), at[:2], at[2:]))
    found = batched(values, positions, tangent, moved)
    for case in range(3):
        at = values[case], positions[case]
        expected = jax.jvp(reference, at, (tangent[case], moved[case]))
        np.testing.assert_allclose(found[0][case], expected[0], atol=EXACT)
        np.testing.assert_allclose(found[1][case], expected[1], atol=EXACT)


def test_positions_beyond_the_integers_are_beyond_the_edge() -> None:
    """1e12 does not fit into the int32 of an index: it must not wrap around."""
    values = jnp.arange(6.0).reshape(6, 1, 1)
    positions = jnp.array([[-1e12, 0, 0], [1e12, 0, 0], [jnp.inf, 0, 0]])
    assert fields.sample_nearest(values, positions).tolist() == [0, 5, 5]
    assert sample(values, positions[:2]).tolist() == [0, 5]


def test_sample_of_a_trilinear_function_is_that_function() -> None:
    """a + bx + cyz + dxyz is its own trilinear interpolant inside the grid."""

    def function(x: np.ndarray) -> np.ndarray:
        return 1 + 2 * x[..., 0] - x[..., 1] * x[..., 2] + 0.3 * x.prod(-1)

    positions = POSITIONS["inside"](np.random.default_rng(2))
    sampled = sample(function(numerics.grid(SHAPE)), positions)
    np.testing.assert_allclose(sampled, function(positions), rtol=EXACT)


def test_nearest_takes_the_even_voxel_half_way_and_the_edge_outside() -> None:
    labels = jnp.arange(6, dtype=jnp.uint8).reshape(6, 1, 1)
    x = jnp.array([-9.0, 0.5, 1.5, 2.5, 2.51, 99.0])
    found = fields.sample_nearest(labels, jnp.stack([x, 0 * x, 0 * x], -1))
    assert found.dtype == jnp.uint8
    assert found.tolist() == [0, 0, 2, 2, 3, 5]


def test_warp_by_zero_is_the_image_and_by_an_integer_shift_its_neighbour() -> None:
    image = numerics.smooth_image(SHAPE, 3)
    np.testing.assert_array_equal(warp(image, jnp.zeros((*SHAPE, 3))), image)
    shifted = warp(image, jnp.broadcast_to(jnp.array([1.0, 0, 0]), (*SHAPE, 3)))
    np.testing.assert_array_equal(shifted[:-1], image[1:])
    np.testing.assert_array_equal(shifted[-1], image[-1])


def test_warp_reads_a_moving_image_of_another_size() -> None:
    image, displacement = numerics.smooth_image((5, 4, 8), 3), numerics.smooth_field(SHAPE, 4, 2)
    expected = numerics.sample(image, numerics.grid(SHAPE) + displacement)
    np.testing.assert_allclose(warp(image, displacement), expected, atol=EXACT)
    labels = np.random.default_rng(0).integers(0, 9, (5, 4, 8))
    index = np.rint(numerics.grid(SHAPE) + displacement).clip(0, [4, 3, 7]).astype(int)
    expected = labels[tuple(np.moveaxis(index, -1, 0))]
    np.testing.assert_array_equal(fields.warp_nearest(jnp.asarray(labels), displacement), expected)


def test_compose_warps_by_the_outer_field_first() -> None:
    """Of linear fields the composition is the matrix product (I+A)(I+B) - I, in that order."""
    outer, inner = (np.array(m) for m in (np.diag([-0.2, -0.1, -0.3]), np.eye(3, k=1) * 0.1))
    inner = inner - np.eye(3) * 0.2  # keeps the box inside itself, so that nothing is clamped
    expected = linear((np.eye(3) + outer) @ (np.eye(3) + inner) - np.eye(3), SHAPE)
    composed = compose(jnp.asarray(linear(outer, SHAPE)), jnp.asarray(linear(inner, SHAPE)))
    np.testing.assert_allclose(composed, expected, atol=EXACT)


@pytest.mark.parametrize("steps", [0, 3, 7])
def test_a_linear_velocity_integrates_to_the_matrix_power(steps: int) -> None:
    """(I + A / 2^s)^(2^s), exact everywhere: A maps the box into itself, so nothing is clamped."""
    matrix = np.array([[-0.5, 0.1, -0.1], [0.2, -0.6, 0.1], [-0.1, 0.2, -0.7]])
    halves = (np.array(SHAPE) - 1) / 2
    assert np.all(np.abs(np.eye(3) + matrix / 2**steps) @ halves <= halves)
    power = np.linalg.matrix_power(np.eye(3) + matrix / 2**steps, 2**steps)
    found = integrate(jnp.asarray(linear(matrix, SHAPE)), steps=steps)
    np.testing.assert_allclose(found, linear(power - np.eye(3), SHAPE), atol=EXACT)


def test_a_rotation_integrates_to_the_matrix_power_inside() -> None:
    """The clamp at the border works inwards by a cell a step and by the motion, 7 + 0.3 * 12
    voxels: the middle, 11 voxels from the border, does not feel it."""
    shape, steps = (25, 25, 25), 7
    matrix = 0.3 * np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 0]])
    power = np.linalg.matrix_power(np.eye(3) + matrix / 2**steps, 2**steps)
    found = integrate(jnp.asarray(linear(matrix, shape)), steps=steps)
    inner = (slice(11, 14),) * 3
    np.testing.assert_allclose(found[inner], linear(power - np.eye(3), shape)[inner], atol=EXACT)


def test_a_constant_velocity_integrates_to_itself() -> None:
    velocity = jnp.broadcast_to(jnp.array([1.5, -20.0, 0.3]), (*SHAPE, 3))
    np.testing.assert_allclose(integrate(velocity), velocity, rtol=1e-14)


def test_integrate_is_scipys_and_its_error_halves_with_each_step() -> None:
    velocity = numerics.smooth_field(SHAPE, 5, 3)
    for steps in (2, 7):
        found = integrate(jnp.asarray(velocity), steps=steps)
        np.testing.assert_allclose(found, numerics.integrate(velocity, steps), atol=EXACT)
    # (I + A/n)^n = exp(A) (1 - A^2 / 2n + ..): first order in 1/n, without interpolation error.
    matrix = np.diag([-0.5, -0.3, -0.4])
    exact = linear(np.diag(np.exp(np.diag(matrix))) - np.eye(3), SHAPE)
    errors = [np.abs(integrate(jnp.asarray(linear(matrix, SHAPE)), steps=s) - exact).max() for s in (5, 6, 7)]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.02)


def test_integrals_of_opposite_velocities_are_inverse() -> None:
    """Interpolation: a lookup a fraction f into a cell errs by f (1 - f) / 2 |v''| an axis; over
    the path of 1 voxel that is below |v''| / 2 an axis and direction, (1/16) / 2 * 3 * 2 = 0.2
    here, and a third of it is met. Steps: |A^2| / 2^7 of a voxel, 1e-3. A bump: no border matters."""
    shape = (21, 21, 21)
    bump = np.exp(-((numerics.grid(shape) - 10) ** 2).sum(-1) / (2 * 4**2))
    # Cut off, smoothly, where the edge would be felt (exp(-10^2 / 32) = 0.04 voxels).
    velocity = np.maximum(bump - 0.05, 0)[..., None] * np.array([1.0, -0.7, 0.5])
    there, back = (integrate(jnp.asarray(sign * velocity)) for sign in (1, -1))
    assert np.abs(compose(there, back)).max() < 0.06
    assert np.abs(there + back).max() > 0.1  # not the trivial inverse: that would miss by 0.1


def test_opposite_linear_velocities_leave_the_known_remainder() -> None:
    """(I + B)^n (I - B)^n = (I - B^2)^n with B = A / n, in the middle (see the rotation above)."""
    shape, steps = (25, 25, 25), 5
    matrix = 0.2 * np.array([[0.0, -1, 0], [1, 0, 0.5], [0, -0.5, 0]])
    there, back = (integrate(jnp.asarray(linear(sign * matrix, shape)), steps=steps) for sign in (1, -1))
    scaled = matrix / 2**steps
    power = np.linalg.matrix_power(np.eye(3) - scaled @ scaled, 2**steps)
    inner = (slice(11, 14),) * 3
    expected = linear(power - np.eye(3), shape)
    np.testing.assert_allclose(compose(there, back)[inner], expected[inner], atol=EXACT)


@pytest.mark.parametrize(("shape", "factor"), [((8, 6, 10), 2), ((7, 5, 9), 2), ((13, 9, 17), 4)])
def test_upsample_reads_at_index_over_factor(shape: tuple[int, ...], factor: int) -> None:
    coarse_shape = tuple(-(-n // factor) for n in shape)
    coarse = numerics.smooth_field(coarse_shape, 7, 2)
    fine = upsample(jnp.asarray(coarse), shape, factor=factor)
    expected = factor * numerics.sample(coarse, numerics.grid(shape) / factor)
    np.testing.assert_allclose(fine, expected, atol=EXACT)
    np.testing.assert_array_equal(fine[::factor, ::factor, ::factor], factor * coarse)


@pytest.mark.parametrize("seed", [0, 1])
def test_jacobian_of_a_linear_field_is_its_determinant(seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(0, 0.5, (3, 3))
    found = jacobian_determinant(jnp.asarray(linear(matrix, SHAPE)))
    np.testing.assert_allclose(found, np.linalg.det(np.eye(3) + matrix), atol=EXACT)


def test_jacobian_is_numpys_and_negative_where_the_map_folds() -> None:
    displacement = numerics.smooth_field(SHAPE, 8, 3)
    columns = [np.gradient(displacement, axis=a) for a in range(3)]
    expected = np.linalg.det(np.stack(columns, -1) + np.eye(3))
    found = jacobian_determinant(jnp.asarray(displacement))
    np.testing.assert_allclose(found, expected, atol=EXACT)
    mirror = -2 * numerics.grid(SHAPE)[..., :1] * np.array([1.0, 0, 0])
    np.testing.assert_allclose(jacobian_determinant(jnp.asarray(mirror)), -1, atol=EXACT)


SYMMETRIC = {
    "integrate": (integrate, True),
    "compose": (lambda u: compose(u, -0.5 * u), True),
    "jacobian_determinant": (jacobian_determinant, False),
    "warp": (lambda u: warp(jnp.sum(u**2, -1), u), False),
}


@pytest.mark.parametrize("name", SYMMETRIC)
def test_mirrored_and_turned_fields_give_mirrored_and_turned_results(name: str) -> None:
    function, vector = SYMMETRIC[name]
    function = jax.jit(function)
    field = numerics.smooth_field((6, 6, 6), 9, 1.3)
    result = np.asarray(function(jnp.asarray(field)))
    for axis in range(3):
        mirrored = function(jnp.asarray(numerics.flip(field, axis, vector=True)))
        np.testing.assert_allclose(mirrored, numerics.flip(result, axis, vector), atol=EXACT)
    for order in ((1, 2, 0), (1, 0, 2), (2, 1, 0)):
        turned = function(jnp.asarray(numerics.permute(field, order, vector=True)))
        np.testing.assert_allclose(turned, numerics.permute(result, order, vector), atol=EXACT)


def test_upsample_turns_with_the_axes() -> None:
    field, order = numerics.smooth_field((3, 4, 5), 10, 1), (2, 0, 1)
    fine = upsample(jnp.asarray(field), (6, 7, 9))
    turned = upsample(jnp.asarray(numerics.permute(field, order, vector=True)), (9, 6, 7))
    np.testing.assert_allclose(turned, numerics.permute(fine, order, vector=True), atol=EXACT)


SAME = {
    "integrate": integrate,
    "upsample": lambda u: upsample(u, (11, 14, 17)),
    "warp": lambda u: warp(jnp.sum(u**2, -1), u),
    "jacobian_determinant": jacobian_determinant,
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_answer_under_jit_and_vmap(name: str) -> None:
    batch = jnp.stack([jnp.asarray(numerics.smooth_field(SHAPE, s, 2)) for s in (11, 12)])
    expected = jnp.stack([SAME[name](field) for field in batch])
    np.testing.assert_allclose(jax.jit(jax.vmap(SAME[name]))(batch), expected, atol=EXACT)


def test_a_field_that_is_not_a_number_stays_where_it_is() -> None:
    """A diverged network must not read outside the arrays: NaN out, the rest untouched."""
    displacement = np.zeros((*SHAPE, 3))
    displacement[2, 3, 4] = np.nan
    warped = warp(jnp.asarray(numerics.smooth_image(SHAPE, 0)), jnp.asarray(displacement))
    assert np.argwhere(np.isnan(warped)).tolist() == [[2, 3, 4]]
