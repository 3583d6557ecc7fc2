"""`objective`: eq. 7 put together by hand, in both readings and with its degenerate cases."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmreg_jax.core import objective as eq7
from lmreg_jax.core.posterior import Posterior, draw
from tests import numerics

pytestmark = pytest.mark.usefixtures("float64")

SHAPE, COARSE = (6, 7, 8), (3, 4, 4)
SPACING = (2.0, 1.5, 3.0)
EXACT = 1e-10  # float64 sums of a few hundred terms, times 1 / 0.02^2

terms = jax.jit(eq7.terms, static_argnums=0)


def pair(seed: int = 0) -> tuple[Any, ...]:
    """Posterior, displacement, images, landmarks, mask: all that `terms` takes."""
    random = np.random.default_rng(seed)
    posterior = Posterior(numerics.smooth_field(COARSE, seed, 1), random.normal(-4, 0.3, (*COARSE, 3)))
    displacement = eq7.displacement_of(jnp.asarray(posterior.mean), SHAPE, stride=2, steps=7)
    points = random.uniform(0, np.array(SHAPE) - 1, (4, 3))
    others = points + random.normal(size=(4, 3))
    images = (numerics.smooth_image(SHAPE, s) for s in (seed + 1, seed + 2))
    return posterior, displacement, *images, points, others, np.array([True, True, False, True])


@pytest.mark.parametrize("reading", ["exact", "voxelmorph"])
@pytest.mark.parametrize("unit", ["voxel", "mm"])
def test_terms_by_hand(reading: str, unit: str) -> None:
    posterior, displacement, fixed, moving, points, others, mask = pair()
    objective = eq7.Objective(
        reading, image_sigma=0.05, landmark_sigma=3, landmark_unit=unit, spacing_mm=SPACING
    )
    u = np.asarray(displacement)
    error = np.mean((fixed - numerics.sample(moving, numerics.grid(SHAPE) + u)) ** 2)
    residual = points + numerics.sample(u, points) - others
    residual = residual * (SPACING if unit == "mm" else 1)
    distance = (residual**2).sum(-1)[mask].mean()
    found = terms(objective, *pair())
    # Half a square over sigma^2 for each of 8 image voxels a field voxel; theirs without both.
    factor = {"exact": 8 / 2, "voxelmorph": 1}[reading]
    assert float(found["image"]) == pytest.approx(factor * error / 0.05**2, rel=EXACT)
    assert float(found["landmark"]) == pytest.approx(distance / (2 * 3**2), rel=EXACT)
    degrees = sum(np.where((i == 0) | (i == n - 1), 1, 2) for n, i in enumerate_axes(COARSE))
    trace = 1.5 * np.mean(10 * degrees[..., None] * np.exp(posterior.log_variance) - posterior.log_variance)
    squares = [np.diff(posterior.mean, axis=a) ** 2 for a in range(3)]
    smooth = {
        "exact": 10 / 2 * sum(map(np.sum, squares)) / np.prod(COARSE),
        "voxelmorph": 10 / 4 * sum(map(np.mean, squares)),
    }[reading]
    assert float(found["kl"]) == pytest.approx(trace + smooth, rel=EXACT)


def enumerate_axes(shape: tuple[int, ...]) -> list[tuple[int, np.ndarray]]:
    """Each axis' size with every voxel's index along it."""
    return list(zip(shape, np.indices(shape), strict=True))


def test_the_sigmas_of_paper_and_code() -> None:
    """[Hu] prints sigma^2 = 0.02, [Dalca]'s code has sigma = 0.02: 200, 10000 or 2500 MSE."""
    scales = [
        eq7.image_scale(eq7.Objective(reading, image_sigma=sigma), 2)
        for reading, sigma in (("exact", 0.02**0.5), ("exact", 0.02), ("voxelmorph", 0.02))
    ]
    assert scales == pytest.approx([200, 10000, 2500])
    # At stride 1 a field voxel is one image voxel: 1 / (2 sigma^2), as eq. 7 stands.
    assert eq7.image_scale(eq7.Objective("exact", image_sigma=0.1), 1) == pytest.approx(50)


def test_total_weighs_the_landmarks_only() -> None:
    by_name = {"kl": jnp.array(1.0), "image": jnp.array(20.0), "landmark": jnp.array(300.0)}
    for weight in (0, 0.5, 1):
        total = eq7.total(eq7.Objective(landmark_weight=weight), by_name)
        assert float(total) == 21 + 300 * weight


