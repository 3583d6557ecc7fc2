"""Landmarks of a chest CT without an expert: airway spurs, points of the trachea, apices of the lungs.

Each has a confidence between 0 and 1, or is not found, with a reason. Take those of at least
ACCEPTED. Bronchial points are spurs, where two daughter lumens part, as readers of CT mark them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.anatomy._apices import apices
from lmreg_jax.anatomy._lumen import chest_of, segment_lumen
from lmreg_jax.anatomy._naming import CARINA, LUL, RML, RUL, TRACHEA_MM, Named, named
from lmreg_jax.anatomy._orientation import back_to_front, mirrored, upside_down
from lmreg_jax.anatomy.airways import Tree, trees
from lmreg_jax.anatomy.lungs import LEFT, RIGHT
from lmreg_jax.anatomy.segmentation import segment_lungs
from lmreg_jax.imaging.volume import Volume

Array = NDArray[Any]

AIRWAY_NAMES = (CARINA, RUL, LUL, RML, *(f"trachea_{mm}mm" for mm in TRACHEA_MM))
NAMES = (*AIRWAY_NAMES, "apex_left", "apex_right")
SIDED = (RUL, LUL, RML, "apex_left", "apex_right")  # names that a mirrored scan makes wrong
ACCEPTED = 0.5
DOUBTFUL = 0.3  # the most that a name keeps where the scan's orientation is in doubt
AGREE_MM = 4.0  # passes this close to each other show the same point
FEWEST = 2  # passes that must agree
UPSIDE_DOWN = "looks upside down: a trachea runs to the lower end of the scan; check the header's z axis"
ONE_LUNG = 0.1  # of both; less air than that on one side is no lung


class Landmark(NamedTuple):
    """A named point [3], RAS mm, or None; confidence in [0, 1]; what speaks against it."""

    name: str
    point: Array | None
    confidence: float
    reason: str = ""


class Landmarks(NamedTuple):
    """The landmarks of a scan, in the order of NAMES; notes about the scan; its airways, or None."""

    points: tuple[Landmark, ...]
    notes: tuple[str, ...] = ()
    airways: Tree | None = None

    def centreline(self) -> Array:
        """Centres [N, 3] of trachea and large bronchi, RAS mm; none where no airways were found."""
        return np.zeros((0, 3)) if self.airways is None else self.airways.centreline()

    def accepted(self, least: float = ACCEPTED) -> dict[str, Array]:
        """{name: [3] RAS mm} of the points of at least this confidence."""
        return {name: point for name, (point, _) in self.weighted(least).items()}

    def weighted(self, least: float = ACCEPTED) -> dict[str, tuple[Array, float]]:
        """{name: (point [3] RAS mm, confidence)} of the same."""
        return {
            p.name: (p.point, p.confidence)
            for p in self.points
            if p.point is not None and p.confidence >= least
        }


def find_landmarks(volume: Volume, lungs: Volume | None = None) -> Landmarks:
    """The landmarks of a chest CT in HU, RAS+; lungs: labels (1 left, 2 right) on its grid.

    Without `lungs` they are segmented. Raises InputError where there is no body or no lung in the scan.
    """
    lungs = segment_lungs(volume) if lungs is None else lungs
    found = {n: Landmark(n, a.point, a.confidence, a.reason) for n, a in apices(volume, lungs).items()}
    chest = chest_of(volume)
    notes: list[str] = []
    passes: list[dict[str, Named]] = []
    airways = None
    if chest.trachea.any():
        seen = trees(segment_lumen(volume, chest, lungs))
        passes = [named(tree) for tree in seen]
        airways = seen[len(seen) // 2] if seen else None
        notes += mirrored(passes, [named(tree, right=-1) for tree in seen])
    if not any(CARINA in p for p in passes):
        what = "carina" if chest.trachea.any() else "trachea"
        notes.append(UPSIDE_DOWN if upside_down(chest) else f"no {what} in the scan")
    notes += back_to_front(chest, lungs)
    missing = "no trachea in the scan" if not passes else "no branching like it"
    if passes and not any(CARINA in p for p in passes):
        missing = "no carina in the scan"
    for name in AIRWAY_NAMES:
        found[name] = consensus(name, passes, missing)
    notes += _lung_notes(lungs)
    points = tuple(found[name] for name in NAMES)
    return Landmarks(_doubted(points, notes), tuple(notes), airways)


def consensus(name: str, passes: Sequence[dict[str, Named]], missing: str) -> Landmark:
    """One point of several passes: the weighted mean of those within AGREE_MM of the most agreed one.

    Confidence: the share of passes that agree, one failure allowed, times the root of their score.
    """
    seen = [p[name] for p in passes if name in p]
    if not seen:
        return Landmark(name, None, 0.0, missing)
    points = np.array([s.point for s in seen])
    weight = np.array([s.score for s in seen]) + 1e-3
    close = np.linalg.norm(points[:, None] - points[None], axis=2) < AGREE_MM
    near = close[int(np.argmax(close @ weight * (weight > 0.3 * weight.max())))]
    point = np.average(points[near], axis=0, weights=weight[near])
    able = sum(CARINA in p for p in passes)  # coarse scans show nothing at the lowest thresholds
    agreement = min(1.0, float(weight[near].sum() / max(able - 1, FEWEST, weight.sum())))
    confidence = agreement * float(np.average(weight[near], weights=weight[near])) ** 0.5
    reason = ""
    if confidence < ACCEPTED:
        count = int(np.count_nonzero(near))
        reason = f"doubtful: {count} of {len(passes)} passes agree, score {weight[near].mean():.2f}"
    return Landmark(name, point, min(1.0, confidence), reason)


def _lung_notes(lungs: Volume) -> list[str]:
    counts = {
        side: int(np.count_nonzero(lungs.data == label)) for side, label in (("left", LEFT), ("right", RIGHT))
    }
    whole = max(sum(counts.values()), 1)
    return [f"no air in the {side} lung" for side, count in counts.items() if count < ONE_LUNG * whole]


def _doubted(points: tuple[Landmark, ...], notes: Sequence[str]) -> tuple[Landmark, ...]:
    """Names that hang on an orientation in doubt lose their confidence."""
    doubts = [note for note in notes if note.startswith("looks ")]
    if not doubts:
        return points
    every = any("mirrored" not in note for note in doubts)
    reason = doubts[0].partition(":")[0]
    return tuple(
        p._replace(confidence=min(p.confidence, DOUBTFUL), reason=f"the scan {reason}")
        if p.point is not None and (every or p.name in SIDED)
        else p
        for p in points
    )
