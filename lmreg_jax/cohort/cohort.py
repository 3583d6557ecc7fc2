"""A cohort: subjects of one kind on one grid, with their splits and pairs.

    cohort = read_cohort("data/lungs", shape=(160, 112, 208), spacing_mm=2.0, cache=Path("cache"))

Each scan is windowed to [0, 1], aligned affinely to the reference subject, and resampled once, from
the scan's own voxels; landmarks move along. Nothing of a test case takes part in any choice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.cohort import cache as cohort_cache
from lmreg_jax.cohort.case import Case
from lmreg_jax.cohort.options import checked_options
from lmreg_jax.cohort.pairs import AllPairs
from lmreg_jax.cohort.prepare import prepare
from lmreg_jax.cohort.table import SPLITS, read_cases, read_pairs
from lmreg_jax.errors import InputError

log = logging.getLogger(__name__)

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Cases on one RAS+ grid of `shape` voxels of `spacing_mm` [3]; landmarks in named order.

    affine [4, 4]: voxel of the grid -> the reference's RAS mm. alignment: the method asked for
    ("auto" resolved); a case's own `alignment` tells where it had to fall back. pairs: (fixed,
    moving) names of pairs.csv, or None. skipped: the cases left out by policy "skip", with reasons.
    """

    root: Path
    cases: tuple[Case, ...] = field(repr=False)
    landmark_names: tuple[str, ...]
    point_names: tuple[str, ...] = field(repr=False)
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: Array = field(repr=False)
    alignment: str
    reference: str
    pairs: tuple[tuple[str, str], ...] | None = field(repr=False)
    skipped: Mapping[str, str] = field(default_factory=dict, repr=False)

    def case(self, name: str) -> Case:
        """The case of that name; InputError where there is none."""
        for case in self.cases:
            if case.name == name:
                return case
        known = ", ".join(case.name for case in self.cases)
        raise InputError(f"{self.root}: no case {name!r}; there are {known}")


def read_cohort(
    root: str | os.PathLike[str],
    *,
    shape: Sequence[int],
    spacing_mm: float | Sequence[float],
    window: Sequence[float] = (-1000.0, 400.0),
    window_kind: str = "hu",
    landmark_names: Sequence[str] = (),
    alignment: str = "auto",
    reference: str = "",
    lungs: str = "auto",
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
    allow_outside_root: bool = False,
    policy: str = "strict",
) -> Cohort:
    """The cohort below `root` (format: `cohort_table`), on `shape` voxels of `spacing_mm`.

    window: in the image's unit ("hu") or percentiles of each scan ("percentile"). landmark_names:
    those to use, in this order (default: all found). alignment: "elastix", "moments" (of the lung
    masks), "none" (shift only), "identity" (scans lie in one space already), "auto": elastix where
    installed, else moments. reference: a case's name; default the most central training case.
    lungs: "file", "segment", "none", "auto": the file, else segmented where it looks like a CT.
    cache: folder for the prepared arrays. policy: what a case that cannot be read or used does:
    "strict" stops, "skip" leaves it out and says so. Raises InputError on whatever the user can mend.
    """
    root = Path(root)
    options = checked_options(
        shape, spacing_mm, window, window_kind, landmark_names, alignment, reference, lungs, policy
    )
    missing: dict[str, str] = {}
    rows = read_cases(
        root, allow_outside_root=allow_outside_root, skipped=missing if policy == "skip" else None
    )
    pairs = read_pairs(root, rows, missing)
    if reference and reference not in [row.name for row in rows]:
        gone = f" ({missing[reference]})" if reference in missing else ""
        raise InputError(f"{root}: reference {reference!r} is no case of the table{gone}")
    entry = None if cache is None else Path(cache) / cohort_cache.cache_key(root, rows, pairs, options)
    found = cohort_cache.load(entry) if entry else None
    if found is None and entry is not None:
        try:
            cohort_cache.store(entry, *prepare(rows, options, progress))
            found = cohort_cache.load(entry)
        except OSError as error:
            log.warning("%s: the cache could not be written: %s", cache, error)
    if found is None:
        made, values = prepare(rows, options, progress)
        found = tuple(made), values
    cases, values = found
    skipped = {**missing, **values["skipped"]}
    if skipped:
        log.warning("%s: %d of %d cases skipped", root, len(skipped), len(rows) + len(missing))
        for name, why in skipped.items():
            log.warning("skipped case %s: %s", name, why)
    return Cohort(
        root=root,
        cases=cases,
        landmark_names=tuple(values["landmark_names"]),
        point_names=tuple(values["point_names"]),
        shape=options.shape,
        spacing_mm=options.spacing_mm,
        affine=np.array(values["affine"]),
        alignment=options.alignment,
        reference=values["reference"],
        pairs=pairs,
        skipped=skipped,
    )


def split_names(cohort: Cohort, split: str) -> list[str]:
    """The names of a split's cases, in the table's order. Raises InputError on an unknown split."""
    if split not in SPLITS:
        raise InputError(f"split {split!r}: one of {', '.join(SPLITS)} is needed")
    return [case.name for case in cohort.cases if case.split == split]


def _given_pairs(cohort: Cohort, names: list[str]) -> list[tuple[str, str]]:
    return [pair for pair in cohort.pairs or () if set(pair) <= set(names)]


def held_out_pairs(cohort: Cohort, split: str) -> list[tuple[str, str]]:
    """(fixed, moving) names to evaluate: the given pairs of that split, else the ring i -> i + 1.

    Empty for a split without cases; InputError for one that has a single case.
    """
    names = split_names(cohort, split)
    if len(names) == 1:
        raise InputError(f"{cohort.root}: one {split} case, {names[0]}; a pair needs two")
    ring = list(zip(names, [*names[1:], *names[:1]], strict=True))
    return _given_pairs(cohort, names) or ring


def training_pairs(cohort: Cohort, split: str = "train") -> Sequence[tuple[str, str]]:
    """(fixed, moving) names to train on: the given pairs of that split, else all ordered pairs.

    Raises InputError where the split has fewer than two cases.
    """
    names = split_names(cohort, split)
    if len(names) < 2:
        raise InputError(f"{cohort.root}: {len(names)} {split} cases; a pair needs two")
    return _given_pairs(cohort, names) or AllPairs(names)


def with_validation(cohort: Cohort, count: int, seed: int) -> Cohort:
    """Where no case is for validation, moves `count` training cases there, chosen by `seed`.

    The reference stays in training. Raises InputError where fewer than 2 cases would remain there.
    """
    names = split_names(cohort, "train")
    if split_names(cohort, "validation") or count == 0:
        return cohort
    if count < 0 or len(names) - count < 2:
        raise InputError(
            f"{cohort.root}: {count} of {len(names)} training cases for validation leave fewer "
            "than 2 to train on; take fewer, or mark validation cases in cases.csv"
        )
    free = [name for name in names if name != cohort.reference]
    moved = set(np.random.default_rng(seed).permutation(free)[:count].tolist())
    cases = (replace(c, split="validation") if c.name in moved else c for c in cohort.cases)
    return replace(cohort, cases=tuple(cases))


def tre_before_affine(cohort: Cohort, fixed: str, moving: str, *, points: bool = False) -> Array:
    """Distances [K] in mm between the landmarks (or points) in the scans' own RAS mm; NaN missing.

    What the subjects' positions on the table alone give. After the affine step it is the distance
    between their `landmarks` times `spacing_mm`.
    """
    field_name = "points_mm" if points else "landmarks_mm"
    a, b = (getattr(cohort.case(name), field_name) for name in (fixed, moving))
    return np.asarray(np.linalg.norm(a - b, axis=-1))