@pytest.mark.parametrize("spoilt", [False, True])
def test_no_landmark_is_a_term_of_zero_with_finite_derivatives(spoilt: bool) -> None:
    posterior, displacement, fixed, moving, points, others, mask = pair()
    if spoilt:
        points, others = np.full_like(points, np.nan), np.full_like(others, np.nan)

    def landmark(u: jax.Array) -> jax.Array:
        by_name = eq7.terms(eq7.Objective(), posterior, u, fixed, moving, points, others, np.zeros_like(mask))
        return by_name["landmark"]

    value, slope = jax.jit(jax.value_and_grad(landmark))(displacement)
    assert float(value) == 0
    np.testing.assert_array_equal(slope, 0)


def test_a_missing_landmark_has_no_effect_even_as_nan() -> None:
    posterior, displacement, fixed, moving, points, others, mask = pair()

    def landmark(u: jax.Array, points: np.ndarray, others: np.ndarray) -> jax.Array:
        objective = eq7.Objective()
        return eq7.terms(objective, posterior, u, fixed, moving, points, others, mask)["landmark"]

    slope = jax.jit(jax.value_and_grad(landmark))
    clean = slope(displacement, points, others)
    hole = np.where(mask[:, None], 0, np.nan)
    spoilt = slope(displacement, points + hole, others + hole)
    assert float(clean[0]) == float(spoilt[0])
    np.testing.assert_array_equal(clean[1], spoilt[1])


def test_a_landmark_on_the_last_voxel_pulls_only_that_voxel() -> None:
    """d/du of |p + u(p) - q|^2 / 2 at p a voxel is p + u - q there, and nothing elsewhere."""
    posterior, displacement, fixed, moving, points, others, _ = pair()
    points[0], only = np.array(SHAPE) - 1, np.array([True, False, False, False])

    def landmark(u: jax.Array) -> jax.Array:
        return eq7.terms(eq7.Objective(), posterior, u, fixed, moving, points, others, only)["landmark"]

    slope = np.array(jax.jit(jax.grad(landmark))(displacement))
    expected = points[0] + np.asarray(displacement)[-1, -1, -1] - others[0]
    np.testing.assert_allclose(slope[-1, -1, -1], expected, rtol=EXACT)
    slope[-1, -1, -1] = 0
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_stride_is_told_by_the_shapes_of_every_size(stride: int) -> None:
    for size in range(5, 40):
        shape = (size, size + 3, 16)
        coarse = tuple(-(-n // stride) for n in shape)
        assert eq7.field_stride(shape, coarse) == stride
    with pytest.raises(ValueError, match=r"\(5, 5, 4\).*\(10, 10, 10\)"):
        eq7.field_stride((10, 10, 10), (5, 5, 4))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_constant_velocity_displaces_by_its_own_size_in_image_voxels(stride: int) -> None:
    shape, coarse = (5, 7, 8), tuple(-(-n // stride) for n in (5, 7, 8))
    velocity = jnp.broadcast_to(jnp.array([0.5, -1, 2]), (*coarse, 3))
    found = eq7.displacement_of(velocity, shape, stride=stride, steps=7)
    expected = np.broadcast_to(stride * np.array([0.5, -1, 2]), (*shape, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_a_draw_has_the_posteriors_mean_and_variance() -> None:
    """2^18 draws: the mean errs by sigma / 512, the variance by sqrt(2) / 512; four times that."""
    posterior = Posterior(jnp.full((64, 64, 64), 3.0), jnp.full((64, 64, 64), np.log(0.25)))
    values = draw(jax.random.key(0), posterior)
    assert float(values.mean()) == pytest.approx(3, abs=4 * 0.5 / 512)
    assert float(values.var()) == pytest.approx(0.25, rel=4 * 2**0.5 / 512)


def test_a_draw_is_differentiable_in_mean_and_log_variance() -> None:
    """v = mean + exp(l / 2) eps: dv/dmean = 1, dv/dl = (v - mean) / 2."""
    mean, log_variance = jnp.zeros(9), jnp.linspace(-3, 1, 9)

    def value(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
        return draw(jax.random.key(1), Posterior(mean, log_variance))

    slopes = jax.jacobian(value, argnums=(0, 1))(mean, log_variance)
    np.testing.assert_allclose(slopes[0], np.eye(9), atol=1e-15)
    np.testing.assert_allclose(slopes[1], np.diag(value(mean, log_variance) / 2), atol=1e-15)


def test_the_same_answer_under_vmap() -> None:
    pairs = [pair(0), pair(5)]
    batch = jax.tree.map(lambda *a: jnp.stack(a), *pairs)
    found = jax.jit(jax.vmap(lambda *p: eq7.terms(eq7.Objective(), *p)))(*batch)
    for i, one in enumerate(pairs):
        for name, value in terms(eq7.Objective(), *one).items():
            assert float(found[name][i]) == pytest.approx(float(value), rel=EXACT)


def test_an_unknown_image_term_is_an_error() -> None:
    with pytest.raises(KeyError, match="cosine"):
        eq7.terms(eq7.Objective(image="cosine"), *pair())
