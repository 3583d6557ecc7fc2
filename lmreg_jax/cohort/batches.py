"""Which pairs a step sees, as arrays; assembled in a thread ahead of the device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from lmreg_jax.cohort.case import Case, images_of_pair
from lmreg_jax.cohort.pairs import AllPairs
from lmreg_jax.types import Batch

T = TypeVar("T")
Pair = tuple[str, str]


def pairs_of_step(
    pairs: Sequence[Pair], count: int, step: int, *, seed: int, both_orders: bool
) -> list[Pair]:
    """The `count` pairs (fixed, moving) of a step: drawn from `pairs`, by seed and step alone.

    both_orders: each drawn pair is followed by its reverse, so that what pulls every pair the
    same way (a global translation above all) cancels within the batch.
    """
    if both_orders:  # Else a pair and its reverse could both be drawn.
        if isinstance(pairs, AllPairs):
            pairs = pairs.once()
        else:
            pairs = list({frozenset(pair): pair for pair in pairs}.values())
    generator = np.random.default_rng([seed, step])
    draws = count // 2 if both_orders else count
    chosen = generator.choice(len(pairs), size=draws, replace=draws > len(pairs))
    drawn = [pairs[int(i)] for i in chosen]
    if not both_orders:
        return drawn
    return [p for fixed, moving in drawn for p in ((fixed, moving), (moving, fixed))]


def assemble(pairs: Sequence[tuple[Case, Case]]) -> Batch:
    """The images and landmarks of (fixed, moving) cases, stacked.

    A landmark counts where both cases have it. Missing positions are set to 0.
    """
    images = [images_of_pair(*pair) for pair in pairs]
    # Any: numpy here, jax.Array in the step; pmap spreads host arrays over the devices itself.
    fixed: Any
    moving: Any
    fixed, moving = (np.stack(side) for side in zip(*images, strict=True))
    points: list[Any] = [np.stack([pair[side].landmarks for pair in pairs]) for side in (0, 1)]
    present: Any = np.isfinite(points[0]).all(-1) & np.isfinite(points[1]).all(-1)
    points = [np.nan_to_num(p).astype(np.float32) for p in points]
    return Batch(fixed, moving, points[0], points[1], present)


def prefetch(make: Callable[[int], T], steps: range, ahead: int = 2) -> Iterator[tuple[int, T]]:
    """(step, make(step)) in order, `ahead` of them made by a thread while the device works."""
    ready: queue.Queue[tuple[int, T | BaseException]] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: tuple[int, T | BaseException]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        for step in steps:
            try:
                made: T | BaseException = make(step)
            except BaseException as error:  # Handed to the consumer, who raises it.
                made = error
            if not put((step, made)) or isinstance(made, BaseException):
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for _ in steps:
            step, made = ready.get()
            if isinstance(made, BaseException):
                raise made
            yield step, made
    finally:
        stopped.set()
        thread.join(timeout=5)
