"""All cases of a cohort brought to one grid: names, masks, reference, then case by case."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from lmreg_jax.affine import elastix
from lmreg_jax.affine import moments as alignment
from lmreg_jax.cohort.case import Case, Points, Reference, read_case, read_reference
from lmreg_jax.cohort.lungs import Lungs, PackedLungs, packed, read_lungs
from lmreg_jax.cohort.options import Options
from lmreg_jax.cohort.table import SPLITS, Row
from lmreg_jax.errors import InputError
from lmreg_jax.io.points import read_points

log = logging.getLogger(__name__)

In = TypeVar("In")
Out = TypeVar("Out")

THREADS = min(2, os.cpu_count() or 1)  # scipy.ndimage and zlib let go of the interpreter's lock


class Ready(NamedTuple):
    """A case whose small files have been read."""

    row: Row
    landmarks: Points
    points: Points
    lungs: PackedLungs | None

    def unpacked(self) -> Lungs | None:
        return None if self.lungs is None else self.lungs.unpacked()


def prepare(rows: list[Row], options: Options, progress: bool) -> tuple[Iterator[Case], dict[str, Any]]:
    """Reads, aligns and resamples all cases; with them the values that belong to the whole.

    The cases are made as they are asked for, so that memory does not grow with the cohort; the
    values are complete when the last one has been given. Under policy "skip", a case that cannot be
    read or used is left out, its reason kept among the values; under "strict" it raises InputError.
    """
    skipped: dict[str, str] = {}

    def or_skipped(function: Callable[[In], Out], name: Callable[[In], str]) -> Callable[[In], Out | None]:
        def guarded(item: In) -> Out | None:
            try:
                return function(item)
            except InputError as error:
                if options.policy == "strict":
                    raise
                skipped[name(item)] = str(error)
                return None

        return guarded

    def read_small(row: Row) -> Ready:
        lungs = read_lungs(row, options)
        kept = None if lungs is None else packed(lungs)
        return Ready(row, _points(row.landmarks), _points(row.points), kept)

    found = _in_order(or_skipped(read_small, lambda row: row.name), rows, "lungs", progress)
    ready = [case for case in found if case is not None]
    names = (
        _shared_names([c.row.landmarks for c in ready], [c.landmarks for c in ready], options.landmark_names),
        _shared_names([c.row.points for c in ready], [c.points for c in ready], ()),
    )

    def of_reference(case: Ready) -> Reference:
        return read_reference(case.row, case.unpacked(), options)

    reference = None
    while reference is None:
        if skipped and not options.reference and all(c.row.split == "test" for c in ready):
            raise InputError(
                f"no training case is left, {len(skipped)} of {len(rows)} cases cannot be used; first: "
                f"{next(iter(skipped.values()))}"
            )
        chosen = _choose_reference([c.row for c in ready], [c.lungs for c in ready], options.reference)
        reference = or_skipped(of_reference, lambda c: c.row.name)(ready[chosen])
        if reference is None:
            ready.pop(chosen)
    common = reference

    def read_whole(case: Ready) -> Case:
        return read_case(case.row, case.unpacked(), case.landmarks, case.points, names, common, options)

    values: dict[str, Any] = {
        "landmark_names": names[0],
        "point_names": names[1],
        "affine": reference.affine.tolist(),
        "reference": reference.name,
        "skipped": {},
    }

    def cases() -> Iterator[Case]:
        count, shifted = 0, []
        try:
            for case in _in_order(or_skipped(read_whole, lambda c: c.row.name), ready, "cases", progress):
                if case is not None:
                    count += 1
                    shifted += [case.name] if case.alignment == "none" else []
                    yield case
        finally:
            elastix.stop()  # a gigabyte that the training need not hold
        if shifted and options.alignment != "none":
            log.warning(
                "%d of %d cases have no lung mask and are aligned by their images' centres only: %s",
                len(shifted),
                count,
                ", ".join(shifted),
            )
        values["skipped"] = {row.name: skipped[row.name] for row in rows if row.name in skipped}

    return cases(), values


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


def _points(path: Path | None) -> Points:
    return {} if path is None else read_points(path, allow_empty=True)


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


def _choose_reference(rows: list[Row], lungs: Sequence[PackedLungs | None], name: str) -> int:
    """The named case, or the most central training case (of those with a mask, if any).

    Central: the smallest sum of Wasserstein distances between lung moments; the first of equals.
    Lungs that the scan cuts off are passed over, while there are whole ones. Validation cases serve
    where there is no training case; a test case only where it is named.
    """
    if name:
        known_names = [row.name for row in rows]
        if name not in known_names:
            raise InputError(f"reference {name!r} was skipped: it cannot be read; name another one")
        return known_names.index(name)
    for split in SPLITS[:2]:
        members = [i for i, row in enumerate(rows) if row.split == split]
        known = {i: found for i in members if (found := lungs[i]) is not None}
        whole = {i: found for i, found in known.items() if not found.cut_off}
        moments = {i: found.moments for i, found in (whole or known).items()}
        if moments:
            return list(moments)[alignment.most_central(list(moments.values()))]
        if members:
            return members[0]
    raise InputError(
        "all cases are test cases, and the common grid must not come from one: give the split "
        "'train' to a case, or name a case as reference"
    )
