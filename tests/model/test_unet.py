"""The network: [Dalca]'s sizes and initial values, and its forward pass written out in NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmreg_jax.core.posterior import Posterior
from lmreg_jax.core.similarity import demons_force
from lmreg_jax.model._convolution import double
from lmreg_jax.model.unet import UNet
from tests import numerics

SMALL = UNet(encoder=(3, 4), decoder=(4, 3), final=(2,))


def images(shape: tuple[int, ...], batch: int = 1) -> tuple[np.ndarray, np.ndarray]:
    moving, fixed = (
        np.stack([numerics.smooth_image(shape, 10 * b + s) for b in range(batch)]) for s in (0, 1)
    )
    return moving, fixed


def single(*arrays: np.ndarray) -> list[jax.Array]:
    """Inputs as float32, for the tests that run in it."""
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def random_params(model: UNet, seed: int = 0) -> Any:
    """Parameters of size 0.3 all over, heads and biases too, so that nothing stays invisible."""
    image = jax.ShapeDtypeStruct((1, *(model.multiple,) * 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, image)
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda a: 0.3 * random.normal(size=a.shape), shapes)


def forward(params: Any, moving: np.ndarray, fixed: np.ndarray, *more: np.ndarray) -> Posterior:
    """`SMALL` on a grid of multiples of 4, in NumPy, stage by stage as in [Dalca, fig. 2].

    more: further channels of the input, `[B, X, Y, Z]`.
    """

    def layer(features: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        weights = params["params"][name]
        return numerics.convolve(features, weights["kernel"], stride) + weights["bias"]

    def stage(features: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        result = layer(features, name, stride)
        return np.where(result > 0, result, 0.2 * result)

    half = stage(np.stack([moving, fixed, *more], -1), "encoder_0", 2)
    quarter = stage(half, "encoder_1", 2)
    features = stage(quarter, "decoder_0").repeat(2, 1).repeat(2, 2).repeat(2, 3)
    features = stage(np.concatenate([features, half], -1), "decoder_1")
    features = stage(features, "final_0")
    return Posterior(layer(features, "mean"), layer(features, "log_variance"))


@pytest.mark.usefixtures("float64")
def test_forward_pass_is_that_written_out_in_numpy() -> None:
    params, pair = random_params(SMALL), images((8, 4, 12), batch=2)
    found = jax.jit(SMALL.apply)(params, *pair)
    for ours, expected in zip(found, forward(params, *pair), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-11)  # float64, sums of 200 terms


@pytest.mark.usefixtures("float64")
def test_other_sizes_are_padded_by_the_edge_and_cropped_back() -> None:
    params, pair = random_params(SMALL), images((7, 5, 10))
    padded = (np.pad(a, [(0, 0), (0, 1), (0, 3), (0, 2)], mode="edge") for a in pair)
    found = jax.jit(SMALL.apply)(params, *pair)
    for ours, expected in zip(found, forward(params, *padded), strict=True):
        assert ours.shape == (1, 4, 3, 5, 3)
        np.testing.assert_allclose(ours, expected[:, :4, :3, :5], atol=1e-11)


@pytest.mark.usefixtures("float64")
def test_forces_are_three_channels_more() -> None:
    model = SMALL.clone(inputs="forces")
    params, (moving, fixed) = random_params(model), images((8, 4, 12), batch=2)
    forces = np.stack([demons_force(f, m) for f, m in zip(fixed, moving, strict=True)])
    found = jax.jit(model.apply)(params, moving, fixed)
    written_out = forward(params, moving, fixed, *np.moveaxis(forces, -1, 0))
    for ours, expected in zip(found, written_out, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-11)


@pytest.mark.usefixtures("float64")
def test_pairs_of_a_batch_do_not_mix_also_with_normalisation() -> None:
    model = SMALL.clone(normalisation="instance")
    params, (moving, fixed) = random_params(model), images((8, 4, 12), batch=2)
    apply = jax.jit(model.apply)
    both = apply(params, moving, fixed)
    for i in range(2):
        alone = apply(params, moving[i : i + 1], fixed[i : i + 1])
        for ours, expected in zip(both, alone, strict=True):
            np.testing.assert_allclose(ours[i], expected[0], atol=1e-11)


def test_the_papers_network_has_the_papers_size() -> None:
    model = UNet()
    image = jax.ShapeDtypeStruct((1, 16, 16, 16), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image, image)
    assert sum(a.size for a in jax.tree.leaves(params)) == 266_374
    kernels = {name: layer["kernel"].shape for name, layer in params["params"].items()}
    assert kernels["encoder_0"] == (3, 3, 3, 2, 16)
    assert kernels["decoder_0"] == (3, 3, 3, 32, 32)
    assert kernels["decoder_1"] == kernels["decoder_2"] == (3, 3, 3, 64, 32)
    assert kernels["decoder_3"] == (3, 3, 3, 48, 32)
    assert kernels["final_0"] == (3, 3, 3, 32, 16)
    assert kernels["mean"] == kernels["log_variance"] == (3, 3, 3, 16, 3)


def test_initial_values_are_dalcas() -> None:
    """He-normal: variance 2 / (27 * inputs). A sample variance of n values errs by sqrt(2 / n).

    Two stages and the heads: to compile the drawing of each kernel takes longer than all else."""
    model = UNet(encoder=(32,), decoder=(16,), final=())
    pair = single(*images((4, 4, 4)))
    start, params = jax.jit(model.init_with_output)(jax.random.key(0), *pair)
    for name, layer in params["params"].items():
        kernel = layer["kernel"]
        expected = {"mean": 1e-5, "log_variance": 1e-10}.get(name, np.sqrt(2 / (27 * kernel.shape[-2])))
        assert float(kernel.std()) == pytest.approx(expected, rel=4 / np.sqrt(2 * kernel.size))
        np.testing.assert_array_equal(layer["bias"], -10 if name == "log_variance" else 0)
    np.testing.assert_allclose(start.log_variance, -10, atol=1e-6)
    assert 0 < np.abs(start.mean).max() < 1e-3  # next to the identity, but not stuck there


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_field_has_the_stride_asked_for(stride: int) -> None:
    model = UNet(encoder=(2, 2, 2), decoder=(2, 2, 2, 2), final=(2, 2), field_stride=stride)
    image = jax.ShapeDtypeStruct((1, 13, 8, 10), jnp.float32)
    shape = (1, -(-13 // stride), -(-8 // stride), -(-10 // stride), 3)
    found, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image, image)
    assert found.mean.shape == found.log_variance.shape == shape


def test_normalised_features_do_not_depend_on_the_contrast() -> None:
    """Without a bias before it, the first normalisation takes out a common factor of the images
    (up to the 1e-5 beside a variance of 0.1 or so, hence 1e-3)."""
    model = SMALL.clone(normalisation="instance")
    params, (moving, fixed) = random_params(model), single(*images((8, 8, 8)))
    apply = jax.jit(model.apply)
    params["params"]["encoder_0"]["bias"] *= 0
    bright, dark = (apply(params, k * moving, k * fixed).mean for k in (1.0, 0.5))
    np.testing.assert_allclose(dark, bright, atol=1e-3 * np.abs(bright).max())


def test_features_in_half_precision_give_a_field_in_full() -> None:
    """bfloat16 has 8 bits: 0.4 % a rounding, a few layers deep."""
    params, pair = random_params(SMALL), single(*images((8, 8, 8)))
    full = jax.jit(SMALL.apply)(params, *pair)
    half = jax.jit(SMALL.clone(dtype=jnp.bfloat16).apply)(params, *pair)
    for ours, expected in zip(half, full, strict=True):
        assert ours.dtype == jnp.float32
        assert numerics.relative(ours, expected) < 0.02


def test_doubling_repeats_each_voxel() -> None:
    features = jnp.arange(2 * 3.0).reshape(1, 1, 2, 3, 1)
    doubled = double(features)
    assert doubled.shape == (1, 2, 4, 6, 1)
    for x in range(2):
        np.testing.assert_array_equal(doubled[0, x, ::2, 1::2, 0], features[0, 0, :, :, 0])
        np.testing.assert_array_equal(doubled[0, x, 1::2, ::2, 0], features[0, 0, :, :, 0])
