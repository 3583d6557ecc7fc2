"""Image terms: the mean square by hand, the local correlation window by window."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmreg_jax.core import similarity
from tests import numerics

SHAPE = (11, 10, 12)

local_correlation = jax.jit(similarity.local_correlation, static_argnames="window")
SLOPES = {name: jax.jit(jax.value_and_grad(term, argnums=1)) for name, term in similarity.IMAGE_TERMS.items()}


def correlation_by_windows(fixed: np.ndarray, warped: np.ndarray, window: int = 9) -> np.ndarray:
    """Squared correlation coefficient of each voxel's window, cut at the border, one by one."""
    reach, out = window // 2, np.zeros(fixed.shape)
    for voxel in itertools.product(*map(range, fixed.shape)):
        box = tuple(slice(max(i - reach, 0), i + reach + 1) for i in voxel)
        f, w = fixed[box] - fixed[box].mean(), warped[box] - warped[box].mean()
        out[voxel] = np.mean(f * w) ** 2 / (np.mean(f**2) * np.mean(w**2) + 1e-8)
    return out


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    fixed = numerics.smooth_image(SHAPE, 0) + random.normal(0, 0.1, SHAPE)
    return fixed, 0.5 * fixed + random.normal(0, 0.1, SHAPE)


def test_mean_square_by_hand(images: tuple[np.ndarray, np.ndarray]) -> None:
    found = similarity.mean_squared_error(*map(jnp.float32, images))
    # float32 rounding of a thousand squares of size 0.1.
    np.testing.assert_allclose(found, np.mean((images[0] - images[1]) ** 2), rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("window", [3, 5, 9])
def test_local_correlation_window_by_window(images: tuple[np.ndarray, np.ndarray], window: int) -> None:
    """One pass over sums against two passes over windows: rounding only, 1e-16 / variance 1e-2."""
    found = local_correlation(*map(jnp.asarray, images), window=window)
    np.testing.assert_allclose(found, correlation_by_windows(*images, window), atol=1e-11)
    assert found.min() >= 0
    assert found.max() <= 1


def test_local_correlation_in_float32_keeps_its_digits_on_offset_data(
    images: tuple[np.ndarray, np.ndarray],
) -> None:
    """An offset of 100 standard deviations costs float32 1e-7 * 100^2 / 81 where the mean stays
    in: off by a few per cent. Removed first, the offset's own rounding is lost, 1e-5 / 0.1."""
    exact = correlation_by_windows(*images)
    found = local_correlation(*(jnp.float32(image + 20) for image in images))
    np.testing.assert_allclose(found, exact, atol=1e-3)


@pytest.mark.usefixtures("float64")
def test_local_correlation_ignores_brightness_and_contrast(
    images: tuple[np.ndarray, np.ndarray],
) -> None:
    """f against a f + b is 1 but for the 1e-8 beside a product of variances of 1e-4: 1e-4."""
    fixed = jnp.asarray(images[0])
    np.testing.assert_allclose(local_correlation(fixed, 0.4 - 2 * fixed), 1, atol=1e-4)
    for name, window in {"lncc": 9, "lncc5": 5}.items():
        assert float(similarity.IMAGE_TERMS[name](fixed, fixed)) == pytest.approx(0, abs=1e-4)
        expected = 1 - correlation_by_windows(*images, window).mean()
        assert float(similarity.IMAGE_TERMS[name](*images)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", similarity.IMAGE_TERMS)
@pytest.mark.parametrize("flat", ["fixed", "warped", "both"])
def test_a_flat_image_gives_a_finite_value_and_derivative(
    name: str, flat: str, images: tuple[np.ndarray, np.ndarray]
) -> None:
    fixed, warped = (
        jnp.full(SHAPE, 0.3) if flat in (which, "both") else jnp.float32(image)
        for which, image in zip(("fixed", "warped"), images, strict=True)
    )
    value, slope = SLOPES[name](fixed, warped)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    if name != "ssd":
        # Nothing to correlate with; what is left is rounding's 1e-8 over the 1e-8 of the quotient.
        assert float(value) == pytest.approx(1, abs=1e-3)


def test_a_flat_patch_counts_as_uncorrelated_inside_a_structured_image() -> None:
    """Half of the image is constant: windows that see only that half give 0, the others do not."""
    image = np.random.default_rng(1).uniform(size=(24, 9, 9))
    image[:12] = 0.5
    found = local_correlation(jnp.float32(image), jnp.float32(image))
    np.testing.assert_allclose(found[:8], 0, atol=1e-3)
    np.testing.assert_allclose(found[12:], 1, atol=1e-3)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", similarity.IMAGE_TERMS)
def test_symmetries_jit_and_vmap(name: str, images: tuple[np.ndarray, np.ndarray]) -> None:
    term = similarity.IMAGE_TERMS[name]
    expected = term(*images)
    turned = [
        [numerics.flip(image, 0) for image in images],
        [numerics.flip(image, 2) for image in images],
        list(images[::-1]),
    ]
    batch = [np.stack(pair) for pair in zip(*turned, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(term))(*batch), expected, rtol=1e-10)
    for order in ((1, 2, 0), (2, 1, 0)):
        found = term(*(numerics.permute(image, order) for image in images))
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_the_demons_force_points_from_fixed_to_where_its_value_lies_in_the_moving_image() -> None:
    """On a ramp of slope a, moving shifted by d: (f - w) = a d, so F = a^2 d / (a^2 (1 + d^2) + floor):
    of d's sign (moving(x + d) = fixed(x)), half a voxel at most, and 0 across the ramp."""
    slope, x = 0.05, np.arange(12.0)[:, None, None] * np.ones(SHAPE[1:])[None]
    for shift in (-3.0, -0.5, 0.0, 0.5, 1.0):
        fixed, moving = 0.2 + slope * x, 0.2 + slope * (x - shift)
        found = similarity.demons_force(jnp.asarray(fixed), jnp.asarray(moving))
        expected = slope**2 * shift / (slope**2 * (1 + shift**2) + similarity.FORCE_FLOOR)
        np.testing.assert_allclose(found[..., 0], expected, atol=1e-12)
        np.testing.assert_allclose(found[..., 1:], 0, atol=1e-12)
        assert np.abs(found).max() <= 0.5


@pytest.mark.usefixtures("float64")
def test_the_demons_force_written_out_in_numpy(images: tuple[np.ndarray, np.ndarray]) -> None:
    fixed, warped = images
    slope = (np.stack(np.gradient(fixed), -1) + np.stack(np.gradient(warped), -1)) / 2
    difference = (fixed - warped)[..., None]
    length = np.sum(slope**2, axis=-1, keepdims=True)
    expected = difference * slope / (length + difference**2 + 1e-3)
    np.testing.assert_allclose(jax.jit(similarity.demons_force)(fixed, warped), expected, atol=1e-13)
    np.testing.assert_array_equal(similarity.demons_force(jnp.asarray(fixed), jnp.asarray(fixed)), 0)
