"""`registrar`: one function of two images, under jit and vmap, and what it says to wrong images."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import lung
from lmreg_jax.core import fields
from lmreg_jax.errors import InputError
from lmreg_jax.model import config as configuration
from lmreg_jax.model.registrar import Registrar, registrar
from tests import numerics

SHAPE = (9, 11, 8)  # odd sizes: padded inside the network, cropped after


@pytest.fixture(scope="module")
def model() -> Registrar:
    """A random network whose velocities reach some tenths of a voxel."""
    config = lung.get_config()
    config.model.encoder, config.model.decoder, config.model.final = (4,), (4,), ()
    net = configuration.network(config)
    image = jax.ShapeDtypeStruct((1, 4, 4, 4), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), image, image)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(0.2 * random.normal(size=a.shape), a.dtype), shapes)
    params["params"]["mean"] = jax.tree.map(lambda a: 0.1 * a, params["params"]["mean"])
    return registrar(config, params, "best/1")


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    return tuple(numerics.smooth_image(SHAPE, seed).astype(np.float32) for seed in (0, 1))


def test_shapes_and_finite_values(model: Registrar, images: Any) -> None:
    result = model(*images)
    assert result.warped.shape == SHAPE
    assert result.displacement.shape == result.inverse_displacement.shape == (*SHAPE, 3)
    assert result.velocity_mean.shape == result.velocity_log_variance.shape == (5, 6, 4, 3)
    assert all(a.dtype == jnp.float32 and bool(jnp.isfinite(a).all()) for a in result)
    assert 0.05 < float(jnp.abs(result.displacement).max()) < 3
    assert model.source == "best/1"


def test_warped_is_moving_seen_through_the_displacement(model: Registrar, images: Any) -> None:
    result = model(*images)
    expected = fields.warp(jnp.asarray(images[1]), result.displacement)
    np.testing.assert_allclose(result.warped, expected, atol=1e-6)


def test_the_same_images_give_the_same_bits(model: Registrar, images: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, model(*images), model(*images))


def test_vmap_and_jit_agree_with_single_calls(model: Registrar, images: Any) -> None:
    fixed, moving = images
    pairs = np.stack([fixed, moving]), np.stack([moving, fixed])
    batched = jax.jit(jax.vmap(model))(*pairs)
    for i, (one, other) in enumerate(zip(*pairs, strict=True)):
        single = model(one, other)
        for name in ("warped", "displacement", "velocity_mean"):
            np.testing.assert_allclose(
                getattr(batched, name)[i], getattr(single, name), atol=1e-5, err_msg=name
            )


def test_compiled_once_for_each_shape(model: Registrar, images: Any) -> None:
    """Whatever the dtype given: it is float32 by the time that jit sees it."""
    fixed, moving = images
    model(fixed, moving)
    count = model.compiled._cache_size()
    for dtype in (np.float64, np.float16, jnp.bfloat16):
        model(moving.astype(dtype), fixed.astype(dtype))
    model(jnp.asarray(fixed), (moving > 0.5).astype(np.uint8))
    assert model.compiled._cache_size() == count
    assert model(fixed[:8, :8], moving[:8, :8]).warped.shape == (8, 8, 8)
    assert model.compiled._cache_size() == count + 1


def test_inverse_undoes_forward(model: Registrar, images: Any) -> None:
    """For a small velocity what is left is of second order: a tenth of it leaves a hundredth."""
    grid = fields.identity_grid(SHAPE)
    left, size = [], []
    for scale in (0.1, 0.01):
        params = jax.tree.map(lambda a: a, model.params)  # a copy of the dicts
        params["params"]["mean"] = jax.tree.map(lambda a, s=scale: s * a, params["params"]["mean"])
        result = model._replace(params=params)(*images)
        there = grid + result.displacement
        back = jnp.stack([fields.sample(result.inverse_displacement[..., i], there) for i in range(3)], -1)
        inside = (slice(2, -2),) * 3
        left.append(np.linalg.norm(result.displacement + back, axis=-1)[inside].max())
        size.append(np.linalg.norm(result.displacement, axis=-1)[inside].max())
    assert left[0] < 0.2 * size[0]
    assert left[1] < 0.02 * size[1]


@pytest.mark.parametrize(
    ("fixed", "moving", "message"),
    [
        (np.zeros((8, 8)), np.zeros((8, 8)), "one volume"),
        (np.zeros((1, 8, 8, 8)), np.zeros((1, 8, 8, 8)), r"jax\.vmap"),
        (np.zeros((8, 8, 8)), np.zeros((8, 8, 9)), "resample both to one grid"),
        (np.full((8, 8, 8), np.nan), np.zeros((8, 8, 8)), "fixed has values that are NaN"),
        (np.zeros((8, 8, 8)), np.full((8, 8, 8), np.inf), "moving has values that are NaN or inf"),
        (np.full((8, 8, 8), -1000), np.zeros((8, 8, 8)), r"preprocess\.window"),
        (np.zeros((8, 8, 8)), np.full((8, 8, 8), 255, np.uint8), "from 255 to 255"),
        (np.zeros((8, 8, 8), complex), np.zeros((8, 8, 8)), "complex128: real numbers"),
        (np.full((8, 8, 8), "a"), np.zeros((8, 8, 8)), "real numbers"),
        (np.zeros((0, 8, 8)), np.zeros((0, 8, 8)), "no voxel"),
    ],
)
def test_wrong_images_are_named(model: Registrar, fixed: Any, moving: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(fixed, moving)
