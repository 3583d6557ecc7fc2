"""What a lung mask, or a scan before it has one, says of itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.imaging.volume import Volume, spacing

Array = NDArray[Any]

LEFT, RIGHT = 1, 2  # lung labels
LUNG_LITRES = (0.6, 5.0)  # a healthy adult's lung, from expiration to a tall man's inspiration
RIGHT_TO_LEFT = (0.7, 2.0)  # the right lung is larger by about a tenth
CUT_CM2 = 5.0  # a lung's tip or a sliver of recess on the last slice is less


class LungReport(NamedTuple):
    """What a mask says of itself: volumes in litres, and doubts in words."""

    left_litres: float
    right_litres: float
    warnings: tuple[str, ...]


def lung_report(mask: Volume) -> LungReport:
    """Volumes of the two lungs of a mask (1 left, 2 right), and what makes the mask doubtful."""
    litre = abs(np.linalg.det(mask.affine[:3, :3])) / 1e6
    left, right = (float(np.sum(mask.data == label) * litre) for label in (LEFT, RIGHT))
    warnings = []
    for side, volume in (("left", left), ("right", right)):
        if not LUNG_LITRES[0] <= volume <= LUNG_LITRES[1]:
            warnings.append(f"the {side} lung holds {volume:.2f} litres")
    if left > 0 and not RIGHT_TO_LEFT[0] <= right / left <= RIGHT_TO_LEFT[1]:
        warnings.append(f"the right lung is {right / left:.2f} times the left")
    for end, area in cut_off(mask).items():
        warnings.append(f"the {end} is cut off ({area:.0f} cm^2 of lung on the last slice)")
    sides = (mask.data[0], mask.data[-1], mask.data[:, 0], mask.data[:, -1])
    if any(np.count_nonzero(face) > 20 for face in sides):
        warnings.append("lung touches the sides of the field of view")
    return LungReport(left, right, tuple(warnings))


def cut_off(mask: Volume) -> dict[str, float]:
    """{"base" or "apex": cm^2 of mask on the last slice}, for ends that the scan cuts off."""
    pixel = float(np.prod(spacing(mask.affine)[:2])) / 100
    faces = {"base": mask.data[:, :, 0], "apex": mask.data[:, :, -1]}
    areas = {end: float(np.count_nonzero(face)) * pixel for end, face in faces.items()}
    return {end: area for end, area in areas.items() if area > CUT_CM2}
