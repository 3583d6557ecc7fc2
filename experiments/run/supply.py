"""Batches by step from prepared cases, and what happens when one of their files goes bad.

A case is read from disk and checked when its turn comes, then kept in memory up to a budget
(`cache.Memory`): a file that vanished or changed before is an error with a name. Policy "strict" raises
it; "skip" leaves the case out and reports how many there were.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from lmreg_jax.cohort import batches
from lmreg_jax.cohort.cache import LostCase, Memory, fresh
from lmreg_jax.cohort.case import Case
from lmreg_jax.cohort.cohort import Cohort
from lmreg_jax.cohort.pairs import AllPairs
from lmreg_jax.errors import InputError
from lmreg_jax.io.tables import replacing
from lmreg_jax.types import Batch

FILE = "skipped_cases.json"
MEMORY_GB = 4.0
NEEDED = ("image", "inside")  # of a case, for a batch; its points are in memory already

T = TypeVar("T")
log = logging.getLogger(__name__)


class Supply:
    """Makes the batches of a training; `lost` are the cases skipped so far, with reasons."""

    def __init__(
        self, cohort: Cohort, policy: str, workdir: Path | None = None, memory_gb: float = MEMORY_GB
    ) -> None:
        self._cases = {case.name: case for case in cohort.cases}
        self._memory = Memory(memory_gb * 1e9, NEEDED)
        self._policy = policy
        self._file = workdir / FILE if workdir else None
        self.lost: dict[str, str] = dict(cohort.skipped)
        self._write()

    def batch(
        self,
        pairs: Sequence[batches.Pair],
        draw: Callable[[Sequence[batches.Pair]], list[batches.Pair]],
        share: Callable[[list[batches.Pair]], list[batches.Pair]] = list,
    ) -> tuple[list[batches.Pair], Batch]:
        """The pairs that `draw` takes from `pairs`, and their batch.

        share: the part of them that this process reads, and its batch holds.
        Where a case of them is lost, `draw` is asked again, without that case. A step that draws
        no lost case is thus what it would have been anyway, in a resumed run too.
        """

        def make(usable: Sequence[batches.Pair]) -> tuple[list[batches.Pair], Batch]:
            chosen = draw(usable)
            own = share(chosen)
            names = dict.fromkeys(name for pair in own for name in pair)
            cases = {name: self._memory(self._cases[name]) for name in names}
            return chosen, batches.assemble([(cases[fixed], cases[moving]) for fixed, moving in own])

        return self._under_policy(make, pairs, drop_known=False)

    def scored(self, score: Callable[[Sequence[batches.Pair]], T], pairs: Sequence[batches.Pair]) -> T:
        """score(pairs), without the pairs of cases that are lost."""
        return self._under_policy(score, pairs, drop_known=True)

    def each(self, split: str, names: Sequence[str]) -> Iterator[Case]:
        """The cases of a split in turn, their arrays `names` read; without lost ones."""
        for case in self._cases.values():
            if case.split == split:
                try:
                    yield fresh(case, names)
                except LostCase as error:
                    if self._policy == "strict":
                        raise
                    self._lose(error)

    def report(self) -> None:
        """Says once more, at the end, how many cases were skipped."""
        if self.lost:
            total = len(self._cases.keys() | self.lost.keys())
            log.warning("%d of %d cases were skipped: %s", len(self.lost), total, ", ".join(self.lost))

    def _under_policy(
        self,
        work: Callable[[Sequence[batches.Pair]], T],
        pairs: Sequence[batches.Pair],
        drop_known: bool,
    ) -> T:
        usable = self._without_lost(pairs) if drop_known else pairs
        while usable:
            try:
                return work(usable)
            except LostCase as error:
                if self._policy == "strict":
                    raise
                self._lose(error)
            usable = self._without_lost(pairs)
        raise InputError(
            f"no pair of {len(pairs)} is left, {len(self.lost)} cases cannot be read:"
            f" {', '.join(self.lost)}; first: {next(iter(self.lost.values()), '')}"
        )

    def _without_lost(self, pairs: Sequence[batches.Pair]) -> Sequence[batches.Pair]:
        if isinstance(pairs, AllPairs):
            return pairs.without(self.lost)
        return [p for p in pairs if not self.lost.keys() & set(p)]

    def _lose(self, error: LostCase) -> None:
        if error.case not in self.lost:
            self.lost[error.case] = str(error)
            total = len(self._cases.keys() | self.lost.keys())
            log.warning("case %s is skipped (%d of %d): %s", error.case, len(self.lost), total, error)
            self._write()

    def _write(self) -> None:
        if self._file is None or not (self.lost or self._file.exists()):
            return
        with replacing(self._file) as temporary:
            temporary.write_text(json.dumps(self.lost, indent=2) + "\n", encoding="utf-8")
