"""Ribs, costal cartilage, clavicles, spine, sternum and shoulder blades of the template, in mm."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.phantom.profiles import (
    CAGE_BACK,
    CAGE_FRONT,
    CAGE_SIDE,
    POWER_BACK,
    POWER_FRONT,
    SPINE_Y,
    WIDEST,
    Array,
    profile,
)

Points = NDArray[np.float64]

# Heights of the discs below C5 ... L4: vertebra k lies between disc k and k + 1 (C5 is 0, T1 is 3).
DISCS = np.array(
    (148, 131, 114, 97.5, 79, 59.5, 39, 18, -4, -26, -48, -71, -94, -118, -143, -170, -198, -227, -257, -288),
    float,
)
FIRST_RIB = 3
# rib: (drop from the spine to its front end, end of bone as part of the way round, cartilage end)
RIBS: tuple[tuple[float, float, float], ...] = (
    (44, 0.86, 0.97),
    (56, 0.84, 0.97),
    (64, 0.82, 0.97),
    (68, 0.80, 0.97),
    (70, 0.78, 0.97),
    (70, 0.76, 0.96),
    (66, 0.74, 0.95),
    (72, 0.70, 0.86),
    (76, 0.66, 0.78),
    (76, 0.62, 0.72),
    (56, 0.46, 0.0),
    (34, 0.30, 0.0),
)
OUTWARD = 5.5  # mm from the pleura to the middle of a rib


class Lines(NamedTuple):
    """A tube's centreline in template mm [N, 3] and its radius."""

    points: Points
    radius: float


def _on_cage(part: NDArray[np.float64], z: NDArray[np.float64], side: float) -> Points:
    """Points on the cage `part` of the way round from the spine (0) to the sternum (1)."""
    height = z.astype(np.float32)
    half = CAGE_SIDE(height) + OUTWARD
    front, back = CAGE_FRONT(height) + OUTWARD, CAGE_BACK(height) - OUTWARD
    middle = back + WIDEST * (front - back)
    angle = np.pi * part
    power = 2 / np.where(angle < np.pi / 2, POWER_BACK, POWER_FRONT)
    x = half * np.sin(angle) ** power
    depth = np.where(angle < np.pi / 2, middle - back, front - middle)
    y = middle - np.sign(np.cos(angle)) * depth * np.abs(np.cos(angle)) ** power
    return np.stack([side * x, y, z], -1)


def ribs() -> tuple[list[Lines], list[Lines]]:
    """Bony ribs (each two parallel tubes: taller than thick) and costal cartilages."""
    bones, cartilages = [], []
    for k, (drop, bone_end, cartilage_end) in enumerate(RIBS):
        z_spine = 0.5 * (DISCS[FIRST_RIB + k] + DISCS[FIRST_RIB + k + 1]) + 6
        spine_y = float(SPINE_Y(np.array([z_spine], np.float32))[0])
        for side in (-1.0, 1.0):
            part = np.linspace(0.13, bone_end, 26)
            around = _on_cage(part, z_spine - drop * (part / 0.97) ** 1.25, side)
            start = np.array(
                (
                    (side * 17, spine_y - 9, z_spine - 1),
                    (side * 27, spine_y - 24, z_spine),
                    (side * 38, max(spine_y - 36, around[0, 1] + 2), z_spine),
                )
            )
            line = np.concatenate([start, around])
            thin = 0.85 if k == 0 or k > 9 else 1.0
            for up in (-2.6, 2.6):
                bones.append(Lines(line + np.array((0.0, 0.0, up)), 3.2 * thin))
            if cartilage_end:
                part = np.linspace(bone_end, cartilage_end, 10)
                z = z_spine - drop * (part / 0.97) ** 1.25
                if k >= 5:  # the lower cartilages climb to the costal arch
                    z = z + (part - bone_end) / (cartilage_end - bone_end) * 14 * (k - 4)
                cartilages.append(Lines(_on_cage(part, z, side), 4.4))
    return bones, cartilages


