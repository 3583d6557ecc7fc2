"""Where the lungs lay on the grid that a network was trained on.

Training aligns every subject to one reference. A new pair has no reference at hand, only this: the
mean and the spread of the training lungs, by which its grid is placed and scaled (see `pair`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.affine.moments import mask_moments
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.io.tables import replacing

FILE = "lungs.json"


class ReferenceLungs(NamedTuple):
    """Mean and standard deviation of the lungs' voxels along x, y, z: mm from the grid's voxel 0."""

    mean_mm: NDArray[Any]
    sd_mm: NDArray[Any]


def of_masks(masks: Iterable[NDArray[Any] | None], spacing_mm: Sequence[float]) -> ReferenceLungs | None:
    """Averaged over lung masks [X, Y, Z] on one grid, all of equal weight; None where there is none."""
    grid = np.diag([*spacing_mm, 1.0])
    moments = [mask_moments(Volume(mask, grid)) for mask in masks if mask is not None and mask.any()]
    if not moments:
        return None
    return ReferenceLungs(
        np.mean([m.mean for m in moments], axis=0),
        np.mean([np.sqrt(np.diagonal(m.covariance)) for m in moments], axis=0),
    )


def write(workdir: Path, lungs: ReferenceLungs) -> None:
    """`lungs.json`, whole or not at all."""
    with replacing(workdir / FILE) as temporary:
        temporary.write_text(
            json.dumps({k: v.tolist() for k, v in lungs._asdict().items()}) + "\n", encoding="utf-8"
        )


def read(workdir: Path) -> ReferenceLungs | None:
    """What `write` wrote; None where the training had no lung masks. InputError where damaged."""
    file = workdir / FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        lungs = ReferenceLungs(*(np.array(values[k], np.float64) for k in ReferenceLungs._fields))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise InputError(f"{file}: damaged ({error}); copy the model's folder again") from None
    if any(v.shape != (3,) or not np.isfinite(v).all() for v in lungs) or lungs.sd_mm.min() <= 0:
        raise InputError(f"{file}: three finite means and three sd above 0 are needed; copy it again")
    return lungs
