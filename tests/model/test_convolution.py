"""The fast convolution is XLA's plain one and a sum over taps in NumPy, in value and gradient."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmreg_jax.model import _convolution as convolution
from tests import numerics

pytestmark = pytest.mark.usefixtures("float64")

SHAPES = [(4, 6, 8), (5, 7, 3), (1, 2, 9)]
WAYS = {
    "plain": convolution.convolve_plain,
    "stacked": convolution.convolve_stacked,
    "chosen": convolution.convolve,
}
EXACT = 1e-11  # float64 sums of 27 * 2 products, in another order


def arrays(shape: tuple[int, ...], stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(sum(shape) + stride)
    output = tuple(-(-n // stride) for n in shape)
    return (
        random.normal(size=(2, *shape, 2)),
        random.normal(size=(3, 3, 3, 2, 3)),
        random.normal(size=(2, *output, 3)),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_way_is_the_sum_over_taps(shape: tuple[int, ...], stride: int) -> None:
    features, kernel, _ = arrays(shape, stride)
    expected = numerics.convolve(features, kernel, stride)
    for name, convolve in WAYS.items():
        found = jax.jit(convolve, static_argnums=2)(features, kernel, stride)
        np.testing.assert_allclose(found, expected, atol=EXACT, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stride", [1, 2])
def test_both_gradients_are_those_of_the_plain_one(shape: tuple[int, ...], stride: int) -> None:
    features, kernel, cotangent = arrays(shape, stride)

    def slopes(convolve: Callable[..., jax.Array]) -> tuple[jax.Array, ...]:
        def inner(features: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.sum(cotangent * convolve(features, kernel, stride))

        return jax.jit(jax.grad(inner, argnums=(0, 1)))(features, kernel)

    expected = slopes(convolution.convolve_plain)
    for name in ("stacked", "chosen"):
        for ours, theirs in zip(slopes(WAYS[name]), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=EXACT, err_msg=name)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 1)])
def test_fewer_products_give_the_same(shape: tuple[int, ...]) -> None:
    features, kernel, cotangent = arrays(shape, 1)
    expected, pull = jax.vjp(convolution.convolve_plain, features, kernel)
    found, own_pull = jax.vjp(jax.jit(convolution.convolve_winograd), features, kernel)
    np.testing.assert_allclose(found, expected, atol=EXACT)
    np.testing.assert_allclose(found, numerics.convolve(features, kernel, 1), atol=EXACT)
    for ours, theirs in zip(own_pull(cotangent), pull(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=EXACT)


@pytest.mark.parametrize("channels", [(3, 2), (2, 3), (2, 16)])
@pytest.mark.parametrize("shape", [(4, 6, 8), (1, 2, 9), (2, 1, 1)])
def test_the_kernels_gradient_by_slices_is_the_plain_ones(
    shape: tuple[int, ...], channels: tuple[int, int]
) -> None:
    """Shifted are the features where they have fewer channels; 16 outputs go by Winograd forward."""
    random = np.random.default_rng(sum(shape))
    features = random.normal(size=(2, *shape, channels[0]))
    kernel = random.normal(size=(3, 3, 3, *channels))
    cotangent = random.normal(size=(2, *shape, channels[1]))
    expected, pull = jax.vjp(convolution.convolve_plain, features, kernel)
    found, own_pull = jax.vjp(jax.jit(convolution.convolve_sliced), features, kernel)
    np.testing.assert_allclose(found, expected, atol=EXACT)
    for ours, theirs in zip(own_pull(cotangent), pull(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=EXACT)
    own = convolution.kernel_gradient(jnp.asarray(features), jnp.asarray(cotangent))
    np.testing.assert_allclose(own, pull(cotangent)[1], atol=EXACT)


def test_even_sizes_at_stride_two_are_padded_behind_only() -> None:
    """TensorFlow's rule, by which the imported weights were made: the first window starts at 0."""
    features = jnp.arange(4.0).reshape(1, 4, 1, 1, 1)
    kernel = jnp.zeros((3, 3, 3, 1, 1)).at[0, 1, 1].set(1).at[0, 0, 0].set(1)
    for convolve in WAYS.values():
        # Y and Z have size 1: padded 1 and 1, so that only the tap in the middle meets a value.
        assert convolve(features, kernel, 2).ravel().tolist() == [0, 2]


def test_the_same_answer_in_float32_and_under_vmap() -> None:
    features, kernel, _ = (jnp.float32(a) for a in arrays((4, 6, 8), 1))
    kernel = jnp.tile(kernel, 6)  # enough features for every way to be taken
    expected = convolution.convolve_plain(features, kernel)
    found = jax.jit(jax.vmap(lambda f: convolution.convolve(f[None], kernel)[0]))(features)
    assert found.dtype == jnp.float32
    # 54 products of size 1: float32 rounding of 1e-7 times their sum, 10.
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 2, 3), (1, 5, 2)])
def test_a_convolution_of_doubled_and_skipped_features_may_be_split(shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(sum(shape))
    coarse = random.normal(size=(2, *shape, 3))
    skip = random.normal(size=(2, *(2 * n for n in shape), 2))
    kernel = random.normal(size=(3, 3, 3, 5, 4))
    cotangent = random.normal(size=(*skip.shape[:4], 4))

    def joined(coarse: jax.Array, skip: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolution.convolve_plain(
            jnp.concatenate([convolution.double(coarse), skip], axis=-1), kernel
        )

    def slopes(way: Callable[..., jax.Array]) -> tuple[jax.Array, ...]:
        return jax.jit(jax.grad(lambda *a: jnp.sum(cotangent * way(*a)), argnums=(0, 1, 2)))(
            coarse, skip, kernel
        )

    found = jax.jit(convolution.convolve_upsampled)(coarse, skip, kernel)
    np.testing.assert_allclose(found, joined(coarse, skip, kernel), atol=EXACT)
    doubled = np.repeat(np.repeat(np.repeat(coarse, 2, 1), 2, 2), 2, 3)
    expected = numerics.convolve(doubled, kernel[..., :3, :], 1)
    np.testing.assert_allclose(convolution.convolve_doubled(coarse, kernel[..., :3, :]), expected, atol=EXACT)
    for ours, theirs in zip(slopes(convolution.convolve_upsampled), slopes(joined), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=EXACT)
