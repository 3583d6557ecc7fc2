"""What differs between subjects: a diffeomorphism of the template, the trees' angles, the tissue.

A subject's place is `build @ flow(p) + shift` for the template's place p: the flow integrates a
stationary velocity (anatomical modes plus a smooth random field), the build is a matrix near 1.
All of it follows from (seed, index), never from an image grid.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.phantom.trees import CENTRAL, Points, Tree

LATTICE_MM = 20.0
LATTICE_LOW = np.array((-240.0, -200.0, -340.0))
LATTICE_SHAPE = (25, 21, 31)
LATTICE_HIGH = LATTICE_LOW + LATTICE_MM * (np.array(LATTICE_SHAPE) - 1)
FLOW_STEPS = 4
RANDOM_RMS_MM = 4.6  # length of the random velocity, root mean square
RANDOM_WIDTH_MM = 36.0  # of its Gaussian kernel; the field's correlation falls to 1/e at twice this


class Subject(NamedTuple):
    """A subject's anatomy and tissue; see `subject` for the meaning and spread of each number."""

    velocity: NDArray[np.float64]  # [3, *LATTICE_SHAPE] spline coefficients, mm
    build: NDArray[np.float64]  # [3, 3]
    calibre: float  # of airways and vessels, relative
    angles: float  # radians, standard deviation of a branch's turn
    fat_mm: float
    breast_mm: float
    muscle: float  # thickness of the outer muscles, relative
    lung_hu: float
    gravity_hu: float  # difference of lung density, back minus front
    blood_hu: float
    gas_level: float  # height of the stomach's gas, mm


class Mode(NamedTuple):
    """A velocity `amount * direction(p) * exp(-|(p - centre) / width|^2 / 2)`, mm."""

    centre: tuple[float, float, float]
    width: tuple[float, float, float]
    amount_mm: float  # standard deviation over subjects
    direction: str  # "x", "y", "z"; "swell": away from the centre; "widen": away from x = 0


MODES: dict[str, Mode] = {
    "carina_height": Mode((0, 5, -5), (60, 60, 60), 4.1, "z"),
    "mediastinal_shift": Mode((0, 15, -40), (55, 70, 90), 2.3, "x"),
    "hilar_depth": Mode((0, 0, -10), (80, 55, 60), 2.5, "y"),
    "right_dome": Mode((72, 10, -125), (50, 70, 50), 4.6, "z"),
    "left_dome": Mode((-74, 10, -130), (50, 70, 50), 4.6, "z"),
    "heart_size": Mode((-20, 35, -82), (55, 50, 50), 3.5, "swell"),
    "kyphosis": Mode((0, -60, -20), (150, 90, 80), 3.0, "y"),
    "barrel": Mode((0, 0, -20), (400, 120, 60), 2.5, "widen"),
    "apex_height": Mode((0, -10, 95), (120, 90, 45), 3.0, "z"),
    "trunk_height": Mode((-16, 22, -14), (34, 34, 34), 2.0, "z"),
    "left_hilum": Mode((-42, -6, -16), (34, 40, 36), 1.8, "z"),
    "right_hilum": Mode((30, -4, -32), (34, 40, 36), 1.8, "z"),
    "right_hilum_out": Mode((30, -4, -32), (36, 40, 40), 1.6, "x"),
    "left_hilum_out": Mode((-42, -6, -16), (36, 40, 40), 1.6, "x"),
}


def stream(seed: int, index: int, purpose: int) -> np.random.Generator:
    """The random stream of one subject for one purpose, independent of all others."""
    return np.random.default_rng([seed, index, purpose])


