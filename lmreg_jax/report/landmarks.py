"""The picture of a scan's landmarks (PNG): the airway tree from the front and the side, planes at points.

Radiological convention, as in `planes`: the patient's right is on the left. Positions in mm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.anatomy.airways import Tree
from lmreg_jax.anatomy.landmarks import ACCEPTED, Landmark, Landmarks
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.report.planes import ENDS, PLANES, save

Array = NDArray[Any]

HALF_MM, STEP_MM = 32.0, 0.5  # of the planes at a point
WINDOW_HU = (-1050.0, 250.0)
SURE, UNSURE = "#56b4e9", "#e69f00"
NEAR_MM = 4.0  # other points that a plane shows as well
TREE_STEP_MM = 1.25
SHORT = {"_lobe_bronchus": "", "trachea_": "trachea ", "_": " "}


def landmark_figure(path: str | Path, volume: Volume, found: Landmarks, title: str) -> Path:
    """Writes the PNG: two depth projections of the airways with all points, and a line of planes a point."""
    shown = [p for p in found.points if p.point is not None]
    lines = max(len(shown), 1)
    figure = Figure(figsize=(17.0, max(1.75 * ((lines + 1) // 2), 7.0) + 1.0), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.0, 1.35))
    left, right = halves
    for axes, axis in zip(left.subplots(1, 2), (PLANES["coronal"], PLANES["sagittal"]), strict=True):
        _projection(axes, axis, found.airways, shown)
    if shown:
        grid = right.subplots((lines + 1) // 2, 6, squeeze=False)
        for axes in grid.ravel():
            axes.axis("off")
        for k, point in enumerate(shown):
            line, column = k % grid.shape[0], 3 * (k // grid.shape[0])
            for axes, (name, axis) in zip(grid[line, column : column + 3], PLANES.items(), strict=True):
                _plane(axes, volume, point, axis, shown)
                if axis == 1:
                    axes.set_title(f"{short(point.name)}  {point.confidence:.2f}", fontsize=8)
                if line == 0:
                    axes.text(
                        0.5, 0.02, name, transform=axes.transAxes, fontsize=6, color="lime", ha="center"
                    )
    missing = [f"{short(p.name)}: {p.reason}" for p in found.points if p.point is None]
    text = [title, *found.notes, *(["not found: " + "; ".join(missing)] if missing else [])]
    figure.suptitle("\n".join(text), fontsize=9, parse_math=False)
    return save(figure, path)


def short(name: str) -> str:
    """A name for a narrow place."""
    for long, brief in SHORT.items():
        name = name.replace(long, brief)
    return name


def _projection(axes: Axes, axis: int, tree: Tree | None, points: list[Landmark]) -> None:
    """The airways' surface towards the viewer, the nearer the brighter, and the points with their names."""
    across, up = (a for a in range(3) if a != axis)
    if tree is not None:
        places = np.concatenate(tree.places)
        low = places.min(0) - 2 * TREE_STEP_MM
        index = np.rint((places - low) / TREE_STEP_MM).astype(int)
        size = index.max(0) + 3
        nearest = np.full((size[across], size[up]), np.nan)
        towards = places[:, axis] * (1 if axis == 1 else -1)  # from the front; from the patient's left
        order = np.argsort(towards)
        nearest[index[order, across], index[order, up]] = towards[order]
        high = low + TREE_STEP_MM * (size - 1)
        extent = (float(low[across]), float(high[across]), float(low[up]), float(high[up]))
        axes.imshow(nearest.T, origin="lower", extent=extent, cmap="bone", interpolation="nearest")
    for p in points:
        if p.point is None:
            continue
        colour = SURE if p.confidence >= ACCEPTED else UNSURE
        axes.plot(p.point[across], p.point[up], "o", color=colour, markersize=5, markeredgecolor="black")
        axes.annotate(
            short(p.name),
            (p.point[across], p.point[up]),
            fontsize=7,
            xytext=(4, 3),
            textcoords="offset points",
            color="black",
            annotation_clip=True,
        )
    axes.set_aspect("equal")
    axes.margins(0.12)
    axes.autoscale_view()
    axes.invert_xaxis()  # as if facing the patient; the sagittal one faces left
    axes.set_xlabel(f"{'xyz'[across]} (mm), {ENDS[across][0]} at the left", fontsize=8)
    axes.set_ylabel("z (mm)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.set_facecolor("#dddddd")


def _plane(axes: Axes, volume: Volume, point: Landmark, axis: int, others: list[Landmark]) -> None:
    """The scan around a point in the plane normal to `axis`, the point as a cross, near ones as dots."""
    across, up = (a for a in range(3) if a != axis)
    steps = np.arange(-HALF_MM, HALF_MM + 0.1, STEP_MM)
    places = np.zeros((len(steps), len(steps), 3))
    places[..., across], places[..., up] = np.meshgrid(steps, steps, indexing="ij")
    index = np.moveaxis(apply_affine(np.linalg.inv(volume.affine), places + np.asarray(point.point)), -1, 0)
    low = np.maximum(np.floor(index.min((1, 2))).astype(int) - 1, 0)
    high = np.ceil(index.max((1, 2))).astype(int) + 2
    part = volume.data[tuple(slice(a, max(b, a)) for a, b in zip(low, high, strict=True))]
    picture = np.full(index.shape[1:], -1000.0)
    if part.size:
        shifted = index - low[:, None, None]
        picture = ndimage.map_coordinates(part.astype(np.float32), shifted, order=1, cval=-1000.0)
    end = HALF_MM + STEP_MM / 2
    axes.axis("on")
    axes.imshow(
        picture.T,
        origin="lower",
        extent=(-end, end, -end, end),
        cmap="gray",
        vmin=WINDOW_HU[0],
        vmax=WINDOW_HU[1],
    )
    for other in others:
        if other.point is None or point.point is None:
            continue
        offset = other.point - point.point
        if abs(offset[axis]) < NEAR_MM and other is not point:
            axes.plot(offset[across], offset[up], ".", color=UNSURE, markersize=3)
    axes.plot(0, 0, "+", color="red", markersize=9, markeredgewidth=0.8)
    axes.set(xlim=(end, -end), ylim=(-end, end), xticks=[], yticks=[])
