"""The Flax U-Net of [Dalca]. The only file that knows Flax."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array

from lmreg_jax.core.posterior import Posterior
from lmreg_jax.core.similarity import demons_force
from lmreg_jax.model import _convolution as convolution


class UNet(nn.Module):
    """Posterior of a stationary velocity field from a moving and a fixed image.  [Dalca, fig. 2]

    encoder: features of the stride-2 convolutions, finest first. decoder: features of the
    convolutions from the coarsest grid up, one a grid; then `final` ones at the field's grid.
    field_stride: image voxels for each field voxel, 1, 2 (the paper) or 4.
    normalisation: "none" (the paper) or "instance" (each feature map to mean 0, variance 1 over
    its grid, before the non-linearity: faster learning from scratch).
    inputs: "images" (the paper: moving, fixed) or "forces" (and the demons' force between them, three
    channels more: where to go is then given, and the network learns how far to trust it).
    """

    encoder: tuple[int, ...] = (16, 32, 32, 32)
    decoder: tuple[int, ...] = (32, 32, 32, 32)
    final: tuple[int, ...] = (16,)
    field_stride: int = 2
    normalisation: str = "none"
    dtype: Any = None
    inputs: str = "images"

    @property
    def multiple(self) -> int:
        """Grid sizes that the network itself takes are multiples of this."""
        return 2 ** len(self.encoder)

    @nn.compact
    def __call__(self, moving: Array, fixed: Array) -> Posterior:
        """moving, fixed: `[B, X, Y, Z]` in [0, 1], any size: padded by the edge, cropped back.

        Returns the posterior on `[B, ceil(X/s), ceil(Y/s), ceil(Z/s), 3]`, s = field_stride; float32
        (or float64) whatever `dtype` the features have.
        """
        shape = fixed.shape[1:]
        padding = [(0, 0)] + [(0, -n % self.multiple) for n in shape]
        moving, fixed = (jnp.pad(image, padding, mode="edge") for image in (moving, fixed))
        features = jnp.stack([moving, fixed], axis=-1)
        if self.inputs == "forces":
            features = jnp.concatenate([features, jax.vmap(demons_force)(fixed, moving)], axis=-1)

        skips = [features]
        for level, width in enumerate(self.encoder):
            skips.append(self._stage(skips[-1], width, f"encoder_{level}", stride=2))
        levels_up = len(self.encoder) - round(math.log2(self.field_stride))
        features = skips.pop()
        for level in range(levels_up + 1):
            skip = skips.pop() if level > 0 else None
            features = self._stage(features, self.decoder[level], f"decoder_{level}", skip=skip)
        for level, width in enumerate(self.final):
            features = self._stage(features, width, f"final_{level}")

        weights = (
            Weights(3, nn.initializers.normal(1e-5), name="mean"),
            Weights(3, nn.initializers.normal(1e-10), nn.initializers.constant(-10.0), name="log_variance"),
        )
        # Both heads in one convolution: what it reads is much more than what it gives.
        both = zip(*(head(features.shape[-1]) for head in weights), strict=True)
        kernel, bias = (jnp.concatenate(parts, axis=-1) for parts in both)
        mean, log_variance = jnp.split(self._convolve(features, kernel, bias), 2, axis=-1)
        crop = (slice(None), *(slice(-(-n // self.field_stride)) for n in shape))
        precise = jnp.promote_types(fixed.dtype, jnp.float32)
        return Posterior(mean[crop].astype(precise), log_variance[crop].astype(precise))

    def _stage(
        self, features: Array, width: int, name: str, stride: int = 1, skip: Array | None = None
    ) -> Array:
        inputs = features.shape[-1] + (0 if skip is None else skip.shape[-1])
        features = self._convolve(features, *Weights(width, name=name)(inputs), stride=stride, skip=skip)
        if self.normalisation == "instance":
            centred = features - jnp.mean(features, axis=(1, 2, 3), keepdims=True)
            variance = jnp.mean(centred**2, axis=(1, 2, 3), keepdims=True)
            features = centred * jax.lax.rsqrt(variance + 1e-5)
        return nn.leaky_relu(features, 0.2)

    def _convolve(
        self, features: Array, kernel: Array, bias: Array, *, stride: int = 1, skip: Array | None = None
    ) -> Array:
        """'SAME', in `dtype`; with a `skip`, of the doubled features and it side by side."""
        features, kernel, bias = promote_dtype(features, kernel, bias, dtype=self.dtype)
        if skip is None:
            return convolution.convolve(features, kernel, stride) + bias
        (skip,) = promote_dtype(skip, dtype=features.dtype)
        return convolution.convolve_upsampled(features, skip, kernel) + bias


class Weights(nn.Module):
    """`kernel` and `bias` of a 3 x 3 x 3 convolution: `flax.linen.Conv`'s, by name, shape and draw."""

    width: int
    kernel_init: Any = nn.initializers.he_normal()
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Array, Array]:
        kernel = self.param("kernel", self.kernel_init, (3, 3, 3, inputs, self.width), jnp.float32)
        return kernel, self.param("bias", self.bias_init, (self.width,), jnp.float32)
