"""One subject of the embedded cohort: image, labels, landmarks and further corresponding points."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.errors import InputError
from lmreg_jax.phantom import organs
from lmreg_jax.phantom.compose import Trees, render, trees_of
from lmreg_jax.phantom.raster import Grid
from lmreg_jax.phantom.subject import Subject, push, stream, subject
from lmreg_jax.phantom.trees import AIRWAY_GENERATIONS, Points, Tree

VERSION = 4
LANDMARKS = (
    "carina",
    "left_upper_lobe_bronchus",
    "right_upper_lobe_bronchus",
    "right_middle_lobe_bronchus",
    "pulmonary_trunk",
    "left_pulmonary_artery",
    "right_pulmonary_artery",
    "trachea_1",
    "trachea_2",
    "trachea_3",
    "trachea_4",
)
FIELD_MM = np.array((320.0, 224.0, 416.0))  # the paper's crop; the lungs are kept inside it
NOISE_HU = 16.0  # standard deviation at 2 mm; averaging larger voxels lowers it


class Thorax(NamedTuple):
    """A subject. image: int16 HU [X, Y, Z], RAS+; lungs 1 left, 2 right; lobes 1 to 5.

    affine [4, 4]: voxel -> RAS mm. landmarks (the paper's 11) and points (further branchings of
    airways, arteries and veins): name -> RAS mm [3]; the same names in every subject.
    """

    image: NDArray[np.int16]
    lungs: NDArray[np.uint8]
    lobes: NDArray[np.uint8]
    affine: NDArray[np.float64]
    landmarks: dict[str, NDArray[np.float64]]
    points: dict[str, NDArray[np.float64]]


@functools.cache
def _lung_surface() -> Points:
    """Points of the template's lungs near their surface, whose box is the lungs' box."""
    axes = [np.arange(low, high, 4.0) for low, high in ((-150, 150), (-115, 115), (-230, 124))]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = organs.lungs(organs.chest(*(c.astype(np.float32) for c in (x, y, z)))) < 0
    inside ^= ndimage.binary_erosion(inside)
    return np.stack([x[inside], y[inside], z[inside]], -1)


def places(who: Subject, index: int, seed: int) -> tuple[Points, Points]:
    """The field of view's centre (subject mm), and the RAS mm of the subject's origin."""
    surface = push(who, _lung_surface())
    low, high = surface.min(0), surface.max(0)
    random = stream(seed, index, 3)
    room = np.maximum((FIELD_MM - (high - low)) / 2 - 4, 0)  # 4 mm between the lungs and the edge
    table = np.clip(random.uniform(-10, 10, 3), -room, room)
    centre = (low + high) / 2 + table
    return centre, random.uniform(-6, 6, 3) - centre


def _branchings(tree: Tree, kind: str, orders: range) -> dict[str, int]:
    """Names of the tree's branchings (branches of these orders that have children)."""
    parents = set(tree.parent.tolist())
    return {
        f"{kind}_{name}": i for i, name in enumerate(tree.names) if tree.order[i] in orders and i in parents
    }


def _annotate(who: Subject, trees: Trees) -> tuple[dict[str, Points], dict[str, Points]]:
    """Landmarks and further points in subject mm."""
    air = {name: i for i, name in enumerate(trees.airways.names)}
    artery = {name: i for i, name in enumerate(trees.arteries.names)}
    marks = [trees.airways.end[air[n]] if n in air else trees.arteries.end[artery[n]] for n in LANDMARKS]
    names, further = [], []
    for tree, kind, orders in (
        (trees.airways, "airway", range(-1, AIRWAY_GENERATIONS - 1)),
        (trees.arteries, "artery", range(-1, 2)),
        (trees.veins, "vein", range(-1, 5)),
    ):
        for name, i in _branchings(tree, kind, orders).items():
            if name.split("_", 1)[1] not in LANDMARKS:
                names.append(name)
                further.append(tree.end[i])
    moved = push(who, np.array(marks + further))
    return (
        dict(zip(LANDMARKS, moved[: len(marks)], strict=True)),
        dict(zip(names, moved[len(marks) :], strict=True)),
    )


def thorax(
    index: int,
    *,
    seed: int = 0,
    shape: tuple[int, int, int] = (160, 112, 208),
    spacing_mm: float = 2.0,
) -> Thorax:
    """Subject `index` of the cohort `seed` on a grid of `shape` voxels of `spacing_mm`.

    The anatomy (all points in mm) follows from (seed, index) alone, never from the grid.
    Raises InputError for a grid that is no grid.
    """
    if len(shape) != 3 or min(shape) < 2 or not 0.5 <= spacing_mm <= 20:
        raise InputError(
            f"a phantom of shape {tuple(shape)} at {spacing_mm} mm: needs three sizes of at least "
            "2 voxels and a spacing between 0.5 and 20 mm"
        )
    who = subject(index, seed)
    trees = trees_of(who, index, seed)
    centre, origin = places(who, index, seed)
    low = centre - spacing_mm * (np.array(shape) - 1) / 2
    sizes = (int(shape[0]), int(shape[1]), int(shape[2]))
    scan = render(who, trees, Grid(low, float(spacing_mm), sizes), index, seed)
    image = scan.image + _noise(sizes, float(spacing_mm), stream(seed, index, 4))
    affine = np.diag((spacing_mm, spacing_mm, spacing_mm, 1.0))
    affine[:3, 3] = low + origin
    landmarks, points = _annotate(who, trees)
    return Thorax(
        np.clip(np.rint(image), -1024, 3071).astype(np.int16),
        scan.lungs,
        scan.lobes,
        affine,
        {name: place + origin for name, place in landmarks.items()},
        {name: place + origin for name, place in points.items()},
    )


def _noise(shape: tuple[int, int, int], spacing: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Quantum noise as a scanner's smooth kernel leaves it: correlated over about 2 mm."""
    noise = random.standard_normal(shape, dtype=np.float32)
    if spacing < 3:
        noise = ndimage.gaussian_filter(noise, 0.9 / spacing, mode="wrap", truncate=3)
    level = NOISE_HU * min(1.0, (2 / spacing) ** 1.0)
    return noise * np.float32(level / noise.std())
