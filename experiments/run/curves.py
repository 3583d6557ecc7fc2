"""Loss curves: the columns of a run's scalars, drawn (PNG)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy import ndimage

from lmreg_jax.errors import InputError
from lmreg_jax.io.tables import read_table
from lmreg_jax.report.planes import Array, save


def loss_curves(path: str | Path, csv_path: str | Path) -> Path:
    """One small plot for each column of a CSV with the columns step, ...; cells may be empty.

    Dense columns are faint with their running mean in full colour; positive ones that span more
    than a decade get a logarithmic axis. Raises InputError where the file is not such a table.
    """
    columns = _read_scalars(Path(csv_path))
    step = columns.pop("step")
    shown = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    across = min(4, max(len(shown), 1))
    down = -(-max(len(shown), 1) // across)
    figure = Figure(figsize=(3.4 * across, 2.3 * down + 0.3), layout="constrained")
    all_axes = figure.subplots(down, across, squeeze=False).ravel()
    for axes in all_axes[len(shown) :]:
        axes.set_axis_off()
    for axes, (name, values) in zip(all_axes, shown.items(), strict=False):
        known = np.isfinite(values)
        x, y = step[known], values[known]
        dense = len(y) > 60
        axes.plot(x, y, "-" if dense else ".-", color="#0072b2", alpha=0.25 if dense else 1)
        if dense:
            smooth = ndimage.uniform_filter1d(y, max(len(y) // 40, 5), mode="nearest")
            axes.plot(x, smooth, color="#0072b2")
        if y.min() > 0 and y.max() > 10 * y.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{name}: last {y[-1]:.4g}", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.supxlabel("step", fontsize=9)
    return save(figure, path)


def _read_scalars(path: Path) -> dict[str, Array]:
    rows = read_table(path, required=("step",))
    try:
        return {
            name: np.array([float(row[name] or "nan") for _, row in rows])
            for name in (rows[0][1] if rows else {"step": ""})
        }
    except ValueError as error:
        raise InputError(f"{path}: a cell is no number ({error}); empty cells are allowed") from None
