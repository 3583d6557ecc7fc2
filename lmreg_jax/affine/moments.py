"""Affine alignment between subjects by their lungs' moments: a [4, 4], fixed RAS mm -> moving RAS mm.

(`elastix` goes on from there, by the images.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.anatomy.surface import beneath, surface_excess
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume, apply_affine

Array = NDArray[Any]

AXIS_PAIRS = ((0, 1), (0, 2), (1, 2))


class Moments(NamedTuple):
    """Mean [3] mm and covariance [3, 3] mm^2 of a mask's voxels, RAS."""

    mean: Array
    covariance: Array


def mask_moments(mask: Volume, scan: Volume | None = None) -> Moments:
    """First and second moments of the non-zero voxels. Raises InputError where they span no volume.

    Left (1) and right (2) lung count alike, whatever they hold: a raised diaphragm or a collapsed
    lobe on one side must not pull the whole body over.

    scan: CT in HU, on a grid of which the mask's is a part. With it voxels on the surface count by the
    share that lies within (see `lung_surface`): the same lungs stored in other voxels then have the
    same moments to 0.006 mm, where whole voxels give 0.02 mm, which at the skin is three times as much.
    """
    box = _box_of(mask.data)
    labels = mask.data[box]
    counts = np.bincount(labels.ravel()) if labels.dtype.kind in "iu" else np.zeros(0)
    if np.count_nonzero(labels) < 4:
        raise InputError(f"the mask has {np.count_nonzero(labels)} voxels; no moments can be taken of so few")
    sided = len(counts) == 3 and counts[1] > 0
    start = np.array([part.start for part in box]) - 1  # room for what surface voxels hold outside
    hu = None if scan is None else beneath(scan, mask, start, np.array(labels.shape) + 2)
    parts = [labels == 1, labels == 2] if sided else [labels != 0]
    planes = _projections([np.pad(part, 1) for part in parts], hu)
    mean, second = np.zeros(3), np.zeros((3, 3))
    index = [first + np.arange(n + 2.0) for first, n in zip(start, labels.shape, strict=True)]
    for (one, other), weight in planes.items():
        mean[one], mean[other] = weight.sum(1) @ index[one], weight.sum(0) @ index[other]
        from_mean = index[one] - mean[one], index[other] - mean[other]
        second[one, other] = second[other, one] = from_mean[0] @ weight @ from_mean[1]
        second[one, one] = weight.sum(1) @ from_mean[0] ** 2
        second[other, other] = weight.sum(0) @ from_mean[1] ** 2
    linear = mask.affine[:3, :3]
    # Shares are averages over boxes, which adds edge^2 / 12 (Sheppard's correction takes it off). A mask
    # one voxel thin, or of whole voxels, is a stack of boxes: the same is added, and keeps it regular.
    thick = scan is not None and second.diagonal().min() > 1
    covariance = second + (-1 if thick else 1) * np.eye(3) / 12
    return Moments(apply_affine(mask.affine, mean), linear @ covariance @ linear.T)


def _projections(parts: Sequence[Array], hu: Array | None) -> dict[tuple[int, int], Array]:
    """Masks [X, Y, Z], all of equal weight, summed along each axis to planes {its other axes: sum 1}."""
    planes = {pair: np.zeros([parts[0].shape[a] for a in pair]) for pair in AXIS_PAIRS}
    for part in parts:
        index, excess = surface_excess(part, hu) if hu is not None else ((), np.zeros(0))
        for pair, summed in planes.items():
            along: Array = np.asarray(np.sum(part, axis=3 - sum(pair), dtype=np.float64))
            if hu is not None:
                np.add.at(along, tuple(index[a] for a in pair), excess)
            summed += along / along.sum() / len(parts)
    return planes


def _box_of(mask: Array) -> tuple[slice, ...]:
    """The box of the non-zero voxels; all where there is none."""
    found = ndimage.find_objects((mask != 0).astype(np.uint8))
    return found[0] if found else tuple(slice(0, n) for n in mask.shape)


def moved(moments: Moments, matrix: Array) -> Moments:
    """The moments of the same body after the affine map `matrix` [4, 4]."""
    linear = np.asarray(matrix)[:3, :3]
    return Moments(apply_affine(matrix, moments.mean), linear @ moments.covariance @ linear.T)


def transport(fixed: Moments, moving: Moments) -> Array:
    """The optimal transport map between two Gaussians: x -> m_m + A (x - m_f), [4, 4].

    A = F^-1/2 (F^1/2 M F^1/2)^1/2 F^-1/2, with A F A = M and A symmetric positive definite: of all
    affine maps that match both moments, the one that moves points least. [Peyre and Cuturi 2019]
    """
    root = _power(fixed.covariance, 0.5)
    inverse = _power(fixed.covariance, -0.5)
    linear = inverse @ _power(root @ moving.covariance @ root, 0.5) @ inverse
    pull = np.eye(4)
    pull[:3, :3] = linear
    pull[:3, 3] = moving.mean - linear @ fixed.mean
    return pull


def shape_distance(a: Moments, b: Moments) -> float:
    """Wasserstein distance, mm, of two Gaussians with their means brought together."""
    return float(_shape_distances(a, b.covariance[None])[0])


def most_central(moments: Sequence[Moments]) -> int:
    """The index of the one with the least sum of `shape_distance` to all; the first of equals."""
    covariances = np.stack([one.covariance for one in moments])
    return int(np.argmin([_shape_distances(one, covariances).sum() for one in moments]))


def _shape_distances(a: Moments, covariances: Array) -> Array:
    """`shape_distance` of a to each of N covariances, [N, 3, 3]."""
    root = _power(a.covariance, 0.5)
    values = np.linalg.eigvalsh(root @ covariances @ root)
    cross = np.sqrt(np.maximum(values, 0)).sum(axis=-1)
    squared = np.trace(a.covariance) + np.trace(covariances, axis1=1, axis2=2) - 2 * cross
    return np.sqrt(np.maximum(squared, 0.0))


def align_moments(fixed_mask: Volume, moving_mask: Volume) -> Array:
    """Fixed RAS mm -> moving RAS mm, [4, 4], in closed form from the two masks' non-zero voxels.

    Matches mean and covariance (see `transport`): shift, anisotropic scale, shear; never a mirror.
    """
    return transport(mask_moments(fixed_mask), mask_moments(moving_mask))


def translation(fixed: Array, moving: Array) -> Array:
    """The [4, 4] that takes the point `fixed` [3] to the point `moving` [3], mm."""
    pull = np.eye(4)
    pull[:3, 3] = np.asarray(moving) - np.asarray(fixed)
    return pull


def _power(matrix: Array, exponent: float) -> Array:
    """matrix^exponent of a symmetric positive semi-definite matrix, by its eigenvalues."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    values = np.maximum(values, 1e-12 * values.max())
    return np.asarray((vectors * values**exponent) @ vectors.T)