def clavicles() -> list[Lines]:
    """Collar bones, raised with the arms."""
    line = np.array(((20, 52, 52), (42, 54, 62), (70, 46, 76), (104, 26, 92), (150, 10, 108)))
    return [Lines(line.astype(float) * (side, 1, 1), 5.5) for side in (-1, 1)]


class Spine(NamedTuple):
    """Negative inside, mm: all bone (bodies and arches), the discs, the canal."""

    bone: Array
    disc: Array
    canal: Array


def spine(x: Array, y: Array, z: Array) -> Spine:
    """Vertebrae with body, arch, transverse and spinous process; discs; the spinal canal."""
    number = np.interp(-z, -DISCS, np.arange(len(DISCS)))
    phase = (number - np.floor(number)).astype(np.float32)
    height = np.interp(-z, -0.5 * (DISCS[1:] + DISCS[:-1]), -np.diff(DISCS)).astype(np.float32)
    size = np.interp(z, (-260, -150, 0, 90, 150), (1.3, 1.15, 1.0, 0.92, 0.8)).astype(np.float32)
    across, forward = x / size, (y - SPINE_Y(z)) / size
    # Bodies are waisted and stop at the discs, which take a sixth of the height.
    waist = 1 - 0.10 * np.sin(np.pi * phase)
    body = (np.sqrt((across / 17) ** 2 + (forward / 14.5) ** 2) - waist) * 15
    end = (np.abs(phase - 0.5) - 0.42) * height
    canal_y = forward + 23
    canal = np.sqrt((across / 9.5) ** 2 + (canal_y / 7.5) ** 2) * 8.5 - 8.5
    level = (phase - 0.42) * height  # mm below the arch's middle
    ring = np.maximum(canal - 4.5, np.abs(level) - 7.5)
    process = np.maximum(
        np.abs(np.abs(across) - 19) - 15,
        np.sqrt((forward + 24 + 0.22 * np.abs(across)) ** 2 + (level + 2) ** 2) - 4.2,
    )
    lean = level - 3 + 0.85 * (forward + 36)
    spinous = np.maximum.reduce([np.abs(across) - 2.8, np.abs(forward + 40) - 11, np.abs(lean) - 5.5])
    bone = np.minimum.reduce([np.maximum(body, end), ring, process, spinous]) * size
    bone = np.maximum(bone, -canal * size)
    disc = np.maximum(body - 0.3, -end) * size
    canal = canal * size
    return Spine(bone.astype(np.float32), disc.astype(np.float32), canal.astype(np.float32))


STERNUM_HALF = profile((-112, 4), (-98, 9), (-86, 16), (-40, 18), (0, 15), (12, 18), (50, 31))


def sternum(x: Array, y: Array, z: Array) -> Array:
    """Manubrium, body and xiphoid: a plate on the cage's front."""
    middle = CAGE_FRONT(z) + 7
    half = STERNUM_HALF(z)
    plate = ((np.abs(x) / half) ** 4 + ((y - middle) / 6) ** 2) ** np.float32(0.4) * 6 - 6
    return np.maximum(plate, np.maximum(z - 54, -112 - z)).astype(np.float32)


def shoulder_blades(x: Array, y: Array, z: Array, cage: Array) -> Array:
    """Thin triangles that glide on the ribs; `cage`: distance outside the rib cage."""
    side = np.abs(x)
    medial = 66 + np.maximum(-z - 10, 0) * np.float32(0.25)
    lateral = 142 + np.minimum(z - 40, 0) * np.float32(0.45)
    plate = np.abs(cage - 18 - 0.12 * (side - 80)) - 2.6
    edge = np.maximum.reduce([medial - side, side - lateral, z - 74, -75 - z, y + 14])
    spine_of = np.maximum(np.abs(z - 40) - 4, np.maximum.reduce([np.abs(cage - 26) - 7, edge, y + 50]))
    return np.asarray(np.minimum(np.maximum(plate, edge), spine_of), np.float32)
