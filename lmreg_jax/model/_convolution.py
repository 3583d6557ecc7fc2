"""The 3-D convolution, by the way that is fastest on the device at hand; chosen here and nowhere else."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from jax import Array, lax


def convolve_plain(features: Array, kernel: Array, stride: int = 1) -> Array:
    """'SAME' convolution `[B, X, Y, Z, C]` with `[3, 3, 3, C, D]`, as XLA knows it: the reference."""
    return lax.conv_general_dilated(
        features,
        kernel,
        (stride,) * 3,
        "SAME",
        dimension_numbers=("NXYZC", "XYZIO", "NXYZC"),
    )


def convolve_stacked(features: Array, kernel: Array, stride: int = 1) -> Array:
    """The same as one 2-D convolution: the taps along X become channels, the slices a batch.

    XLA's CPU backend has fast kernels for 2-D convolutions only. On 2 cores, 4 volumes of
    24 x 16 x 32, 48 -> 32 features: forward 91 against 110 ms, input gradient 48 against 79 ms,
    kernel gradient 95 against 160 ms; with stride 2 (16 -> 32 features) the input gradient takes
    5 ms against 337 ms.
    """
    batch, size = features.shape[:2]
    taps = kernel.shape[0]
    output = -(-size // stride)
    needed = max((output - 1) * stride + taps - size, 0)
    padding = (needed // 2, needed - needed // 2)
    padded = jnp.pad(features, [(0, 0), padding, (0, 0), (0, 0), (0, 0)])
    slices = [
        lax.slice_in_dim(padded, tap, tap + stride * (output - 1) + 1, stride, axis=1) for tap in range(taps)
    ]
    stacked = jnp.concatenate(slices, axis=-1).reshape(
        batch * output, *features.shape[2:4], taps * features.shape[4]
    )
    flat_kernel = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    result = lax.conv_general_dilated(
        stacked,
        flat_kernel,
        (stride,) * 2,
        "SAME",
        dimension_numbers=("NXYC", "XYIO", "NXYC"),
    )
    return result.reshape(batch, output, *result.shape[1:])


def convolve_winograd(features: Array, kernel: Array) -> Array:
    """The same at stride 1 by F(2, 3) along X [Winograd 1980; Lavin 2016]: 2 products for 3.

    Two neighbouring outputs need four 2-D convolutions of sums of slices, not six of slices. On 2
    cores, a volume of 48 x 32 x 64 with 32 -> 16 features: forward 25 against 80 ms stacked, input
    gradient 21 against 50 ms; as exact, to float32's rounding.
    """
    batch, size = features.shape[:2]
    half = -(-size // 2)
    padded = jnp.pad(features, [(0, 0), (1, 1 + size % 2), (0, 0), (0, 0), (0, 0)])
    a, b, c, d = (
        lax.slice_in_dim(padded, tap, tap + 2 * half - 1, 2, axis=1).reshape(batch * half, *padded.shape[2:])
        for tap in range(4)
    )

    def flat(features: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            features, kernel, (1, 1), "SAME", dimension_numbers=("NXYC", "XYIO", "NXYC")
        )

    ends, middle = (kernel[0] + kernel[2]) / 2, kernel[1] / 2
    first, last = flat(a - c, kernel[0]), flat(b - d, kernel[2])
    plus, minus = flat(b + c, ends + middle), flat(c - b, ends - middle)
    pairs = jnp.stack([first + plus + minus, plus - minus - last], axis=1)
    pairs = pairs.reshape(batch, half, 2, *pairs.shape[2:])
    return pairs.reshape(batch, 2 * half, *pairs.shape[3:])[:, :size]


def kernel_gradient(features: Array, cotangent: Array) -> Array:
    """Gradient of `sum(cotangent * convolve(features, kernel))` by the kernel, stride 1.

    K[a, b, c] = sum_x features(x + (a - 1, b - 1, c - 1)) cotangent(x)^T, over the voxels x. Slice by
    slice along X, channels first: the cotangent's nine shifts within the slice lie one below the
    other, small enough for the cache, and meet the features' slices before, at and behind it in one
    matrix product of all 27 taps. Whichever of the two has fewer channels is shifted. On 2 cores, 80
    x 56 x 104 voxels, 32 -> 16 features: 0.52 s of processor time, by Winograd's derivative 1.52; 4
    volumes of 24 x 16 x 32: 33 against 57 ms.

    features: `[B, X, Y, Z, C]`; cotangent: `[B, X, Y, Z, D]`. Returns `[3, 3, 3, C, D]`.
    """
    inputs, outputs = features.shape[-1], cotangent.shape[-1]
    if inputs < outputs:
        swapped = kernel_gradient(cotangent, features)
        return jnp.swapaxes(swapped[::-1, ::-1, ::-1], -1, -2)
    _, length, width, depth, _ = features.shape
    slices, arriving = (jnp.transpose(a, (1, 4, 0, 2, 3)) for a in (features, cotangent))
    slices = jnp.pad(slices, [(1, 1), *[(0, 0)] * 4])
    arriving = jnp.pad(arriving, [*[(0, 0)] * 3, (1, 1), (1, 1)])
    # Else XLA transposes a slice anew for each of its nine shifts.
    slices, arriving = lax.optimization_barrier((slices, arriving))

    def add(x: Array, total: Array) -> Array:
        own = lax.dynamic_index_in_dim(arriving, x, keepdims=False)
        shifts = itertools.product((2, 1, 0), repeat=2)
        windows = jnp.concatenate([own[..., b : b + width, c : c + depth] for b, c in shifts])
        three = lax.dynamic_slice_in_dim(slices, x, 3)
        return total + three.reshape(3 * inputs, -1) @ windows.reshape(9 * outputs, -1).T

    total = lax.fori_loop(0, length, add, jnp.zeros((3 * inputs, 9 * outputs), features.dtype))
    return jnp.moveaxis(total.reshape(3, inputs, 3, 3, outputs), 1, 3)


@jax.custom_vjp
def convolve_sliced(features: Array, kernel: Array) -> Array:
    """At stride 1: by Winograd where the features are enough for its sums to be cheap, else stacked.

    The kernel's gradient is `kernel_gradient`; reverse mode only.
    """
    return _forward(features, kernel)


def _forward(features: Array, kernel: Array) -> Array:
    way = convolve_stacked if kernel.shape[-1] < 16 else convolve_winograd
    return way(features, kernel)


def _saved(features: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _forward(features, kernel), (features, kernel)


def _backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    features, kernel = saved
    _, pull = jax.vjp(lambda features: _forward(features, kernel), features)
    return *pull(cotangent), kernel_gradient(features, cotangent)


convolve_sliced.defvjp(_saved, _backward)


def convolve_on_cpu(features: Array, kernel: Array, stride: int = 1) -> Array:
    """The ways that need full precision only where there is."""
    if stride > 1 or features.dtype not in (jnp.float32, jnp.float64):
        return convolve_stacked(features, kernel, stride)
    return convolve_sliced(features, kernel)


def convolve(features: Array, kernel: Array, stride: int = 1) -> Array:
    """'SAME' convolution `[B, X, Y, Z, C]` with `[3, 3, 3, C, D]`; equal on every device."""

    def on_cpu(features: Array, kernel: Array) -> Array:
        return convolve_on_cpu(features, kernel, stride)

    def plain(features: Array, kernel: Array) -> Array:
        return convolve_plain(features, kernel, stride)

    return lax.platform_dependent(features, kernel, cpu=on_cpu, default=plain)


def double(features: Array) -> Array:
    """Nearest-neighbour upsampling by 2 of `[B, X, Y, Z, C]`."""
    for axis in (1, 2, 3):
        features = jnp.repeat(features, 2, axis=axis)
    return features


def convolve_doubled(coarse: Array, kernel: Array) -> Array:
    """`convolve(double(coarse), kernel)` by 8 taps instead of 27, as one matrix product.

    An output voxel of the doubled grid sees at most two different coarse voxels along an axis, so
    taps that fall on the same one are added beforehand: each of the 8 parities of output voxels has
    a kernel 2 x 2 x 2 of its own, and all of them look through the same windows. Rows of the
    product are windows (one more than voxels along an axis), columns are parities and features.
    On 2 cores, 4 volumes of 12 x 8 x 16 with 32 -> 32 features: forward 22 against 50 ms stacked,
    input gradient 16 against 34 ms, kernel gradient 19 against 128 ms.

    coarse: `[B, x, y, z, C]`; kernel: `[3, 3, 3, C, D]`. Returns `[B, 2 x, 2 y, 2 z, D]`.
    """
    batch, *size, features = coarse.shape
    taps = jnp.asarray(_PARITY_TAPS, kernel.dtype)
    kernels = jnp.einsum("pat,qbu,rcv,tuvio->abcipqro", taps, taps, taps, kernel)
    padded = jnp.pad(coarse, [(0, 0), (1, 1), (1, 1), (1, 1), (0, 0)])
    corners = itertools.product((0, 1), repeat=3)
    windows = jnp.concatenate(
        [padded[:, a : a + size[0] + 1, b : b + size[1] + 1, c : c + size[2] + 1] for a, b, c in corners],
        axis=-1,
    )
    product = windows.reshape(-1, 8 * features) @ kernels.reshape(8 * features, -1)
    result = product.reshape(batch, *(n + 1 for n in size), 2, 2, 2, -1)
    for axis, n in enumerate(size, start=1):
        # Axes so far: batch, doubled ones, windows along the others, their parities, features.
        even, odd = (jnp.take(result, parity, axis=4) for parity in (0, 1))
        both = [lax.slice_in_dim(even, 0, n, axis=axis), lax.slice_in_dim(odd, 1, n + 1, axis=axis)]
        result = jnp.stack(both, axis=axis + 1)
        result = result.reshape(*result.shape[:axis], 2 * n, *result.shape[axis + 2 :])
    return result


# [parity of the output voxel, coarse voxel of the window, tap]: which taps fall on which voxel.
_PARITY_TAPS = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))


def convolve_upsampled(coarse: Array, skip: Array, kernel: Array) -> Array:
    """'SAME' convolution of `double(coarse)` and `skip`, side by side: a decoder's stage.

    coarse: `[B, x, y, z, C]`; skip: `[B, 2 x, 2 y, 2 z, E]`; kernel: `[3, 3, 3, C + E, D]`. A
    convolution is linear, so the two parts can be convolved by themselves, and on the CPU are.
    """

    def split(coarse: Array, skip: Array, kernel: Array) -> Array:
        own, others = jnp.split(kernel, [coarse.shape[-1]], axis=3)
        return convolve_doubled(coarse, own) + convolve_on_cpu(skip, others)

    def plain(coarse: Array, skip: Array, kernel: Array) -> Array:
        return convolve_plain(jnp.concatenate([double(coarse), skip], axis=-1), kernel)

    return lax.platform_dependent(coarse, skip, kernel, cpu=split, default=plain)
