"""All pairs of some names as sequences that take the room of the names, not of their square."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import overload

import numpy as np

Pair = tuple[str, str]


class AllPairs(Sequence[Pair]):
    """All ordered pairs of different names: (a, b), (a, c), ..., (b, a), (b, c), ..."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def __len__(self) -> int:
        return len(self.names) * (len(self.names) - 1)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(len(self))[index]]
        return self._at(range(len(self))[index])

    def _at(self, index: int) -> Pair:
        first, second = divmod(index, len(self.names) - 1)
        return self.names[first], self.names[second + (second >= first)]

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, AllPairs) else other)

    __hash__ = None  # type: ignore[assignment]  # As of a list.

    def without(self, names: Collection[str]) -> AllPairs:
        """Those that have none of `names`."""
        return type(self)([name for name in self.names if name not in names])

    def once(self) -> AllPairs:
        """Each two names once, the later one first: (b, a), (c, a), ..., (c, b), ..."""
        return _Once(self.names)


class _Once(AllPairs):
    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._ends = np.cumsum(np.arange(len(self.names) - 1, 0, -1))  # of each name's own pairs

    def __len__(self) -> int:
        return super().__len__() // 2

    def _at(self, index: int) -> Pair:
        earlier = int(np.searchsorted(self._ends, index, side="right"))
        return self.names[len(self.names) - int(self._ends[earlier]) + index], self.names[earlier]
