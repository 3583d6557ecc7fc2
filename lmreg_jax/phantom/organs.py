"""Soft organs of the template thorax as implicit functions: heart, lungs, lobes, diaphragm, belly.

Template space as in `profiles`; negative inside.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.phantom.centrelines import COLON, HILA, OESOPHAGUS, SYSTEMIC, TRACHEA
from lmreg_jax.phantom.profiles import (
    CAGE_BACK,
    CAGE_FRONT,
    CAGE_SIDE,
    POWER_BACK,
    SPINE_Y,
    Array,
    cage,
    ellipsoid,
    oval,
    polyline,
    profile,
    smooth_intersection,
    smooth_union,
)


def _heart_parts(x: Array, y: Array, z: Array) -> list[Array]:
    """Left and right ventricle, right and left atrium."""
    return [
        ellipsoid(x, y, z, (-40, 32, -86), (56, 40, 39), (-0.68, 0.5, -0.54)),
        ellipsoid(x, y, z, (-4, 52, -84), (45, 28, 37)),
        ellipsoid(x, y, z, (20, 34, -76), (22, 26, 32)),
        ellipsoid(x, y, z, (-6, 4, -54), (22, 18, 19)),
    ]


def heart(x: Array, y: Array, z: Array) -> Array:
    """The heart's muscle and blood; the grooves between the chambers are left to fat."""
    return np.minimum.reduce(_heart_parts(x, y, z)) + 1


def pericardium(x: Array, y: Array, z: Array) -> Array:
    """The heart with the fat in its grooves: its chambers smoothly joined."""
    return smooth_union(*_heart_parts(x, y, z), width=9)


def chambers(x: Array, y: Array, z: Array) -> Array:
    """Blood in the heart: left and right ventricle, right and left atrium."""
    parts = (
        ellipsoid(x, y, z, (-39, 32, -84), (42, 25, 25), (-0.68, 0.5, -0.54)),
        ellipsoid(x, y, z, (-4, 55, -84), (34, 17, 28)),
        ellipsoid(x, y, z, (20, 34, -76), (17, 21, 26)),
        ellipsoid(x, y, z, (-6, 4, -54), (19, 15, 16)),
    )
    return np.minimum.reduce(parts)


def diaphragm(x: Array, y: Array, z: Array) -> Array:
    """Height above the diaphragm (mm, positive above): two domes and the heart's bed between."""

    def dome(cx: float, cy: float, ax: float, ay: float, peak: float, drop: float) -> Array:
        square = ((x - np.float32(cx)) / ax) ** 2 + ((y - np.float32(cy)) / ay) ** 2
        return np.float32(peak) - np.float32(drop) * square ** np.float32(1.15)

    surface = -smooth_union(
        -dome(68, 14, 68, 100, -116, 74),
        -dome(-72, 12, 64, 98, -121, 70),
        -dome(-4, 32, 62, 66, -121, 46),
        width=6,
    )
    return z - np.maximum(surface, -240)


SLAB_FRONT = profile((-130, 30), (-60, 16), (-10, 8), (40, 10), (70, 22), (120, 30))
SLAB_MIDDLE = profile((-130, 14), (-40, 16), (0, 14), (60, 20), (90, 26), (120, 34))


def mediastinum(x: Array, y: Array, z: Array) -> Array:
    """What lies between the lungs: heart, great vessels, airways, gullet, spine, hila, and fat."""
    front = np.float32(1) / (1 + np.exp(-(y - 45 + np.float32(0.12) * z) / 6))
    half = SLAB_MIDDLE(z) + (SLAB_FRONT(z) - SLAB_MIDDLE(z)) * front
    slab = np.abs(x + 4) - half
    spine_y = SPINE_Y(z)
    spine = np.sqrt((x / 20) ** 2 + ((y - spine_y) / 19) ** 2) * 19 - 20
    back = np.abs(x) - 20 - np.maximum(y - spine_y + 10, 0) * np.float32(2)
    tubes = [polyline(x, y, z, SYSTEMIC[n]) for n in SYSTEMIC if "subclavian" not in n]
    tubes += [polyline(x, y, z, line) for line in (OESOPHAGUS, TRACHEA)]
    hila = [polyline(x, y, z, line) for line in HILA]
    return smooth_union(
        np.minimum.reduce([slab, spine, np.maximum(back, y - spine_y)]),
        pericardium(x, y, z) - 3,
        np.minimum.reduce(tubes) - 3,
        np.minimum.reduce(hila) - 2,
        width=4,
    )


APEX_START, APEX_TOP = 35.0, 112.0


def pleura(x: Array, y: Array, z: Array) -> Array:
    """Outer surface of both lungs: the cage, closed above by a dome over each lung."""
    side = np.abs(x)
    centre = np.interp(z, (0, 90), (10, 46)).astype(np.float32)
    lateral = CAGE_SIDE(z) - centre
    medial = np.interp(z, (30, 80), (160, 44)).astype(np.float32)
    radius = oval(side - centre, y, np.where(side > centre, lateral, medial), CAGE_FRONT(z), CAGE_BACK(z))
    rise = np.maximum(z - APEX_START, 0) / np.float32(APEX_TOP - APEX_START)
    power = np.float32(POWER_BACK)
    return ((radius**power + rise**power) ** (1 / power) - 1) * lateral


