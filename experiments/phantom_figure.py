"""The embedded cohort beside real chest CT: three planes, lung volume, HU histogram, vessels.

    python -m experiments.phantom_figure --ct SCAN.nii.gz [SCAN.nii.gz ...] --out phantom.png

Writes the figure and prints its table. The lungs of real and made scans are segmented in the same
way, so that the numbers compare (the phantom's own masks leave the hila out).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from lmreg_jax.anatomy.segmentation import segment_lungs
from lmreg_jax.errors import exits_cleanly
from lmreg_jax.imaging.resampling import resample
from lmreg_jax.imaging.volume import Volume, spacing
from lmreg_jax.io.nifti import read_volume
from lmreg_jax.phantom import thorax

GRID_MM = 2.0
SHAPE = (160, 112, 208)
LUNG_WINDOW, SOFT_WINDOW = (-1350, 150), (-160, 240)  # HU, as in reading rooms
VESSEL_HU = -600  # more than this inside the lungs is vessel, airway wall or fissure
BINS = np.arange(-1000, 101, 10)


class Look(NamedTuple):
    """A scan on the common grid and what is measured in its lungs (vessels: per cent)."""

    name: str
    scan: NDArray[np.floating]
    mask: NDArray[np.bool_]
    litres: float
    quartiles: NDArray[np.floating]
    vessels: float
    histogram: NDArray[np.floating]


def measure(name: str, volume: Volume) -> Look:
    """Lungs segmented in the scan's own grid, numbers at 2 mm or the scan's spacing if coarser."""
    mask = segment_lungs(volume)
    litres = np.count_nonzero(mask.data) * np.prod(spacing(volume.affine)) / 1e6
    places = np.argwhere(mask.data) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    affine = np.diag((GRID_MM, GRID_MM, GRID_MM, 1.0))
    middle = (places.min(0) + places.max(0)) / 2
    affine[:3, 3] = middle - GRID_MM * (np.array(SHAPE) - 1) / 2
    scan = resample(volume, SHAPE, affine, order=1, fill=-1000)
    inside = resample(mask, SHAPE, affine, order=0, fill=0) > 0
    hu = scan[inside]
    histogram = np.histogram(hu, BINS, density=True)[0]
    return Look(
        name,
        scan,
        inside,
        float(litres),
        np.percentile(hu, (25, 50, 75)),
        100 * float(np.mean(hu > VESSEL_HU)),
        histogram,
    )


def made(index: int, seed: int) -> Volume:
    """A subject of the embedded cohort as a volume."""
    subject = thorax(index, seed=seed, shape=SHAPE, spacing_mm=GRID_MM)
    return Volume(subject.image, subject.affine)


def _planes(look: Look) -> list[tuple[NDArray[np.floating], tuple[int, int]]]:
    """Axial (lung and soft window), coronal, sagittal cuts near the lungs' centre."""
    x, y, z = (int(np.median(a)) for a in np.nonzero(look.mask))
    right = int(np.percentile(np.nonzero(look.mask)[0], 75))
    scan = look.scan
    return [
        (scan[:, :, z + 5], LUNG_WINDOW),
        (scan[:, :, z + 5], SOFT_WINDOW),
        (scan[:, y, :], LUNG_WINDOW),
        (scan[:, y, :], SOFT_WINDOW),
        (scan[right, :, :], LUNG_WINDOW),
        (scan[x, :, :], SOFT_WINDOW),
    ]


def _draw(axes: Sequence[Axes], look: Look) -> None:
    for axis, (plane, (low, high)) in zip(axes, _planes(look), strict=True):
        axis.imshow(plane.T, origin="lower", cmap="gray", vmin=low, vmax=high)
        axis.axis("off")
    axes[0].set_title(
        f"{look.name}: {look.litres:.1f} l, median {look.quartiles[1]:.0f} HU, "
        f"{look.vessels:.1f} % above {VESSEL_HU} HU",
        loc="left",
        fontsize=11,
    )


def figure(looks: Sequence[Look], real: int, path: Path) -> None:
    """Rows of planes, the `real` scans first, and one row with the lungs' histograms."""
    rows = len(looks)
    canvas = plt.figure(figsize=(17, 3.4 * rows + 4), layout="constrained")
    grid = canvas.add_gridspec(rows + 1, 6, width_ratios=(10, 10, 8, 8, 6, 6))
    for row, look in enumerate(looks):
        _draw([canvas.add_subplot(grid[row, column]) for column in range(6)], look)
    chart = canvas.add_subplot(grid[rows, :])
    for row, look in enumerate(looks):
        (line,) = chart.plot(BINS[:-1] + 5, look.histogram, label=look.name)
        line.set_linestyle("-" if row < real else "--")
    chart.set(xlabel="HU in the lungs", ylabel="density", yscale="log", ylim=(1e-5, 2e-2))
    chart.legend(fontsize=8)
    canvas.savefig(path, dpi=70)
    plt.close(canvas)


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, measures, prints the table and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", nargs="*", type=Path, default=[], help="real chest CT, NIfTI, HU")
    parser.add_argument("--subjects", nargs="*", type=int, default=[0, 1, 2], help="of the cohort")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("phantom.png"))
    given = parser.parse_args(arguments)
    looks = [measure(path.name.split(".")[0], read_volume(path)) for path in given.ct]
    looks += [measure(f"phantom {i}", made(i, given.seed)) for i in given.subjects]
    print(f"{'scan':34s} {'litres':>6s} {'HU 25 %':>8s} {'median':>7s} {'75 %':>6s} {'vessel':>7s}")
    for look in looks:
        low, middle, high = look.quartiles
        print(
            f"{look.name:34s} {look.litres:6.2f} {low:8.0f} {middle:7.0f} {high:6.0f} {look.vessels:5.1f} %"
        )
    figure(looks, len(given.ct), given.out)


if __name__ == "__main__":
    main()
