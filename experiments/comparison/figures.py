"""Figures of a comparison: errors by pair, against the initial distance, by landmark, and overlays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.comparison.methods import TITLES
from experiments.comparison.report import Results, by_landmark, values
from experiments.comparison.stats import bootstrap
from lmreg_jax.cohort.cohort import Cohort
from lmreg_jax.io.tables import replacing
from lmreg_jax.report.planes import PLANES, View, cut

Array = NDArray[Any]

COLOURS = {  # Okabe and Ito: told apart by colour-blind eyes too
    "before": "#cccccc",
    "affine": "#888888",
    "elastix": "#e69f00",
    "ants": "#009e73",
    "voxelmorph": "#56b4e9",
    "ours": "#d55e00",
    "voxelmorph_refined": "#0072b2",
    "refined": "#cc79a7",
}
BINS = 6  # of initial distance, equally many landmarks in each


def boxes(path: Path, results: Results) -> Path:
    """A box a method over the pairs' mean errors, each pair a line across the methods."""
    columns = {"tre_mm": "landmarks", "tre_unseen_mm": "unseen points", "dice": "lungs"}
    figure = Figure(figsize=(1.6 + 1.1 * len(results) * 2, 4.6), layout="constrained")
    shown = [c for c in columns if any(np.isfinite(values(r, c)).any() for r in results.values())]
    for axes, column in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        drawn = [name for name in results if name != "before"]  # its scale would flatten all others
        table = np.array([values(results[name], column) for name in drawn])
        axes.plot(np.arange(len(drawn)), table, color="0.75", linewidth=0.8, marker=".", zorder=1)
        found = axes.boxplot(
            [row[np.isfinite(row)] for row in table],
            positions=np.arange(len(drawn)),
            widths=0.5,
            showfliers=False,
            patch_artist=True,
        )
        for name, box, median in zip(drawn, found["boxes"], found["medians"], strict=True):
            box.set(facecolor=COLOURS[name], alpha=0.55)
            median.set(color="black")
        axes.set_xticks(np.arange(len(drawn)), [TITLES[n].replace(" + ", "\n+ ") for n in drawn])
        axes.tick_params("x", labelsize=8, rotation=30 if len(drawn) > 4 else 0)
        axes.set_ylabel("Dice" if column == "dice" else "mean TRE of a pair, mm")
        axes.set_title(columns[column], loc="left", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
        if column != "dice":
            axes.set_ylim(bottom=0)
    return _save(figure, path)


def against_initial(path: Path, results: Results) -> Path:
    """Error after against error before (affine only), a dot a landmark, and their running mean."""
    drawn = [name for name in results if name not in ("before", "affine")]
    figure = Figure(figsize=(2.9 * max(len(drawn), 1) + 0.4, 3.5), layout="constrained")
    columns: Any = figure.subplots(1, max(len(drawn), 1), sharex=True, sharey=True, squeeze=False)[0]
    for axes, name in zip(columns, drawn, strict=False):
        known = [r.measured for r in results[name] if r.measured]
        before, after = (
            np.hstack([[], *(getattr(m, c) for m in known)]) for c in ("tre_initial_mm", "tre_mm")
        )
        kept = np.isfinite(before + after)
        before, after = before[kept], after[kept]
        axes.plot(before, after, ".", color=COLOURS[name], alpha=0.45)
        order = np.argsort(before)
        groups = [g for g in np.array_split(order, BINS) if len(g) > 2]
        middle = [(before[g].mean(), after[g].mean()) for g in groups]
        axes.plot(*np.array(middle).reshape(-1, 2).T, "o-", color="black", markersize=4)
        axes.axline((0, 0), slope=1, color="0.5", linestyle="--", linewidth=1)
        axes.set_title(f"{TITLES[name]}: {after.mean() if len(after) else np.nan:.2f} mm", fontsize=10)
        axes.set_xlabel("TRE after the affine step, mm")
        axes.grid(alpha=0.3)
    columns[0].set(ylabel="TRE after registration, mm", xlim=(0, None), ylim=(0, None))
    figure.supxlabel("black: means of six equal groups; dashed: no change", fontsize=8)
    return _save(figure, path)


def landmark_bars(path: Path, results: Results, names: Sequence[str]) -> Path:
    """Mean error of each landmark by each method, with bootstrap intervals over the pairs."""
    drawn = [name for name in results if name != "before"]
    figure = Figure(figsize=(max(7.0, 1.15 * len(names) + 1.5), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(drawn), 1)
    for i, method in enumerate(drawn):
        errors = [by_landmark(results[method], k) for k in range(len(names))]
        found = [bootstrap(e[np.isfinite(e)]) for e in errors]
        mean = np.array([f.mean for f in found])
        ends = np.array([(f.mean - f.low, f.high - f.mean) for f in found]).reshape(-1, 2)
        axes.bar(
            np.arange(len(names)) + (i - (len(drawn) - 1) / 2) * width,
            mean,
            width,
            yerr=np.nan_to_num(ends).T,
            color=COLOURS[method],
            error_kw={"elinewidth": 0.7, "ecolor": "0.3"},
            label=TITLES[method],
        )
    labels = [name.replace("_", " ").replace(" bronchus", "\nbronchus") for name in names]
    axes.set_xticks(np.arange(len(names)), labels, fontsize=8, rotation=30, ha="right", parse_math=False)
    axes.set_ylabel("TRE, mm (mean, 95 % interval)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, ncols=len(drawn), loc="upper center", bbox_to_anchor=(0.5, 1.13), frameon=False)
    return _save(figure, path)


def overlays(
    path: Path, cohort: Cohort, names: tuple[str, str], warped: Mapping[str, Array], heads: Mapping[str, str]
) -> Path:
    """Fixed image, then each method's overlay with it: red where fixed is brighter, cyan the other.

    warped: the moving image by each method, [X, Y, Z]; heads: a line more for each title.
    """
    fixed, moving = (cohort.case(name) for name in names)
    where = cut(cohort.shape, fixed.landmarks)
    x, y, z = cohort.spacing_mm
    views = [View(cohort.shape, (x, y, z), axis, where[axis]) for axis in PLANES.values()]
    heights = [view.size_mm[1] for view in views]
    inches = 2.1
    across = max(view.size_mm[0] for view in views)
    size = ((len(warped) + 1) * inches, sum(heights) * inches / across + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    grid: Any = figure.subplots(len(views), len(warped) + 1, height_ratios=heights, squeeze=False)
    for plane, view, line in zip(PLANES, views, grid, strict=True):
        f = np.clip(view.picture(fixed.image), 0, 1)
        pictures = [np.stack([f] * 3, -1)]
        for image in warped.values():
            w = np.clip(view.picture(image), 0, 1)
            pictures.append(np.stack([f, w, w], -1))
        for axes, picture in zip(line, pictures, strict=True):
            axes.imshow(picture, extent=(0, view.size_mm[0], view.size_mm[1], 0), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(plane, fontsize=9)
    titles = ["fixed", *(f"{TITLES[m]}\n{heads.get(m, '')}" for m in warped)]
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    figure.suptitle(
        f"{moving.name} -> {fixed.name}, the pair with the largest initial TRE", fontsize=11, parse_math=False
    )
    figure.supxlabel(
        "grey where the images agree, red where fixed is brighter, cyan where the other", fontsize=9
    )
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path
