"""The lumen of the large airways: a watershed of the HU between the trachea and the lung's parenchyma.

No threshold decides where a bronchus leaks into the lung: the ridge of its wall does, also where the wall
is so thin that it only reaches -850 HU. Where the wall is not seen at all, the flood of the lung comes
in, and the tree ends there. Leak control is the classical difficulty of airway segmentation [Lo 2012];
two generations below the trachea are enough here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.anatomy._flood import flood
from lmreg_jax.anatomy.segmentation import filled_body, trachea_column, working_scan
from lmreg_jax.imaging.resampling import resample
from lmreg_jax.imaging.volume import Volume, apply_affine, spacing

Array = NDArray[Any]

ISO_MM = 1.25  # edge of the working grid
SMOOTH_MM = 0.8  # standard deviation of the Gaussian before the flood
SIDE_MM, BACK_MM, FRONT_MM, DOWN_MM, UP_MM = 85.0, 75.0, 65.0, 160.0, 90.0  # box around the trachea
EDGE_HU = -150.0  # an airway's wall, halfway between soft tissue and a lumen of two voxels
SEED_HU = -750.0  # surely inside a trachea
BROAD_MM = 2.0  # scale on which parenchyma (vessels and air) is told from a lumen (air alone)
SECTION_MM2 = 1200.0  # a lung's axial section; a trachea has 400
MARKER_DEPTH_MM = 3.2  # nearer to anything else the flood decides
MARKER_MM3 = 1000.0
TUBE_MM = 11.0  # box of the top hat that finds bronchi inside the lung
TUBE_HU, TUBE_MM3 = 150.0, 200.0
GROWTH = np.arange(0.2, 0.9, 0.1)  # levels between lumen and lung up to which the trachea is grown
GROWTH_STEP, GROWTH_ML, MOST_ML = 1.6, 10.0, 150.0  # more at one step, or in all, is a leak
SEED_MARGIN = 3  # voxels around the trachea where no parenchyma marker may lie
SLICES = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])  # 4-neighbours in z


class Lumen(NamedTuple):
    """The airway side of the flood on an isotropic RAS-aligned grid.

    hu float32 [X, Y, Z]: smoothed; inside, seed (the trachea) bool; affine [4, 4]: voxel -> RAS mm.
    """

    hu: Array
    inside: Array
    seed: Array
    affine: Array


class Chest(NamedTuple):
    """A scan at 2 mm or its own coarser spacing, its body and the trachea as a column of sections."""

    scan: Volume
    body: Array
    trachea: Array


def chest_of(volume: Volume) -> Chest:
    """The body and the trachea of a CT. Raises InputError where there is no body."""
    scan = working_scan(volume)
    edges = spacing(scan.affine)
    body = filled_body(scan.data, edges)
    return Chest(scan, body, trachea_column(scan.data, (scan.data < -400) & body, edges))


def segment_lumen(volume: Volume, chest: Chest, lungs: Volume) -> Lumen:
    """The large airways of a scan whose trachea is known; lungs: labels on any grid, to know their HU."""
    low, high = _box(chest, lungs)
    shape = np.ceil((high - low) / ISO_MM).astype(int) + 1
    affine = np.diag([ISO_MM, ISO_MM, ISO_MM, 1.0])
    affine[:3, 3] = low
    part = _cropped(volume, affine, shape)
    # Cubic: between slices of 5 mm a linear interpolation makes stairs of a sloping wall.
    hu = np.clip(resample(part, tuple(shape), affine, order=3, fill=None), -1024, 200)
    body = _mask_on(chest.body, chest.scan.affine, shape, affine)
    seed = _mask_on(chest.trachea, chest.scan.affine, shape, affine)
    smooth = ndimage.gaussian_filter(hu, SMOOTH_MM / ISO_MM)
    level = _lung_level(chest, lungs)
    dark = float(np.median(smooth[seed])) if seed.any() else -980.0
    middle = ndimage.gaussian_filter(hu, 1.2 / ISO_MM)
    parenchyma = _parenchyma(hu, smooth, middle, body, level, dark)
    seed = _traced_up(seed & (smooth < SEED_HU), middle, min(0.5 * (dark + level), -875.0))
    grown = _grown(seed, middle, dark + GROWTH * (level - dark))
    parenchyma &= ~ndimage.binary_dilation(seed | grown, iterations=SEED_MARGIN)
    inside = flood(smooth, seed, parenchyma, smooth < EDGE_HU)
    return Lumen(smooth, inside, seed, affine)


def _box(chest: Chest, lungs: Volume) -> tuple[Array, Array]:
    """Two corners [3], RAS mm, of the box that holds the large airways, inside the scan along z."""
    trachea = apply_affine(chest.scan.affine, np.argwhere(chest.trachea))
    bottom, top = trachea[:, 2].min(), trachea[:, 2].max()
    x, y, _ = trachea[trachea[:, 2] < bottom + 40].mean(0)
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(chest.scan.data.shape) - 1)
    ends = apply_affine(chest.scan.affine, corners)[:, 2]
    lung = apply_affine(lungs.affine, np.argwhere(lungs.data[::4, ::4, ::4] > 0) * 4)[:, 2]
    floor = max(bottom - DOWN_MM, ends.min(), lung.min() if len(lung) else ends.min())
    low = np.array([x - SIDE_MM, y - BACK_MM, min(floor, bottom)])
    return low, np.array([x + SIDE_MM, y + FRONT_MM, min(top + UP_MM, ends.max())])


def _cropped(volume: Volume, affine: Array, shape: Array) -> Volume:
    """The part of a scan around a grid, clipped to HU of air and tissue, float32."""
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.asarray(shape) - 1)
    reached = apply_affine(np.linalg.inv(volume.affine) @ affine, corners)
    low = np.clip(np.floor(reached.min(0)).astype(int) - 12, 0, np.array(volume.data.shape) - 2)
    high = np.clip(np.ceil(reached.max(0)).astype(int) + 13, low + 2, volume.data.shape)
    part = volume.data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    origin = volume.affine.copy()
    origin[:3, 3] = apply_affine(volume.affine, low)
    return Volume(np.clip(part, -1024, 200).astype(np.float32), origin)


def _mask_on(mask: Array, affine: Array, shape: Array, target: Array) -> Array:
    return np.asarray(
        resample(Volume(mask.astype(np.float32), affine), tuple(shape), target, fill=None) > 0.5
    )


def _lung_level(chest: Chest, lungs: Volume) -> float:
    """Median HU of the aerated lung."""
    places = np.argwhere(lungs.data[::3, ::3, ::3] > 0) * 3
    index = np.rint(apply_affine(np.linalg.inv(chest.scan.affine) @ lungs.affine, places)).astype(int)
    index = index[((index >= 0) & (index < chest.scan.data.shape)).all(1)]
    values = chest.scan.data[tuple(index.T)]
    values = values[values < -500]
    return float(np.median(values)) if len(values) else -850.0


def _parenchyma(hu: Array, smooth: Array, middle: Array, body: Array, level: float, dark: float) -> Array:
    """Voxels that are surely parenchyma: as dense as lung over 2 mm, thick, and no bronchus in it."""
    broad = ndimage.gaussian_filter(hu, BROAD_MM / ISO_MM)
    like = body & (broad > level - min(60.0, 0.5 * (level - dark))) & (broad < level + 150)
    if not like.any():
        return like
    size = int(2 * round((TUBE_MM - 1) / 2 / ISO_MM) + 1)
    tube = ndimage.grey_closing(smooth, size=(size,) * 3) - smooth
    texture = 1.48 * float(np.median(np.abs(middle[like] - np.median(middle[like]))))
    bronchi = (middle < level - max(0.5 * (level - dark), 3.0 * texture)) & (tube > TUBE_HU)
    like &= ~_large_pieces(bronchi, TUBE_MM3 / ISO_MM**3)
    like = _large_pieces(like, SECTION_MM2 / ISO_MM**2, SLICES)
    deep = ndimage.distance_transform_edt(like) * ISO_MM > MARKER_DEPTH_MM
    return _large_pieces(deep, MARKER_MM3 / ISO_MM**3)


def _grown(seed: Array, middle: Array, thresholds: Array) -> Array:
    """What is joined to the trachea at the highest threshold that does not leak [Mori 2000].

    Only to keep markers of parenchyma out of wide bronchi: where noise blurs the difference between
    lumen and lung, the local mean alone takes a main bronchus for lung.
    """
    grown, volume, ml = seed, np.count_nonzero(seed), ISO_MM**3 / 1000
    for threshold in thresholds:
        labels, count = ndimage.label((middle < threshold) | seed)
        touched = np.zeros(count + 1, bool)
        touched[labels[seed]] = True
        wider = touched[labels]
        size = np.count_nonzero(wider)
        if size * ml > min(MOST_ML, GROWTH_STEP * volume * ml + GROWTH_ML):
            break
        grown, volume = wider, max(volume, size)
    return np.asarray(grown)


def _large_pieces(mask: Array, least: float, structure: Array | None = None) -> Array:
    """The connected pieces of a mask that hold more than `least` voxels."""
    labels, count = ndimage.label(mask, structure)
    large = np.bincount(labels.ravel(), minlength=count + 1) > least
    large[0] = False
    return np.asarray(large[labels])


def _traced_up(seed: Array, smooth: Array, between: float) -> Array:
    """The trachea followed upwards, section by section, as long as it stays a section of its size.

    Its wall may be hardly seen where it lies against a lung: the highest of several thresholds (HU) that
    keeps the section's area is taken; between: halfway from the lumen to the lung.
    """
    if not seed.any():
        return seed
    seed = seed.copy()
    z = int(np.flatnonzero(seed.any((0, 1))).max())
    last, pixel = seed[:, :, z], ISO_MM**2
    usual = max(last.sum() * pixel, 80.0)
    near = np.hypot(*np.mgrid[-3:4, -3:4]) <= 2.9
    while z + 1 < seed.shape[2]:
        around = ndimage.binary_dilation(last, near)
        part, area = last, np.inf
        for threshold in (-600.0, -700.0, -800.0, between):
            labels, count = ndimage.label(around & (smooth[:, :, z + 1] < threshold))
            if count == 0:
                return seed
            part = labels == np.bincount(labels[labels > 0]).argmax()
            area = part.sum() * pixel
            if area < 1.25 * usual:
                break
        if not 25 < area < 1.5 * usual:
            return seed
        z += 1
        seed[:, :, z], last = part, part
        usual = 0.9 * usual + 0.1 * area
    return seed
