"""`register(fixed, moving)`: a trained network as one jitted function of two images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmreg_jax.core import fields
from lmreg_jax.core.objective import displacement_of, field_stride
from lmreg_jax.errors import InputError
from lmreg_jax.model import checkpoint, weights
from lmreg_jax.model import config as configuration
from lmreg_jax.model.cascade import cascade


class Registration(NamedTuple):
    """What `register` gives back; grids and units as in `lmreg_jax.core.fields`.

    warped: `[X, Y, Z]`, moving seen on the fixed grid. displacement: `[X, Y, Z, 3]` voxels, fixed
    to moving. inverse_displacement: moving to fixed. velocity_mean, velocity_log_variance:
    `[x, y, z, 3]`, voxels of the velocity's (coarser) grid.
    """

    warped: Array
    displacement: Array
    inverse_displacement: Array
    velocity_mean: Array
    velocity_log_variance: Array


def register_pair(
    params: Any, fixed: Array, moving: Array, *, apply: Callable[..., Any], steps: int = 7
) -> Registration:
    """The transform of the posterior's mean velocity (no sampling: deterministic). Pure.

    fixed, moving: `[X, Y, Z]` in [0, 1], on one grid, affinely aligned.
    """
    mean, log_variance = jax.tree.map(lambda a: a[0], apply(params, moving[None], fixed[None]))
    stride = field_stride(fixed.shape, mean.shape[:3])
    forward, backward = (
        displacement_of(velocity, fixed.shape, stride=stride, steps=steps) for velocity in (mean, -mean)
    )
    return Registration(fields.warp(moving, forward), forward, backward, mean, log_variance)


class Registrar(NamedTuple):
    """A loaded model: call it as `register(fixed, moving)`; jitted, compiled once a shape."""

    compiled: Callable[[Any, Array, Array], Registration]
    params: Any
    config: Any
    source: str

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"Registrar({self.source}, {count} parameters)"

    @property
    def checksum(self) -> str:
        """SHA-256 over the parameters; the same for the same weights in any file."""
        return weights.checksum(self.params)

    def __call__(self, fixed: Any, moving: Any) -> Registration:
        """Both `[X, Y, Z]` in [0, 1] (see `preprocess.window`), any grid, both on the same.

        Usable under `jit` and `vmap`. Raises InputError on shapes or values that cannot be right.
        """
        return self.compiled(self.params, checked("fixed", fixed, None), checked("moving", moving, fixed))


def checked(name: str, image: Any, other: Any) -> Array:
    """`image` as float32, or InputError in the user's words. Values are seen outside jit only."""
    if np.ndim(image) != 3:
        raise InputError(
            f"{name} has shape {np.shape(image)}: one volume [X, Y, Z] is needed (jax.vmap for batches)"
        )
    if other is not None and np.shape(image) != np.shape(other):
        raise InputError(
            f"moving has shape {np.shape(image)}, fixed has {np.shape(other)}:"
            " resample both to one grid first"
        )
    if not isinstance(image, jax.core.Tracer):
        values = np.asarray(image)
        if not jnp.issubdtype(values.dtype, jnp.number) or np.iscomplexobj(values):
            raise InputError(f"{name} has dtype {values.dtype}: real numbers are needed")
        if not values.size:
            raise InputError(f"{name} has shape {values.shape}: no voxel at all")
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(f"{name} has values that are NaN or infinite: replace them first")
        if low < -0.01 or high > 1.01:
            raise InputError(
                f"{name} has values from {low:g} to {high:g}: [0, 1] is needed"
                " (for HU: lmreg_jax.preprocess.window(image, (-1000, 400)))"
            )
    return jnp.asarray(image, jnp.float32)


def registrar(config: Any, params: Any, source: str = "") -> Registrar:
    """A `Registrar` from a config (see `configuration`) and the parameters of its network."""
    steps = config.objective.integration_steps
    apply = cascade(configuration.network(config).apply, config.model.passes, integration_steps=steps)
    pure = partial(register_pair, apply=apply, steps=steps)
    return Registrar(jax.jit(pure), params, config, source)


def load(folder: str | Path | None = None) -> Registrar:
    """The trained model of a training's folder (its best checkpoint by validation TRE), or of an
    exported model's folder (see `model_files`); without an argument, the one that is shipped.

    Raises InputError where the folder holds neither, or where its files are damaged.
    """
    folder = weights.DEFAULT if folder is None else Path(folder)
    if weights.is_model(folder):
        config, params = weights.load(folder)
        source = weights.PARAMS
    else:
        config = configuration.read(folder / configuration.FILE)
        like = jax.eval_shape(lambda: configuration.initial_params(config))
        source, params = checkpoint.load_params(folder, like)
    return registrar(config, jax.tree.map(jnp.asarray, params), source)
