"""Displacement and velocity fields on a voxel grid. The conventions of the whole package:

- Arrays are `[X, Y, Z]`, an image brought to RAS+; a field is `[X, Y, Z, 3]`, its last axis in the
  order of the first three, its unit the voxel *of the grid that it lives on*.
- `u` is defined on the fixed grid and points into the moving image:
  `warped(x) = moving(x + u(x))`. A fixed landmark `p` goes to `p + u(p)` in the moving image.
- Voxel centres are at integer positions. Images and fields are extended by their edge value.

One example each; batches by `jax.vmap`. Nothing here knows more than jax.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lmreg_jax.core import _squaring as squaring


def identity_grid(shape: tuple[int, ...], dtype: jnp.dtype | type = jnp.float32) -> Array:
    """Position of every voxel, `[X, Y, Z, 3]`, in voxels."""
    axes = [jnp.arange(n, dtype=dtype) for n in shape]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)


def sample(values: Array, positions: Array) -> Array:
    """Trilinear interpolation of `values` at `positions`, extended by the edge.  [Hu eq. 9]

    values: `[X, Y, Z]` or `[X, Y, Z, C]`; positions: `[..., 3]`, voxels. Returns `[...]` or
    `[..., C]`. At an integer position the slope is the forward difference, at and beyond the last voxel
    zero, as in `jax.scipy.ndimage.map_coordinates`.

    An image on the CPU goes by `_sample_by_blocks`, all else by `_sample_by_corners`: two ways to the
    same numbers.
    """
    values, positions = jnp.asarray(values), jnp.asarray(positions)
    if values.ndim > 3:
        return _sample_by_corners(values, positions)
    return lax.platform_dependent(values, positions, cpu=_sample_by_blocks, default=_sample_by_corners)


def _sample_by_corners(values: Array, positions: Array) -> Array:
    """`sample` by one fetch for each of the 8 corners, of a row of all C channels at once.

    The clamp is on the integer corners, not on the position: a clipped position would pass only
    half of the slope at coordinate 0.
    """
    shape = values.shape[:3]
    channels = values.shape[3:]
    rows = values.reshape(-1, *channels)
    lower = jnp.floor(positions)
    weight_upper = positions - lower
    # Clamped before the cast: a position far outside int32 would otherwise wrap around.
    last = jnp.array([n - 1 for n in shape], dtype=positions.dtype)
    indices = [jnp.clip(lower + corner, 0, last).astype(jnp.int32) for corner in (0, 1)]
    weights = [1 - weight_upper, weight_upper]
    strides = (shape[1] * shape[2], shape[2], 1)
    total = jnp.zeros((), values.dtype)
    for corner in itertools.product((0, 1), repeat=3):
        row = sum(indices[c][..., a] * strides[a] for a, c in enumerate(corner))
        x, y, z = (weights[c][..., a] for a, c in enumerate(corner))
        weight = x * y * z
        fetched = rows.at[row].get(mode="promise_in_bounds")
        total = total + (weight[..., None] if channels else weight) * fetched
    return total


def _sample_by_blocks(values: Array, positions: Array) -> Array:
    """`sample` of an image by one fetch of the 2 x 2 x 2 voxels around each position.

    XLA's CPU compiler makes a loop of each of the 8 corners' fetches and computes the index anew in
    every one. One fetch of blocks takes 4 ms for 20 with the positions' gradient (4 images of
    48 x 32 x 64, 2 cores) and half the memory. Not so for rows of 3 channels, which gain nothing,
    nor on a GPU, where the 8 fetches are one kernel.
    """
    lower = jnp.floor(positions)
    weight = positions - lower
    # An edge voxel more on each side takes the place of a clamp of each corner.
    padded = jnp.pad(values.astype(jnp.result_type(values, positions)), 1, mode="edge")
    last = jnp.array([n - 1 for n in values.shape], dtype=positions.dtype)
    start = jnp.clip(lower, -1, last).astype(jnp.int32) + 1
    before = positions.ndim - 1
    block = lax.gather(
        padded,
        start,
        lax.GatherDimensionNumbers(
            offset_dims=(before, before + 1, before + 2),
            collapsed_slice_dims=(),
            start_index_map=(0, 1, 2),
        ),
        slice_sizes=(2, 2, 2),
        mode="promise_in_bounds",
    )
    # Corner by corner: the gradient of whole blocks has reductions over axes of 2, and takes 27 ms.
    along_x, along_y, along_z = (weight[..., axis] for axis in range(3))

    def between(first: Array, second: Array, share: Array) -> Array:
        return first + share * (second - first)

    def edge(y: int, z: int) -> Array:
        return between(block[..., 0, y, z], block[..., 1, y, z], along_x)

    def face(z: int) -> Array:
        return between(edge(0, z), edge(1, z), along_y)

    return between(face(0), face(1), along_z)


def sample_nearest(labels: Array, positions: Array) -> Array:
    """Nearest-neighbour lookup, for label maps; half-way positions go to the even voxel.

    labels: `[X, Y, Z]`; positions: `[..., 3]`, voxels. Returns `[...]` in the dtype of labels.
    """
    labels = jnp.asarray(labels)
    last = jnp.array([n - 1 for n in labels.shape], dtype=positions.dtype)
    index = jnp.clip(jnp.round(positions), 0, last).astype(jnp.int32)
    return labels[index[..., 0], index[..., 1], index[..., 2]]


def warp(image: Array, displacement: Array) -> Array:
    """`warped(x) = image(x + u(x))`, trilinear.  [Hu eq. 3, 9]

    image: `[X, Y, Z]` or `[X, Y, Z, C]` on any grid; displacement: `[X', Y', Z', 3]`, voxels.
    """
    return sample(image, identity_grid(displacement.shape[:3], displacement.dtype) + displacement)


def warp_nearest(labels: Array, displacement: Array) -> Array:
    """`warp` for label maps, by the nearest voxel: no label appears that was not there."""
    grid = identity_grid(displacement.shape[:3], displacement.dtype)
    return sample_nearest(labels, grid + displacement)


def compose(outer: Array, inner: Array) -> Array:
    """Displacement of `(id + outer) o (id + inner)`: `inner(x) + outer(x + inner(x))`.

    Both `[X, Y, Z, 3]`, voxels of one grid. Warping by the result equals warping by `outer` first
    and warping that image by `inner` then.
    """
    return inner + warp(outer, inner)


def integrate(velocity: Array, *, steps: int = 7, forward_mode: bool = False) -> Array:
    """Displacement u with id + u = exp(velocity), by scaling and squaring.

    u_0 = velocity / 2**steps,  u_{k+1}(x) = u_k(x) + u_k(x + u_k(x)).   [Arsigny 2006; Hu eq. 1]

    velocity: `[X, Y, Z, 3]`, voxels of its own grid. Error O(2**-steps). `steps` is static:
    a loop of unknown length has no reverse-mode derivative. On the CPU the first squarings, in which
    no voxel moves further than the next one, go by a stencil (`squaring`) that has a reverse-mode
    derivative only; for `jax.jvp` or `jax.jacfwd` give `forward_mode=True`.
    """

    def plain(velocity: Array) -> Array:
        return lax.fori_loop(0, steps, lambda _, u: compose(u, u), velocity / 2**steps)

    def by_stencil(velocity: Array) -> Array:
        def square(_: int, u: Array) -> Array:
            near = squaring.largest(lax.stop_gradient(u)) < 1
            return lax.cond(near, squaring.square_near, far, u)

        @jax.checkpoint  # Else all corners' indices and weights of each step are kept for the gradient.
        def far(u: Array) -> Array:
            last = jnp.moveaxis(u, 0, -1)
            return jnp.moveaxis(compose(last, last), -1, 0)

        first = jnp.moveaxis(velocity, -1, 0) / 2**steps
        return jnp.moveaxis(lax.fori_loop(0, steps, square, first), 0, -1)

    if forward_mode:
        return plain(velocity)
    return lax.platform_dependent(velocity, cpu=by_stencil, default=plain)


def upsample(displacement: Array, shape: tuple[int, ...], *, factor: int = 2) -> Array:
    """The same motion on a grid `factor` times finer: values and grid times `factor`, trilinear.

    Fine voxel i lies at coarse position i / factor, so that voxel 0 stays on voxel 0 ([Dalca]'s
    code; `jax.image.resize` shifts by half a voxel instead). displacement: `[x, y, z, 3]` voxels
    of the coarse grid; returns `[*shape, 3]` voxels of the fine one.
    """
    for axis, size in enumerate(shape):
        # A product with a matrix of two weights a row: its gradient is one as well, where that of a
        # gather adds row by row (with the warp that follows 21 ms for 239 ms, 4 fields of 48 x 32 x 64).
        weights = jnp.asarray(interpolation(size, displacement.shape[axis], factor), displacement.dtype)
        product = jnp.tensordot(weights, displacement, axes=(1, axis), precision=lax.Precision.HIGHEST)
        displacement = jnp.moveaxis(product, 0, axis)
    return displacement * factor


def interpolation(fine: int, coarse: int, factor: int) -> np.ndarray:
    """`[fine, coarse]`: linear interpolation at i / factor, extended by the edge."""
    index = np.arange(fine)
    lower = np.minimum(index // factor, coarse - 1)
    weight = np.clip(index / factor - lower, 0, 1)
    matrix = np.zeros((fine, coarse))
    matrix[index, lower] = 1 - weight
    matrix[index, np.minimum(lower + 1, coarse - 1)] += weight
    return matrix


def jacobian_determinant(displacement: Array) -> Array:
    """det grad(id + u), `[X, Y, Z]`: the local volume change; <= 0 where the map folds.

    displacement: `[X, Y, Z, 3]`, voxels, at least 2 along each axis. Central differences inside,
    one-sided at the border.
    """
    columns = [
        column.at[..., axis].add(1) for axis, column in enumerate(jnp.gradient(displacement, axis=(0, 1, 2)))
    ]
    # As a triple product: a general determinant takes ten times as long.
    return jnp.sum(columns[0] * jnp.cross(columns[1], columns[2]), axis=-1)
