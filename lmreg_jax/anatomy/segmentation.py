"""Lung masks of chest CT by classical means: thresholds, components, distances.

Air (dark) inside the body, less the airways, is lung; vessels are closed over. Made for alignment,
cropping and Dice; consolidated or fluid-filled lung is missed, as with any threshold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.anatomy._morphology import dilated, eroded, largest, profiles
from lmreg_jax.anatomy._two_lungs import NO_LUNGS, OPEN_AIR_HU, sides, two_lungs
from lmreg_jax.anatomy.lungs import LEFT, RIGHT
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.intensity import AIR_HU
from lmreg_jax.imaging.resampling import resample
from lmreg_jax.imaging.volume import Volume, apply_affine, spacing

Array = NDArray[Any]

WORKING_MM = 2.0  # finer scans are segmented at this spacing: a tenth of the time, the same lungs
FOAM_HU = -900.0  # of mattresses and blankets, -945 to -915; aerated lung is denser in the median
SEEN_LITRES = 0.1  # of a lung that the field of view cuts in all slices, eroded; blankets trap less air
CHILD_CM2, ADULT_CM2 = 250.0, 700.0  # of axial sections of the body, arms down or up
OPENING_MM = 3.0  # thinner tissue (clothes, blankets, the table's shell) is no body
SQUARE = np.ones((3, 3, 1), bool)
IN_SLICE = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])
# Of a voxel in the coarser mask, read trilinearly; between the two the scan's own HU decide. No simple
# fractions: in voxels of 1.5 mm every fourth share is a quarter, where rounding would choose a side.
SURELY_OUT, SURELY_IN = 0.17, 0.83
VESSEL_MM = 8.0  # closing radius: hilar vessels are up to 15 mm wide
AIRWAY_LITRES = 0.15  # trachea and bronchi hold less; more means that growing leaked into a lung


def segment_lungs(volume: Volume, measured: Array | None = None) -> Volume:
    """Lung labels (1 left, 2 right; vessels included, trachea and main bronchi not) of a CT in HU.

    measured: bool [X, Y, Z], see `field_of_view.measured`; lungs end where it does. The mask is on the
    scan's own grid, uint8. Raises InputError where no lung-like air is found.
    """
    scan = working_scan(volume)
    edges = spacing(scan.affine)
    shown = np.ones(scan.data.shape, bool)
    if measured is not None:
        shown = resample(Volume(measured, volume.affine), shown.shape, scan.affine, order=0, fill=0) > 0
    body = filled_body(scan.data, edges, shown)
    air = (scan.data < AIR_HU) & body
    if not air.any():
        raise InputError(NO_LUNGS)
    scale = _body_scale(body, edges)
    airways = _airways(scan.data, air, edges / scale)
    parts = two_lungs(air & ~dilated(airways, edges, 1.5 * edges.max()), scan.data, edges / scale)
    labels = np.zeros(scan.data.shape, np.uint8)
    for label, part in sides(parts, body).items():
        labels[_closed(part, edges / scale) & shown & (labels == 0)] = label
    out = _on_grid_of(volume, Volume(labels, scan.affine))
    if measured is not None:
        out.data[~measured] = 0
    return out


def working_scan(volume: Volume) -> Volume:
    """HU in [-1024, 300] at WORKING_MM or the scan's own spacing, whichever is coarser.

    Clipped first: metal and padding below -1024 must not spread into their surroundings.
    """
    clipped = Volume(np.clip(volume.data, -1024, 300), volume.affine)
    factor = np.maximum(WORKING_MM / spacing(volume.affine), 1.0)
    # The last centre stays inside the scan: a face of filled-in air would open a cut-off lung.
    shape = np.maximum(((np.array(volume.data.shape) - 1) / factor).astype(int) + 1, 2)
    affine = volume.affine @ np.diag([*factor, 1.0])
    return Volume(resample(clipped, shape, affine, fill=-1024.0), affine)


def _on_grid_of(volume: Volume, labels: Volume) -> Volume:
    """Labels back on the scan's grid: each one interpolated, its surface where the scan's own HU has it.

    Cutting at one half instead would shrink lungs by a quarter of a voxel wherever a voxel lies just
    between two coarser ones: by 2 % in a scan of 1 mm.
    """
    if volume.data.shape == labels.data.shape and np.allclose(volume.affine, labels.affine):
        return Volume(labels.data, volume.affine)
    out = np.zeros(volume.data.shape, np.uint8)
    to_scan = np.linalg.inv(volume.affine) @ labels.affine
    for label in (LEFT, RIGHT):
        if not (labels.data == label).any():
            continue
        # Where the label reaches, a coarser voxel around it included: the rest of a scan is large.
        ends = [(np.flatnonzero(found)[[0, -1]] + (-1, 1)) for found in profiles(labels.data == label)]
        corners = apply_affine(to_scan, np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3))
        low = np.maximum(np.floor(corners.min(0)).astype(int), 0)
        high = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, out.shape)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        part = volume.affine.copy()
        part[:3, 3] = apply_affine(volume.affine, low)
        one = Volume((labels.data == label).astype(np.float32), labels.affine)
        share = resample(one, high - low, part, fill=0.0)
        out[box][(share > SURELY_IN) | (share > SURELY_OUT) & (volume.data[box] < AIR_HU)] = label
    return Volume(out, volume.affine)


def filled_body(hu: Array, edges: Array, shown: Array | None = None) -> Array:
    """The body with all air inside it: the largest piece of tissue, its axial slices filled.

    Opened first, so that arms, table and clothes come off; slices are filled one by one since the
    trachea leaves the scan at its top, and cut-off lungs at its bottom. shown: what was measured.
    """
    shown = np.ones(hu.shape, bool) if shown is None else shown
    tissue = (hu > AIR_HU) & shown
    core = eroded(tissue | ~shown, edges, OPENING_MM) & shown
    body = dilated(largest(core), edges, OPENING_MM) & tissue
    body |= _cut_lung(hu, body, shown, edges)
    return np.asarray(ndimage.binary_fill_holes(body, IN_SLICE))


def _body_scale(body: Array, edges: Array) -> float:
    """An infant's width of body over an adult's; 1 from CHILD_CM2 on, which a narrow field of view shows too.

    Lengths and volumes below are an adult's: an infant is taken for an adult in larger voxels.
    """
    areas = np.count_nonzero(body, axis=(0, 1)) * float(edges[0] * edges[1]) / 100
    area = float(np.median(areas[areas > 0]))
    return 1.0 if area > CHILD_CM2 else float(np.sqrt(area / ADULT_CM2))


def _cut_lung(hu: Array, body: Array, shown: Array, edges: Array) -> Array:
    """Lung that the field of view cuts, so that no tissue closes it there: never open air, never foam.

    Of the air sections that touch the frame, or what was not measured: those walled by the body
    elsewhere, not as dark as open air, thicker than the partial volumes of a skin, and without a corner
    of the frame; of a piece of air that is lung in other slices, or by its density.
    """
    air = (hu < AIR_HU) & shown
    sections, count = ndimage.label(air, IN_SLICE)
    # A wall that the opening took off, for being thin between lung and what was not measured, counts too.
    thin = 1 + int(np.ceil(2 * OPENING_MM / edges[:2].min()))
    beyond = ndimage.binary_dilation(~shown, IN_SLICE, iterations=thin)
    beyond[[0, -1]] = beyond[:, [0, -1]] = True
    touching = np.bincount(sections[beyond], minlength=count + 1) > 0
    touching[np.intersect1d(sections[[0, -1]], sections[:, [0, -1]])] = False
    touching[0] = False
    cut = np.zeros(hu.shape, bool)
    boxes = ndimage.find_objects(sections, count)
    for i in np.flatnonzero(touching):
        box = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in boxes[i - 1][:2])
        box = (*box, boxes[i - 1][2])
        own = sections[box] == i
        if np.median(hu[box][own]) <= OPEN_AIR_HU or not ndimage.binary_erosion(own, SQUARE).any():
            continue
        section = ndimage.binary_fill_holes(own, IN_SLICE)  # over its vessels
        wall = ndimage.binary_dilation(section, IN_SLICE) & ~section & shown[box]
        if (body[box] & wall).sum() > 0.7 * wall.sum():
            cut[box] |= section & shown[box]
    if not cut.any():
        return cut
    # Pieces of lung and of what is outside may touch from slice to slice where the wall is cut away: eroded.
    inner = ndimage.binary_fill_holes(body, IN_SLICE) & air
    solid = ndimage.binary_erosion(inner | cut & air, SQUARE, iterations=2)
    pieces, count = ndimage.label(solid)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    lung = np.bincount(pieces[inner], minlength=count + 1) > 0.1 * sizes
    for i in np.setdiff1d(pieces[cut], [0, *np.flatnonzero(lung)]):
        lung[i] = sizes[i] * np.prod(edges) > 1e6 * SEEN_LITRES and np.median(hu[pieces == i]) > FOAM_HU
    lung[0] = False
    sections, count = ndimage.label(cut, IN_SLICE)
    votes = np.bincount(sections[lung[pieces]], minlength=count + 1)
    seen = np.bincount(sections[solid], minlength=count + 1)
    return np.asarray(cut & (2 * votes > seen)[sections])


def _airways(hu: Array, air: Array, edges: Array) -> Array:
    """Trachea and large bronchi, grown at the highest threshold that does not leak.

    The explosion-controlled region growing of [Mori 2000]. All False where no trachea is seen.
    """
    seed = trachea_column(hu, air, edges)
    if not seed.any():
        return seed
    litre = float(np.prod(edges)) / 1e6
    grown, volume = seed, float(seed.sum()) * litre
    for threshold in range(-975, -600, 25):
        labels, _ = ndimage.label((hu < threshold) & air | seed)
        wider = np.isin(labels, np.unique(labels[seed]))
        litres = float(wider.sum()) * litre
        if litres > AIRWAY_LITRES or litres > 1.6 * volume + 0.01:
            break
        grown, volume = wider, max(volume, litres)
    return grown


def trachea_column(hu: Array, air: Array, edges: Array) -> Array:
    """The tallest column of small round air sections near the middle, in the upper scan."""
    candidate = np.zeros(air.shape, bool)
    pixel = float(edges[0] * edges[1])
    middle = ndimage.center_of_mass(air.any(axis=2))[0]
    for z in range(air.shape[2]):
        labels, count = ndimage.label((hu[:, :, z] < -700) & air[:, :, z])
        for i, box in enumerate(ndimage.find_objects(labels, count), start=1):
            inside = labels[box] == i
            area = inside.sum() * pixel
            width, depth = (inside.shape[a] * edges[a] for a in (0, 1))
            centre = abs((box[0].start + box[0].stop - 1) / 2 - middle) * edges[0]
            round_enough = area > 0.5 * width * depth and max(width, depth) < 45
            if 40 < area < 900 and round_enough and centre < 45:
                candidate[:, :, z][box] |= inside
    labels, count = ndimage.label(candidate)
    best, score = 0, 0.0
    for i, box in enumerate(ndimage.find_objects(labels, count), start=1):
        height = (box[2].stop - box[2].start) * edges[2]
        upper = box[2].stop > 0.6 * air.shape[2]  # below it is the stomach's air
        if upper and height > max(score, 15.0):
            best, score = i, height
    return np.asarray(labels == best) if best else np.zeros(air.shape, bool)


def _closed(mask: Array, edges: Array) -> Array:
    """The mask with vessels and holes filled: closing by a ball of VESSEL_MM, inside its box."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    margin = np.ceil(VESSEL_MM / edges).astype(int) + 1
    # Room on all sides, beyond the scan too: what grows up to a face could not shrink back from it.
    part = np.pad(mask[box], [(m, m) for m in margin])
    grown = dilated(part, edges, VESSEL_MM)
    closed = eroded(grown, edges, VESSEL_MM)
    inner = tuple(slice(m, -m) for m in margin)
    out = np.zeros(mask.shape, bool)
    out[box] = ndimage.binary_fill_holes(closed | part)[inner]
    return out
