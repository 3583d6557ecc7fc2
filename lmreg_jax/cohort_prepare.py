"""All cases of a cohort brought to one grid: names, masks, reference, then case by case."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from lmreg_jax import alignment as alignments
from lmreg_jax.cohort_case import Case, Points, read_case, read_reference
from lmreg_jax.cohort_lungs import Lungs, read_lungs
from lmreg_jax.cohort_options import Options
from lmreg_jax.cohort_table import SPLITS, Row
from lmreg_jax.errors import InputError
from lmreg_jax.volumes import read_points

log = logging.getLogger(__name__)

In = TypeVar("In")
Out = TypeVar("Out")

THREADS = min(2, os.cpu_count() or 1)  # scipy.ndimage and zlib let go of the interpreter's lock


def prepare(
    rows: list[Row], options: Options, progress: bool
) -> tuple[tuple[Case, ...], dict[str, Any]]:
    """Reads, aligns and resamples all cases; with them the values that belong to the whole."""
    landmarks = [_points(row.landmarks) for row in rows]
    points = [_points(row.points) for row in rows]
    names = (
        _shared_names([row.landmarks for row in rows], landmarks, options.landmark_names),
        _shared_names([row.points for row in rows], points, ()),
    )
    lungs = _map(lambda row: read_lungs(row, options), rows, "lungs", progress)
    chosen = _choose_reference(rows, lungs, options.reference)
    reference = read_reference(rows[chosen], lungs[chosen], options)
    cases = _map(
        lambda i: read_case(rows[i], lungs[i], landmarks[i], points[i], names, reference, options),
        range(len(rows)),
        "cases",
        progress,
    )
    shifted = [case.name for case in cases if case.alignment == "none"]
    if shifted and options.alignment != "none":
        log.warning(
            "%d of %d cases have no lung mask and are aligned by their images' centres only: %s",
            len(shifted),
            len(cases),
            ", ".join(shifted),
        )
    values = {
        "landmark_names": names[0],
        "point_names": names[1],
        "affine": reference.affine.tolist(),
        "reference": reference.name,
    }
    return tuple(cases), values


def _map(
    function: Callable[[In], Out], items: Iterable[In], title: str, progress: bool
) -> list[Out]:
    """function over items in their order, on THREADS threads; the first error stops the rest."""
    todo = list(items)
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(function, todo)
        try:
            return list(tqdm(results, title, len(todo), disable=not progress, leave=False))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _points(path: Path | None) -> Points:
    return {} if path is None else read_points(path)


def _shared_names(
    paths: Sequence[Path | None], found: Sequence[Points], wanted: tuple[str, ...]
) -> tuple[str, ...]:
    """The names to use: `wanted`, or all in the order of their first appearance.

    Raises InputError where a file shares no name with `wanted`, or with any other case's file.
    """
    for i, names in enumerate(found):
        others = wanted or {name for j, other in enumerate(found) if j != i for name in other}
        if names and others and not set(names) & set(others):
            raise InputError(
                f"{paths[i]}: shares no landmark name with "
                f"{'landmark_names' if wanted else 'the other cases'}; it has {_listed(names)}, "
                f"they have {_listed(others)}: names must match exactly"
            )
    return wanted or tuple(dict.fromkeys(name for names in found for name in names))


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:12]) + (", ..." if len(ordered) > 12 else "")


def _choose_reference(rows: list[Row], lungs: Sequence[Lungs | None], name: str) -> int:
    """The named case, or the most central training case (of those with a mask, if any).

    Central: the smallest sum of Wasserstein distances between lung moments; the first of equals.
    Lungs that the scan cuts off are passed over, while there are whole ones. Validation cases serve
    where there is no training case; a test case only where it is named.
    """
    if name:
        return [row.name for row in rows].index(name)
    for split in SPLITS[:2]:
        members = [i for i, row in enumerate(rows) if row.split == split]
        known = {i: found for i in members if (found := lungs[i]) is not None}
        whole = {i: found for i, found in known.items() if not found.cut_off}
        moments = {i: found.moments for i, found in (whole or known).items()}
        if moments:
            return min(moments, key=lambda i: _remoteness(moments[i], moments.values()))
        if members:
            return members[0]
    raise InputError(
        "all cases are test cases, and the common grid must not come from one: give the split "
        "'train' to a case, or name a case as reference"
    )


def _remoteness(moments: alignments.Moments, others: Iterable[alignments.Moments]) -> float:
    return sum(alignments.shape_distance(moments, other) for other in others)
