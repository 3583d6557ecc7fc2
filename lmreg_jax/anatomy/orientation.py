"""Whether a chest lies as its header says: anatomy against the axes RAS.

Spine behind the lungs' middle, trachea above it, heart to the left with the larger lung and the liver to
the right. Each is seen in two intact lungs only; what is not seen says nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.anatomy.lungs import cut_off
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume, spacing

Array = NDArray[Any]

COARSE_MM = 4.0  # voxels are picked, not averaged
INTACT = 0.45  # of the larger lung the smaller one holds at least
BONE_HU = 180.0
TALL = 0.45  # height of the lungs shown over their width, at least: bases alone taper the other way
SPINE = 0.6  # share of slices with their midline bone in front, less that with it behind: 0.9 and more
TRACHEA_CM2 = (0.3, 9.0)
UPRIGHT = 2.0  # evidence for head and feet: 2.3 and more in whole scans, -1.2 and more in cut ones
LEFTWARD = 0.01  # heart's centre from the spine's over the lungs' width: 0.017 to 0.11


class Orientation(NamedTuple):
    """Evidence for each axis of RAS, positive where the header is right; None where nothing is seen.

    right: the weakest of its signs, each over its threshold, 0 where they disagree (below -1: mirrored);
    front: the share of slices with the spine behind, less that with it in front; up: trachea above, lungs
    further back at their base and wider there, each over its usual value, summed.
    """

    right: float | None
    front: float | None
    up: float | None


def check_orientation(name: str, scan: Volume, lungs: Volume) -> tuple[str, ...]:
    """Notes where anatomy doubts the header's left and right. lungs: 1 left, 2 right, on the scan's grid.

    Raises InputError, naming the scan, where it lies upside down or with the spine in front.
    """
    seen = orientation(scan, lungs)
    wrong = []
    if seen.front is not None and seen.front < -SPINE:
        wrong.append(("front and back", "the spine lies in front of the lungs"))
    if seen.up is not None and seen.up < -UPRIGHT:
        wrong.append(("head and feet", "trachea and apices of the lungs point down"))
    if wrong:
        raise InputError(
            f"{name}: the header contradicts the picture: {' and '.join(sign for _, sign in wrong)};"
            f" {' and '.join(axes for axes, _ in wrong)} are exchanged (upside down or mirrored): convert it"
            " again from DICOM, or correct the orientation in its header"
        )
    if seen.right is not None and seen.right < -1:
        return (
            "heart, liver and the larger lung lie on the other side than the header says: the scan is"
            " mirrored, or this is situs inversus",
        )
    return ()


def orientation(scan: Volume, lungs: Volume) -> Orientation:
    """The evidence of a chest CT in HU for its axes."""
    every = np.maximum((COARSE_MM / spacing(scan.affine) + 1e-3).astype(int), 1)
    pick = tuple(slice(None, None, n) for n in every)
    hu, labels, edges = scan.data[pick], lungs.data[pick], spacing(scan.affine) * every
    counts = np.bincount(labels.ravel(), minlength=3)[1:3]
    if counts.min() < INTACT * counts.max() or not counts.min():
        return Orientation(None, None, None)
    box = ndimage.find_objects((labels > 0).astype(np.uint8))[0]
    x, y = ((s.start + s.stop - 1) / 2 for s in box[:2])
    width, _, height = (s.stop - s.start for s in box)
    tall = height * edges[2] > TALL * width * edges[0]
    band = slice(max(int(x - 0.2 * width) + 1, 0), int(x + 0.2 * width) + 1)
    spine = hu[band, :, box[2]] > BONE_HU
    rows = np.arange(spine.shape[1])[None, :, None]
    behind, before = (np.count_nonzero(spine & part, axis=(0, 1)) for part in (rows < y, rows > y))
    front = float(np.mean(np.sign(behind - before))) if spine.any() else None
    up = None
    if tall and front is not None and abs(front) > SPINE:
        up = _upright(labels[box] > 0, np.sign(front)) + np.clip(_column_mm(hu, x, box, edges) / 25, -3, 3)
    right = None
    if tall and front is not None and front > SPINE:
        middle = band.start + float(np.mean(np.nonzero(spine & (rows < y))[0]))
        lower = slice(box[2].start + int(0.1 * height), box[2].start + height // 2)
        leftward = (middle - _heart(hu, labels, (int(y), box[1].stop), lower)) / width
        signs = [leftward / LEFTWARD, float(np.log(counts[1] / counts[0])) / 0.05]
        if cut_off(lungs):
            signs = [signs[0] / 3, signs[1] / 2]
        else:
            signs.append(_dense_below(hu, labels, int(x)) / 0.05)
        right = max(signs) if max(signs) < 0 else min(signs) if min(signs) > 0 else 0.0
    return Orientation(right, front, up)


def _upright(lungs: Array, front: float) -> float:
    """How much further back, and how much wider, the lungs are below than above, over the usual values.

    lungs: cropped to their box; front: 1 where y grows to the front, -1 where it grows to the back.
    """
    n = lungs.shape[2]
    low, high = (
        np.nonzero(lungs[:, :, part])[1].mean()
        for part in (slice(max(n // 4, 1)), slice(-(n // 4) - 1, None))
    )
    shadow = np.asarray(lungs.any(1))
    widths = (len(shadow) - np.argmax(shadow[::-1], 0) - np.argmax(shadow, 0)) * shadow.any(0)
    parts = [widths[int(a * n) : max(int(b * n), 1)].mean() for a, b in ((0.05, 0.3), (0.7, 0.95))]
    backwards = front * (high - low) / 2 / lungs.shape[1]
    return float(backwards / 0.05 + (parts[0] - parts[1]) / widths.max() / 0.2)


def _column_mm(hu: Array, x: float, box: tuple[slice, ...], edges: Array) -> float:
    """Length of the tallest column of small round air sections near the midline, signed, mm.

    Positive above the lungs' middle. A section goes on in the next slice within 8 mm, in similar size.
    """
    pixel = float(edges[0] * edges[1]) / 100
    low, height = box[2].start, box[2].stop - box[2].start
    longest = [0.0, 0.0]
    chains: list[tuple[Array, Any, int]] = []  # centre, area, first slice
    for k in range(hu.shape[2]):
        sections, _ = ndimage.label(hu[:, :, k] < -600)
        going_on = []
        for i, part in enumerate(ndimage.find_objects(sections), start=1):
            centre = np.array([(s.start + s.stop - 1) / 2 for s in part])
            size = [(s.stop - s.start) * edge for s, edge in zip(part, edges, strict=False)]
            own = sections[part] == i
            area = float(np.count_nonzero(own)) * pixel
            round_enough = max(size) < 45 and np.mean(own) > 0.6
            if not (round_enough and TRACHEA_CM2[0] < area < TRACHEA_CM2[1]):
                continue
            if abs(centre[0] - x) * edges[0] > 35 or not box[1].start < centre[1] < box[1].stop:
                continue
            first = k
            for place, before, start in chains:
                near = np.linalg.norm((place - centre) * edges[:2]) < 8 + edges[:2].max() / 2
                if near and 0.4 < area / before < 2.5:
                    first = min(first, start)
            going_on.append((centre, area, first))
            middle = ((first + k) / 2 - low) / height
            if abs(middle - 0.5) > 0.1:
                upper = int(middle > 0.5)
                longest[upper] = max(longest[upper], (k - first + 1) * float(edges[2]))
        chains = going_on
    return longest[1] - longest[0]


def _heart(hu: Array, labels: Array, depth: tuple[int, int], height: slice) -> float:
    """Mean x, voxels, of the tissue between the lungs, in their front half and some of their height."""
    part: NDArray[np.bool_] = np.asarray(labels[:, depth[0] : depth[1], height] > 0)
    between: Array = np.maximum.accumulate(part, 0) & np.flip(np.maximum.accumulate(np.flip(part, 0), 0), 0)
    tissue: Array = np.logical_and(between, ~part) & np.asarray(hu[:, depth[0] : depth[1], height] > -200)
    return float(np.mean(np.nonzero(tissue)[0])) if tissue.any() else np.nan


def _dense_below(hu: Array, labels: Array, middle: int) -> float:
    """Share of dense tissue (liver) in the columns below the right lung, less that below the left."""
    lung = labels > 0
    below = (np.cumsum(lung, axis=2) == 0) & np.any(lung, axis=2, keepdims=True)
    dense = (hu > 20) & (hu < 200)
    shares = [dense[half][below[half]] for half in (slice(middle + 1, None), slice(0, middle))]
    return float(shares[0].mean() - shares[1].mean()) if all(s.size > 50 for s in shares) else 0.0
