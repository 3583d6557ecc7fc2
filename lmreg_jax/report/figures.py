"""Pictures of a registration (PNG): what moved where, how far, and whether it fits afterwards.

Arrays, points and conventions as in `planes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from lmreg_jax.evaluation import metrics
from lmreg_jax.imaging.transforms import jacobian_determinant
from lmreg_jax.report.planes import (
    AFTER,
    BEFORE,
    MATCH,
    Array,
    Spacing,
    View,
    arrows,
    colour_bar,
    cut,
    outline,
    planes_figure,
    save,
    show,
    upright,
    view_of,
)

if TYPE_CHECKING:
    from lmreg_jax.evaluation.metrics import PairResult

NEAR_MM = 8.0  # a point this close to a plane is drawn on it
GRID_MM = 10.0  # distance between lines of the deformed grid
MOST_LANDMARKS = 40  # rows that a page holds


def pair(
    stem: str | Path,
    *,
    fixed: Array,
    moving: Array,
    warped: Array,
    displacement: Array,
    spacing_mm: Spacing,
    fixed_points: Array,
    moving_points: Array,
    names: Sequence[str],
    title: str = "",
) -> list[Path]:
    """`overview`, `field` and, of known ones, `landmarks`, as STEM_overview.png and so on."""
    points = fixed_points, moving_points
    where = cut(fixed.shape, fixed_points)
    a, b, c = (Path(f"{stem}_{kind}.png") for kind in ("overview", "field", "landmarks"))
    files = [
        overview(a, fixed, moving, warped, spacing_mm, *points, where=where, title=title),
        field(b, displacement, fixed, spacing_mm, moving=moving, where=where, title=title),
    ]
    if np.isfinite(fixed_points + moving_points).all(axis=1).any():
        landmarks(c, moving, displacement, spacing_mm, *points, names, title=title)
        files.append(c)
    return files


def overview(
    path: str | Path,
    fixed: Array,
    moving: Array,
    warped: Array,
    spacing_mm: Spacing,
    fixed_points: Array | None = None,
    moving_points: Array | None = None,
    *,
    where: tuple[int, int, int] | None = None,
    title: str = "",
) -> Path:
    """Three planes of fixed, moving and warped image, and red-cyan overlays before and after.

    Images in [0, 1]. Where the overlaid images agree the picture is grey; red is brighter in the
    fixed image only, cyan in the other only. Points within NEAR_MM of a plane are drawn on it.
    """
    heads = [
        *("fixed", "moving", "moving warped onto fixed"),
        f"before: mean |difference| {np.abs(fixed - moving).mean():.3f}",
        f"after: mean |difference| {np.abs(fixed - warped).mean():.3f}",
    ]
    figure, lines = planes_figure(fixed.shape, spacing_mm, where, heads, title)
    for view, line in lines:
        f, m, w = (np.clip(view.picture(volume), 0, 1) for volume in (fixed, moving, warped))
        pictures = [f, m, w, np.stack([f, m, m], -1), np.stack([f, w, w], -1)]
        for axes, picture in zip(line, pictures, strict=True):
            show(axes, view, picture)
        _near_points(line[0], view, fixed_points, BEFORE)
        _near_points(line[1], view, moving_points, MATCH)
        _near_points(line[2], view, fixed_points, BEFORE)
    note = "overlays: grey where the images agree, red where fixed is brighter, cyan where the other"
    if fixed_points is not None and np.isfinite(fixed_points).any():
        note += f"; circles: landmarks within {NEAR_MM:g} mm of the plane, of fixed and of moving"
    figure.supxlabel(note, fontsize=9)
    return save(figure, path)


def field(
    path: str | Path,
    displacement: Array,
    fixed: Array,
    spacing_mm: Spacing,
    *,
    moving: Array | None = None,
    where: tuple[int, int, int] | None = None,
    title: str = "",
) -> Path:
    """Three planes of |u| in mm with arrows, of the grid id + u, and of the Jacobian determinant.

    The deformed grid lies over the moving image (without one, the fixed), which u points into.
    """
    length = np.linalg.norm(displacement * np.asarray(spacing_mm), axis=-1)
    determinant = jacobian_determinant(displacement)
    top = max(float(np.percentile(length, 99)), 1e-3)
    heads = [
        f"displacement: mean {length.mean():.1f} mm, largest {length.max():.1f} mm",
        f"the fixed image's {GRID_MM:g} mm grid carried into moving",
        f"Jacobian determinant; folded (yellow) {metrics.folding_percent(determinant):.3g} %",
    ]
    figure, lines = planes_figure(fixed.shape, spacing_mm, where, heads, title)
    for view, (far, grid, volume) in lines:
        f = view.picture(fixed)
        # Colour times brightness: unlike transparency it keeps the hue that the bar explains.
        colour = colormaps["turbo"](np.clip(view.picture(length) / top, 0, 1))[..., :3]
        show(far, view, colour * (0.5 + 0.5 * np.clip(f, 0, 1))[..., None])
        arrows(far, view, displacement)
        show(grid, view, f if moving is None else view.picture(moving), vmax=1.3)
        _deformed_grid(grid, view, displacement)
        det = np.ma.masked_less_equal(view.picture(determinant), 0)
        show(volume, view, det, cmap="RdBu_r", norm=LogNorm(0.25, 4))
        volume.set_facecolor("yellow")
        outline(volume, view, f)
    columns = list(zip(*(line for _, line in lines), strict=True))
    colour_bar(figure, columns[0], "turbo", Normalize(0, top), "displacement, mm")
    bar = colour_bar(figure, columns[2], "RdBu_r", LogNorm(0.25, 4), "volume in moving / volume in fixed")
    bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["1/4", "1/2", "1", "2", "4"])
    bar.minorticks_off()
    note = "an arrow runs from a point of the fixed image to its match in the moving image"
    figure.supxlabel(note, fontsize=9)
    return save(figure, path)


def landmarks(
    path: str | Path,
    moving: Array,
    displacement: Array,
    spacing_mm: Spacing,
    fixed_points: Array,
    moving_points: Array,
    names: Sequence[str],
    *,
    title: str = "",
) -> Path:
    """Landmarks on radiographs (mean projections) of the moving image, and each one's error.

    x: the expert's point in the moving image; o: the fixed image's point before (p) and after
    registration (p + u(p)). The line between the two is the error. Missing landmarks are left out, and of
    more than MOST_LANDMARKS those with the largest errors after registration are shown; means are of all.
    """
    points = fixed_points, moving_points
    before, after = (metrics.target_registration_error(u, *points, spacing_mm) for u in (None, displacement))
    (known,) = np.nonzero(~np.isnan(after))
    shown = np.sort(known[np.argsort(-after[known], kind="stable")[:MOST_LANDMARKS]])
    p, q, kept = fixed_points[shown], moving_points[shown], [names[i] for i in shown]
    carried = p + metrics.sample_displacement(displacement, p)
    figure = Figure(figsize=(13, max(8.5, 0.25 * len(p) + 1)), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(8, 5))
    pictures, chart = parts
    for axis, line in zip((1, 0), pictures.subplots(2, 2), strict=True):
        view = view_of(moving.shape, spacing_mm, axis)
        seen = np.concatenate([view.at(points) for points in (p, carried, q)])
        for axes, start, colour in zip(line, (p, carried), (BEFORE, AFTER), strict=True):
            show(axes, view, _radiograph(view, moving), interpolation="bilinear")
            _errors(axes, view.at(start), view.at(q), colour)
            _zoom(axes, view, seen)
            if axis == 1:
                errors, head = (before, "before") if colour == BEFORE else (after, "after")
                mean = f": mean error {errors[known].mean():.2f} mm" if len(p) else ""
                axes.set_title(head + mean, fontsize=9, parse_math=False)
    _dumbbells(
        chart.subplots(), [f"{name}  {i}" for i, name in enumerate(kept, 1)], before[shown], after[shown]
    )
    figure.suptitle(title, fontsize=11, parse_math=False)
    note = "x: landmark in the moving image; o: the fixed image's landmark, before and carried over"
    if len(shown) < len(known):
        note += f"; the {len(shown)} largest errors of {len(known)}"
    figure.supxlabel(note, fontsize=9)
    return save(figure, path)


def tre_plot(path: str | Path, results: Sequence[PairResult]) -> Path:
    """Errors (dots) and their means (joined) before and after: a row a pair, and All."""
    kinds = {"training landmarks": ("tre_initial_mm", "tre_mm")}
    if any(np.isfinite(result.tre_unseen_mm).any() for result in results):
        kinds["unseen points"] = ("tre_unseen_initial_mm", "tre_unseen_mm")
    height = min(1.6 + 0.34 * (len(results) + 1), 60)
    figure = Figure(figsize=(1.5 + 5 * len(kinds), height), layout="constrained")
    columns = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, (kind, fields) in zip(columns, kinds.items(), strict=True):
        before, after = ([getattr(result, name) for result in results] for name in fields)
        rows = [[*values, np.hstack([[], *values])] for values in (before, after)]
        names = [*(result.name for result in results), "All"]
        _dumbbells(axes, names, *([metrics.Summary.of(v).mean for v in side] for side in rows))
        for side, colour, offset in zip(rows, (BEFORE, AFTER), (-0.14, 0.14), strict=True):
            for y, values in enumerate(side[:-1]):
                axes.plot(values, np.full(len(values), y + offset), ".", color=colour, alpha=0.6, zorder=1)
        axes.axhline(len(results) - 0.5, color="black", linewidth=0.8)
        axes.set_title(kind, fontsize=10, loc="left")
    return save(figure, path)


def _near_points(axes: Axes, view: View, points: Array | None, colour: str) -> None:
    if points is None:
        return
    distance = np.abs(points[:, view.axis] - view.position) * view.spacing_mm[view.axis]
    near = view.at(points[distance <= NEAR_MM])
    axes.plot(*near.T, "o", color=colour, markersize=6, fillstyle="none", markeredgewidth=1.2)


def _deformed_grid(axes: Axes, view: View, displacement: Array) -> None:
    carried = view.carried(displacement)
    steps = [max(1, round(GRID_MM / view.spacing_mm[axis])) for axis in view.kept]
    for lines in (carried[:: steps[0]], carried[:, :: steps[1]].swapaxes(0, 1)):
        for line in lines:
            axes.plot(*line.T, color="#7fffd4", linewidth=0.6)


def _radiograph(view: View, volume: Array) -> Array:
    """The mean along the view's axis, stretched to [0, 1]: what a chest film shows."""
    film = upright(volume.mean(axis=view.axis, dtype=np.float64))
    low, high = np.percentile(film, (1, 99.5))
    return np.clip((film - low) / max(high - low, 1e-9), 0, 1)


