"""All cases of a cohort brought to one grid: each subject read and checked, then aligned and resampled.

The scans are read twice: their lungs and points first, since the choice of the reference needs them
all, then one by one the images, since all of them would not fit into memory.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from lmreg_jax.affine import elastix
from lmreg_jax.affine.pairwise import Affine
from lmreg_jax.cohort.case import Case, Names, on_grid, windowed_scan
from lmreg_jax.cohort.options import Options
from lmreg_jax.cohort.reference import Reference, align, choose_reference, read_reference
from lmreg_jax.cohort.subject import Subject, read_subject
from lmreg_jax.cohort.table import Row
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.io.read import read_scan

log = logging.getLogger(__name__)

In = TypeVar("In", Row, Subject)
Out = TypeVar("Out")

THREADS = min(2, os.cpu_count() or 1)  # scipy.ndimage and zlib let go of the interpreter's lock
AIR_HU = -1000.0  # what lies outside a scan
CLIPPED_HU = (-1024.0, 3071.0)  # padding and metal beyond must not spread when voxels are averaged


class Plan(NamedTuple):
    """All but the images on the grid; skipped: {name: reason}, complete when the last one has been placed."""

    subjects: list[Subject]
    reference: Reference
    names: Names
    skipped: dict[str, str]


class Placed(NamedTuple):
    """A subject on the common grid, and the affine that brought it there."""

    subject: Subject
    affine: Affine
    case: Case


def prepare(rows: list[Row], options: Options, progress: bool) -> tuple[Iterator[Case], dict[str, Any]]:
    """Reads, aligns and resamples all cases; with them the values that belong to the whole.

    The cases are made as they are asked for, so that memory does not grow with the cohort; the
    values are complete when the last one has been given. Under policy "skip", a case that cannot be
    read or used is left out, its reason kept among the values; under "strict" it raises InputError.
    """
    cohort = plan(rows, options, progress)
    values: dict[str, Any] = {
        "landmark_names": cohort.names[0],
        "point_names": cohort.names[1],
        "affine": cohort.reference.affine.tolist(),
        "reference": cohort.reference.subject.name,
        "skipped": {},
    }

    def cases() -> Iterator[Case]:
        count, without = 0, []
        for subject, affine, case in place_all(cohort, options, progress):
            for note in (*subject.notes, *affine.notes):
                log.warning("%s: %s", case.name, note)
            count += 1
            without += [case.name] if case.lungs is None else []
            yield case
        if without and options.alignment not in ("none", "identity"):
            log.warning("%d of %d cases have no lung mask: %s", len(without), count, ", ".join(without))
        values["skipped"] = {row.name: cohort.skipped[row.name] for row in rows if row.name in cohort.skipped}

    return cases(), values


def plan(rows: list[Row], options: Options, progress: bool) -> Plan:
    """Reads all subjects and the reference. Raises InputError where none is left to be the reference."""
    skipped: dict[str, str] = {}
    reading = _or_skipped(partial(read_subject, options=options), skipped, options.policy)
    referring = _or_skipped(partial(read_reference, options=options), skipped, options.policy)
    subjects = [s for s in _in_order(reading, rows, "lungs", progress) if s is not None]
    names = (
        _shared_names([(s.row.landmarks, s.landmarks) for s in subjects], options.landmark_names),
        _shared_names([(s.row.points, s.points) for s in subjects], ()),
    )
    reference = None
    while reference is None:
        if skipped and not options.reference and all(s.row.split == "test" for s in subjects):
            raise InputError(
                f"no training case is left, {len(skipped)} of {len(rows)} cases cannot be used; first: "
                f"{next(iter(skipped.values()))}"
            )
        chosen = choose_reference(subjects, options.reference)
        reference = referring(subjects[chosen])
        if reference is None:
            subjects.pop(chosen)
    return Plan(subjects, reference, names, skipped)


def place_all(cohort: Plan, options: Options, progress: bool, *, in_hu: bool = False) -> Iterator[Placed]:
    """The subjects on the common grid, in their order; in_hu: images in HU, clipped, not windowed."""

    def place(subject: Subject) -> Placed:
        scan = read_scan(subject.row.image)
        image = windowed_scan(scan, options)
        affine = align(subject, scan.volume, image, cohort.reference, options)
        if in_hu:
            image = Volume(np.clip(scan.volume.data, *CLIPPED_HU), scan.volume.affine)
        fill = AIR_HU if in_hu else 0.0
        grid, shape = cohort.reference.affine, options.shape
        return Placed(subject, affine, on_grid(subject, image, affine, grid, cohort.names, shape, fill=fill))

    placing = _or_skipped(place, cohort.skipped, options.policy)
    try:
        for placed in _in_order(placing, cohort.subjects, "cases", progress):
            if placed is not None:
                yield placed
    finally:
        elastix.stop()  # a gigabyte that the training need not hold


def _or_skipped(
    function: Callable[[In], Out], skipped: dict[str, str], policy: str
) -> Callable[[In], Out | None]:
    """The function; under policy "skip" an InputError's reason goes to `skipped`, and None comes back."""

    def guarded(item: In) -> Out | None:
        try:
            return function(item)
        except InputError as error:
            if policy == "strict":
                raise
            skipped[item.name] = str(error)
            return None

    return guarded


def _in_order(
    function: Callable[[In], Out], items: Sequence[In], title: str, progress: bool
) -> Iterator[Out]:
    """function over items in their order, on THREADS threads; the first error stops the rest.

    A few results are made ahead of the consumer, not more.
    """
    todo = iter(items)
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(desc=title, total=len(items), disable=not progress, leave=False) as bar,
    ):
        try:
            made = deque(pool.submit(function, item) for item in islice(todo, 2 * THREADS))
            while made:
                yield made.popleft().result()
                bar.update()
                made.extend(pool.submit(function, item) for item in islice(todo, 1))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _shared_names(
    files: Sequence[tuple[Path | None, Mapping[str, Any]]], wanted: tuple[str, ...]
) -> tuple[str, ...]:
    """The names to use: `wanted`, or all in the order of their first appearance.

    Raises InputError where a file shares no name with `wanted`, or with any other case's file.
    """
    for i, (path, names) in enumerate(files):
        others = wanted or {name for j, (_, points) in enumerate(files) if j != i for name in points}
        if names and others and not set(names) & set(others):
            raise InputError(
                f"{path}: shares no landmark name with "
                f"{'landmark_names' if wanted else 'the other cases'}; it has {_listed(names)}, "
                f"they have {_listed(others)}: names must match exactly"
            )
    return wanted or tuple(dict.fromkeys(name for _, names in files for name in names))


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:12]) + (", ..." if len(ordered) > 12 else "")
