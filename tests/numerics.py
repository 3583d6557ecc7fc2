"""Inputs and slow references for the tests of the numerics: NumPy and SciPy in float64, no jax."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

Array = np.ndarray


def smooth_image(shape: Sequence[int], seed: int, waves: int = 3) -> Array:
    """A random sum of cosines below `waves` half-waves an axis, `[X, Y, Z]`, scaled to [0, 1]."""
    random = np.random.default_rng(seed)
    image = np.zeros(shape)
    for orders in itertools.product(range(waves + 1), repeat=3):
        axes = [np.cos(np.pi * k * (np.arange(n) + 0.5) / n) for k, n in zip(orders, shape, strict=True)]
        image += random.normal() * np.einsum("i,j,k->ijk", *axes)
    return (image - image.min()) / np.ptp(image)


def smooth_field(shape: Sequence[int], seed: int, largest: float, waves: int = 2) -> Array:
    """A smooth random field `[X, Y, Z, 3]` whose largest component is `largest` voxels."""
    field = np.stack([smooth_image(shape, 100 * seed + c, waves) for c in range(3)], -1)
    field -= field.mean((0, 1, 2))
    return field * largest / np.abs(field).max()


def grid(shape: Sequence[int]) -> Array:
    """Voxel positions `[X, Y, Z, 3]`."""
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype(float)


def sample(values: Array, positions: Array) -> Array:
    """Trilinear, extended by the edge: SciPy's, a channel at a time."""
    if values.ndim == 4:
        return np.stack([sample(values[..., c], positions) for c in range(values.shape[-1])], -1)
    return ndimage.map_coordinates(
        values.astype(float), np.moveaxis(positions, -1, 0), order=1, mode="nearest"
    )


def integrate(velocity: Array, steps: int) -> Array:
    """Scaling and squaring, with `sample`."""
    u = velocity / 2**steps
    for _ in range(steps):
        u = u + sample(u, grid(u.shape[:3]) + u)
    return u


def convolve(features: Array, kernel: Array, stride: int) -> Array:
    """'SAME' correlation `[B, X, Y, Z, C]` by `[k, k, k, C, D]`, one tap after the other.

    Where padding is odd, the extra row is behind (TensorFlow's and XLA's rule).
    """
    taps = kernel.shape[0]
    sizes = [-(-n // stride) for n in features.shape[1:4]]
    extra = [max((m - 1) * stride + taps - n, 0) for m, n in zip(sizes, features.shape[1:4], strict=True)]
    padded = np.pad(features, [(0, 0), *((e // 2, e - e // 2) for e in extra), (0, 0)])
    out = np.zeros((features.shape[0], *sizes, kernel.shape[-1]))
    for tap in itertools.product(range(taps), repeat=3):
        window = tuple(slice(t, t + stride * (m - 1) + 1, stride) for t, m in zip(tap, sizes, strict=True))
        out += padded[(slice(None), *window)] @ kernel[tap]
    return out


def flip(values: Array, axis: int, vector: bool = False) -> Array:
    """The mirror image along a grid axis; a field's component along it changes its sign."""
    mirrored = np.flip(np.asarray(values), axis).copy()
    if vector:
        mirrored[..., axis] *= -1
    return mirrored


def permute(values: Array, order: Sequence[int], vector: bool = False) -> Array:
    """Grid axes in another order; a field's components follow."""
    values = np.asarray(values)
    turned = np.transpose(values, (*order, *range(3, values.ndim)))
    return turned[..., list(order)] if vector else turned


def relative(actual: Array, expected: Array) -> float:
    """|actual - expected| / |expected| in the Euclidean norm."""
    difference = np.asarray(actual, float) - np.asarray(expected, float)
    return float(np.linalg.norm(difference) / np.linalg.norm(np.asarray(expected, float)))
