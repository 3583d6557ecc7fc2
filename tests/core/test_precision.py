"""float32, in which training runs, against float64: one forward pass and one gradient.

The same parameters, images and noise go through the whole objective in both. What remains is the
rounding of float32, 6e-8 a number; the tolerances say how far it grows on its way.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmreg_jax.core import objective as eq7
from lmreg_jax.core.posterior import Posterior
from lmreg_jax.model.unet import UNet
from lmreg_jax.training import step
from lmreg_jax.types import Batch

SHAPE = (32, 16, 32)
NETWORK: dict[str, Any] = {"encoder": (8, 12, 12), "decoder": (12, 12, 12), "final": (8,), "field_stride": 2}


class Outcome(NamedTuple):
    terms: dict[str, float]
    displacement: np.ndarray
    gradient: np.ndarray


def smooth(seed: int, *channels: int) -> np.ndarray:
    """Random, as smooth as a coarse CT; float32 numbers, kept in float64."""
    grid = np.random.default_rng(seed).standard_normal((*(n // 4 for n in SHAPE), *channels))
    return np.asarray(jax.image.resize(grid, (*SHAPE, *channels), "cubic"), np.float32).astype(np.float64)


def outcome(dtype: Any, normalisation: str) -> Outcome:
    """Loss terms, displacement and gradient of a batch of two pairs, computed in `dtype`."""
    network = UNet(**NETWORK, normalisation=normalisation)
    images = [np.clip(0.4 + 0.3 * smooth(seed), 0, 1) for seed in range(4)]
    cast = lambda a: jnp.asarray(np.asarray(a), dtype)  # noqa: E731
    # Parameters away from the start, where the velocity is 0: as of a trained network.
    with jax.enable_x64(False):
        small = jnp.zeros((1, *(network.multiple,) * 3), jnp.float32)
        params = network.init(jax.random.key(0), small, small)
    scale = np.float32(3e4 if normalisation == "none" else 1e4)
    params["params"]["mean"]["kernel"] = scale * np.asarray(params["params"]["mean"]["kernel"])
    params["params"]["log_variance"]["bias"] = np.full(3, -4, np.float32)
    points = np.random.default_rng(9).uniform(2, 12, (2, 5, 3)).astype(np.float32)
    batch = Batch(
        cast(np.stack(images[:2])),
        cast(np.stack(images[2:])),
        cast(points),
        cast(points + 0.7),
        jnp.ones((2, 5), bool),
    )
    coarse = tuple(n // 2 for n in SHAPE)
    noise = np.random.default_rng(5).standard_normal((*coarse, 3)).astype(np.float32)

    def draw(_: Any, posterior: Posterior) -> jax.Array:
        return posterior.mean + jnp.exp(posterior.log_variance / 2) * cast(noise)

    objective = eq7.Objective(image_sigma=0.05, landmark_weight=3.0)
    params = jax.tree.map(cast, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "draw", draw)  # float64 would draw other numbers.
        loss = partial(step.loss_terms, apply=network.apply, objective=objective)
        keys = jax.random.split(jax.random.key(1), 2)
        (_, terms), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch, keys)

    @jax.jit
    def displacement(params: Any, batch: Batch) -> jax.Array:
        mean = network.apply(params, batch.moving, batch.fixed).mean[0]
        return eq7.displacement_of(mean, SHAPE, stride=2, steps=7)

    u = displacement(params, batch)
    assert u.dtype == dtype
    return Outcome(
        {name: float(value) for name, value in terms.items()},
        np.asarray(u, np.float64),
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("normalisation", ["none", "instance"])
def test_float32_is_float64_up_to_its_rounding(normalisation: str) -> None:
    with jax.enable_x64(True):
        exact = outcome(jnp.float64, normalisation)
    single = outcome(jnp.float32, normalisation)
    for name, value in exact.terms.items():
        # A mean of rounded numbers: their errors cancel rather than add up.
        assert single.terms[name] == pytest.approx(value, rel=3e-6), name
    largest = np.abs(exact.displacement).max()
    assert 1 < largest < 8, "the fields of this test should be of a real registration's size"
    worst = np.abs(single.displacement - exact.displacement).max()
    relative = np.linalg.norm(single.gradient - exact.gradient) / np.linalg.norm(exact.gradient)
    print(f"{normalisation}: displacement {worst:.1e} of {largest:.1f} voxels, gradient {relative:.1e}")
    # Ten layers, and seven squarings, of which each at most doubles an error: 1e-7 * 2**7, in voxels.
    assert worst < 3e-5
    # The warp's gradient jumps where a sampling position passes a voxel, which rounding does to few
    # of 16,000 positions: one of them would be 1e-4 of the whole. Without any it is 1e-6.
    assert relative < 1e-4
