"""The apex of each lung: the height above which the lung holds 1 ml."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.anatomy.lungs import LEFT, RIGHT
from lmreg_jax.imaging.volume import Volume, apply_affine

Array = NDArray[Any]

TIP_ML = 1.0  # does not hang on one voxel, nor on the slices' thickness
SIDEWAYS_ML = (0.5, 1.0, 2.0, 4.0)  # tips whose centres say how well the apex is defined sideways
TIP_SPREAD_MM = 22.0  # rms distance of the largest tip from its middle; two tips, of both lungs, have 40
SIDEWAYS_MM = 10.0  # their spread at which nothing is left of the confidence
ABOVE_MM = (4.0, 12.0)  # above an apex there is tissue that the scan shows
TISSUE_HU, TISSUE_SHARE = -300.0, 0.5
DOME_MM, DOME_CM2 = 10.0, 45.0  # so far below its tip a lung's section is smaller than that
LOWER_MM = 25.0  # an apex this far below the other one is that of a collapsed or cut lung


class Apex(NamedTuple):
    """A point [3], RAS mm, or None with the reason; confidence in [0, 1]."""

    point: Array | None
    confidence: float
    reason: str = ""


def apices(volume: Volume, lungs: Volume) -> dict[str, Apex]:
    """{"apex_left", "apex_right": Apex} of lung labels (1 left, 2 right) on a scan's own RAS+ grid."""
    out = {"apex_left": _apex(volume, lungs, LEFT), "apex_right": _apex(volume, lungs, RIGHT)}
    points = [apex.point for apex in out.values()]
    if points[0] is not None and points[1] is not None:
        drop = abs(points[0][2] - points[1][2])
        if drop > LOWER_MM:
            name = min(out, key=lambda n: out[n].point[2])  # type: ignore[index]
            reason = f"{drop:.0f} mm below the other apex: the top of this lung holds no air"
            out[name] = Apex(None, 0.0, reason)
    return out


def _apex(volume: Volume, lungs: Volume, label: int) -> Apex:
    index = np.argwhere(lungs.data == label)
    voxel_ml = float(abs(np.linalg.det(lungs.affine[:3, :3]))) / 1000
    if len(index) * voxel_ml < 20 * TIP_ML:
        return Apex(None, 0.0, "no lung on this side")
    if index[:, 2].max() >= lungs.data.shape[2] - 1:
        return Apex(None, 0.0, "the lung reaches the upper end of the scan")
    height = float(np.abs(lungs.affine[2, :3]).sum())  # of a voxel along z, also of an oblique one
    places = apply_affine(lungs.affine, index)
    places = places[places[:, 2] > places[:, 2].max() - 60.0]
    tips = [_tip(places, height, voxel_ml, ml) for ml in SIDEWAYS_ML]
    point = tips[SIDEWAYS_ML.index(TIP_ML)]
    section = np.count_nonzero(np.abs(places[:, 2] - (point[2] - DOME_MM)) <= height / 2)
    section_cm2 = section * voxel_ml * 10 / height
    if section_cm2 > DOME_CM2:
        return Apex(None, 0.0, f"no dome: {section_cm2:.0f} cm^2 of lung {DOME_MM:g} mm below its top")
    if _tissue_above(volume, point) < TISSUE_SHARE:
        return Apex(None, 0.0, "no tissue above the lung: the scan ends there")
    top = places[places[:, 2] >= tips[-1][2], :2]
    if len(top) and np.sqrt(((top - top.mean(0)) ** 2).sum(1).mean()) > TIP_SPREAD_MM:
        return Apex(None, 0.0, "the top of this lung is not in one place: the lungs are not told apart")
    drift = float(np.linalg.norm(np.ptp([tip[:2] for tip in tips], axis=0)))
    return Apex(point, float(np.clip(1.0 - 0.5 * drift / SIDEWAYS_MM, 0.1, 0.95)))


def _tip(places: Array, height: float, voxel_ml: float, ml: float) -> Array:
    """The centre of the uppermost `ml` of places [n, 3], at the height above which they lie, RAS mm [3].

    A voxel holds its volume evenly over its `height`.
    """
    low, high = float(places[:, 2].min() - height), float(places[:, 2].max() + height)
    for _ in range(30):
        z = 0.5 * (low + high)
        share = np.clip((places[:, 2] - z) / height + 0.5, 0, 1)
        low, high = (z, high) if share.sum() * voxel_ml > ml else (low, z)
    centre = share @ places / max(float(share.sum()), 1e-9)
    return np.array([centre[0], centre[1], z])


def _tissue_above(volume: Volume, point: Array) -> float:
    """The share of tissue in a column 10 mm wide above a point; what lies outside the scan is none."""
    x, y, z = np.meshgrid((-5, 0, 5), (-5, 0, 5), np.linspace(*ABOVE_MM, 5), indexing="ij")
    places = point + np.stack([x, y, z], -1).reshape(-1, 3)
    index = np.rint(apply_affine(np.linalg.inv(volume.affine), places)).astype(int)
    inside = ((index >= 0) & (index < volume.data.shape)).all(1)
    tissue = volume.data[tuple(index[inside].T)] > TISSUE_HU
    return float(np.count_nonzero(tissue)) / len(places)
