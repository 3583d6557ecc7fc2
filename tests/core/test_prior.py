"""`prior` against the dense-matrix Gaussian KL divergence and its own minimum."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmreg_jax.core import prior
from tests import numerics

pytestmark = pytest.mark.usefixtures("float64")

SHAPE = (3, 4, 2)
PRECISION = 7.0
kl_divergence = jax.jit(prior.kl_divergence, static_argnames="reading")
EXACT = 1e-11  # float64 sums of 72 terms of size 10, and a determinant of that size


def laplacian(shape: tuple[int, ...]) -> np.ndarray:
    """L = D - N as a dense matrix, built edge by edge."""
    index = np.arange(np.prod(shape)).reshape(shape)
    matrix = np.zeros((index.size, index.size))
    for axis in range(3):
        low, high = (np.take(index, range(a, shape[axis] - 1 + a), axis).ravel() for a in (0, 1))
        for i, j in zip(low, high, strict=True):
            matrix[[i, j], [i, j]] += 1
            matrix[[i, j], [j, i]] -= 1
    return matrix


def dense_kl(mean: np.ndarray, covariance: np.ndarray, precision: np.ndarray) -> float:
    """KL[N(mean, covariance) || N(0, precision^-1)] of plain vectors and matrices."""
    log_determinants = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(precision)[1]
    trace = np.trace(precision @ covariance)
    return 0.5 * (trace + mean @ precision @ mean - mean.size - log_determinants)


def posterior(seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(0, 0.7, (*shape, 3)), random.normal(-3, 0.5, (*shape, 3))


@pytest.mark.parametrize("shape", [(3, 4, 2), (1, 4, 5), (5, 5, 5)])
def test_degree_is_the_diagonal_of_the_laplacian(shape: tuple[int, ...]) -> None:
    expected = np.diag(laplacian(shape)).reshape(shape)
    np.testing.assert_array_equal(prior.degree(shape), expected)


def test_exact_reading_is_the_dense_kl_up_to_its_constant() -> None:
    """The constant is -(log det(lambda L) + 3N) / 2; L is singular (a translation costs nothing),
    so 1e-9 is added to its diagonal, and the constant falls out of differences."""
    size = int(np.prod(SHAPE))
    matrix = np.kron(PRECISION * (laplacian(SHAPE) + 1e-9 * np.eye(size)), np.eye(3))
    ours, dense = [], []
    for seed in range(4):
        mean, log_variance = posterior(seed)
        ours.append(size * float(kl_divergence(mean, log_variance, precision=PRECISION, reading="exact")))
        dense.append(dense_kl(mean.ravel(), np.diag(np.exp(log_variance.ravel())), matrix))
    # What 1e-9 on the diagonal adds: lambda / 2 * 1e-9 * |mean|^2, 1e-7.
    np.testing.assert_allclose(np.diff(ours), np.diff(dense), atol=3e-7)
    assert np.abs(np.diff(dense)).min() > 1


def test_voxelmorph_reading_is_its_formula() -> None:
    mean, log_variance = posterior(5)
    degrees = np.diag(laplacian(SHAPE)).reshape(*SHAPE, 1)
    trace = 1.5 * np.mean(PRECISION * degrees * np.exp(log_variance) - log_variance)
    rough = sum(np.mean(np.diff(mean, axis=a) ** 2) for a in range(3))
    found = kl_divergence(mean, log_variance, precision=PRECISION, reading="voxelmorph")
    np.testing.assert_allclose(found, trace + PRECISION / 4 * rough, rtol=EXACT)


def test_the_readings_differ_by_six_in_their_smoothness_up_to_the_border() -> None:
    """Of n voxels an axis has n - 1 differences: the ratio is 6 (n - 1) / n for equal axes."""
    n = 6
    mean, log_variance = posterior(6, (n, n, n))
    exact, voxelmorph = (
        kl_divergence(mean, log_variance, reading=reading)
        - kl_divergence(0 * mean, log_variance, reading=reading)
        for reading in prior.READINGS
    )
    np.testing.assert_allclose(exact / voxelmorph, 6 * (n - 1) / n, rtol=EXACT)


@pytest.mark.parametrize("reading", prior.READINGS)
def test_the_minimum_is_at_variance_one_over_lambda_degree(reading: str) -> None:
    best = -np.log(10 * np.diag(laplacian(SHAPE))).reshape(*SHAPE, 1) * np.ones(3)

    def kl(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
        return kl_divergence(mean, log_variance, reading=reading)

    slopes = jax.jit(jax.grad(kl, argnums=(0, 1)))(jnp.full((*SHAPE, 3), 4.0), jnp.asarray(best))
    for slope in slopes:
        np.testing.assert_allclose(slope, 0, atol=EXACT)
    # Inside a large grid, D = 6: 3/2 (1 + ln 60), about 7.7. Here with this grid's own degrees.
    expected = 1.5 * (1 - best.mean())
    np.testing.assert_allclose(kl(jnp.zeros((*SHAPE, 3)), best), expected, rtol=EXACT)


@pytest.mark.parametrize("reading", prior.READINGS)
def test_a_translation_costs_nothing_and_axes_are_alike(reading: str) -> None:
    mean, log_variance = posterior(7)

    def kl(mean: np.ndarray, log_variance: np.ndarray) -> float:
        return float(kl_divergence(mean, log_variance, reading=reading))

    expected = kl(mean, log_variance)
    assert kl(mean + np.array([5.0, -3, 1]), log_variance) == pytest.approx(expected, rel=EXACT)
    for axis in range(3):
        mirrored = (numerics.flip(mean, axis, vector=True), numerics.flip(log_variance, axis))
        assert kl(*mirrored) == pytest.approx(expected, rel=EXACT)
    for order in ((1, 2, 0), (1, 0, 2)):  # these two generate all six
        turned = (numerics.permute(a, order, vector=True) for a in (mean, log_variance))
        assert kl(*turned) == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("reading", prior.READINGS)
def test_a_grid_of_one_voxel_along_an_axis_is_finite(reading: str) -> None:
    mean, log_variance = posterior(8, (1, 3, 2))
    assert np.isfinite(kl_divergence(mean, log_variance, reading=reading))


def test_the_same_answer_under_jit_and_vmap() -> None:
    batch = [np.stack(a) for a in zip(posterior(9), posterior(10), strict=True)]
    expected = [kl_divergence(*pair) for pair in zip(*batch, strict=True)]
    found = jax.jit(jax.vmap(prior.kl_divergence))(*batch)
    np.testing.assert_allclose(found, expected, rtol=EXACT)


def test_an_unknown_reading_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'sloppy'; one of exact, voxelmorph"):
        kl_divergence(*posterior(0), reading="sloppy")