def _truncated(random: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Standard normal numbers, those beyond 2 set to 2: no grotesque subject."""
    return np.clip(random.standard_normal(size), -2.0, 2.0)


def _velocity(random: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Spline coefficients [3, ...] of the velocity and the modes' amounts (standard units)."""
    axes = [low + LATTICE_MM * np.arange(n) for low, n in zip(LATTICE_LOW, LATTICE_SHAPE, strict=True)]
    place = np.stack(np.meshgrid(*axes, indexing="ij"))
    amounts = _truncated(random, len(MODES))
    velocity = np.zeros_like(place)
    for amount, mode in zip(amounts, MODES.values(), strict=True):
        offset = place - np.reshape(mode.centre, (3, 1, 1, 1))
        scaled = offset / np.reshape(mode.width, (3, 1, 1, 1))
        weight = amount * mode.amount_mm * np.exp(-0.5 * (scaled**2).sum(0))
        if mode.direction == "swell":
            velocity += weight * offset / 50.0
        elif mode.direction == "widen":
            velocity[0] += weight * place[0] / 100.0
        else:
            velocity["xyz".index(mode.direction)] += weight
    noise = random.standard_normal(place.shape)
    noise = np.stack([ndimage.gaussian_filter(n, RANDOM_WIDTH_MM / LATTICE_MM, mode="wrap") for n in noise])
    noise *= RANDOM_RMS_MM / np.sqrt((noise**2).sum(0).mean())
    noise[0] *= 1 - 0.6 * _midline(place)  # a straight spine and sternum: no scoliosis
    velocity += noise
    return np.stack([ndimage.spline_filter(v, order=3, mode="nearest") for v in velocity]), amounts


def _midline(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 along the spine, falling to 0 over 40 mm: where sideways variation is held back."""
    return np.exp(-0.5 * ((place[0] / 40) ** 2 + ((place[1] + 55) / 40) ** 2))


def subject(index: int, seed: int) -> Subject:
    """Draws the subject `index` of the cohort `seed`."""
    random = stream(seed, index, 0)
    velocity, amounts = _velocity(random)
    spread = np.array((0.034, 0.025, 0.03, 0.035))
    size, width, depth, height = (1.015, 1, 1, 1) + spread * _truncated(random, 4)
    scale = size * np.array((width, depth, height))
    scale = np.minimum(scale, (1.08, 1.07, 1.12))
    shear = 0.02 * _truncated(random, 3)
    build = np.diag(scale) + np.array(
        ((0, shear[0], 0.5 * shear[1]), (-shear[0], 0, shear[2]), (-0.5 * shear[1], -shear[2], 0))
    )
    draw = _truncated(random, 9)
    names = list(MODES)
    depth_of_breath = -0.5 * sum(amounts[names.index(f"{s}_dome")] for s in ("right", "left"))
    return Subject(
        velocity=velocity,
        build=build,
        calibre=float(1 + 0.05 * draw[0]),
        angles=0.11,
        fat_mm=float(np.exp(2.7 + 0.35 * draw[1])),
        breast_mm=float(np.maximum(0, 14 + 14 * draw[2])) if draw[2] > -0.3 else 0.0,
        muscle=float(1 + 0.15 * draw[8]),
        lung_hu=float(np.clip(-842 - 16 * depth_of_breath + 18 * draw[3], -885, -785)),
        gravity_hu=float(55 + 15 * draw[4]),
        blood_hu=float(42 + 3 * draw[5] + (90 + 15 * draw[6]) * (draw[6] > 0.6)),
        gas_level=float(18 + 8 * draw[7]),
    )


def flow(who: Subject, points: Points, *, inverse: bool = False) -> Points:
    """Follows the velocity from points [N, 3] (template mm) for a unit time; midpoint rule."""
    step = (-1.0 if inverse else 1.0) / FLOW_STEPS

    def velocity(at: Points) -> Points:
        where = ((at - LATTICE_LOW) / LATTICE_MM).T
        return np.stack(
            [
                ndimage.map_coordinates(v, where, order=3, mode="nearest", prefilter=False)
                for v in who.velocity
            ],
            -1,
        )

    for _ in range(FLOW_STEPS):
        points = points + step * velocity(points + 0.5 * step * velocity(points))
    return points


def push(who: Subject, points: Points) -> Points:
    """Template -> subject, mm, [N, 3]."""
    return flow(who, np.asarray(points, float)) @ who.build.T


def pull(who: Subject, points: Points) -> Points:
    """Subject -> template, mm, [N, 3]; the inverse of `push` up to the flow's step error."""
    return flow(who, np.asarray(points, float) @ np.linalg.inv(who.build).T, inverse=True)


def vary(tree: Tree, random: np.random.Generator, angle: float) -> Tree:
    """The tree with every branch turned by about `angle` rad and 10 % longer or shorter.

    The trachea stays (only the flow moves it) and the named bronchi vary half as much.
    A child starts where its parent now ends but keeps its own direction, so that the changes add up
    like a random walk (1-2 mm at the lobar bronchi, some 4 mm at the periphery).
    """
    free = np.select([tree.order <= CENTRAL, tree.order < 0], [0.0, 0.5], 1.0)
    turns = angle * np.clip(random.standard_normal((len(tree.parent), 3)), -2, 2) * free[:, None]
    lengths = np.exp(0.10 * free * np.clip(random.standard_normal(len(tree.parent)), -2, 2))
    along = tree.end - tree.start
    along = lengths[:, None] * (along + np.cross(turns, along))
    start, end = tree.start.copy(), tree.end.copy()
    for i, parent in enumerate(tree.parent):
        if parent >= 0:
            start[i] = end[parent]
            end[i] = start[i] + along[i]
            if tree.order[i] > 0:  # a spring back to the template keeps the tips inside the lobe
                end[i] += 0.25 * (tree.end[i] - end[i])
    return tree._replace(start=start, end=end)


def vary_arteries(arteries: Tree, airways: Tree, varied: Tree, random: np.random.Generator) -> Tree:
    """Arteries beside the subject's bronchi; the named central ones move a little on their own."""
    bronchus = {name: i for i, name in enumerate(airways.names)}
    start, end = arteries.start.copy(), arteries.end.copy()
    own = 1.2 * np.clip(random.standard_normal(end.shape), -2, 2)
    for i, name in enumerate(arteries.names):
        if name in bronchus:
            j = bronchus[name]
            end[i] += varied.end[j] - airways.end[j] + 0.2 * own[i]
        else:
            end[i] += own[i]
        if arteries.parent[i] >= 0:
            start[i] = end[arteries.parent[i]]
    return arteries._replace(start=start, end=end)