class Chest(NamedTuple):
    """Implicit functions that the lungs need, evaluated once: template mm, negative inside."""

    pleura: Array
    mediastinum: Array
    above_diaphragm: Array  # positive above


def chest(x: Array, y: Array, z: Array) -> Chest:
    """The three surfaces whose combination is the lungs."""
    return Chest(pleura(x, y, z), mediastinum(x, y, z), diaphragm(x, y, z))


def lungs(parts: Chest) -> Array:
    """Both lungs: inside the pleura, outside the mediastinum, above the diaphragm."""
    beside = smooth_intersection(parts.pleura, -parts.mediastinum, width=3)
    return smooth_intersection(beside, -parts.above_diaphragm + 1.5, width=1.5)


def oblique_fissure(x: Array, y: Array, z: Array) -> Array:
    """Height above the oblique fissure, from T3 behind to the sixth rib's front; slightly wavy."""
    left = x < 0
    start = np.where(left, np.float32(50), np.float32(44))
    bend = 9 * np.sin((y + 88) / 176 * np.pi) + np.float32(0.10) * (np.abs(x) - 70)
    height = start - (y + 85) * np.float32(1.10) + bend.astype(np.float32)
    return (z - height) * np.float32(0.67)


def horizontal_fissure(x: Array, y: Array, z: Array) -> Array:
    """Height above the right lung's horizontal fissure (fourth rib), slightly domed."""
    dome = ((x - 70) / 60) ** 2 + ((y - 30) / 70) ** 2
    return np.asarray(z + 36 + 9 * dome, np.float32)


def lobes(oblique: Array, horizontal: Array, left: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Lobe label at each place: 1 left upper, 2 left lower, 3, 4, 5 right upper, middle, lower."""
    right = np.where(oblique > 0, np.where(horizontal > 0, 3, 4), 5)
    return np.where(left, np.where(oblique > 0, 1, 2), right).astype(np.uint8)


def _rise(value: Array, width: float) -> Array:
    """A smooth step from 0 (value far below 0) to 1, over about 4 `width`."""
    return np.asarray(1 / (1 + np.exp(np.clip(-value / np.float32(width), -30, 30))), np.float32)


def muscles(x: Array, y: Array, z: Array, wall: Array, bulk: float) -> tuple[Array, Array]:
    """Muscles outside the rib cage (negative inside), and the thickness of their outer layer, mm.

    Intercostals all round; pectorals, latissimus with serratus, erectors of the spine, shoulders
    and neck, belly wall. `wall`: distance outside the rib cage; `bulk` scales the outer layer.
    """
    side = np.abs(x)
    outer = 17 * _rise(y - 10, 8) * _rise(side - 22, 6) * _rise(z + 52, 12)  # pectorals
    flank = _rise(side - 72, 8) * _rise(25 - y, 8)
    outer += 15 * flank * _rise(z + 165, 14) * _rise(y + 82, 6)  # latissimus, serratus
    outer += 24 * _rise(-y - 6, 10) * _rise(side - 50, 8) * _rise(z + 50, 14)  # about the scapula
    outer += 9 * _rise(-z - 120, 12)  # belly wall
    outer *= np.float32(bulk)
    outer += 50 * _rise(z - 78, 7)  # shoulders and neck
    level = y - SPINE_Y(z) + 44
    erectors = (np.sqrt(((side - 25) / 25) ** 2 + (level / 17) ** 2) - 1) * 17
    return np.minimum(wall - 9.5 - outer, erectors).astype(np.float32), outer.astype(np.float32)


def behind_spine(x: Array, y: Array, z: Array) -> Array:
    """The muscles beside the arches, which the rib cage's egg shape would count as its inside."""
    return np.maximum(np.abs(x) - 25, y - SPINE_Y(z) + 13)


def belly(x: Array, y: Array, z: Array, above: Array) -> dict[str, Array]:
    """Abdominal organs below the diaphragm (`above`: height above it), each negative inside."""
    under = above + 4.5
    inside = cage(x, y, z) + 3
    floor = -(z + 262) + np.maximum(-x + 40, 0) * np.float32(0.62) + np.maximum(-y, 0) * 0.1
    left_end = (-x - 50) + np.maximum(-y + 20, 0) * np.float32(0.7)
    liver = np.maximum(floor, left_end)
    liver = np.maximum(liver, ellipsoid(x, y, z, (60, 0, -195), (122, 118, 100)))
    kidneys = np.minimum(
        ellipsoid(x, y, z, (-58, -42, -246), (27, 24, 52)),
        ellipsoid(x, y, z, (58, -40, -262), (27, 24, 52)),
    )
    stomach = smooth_union(
        ellipsoid(x, y, z, (-64, 4, -170), (40, 48, 40)),
        ellipsoid(x, y, z, (-44, 34, -206), (34, 30, 44), (0.5, 0.3, -0.8)),
        width=10,
    )
    colon = polyline(x, y, z, COLON)
    spleen = ellipsoid(x, y, z, (-98, -42, -186), (26, 42, 48))
    return {
        "liver": np.maximum.reduce([liver, under, inside, -kidneys + 3]),
        "kidneys": kidneys,
        "colon": np.maximum.reduce([colon, under, inside, -stomach + 1, -liver + 1]),
        "stomach": np.maximum.reduce([stomach, under, inside]),
        "spleen": np.maximum.reduce([spleen, under, inside, -stomach + 2]),
    }
