"""What a lung mask reports about itself: litres, and where the field of view ends it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.imaging.volume import Volume, spacing

Array = NDArray[Any]

LEFT, RIGHT = 1, 2  # lung labels
NAMES = {LEFT: "left", RIGHT: "right"}
LUNG_LITRES = (0.6, 5.0)  # a healthy adult's lung, from expiration to a tall man's inspiration
RIGHT_TO_LEFT = (0.7, 2.0)  # the right lung is larger by about a tenth
CUT_CM2 = 5.0  # a lung's tip or a sliver of recess on the last slice is less


class LungReport(NamedTuple):
    """Volumes of the two lungs in litres, and doubts for the user."""

    left_litres: float
    right_litres: float
    warnings: tuple[str, ...]


def lung_report(mask: Volume, measured: Array | None = None) -> LungReport:
    """Volumes of the two lungs of a mask (1 left, 2 right), and what makes the mask doubtful.

    measured: bool [X, Y, Z], see `field_of_view.measured`.
    """
    litres = {label: lung_litres(mask, label) for label in NAMES}
    left, right = litres[LEFT], litres[RIGHT]
    warnings = []
    for label, volume in litres.items():
        if volume == 0:
            warnings.append(
                f"no {NAMES[label]} lung: no air in it (removed, collapsed, full of fluid), or outside"
            )
        elif not LUNG_LITRES[0] <= volume <= LUNG_LITRES[1]:
            warnings.append(f"the {NAMES[label]} lung holds {volume:.2f} litres")
    if left > 0 < right and not RIGHT_TO_LEFT[0] <= right / left <= RIGHT_TO_LEFT[1]:
        warnings.append(f"the right lung is {right / left:.2f} times the left")
    for end, area in cut_off(mask, measured).items():
        warnings.append(f"the {end} is cut off ({area:.0f} cm^2 of lung on the last slice)")
    area, share = cut_sides(mask, measured)
    if area > CUT_CM2:
        warnings.append(
            f"lung touches the sides of the field of view: {area:.0f} cm^2, {100 * share:.0f} % of its"
            " surface; what lies beyond is missing"
        )
    return LungReport(left, right, tuple(warnings))


def lung_litres(mask: Volume, label: int) -> float:
    """The volume of a label, litres."""
    return float(np.count_nonzero(mask.data == label) * abs(np.linalg.det(mask.affine[:3, :3])) / 1e6)


def cut_off(mask: Volume, measured: Array | None = None) -> dict[str, float]:
    """{"base" or "apex": cm^2 of mask on the last measured slice}, for ends that the scan cuts off."""
    pixel = float(np.prod(spacing(mask.affine)[:2])) / 100
    base, apex = _at_edge(mask.data != 0, measured, axis=2)
    return {end: n * pixel for end, n in (("base", base), ("apex", apex)) if n * pixel > CUT_CM2}


def cut_sides(mask: Volume, measured: Array | None = None) -> tuple[float, float]:
    """How much of the mask's surface the field of view makes in x and y: cm^2, share of its surface."""
    edges = spacing(mask.affine)
    lung = mask.data != 0
    cut = total = 0.0
    for axis in range(3):
        face = float(np.prod(np.delete(edges, axis))) / 100
        low, high = _neighbours(axis)
        total += np.count_nonzero(lung[low] != lung[high]) * face
        if axis < 2:
            cut += sum(_at_edge(lung, measured, axis)) * face
    return cut, cut / max(total, 1e-9)


def _at_edge(lung: Array, measured: Array | None, axis: int) -> tuple[int, int]:
    """Voxels of a mask whose lower, whose upper neighbour along an axis was not measured."""
    counts = [int(np.count_nonzero(lung.take(end, axis))) for end in (0, -1)]
    if measured is not None:
        low, high = _neighbours(axis)
        counts[0] += int(np.count_nonzero(lung[high] & ~measured[low]))
        counts[1] += int(np.count_nonzero(lung[low] & ~measured[high]))
    return counts[0], counts[1]


def _neighbours(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Indices of all voxels but the last, and of all but the first, along an axis."""
    ends = slice(None, -1), slice(1, None)
    low, high = (tuple(end if a == axis else slice(None) for a in range(3)) for end in ends)
    return low, high
