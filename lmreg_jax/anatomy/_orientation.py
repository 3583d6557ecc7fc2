"""Whether a scan is turned another way than its header says, from what anatomy never does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.anatomy._lumen import Chest
from lmreg_jax.anatomy._naming import LUL, RML, RUL, Named
from lmreg_jax.anatomy.segmentation import trachea_column
from lmreg_jax.imaging.volume import Volume, apply_affine, spacing

Array = NDArray[Any]

BONE_HU = 220.0
MIDDLE_MM = 30.0  # half width of the strip that holds spine and sternum
BONE_MARGIN_MM = 15.0
MIRROR_RATIO, MIRROR_SCORE = 2.0, 0.6  # how much better the names fit a mirrored scan, and how well
COLUMN_MM = 60.0  # a trachea, seen from the wrong end


def mirrored(passes: Sequence[dict[str, Named]], turned: Sequence[dict[str, Named]]) -> list[str]:
    """A note where the bronchi fit the names better with right and left exchanged.

    passes, turned: what each tree shows as the scan says, and mirrored. The right upper lobe's bronchus
    leaves 2 to 3 cm below the carina, the left one 4 to 5 cm, and only the right side has a middle lobe.
    """
    if not passes:
        return []
    as_said, exchanged = (_fit(side) for side in (passes, turned))
    if exchanged < MIRROR_SCORE or exchanged < MIRROR_RATIO * as_said:
        return []
    return [
        "looks mirrored: the bronchi branch as if right and left were exchanged (a wrong header, or situs"
        " inversus)"
    ]


def _fit(passes: Sequence[dict[str, Named]]) -> float:
    scores = [[p[name].score if name in p else 0.0 for name in (RUL, LUL, RML)] for p in passes]
    return float(np.mean(np.median(scores, axis=0)))


def upside_down(chest: Chest) -> bool:
    """Whether a trachea is found where the scan says the legs are, and none as long at its other end."""
    scan = chest.scan.data[:, :, ::-1]
    body = chest.body[:, :, ::-1]
    edges = spacing(chest.scan.affine)
    column = trachea_column(scan, (scan < -400) & body, edges)
    here, there = (np.count_nonzero(c.any(axis=(0, 1))) * edges[2] for c in (chest.trachea, column))
    return bool(there > max(COLUMN_MM, here))


def back_to_front(chest: Chest, lungs: Volume) -> list[str]:
    """A note where the bones near the midline, most of them the spine's, lie in front of the lungs."""
    places = apply_affine(lungs.affine, np.argwhere(lungs.data[::4, ::4, ::4] > 0) * 4)
    bone = apply_affine(chest.scan.affine, np.argwhere((chest.scan.data > BONE_HU) & chest.body))
    if not len(places) or not len(bone):
        return []
    low, high = places.min(0), places.max(0)
    middle = 0.5 * (low[0] + high[0])
    level = (bone[:, 2] > low[2]) & (bone[:, 2] < high[2]) & (np.abs(bone[:, 0] - middle) < MIDDLE_MM)
    if np.count_nonzero(level) < 50:
        return []
    if np.median(bone[level, 1]) < places[:, 1].mean() + BONE_MARGIN_MM:
        return []
    return ["looks turned back to front: the spine lies in front of the lungs; check the header's y axis"]