def _errors(axes: Axes, start: Array, match: Array, colour: str) -> None:
    """Numbered lines from each carried landmark (o) to its match (x), picture positions [K, 2]."""
    for number, ((x0, y0), (x1, y1)) in enumerate(zip(start, match, strict=True), 1):
        axes.plot([x0, x1], [y0, y1], color="white", linewidth=1.2)
        axes.annotate(str(number), (x1, y1), (4, 3), textcoords="offset points", color=MATCH, fontsize=8)
    axes.plot(*match.T, "x", color=MATCH, markersize=6, markeredgewidth=1.5)
    axes.plot(*start.T, "o", color=colour, markersize=7, fillstyle="none", markeredgewidth=1.5)


def _zoom(axes: Axes, view: View, seen: Array) -> None:
    """Shows the part of the picture around `seen` [K, 2], with its surroundings."""
    if not len(seen):
        return
    low, high = seen.min(axis=0), seen.max(axis=0)
    half = max(float((high - low).max()) / 2 + 25, 60)
    x, y = (low + high) / 2
    axes.set(xlim=(x - half, x + half), ylim=(y + half, y - half), facecolor="black")


def _dumbbells(axes: Axes, names: Sequence[str], before: Any, after: Any) -> None:
    """A row for each name, from the value before to the value after, in mm."""
    rows = np.arange(len(names))
    axes.hlines(rows, before, after, color="0.6", linewidth=1.5, zorder=2)
    for values, colour, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
        axes.plot(values, rows, "o", color=colour, markeredgecolor="black", label=label, zorder=3)
    axes.set_yticks(rows, [*names], fontsize=8, parse_math=False)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.set_xlabel("target registration error, mm", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    axes.autoscale(axis="x")
    axes.update_datalim([(0, 0)])  # so that lengths can be compared: the axis starts at 0
