"""Which pairs a step sees, coarse images and their landmarks, and the thread that prepares them."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lmreg_jax.cohort import batches
from lmreg_jax.cohort.pairs import AllPairs

PAIRS = [(a, b) for a in "abcde" for b in "abcde" if a != b]


def drawn(step: int, seed: int = 0, count: int = 4, both: bool = True) -> list[batches.Pair]:
    return batches.pairs_of_step(PAIRS, count, step, seed=seed, both_orders=both)


def test_pairs_follow_from_seed_and_step_alone() -> None:
    assert drawn(3) == drawn(3)
    assert len({tuple(drawn(step)) for step in range(20)}) > 10
    assert any(drawn(step, seed=1) != drawn(step) for step in range(5))


def test_both_orders_stand_side_by_side() -> None:
    for step in range(20):
        pairs = drawn(step)
        assert len(pairs) == 4 and set(pairs) <= set(PAIRS)
        assert all(pairs[i + 1] == pairs[i][::-1] for i in (0, 2))
        assert len(set(pairs)) == 4  # Ten pairs of cases: none is drawn together with its reverse.


@pytest.mark.parametrize("count", [2, 3, 7])
def test_all_pairs_are_as_a_list_of_them(count: int) -> None:
    """And draws from them are, in which resumed runs trust."""
    names = "abcdefg"[:count]
    listed = [(a, b) for a in names for b in names if a != b]
    pairs = AllPairs(names)
    assert pairs == listed and len(pairs) == len(listed) and pairs[-1] == listed[-1]
    assert pairs[1:3] == listed[1:3] and pairs != listed[1:]
    assert pairs.without("b") == [pair for pair in listed if "b" not in pair]
    assert list(pairs.once()) == list({frozenset(pair): pair for pair in listed}.values())
    for step in range(5):
        for both in (False, True):
            one, other = (
                batches.pairs_of_step(given, 4, step, seed=0, both_orders=both) for given in (pairs, listed)
            )
            assert one == other


def test_no_pair_twice_while_there_are_enough() -> None:
    for step in range(20):
        assert len(set(drawn(step, count=len(PAIRS), both=False))) == len(PAIRS)
    few = batches.pairs_of_step([("a", "b")], 4, 0, seed=0, both_orders=False)
    assert few == [("a", "b")] * 4


def test_every_pair_has_its_turn() -> None:
    seen = {pair for step in range(100) for pair in drawn(step, both=False)}
    assert seen == set(PAIRS)


def case(name: str, value: float, landmarks: Any) -> Any:
    image = np.full((4, 4, 4), value, np.float32)
    return SimpleNamespace(name=name, inside=None, image=image, landmarks=np.array(landmarks, np.float32))


def test_a_batch_stacks_the_pairs_in_order_and_masks_what_is_missing() -> None:
    nan = [np.nan] * 3
    cases = [
        case("a", 0.1, [[1, 1, 1], nan, [3, 1, 1]]),
        case("b", 0.2, [[2, 1, 1], [1, 2, 1], nan]),
    ]
    batch = batches.assemble([tuple(cases), tuple(reversed(cases))])
    np.testing.assert_allclose(batch.fixed[:, 0, 0, 0], [0.1, 0.2])
    np.testing.assert_allclose(batch.moving[:, 0, 0, 0], [0.2, 0.1])
    np.testing.assert_array_equal(batch.point_mask, [[True, False, False]] * 2)
    np.testing.assert_array_equal(batch.fixed_points[:, 0], [[1, 1, 1], [2, 1, 1]])
    np.testing.assert_array_equal(batch.moving_points[:, 0], [[2, 1, 1], [1, 1, 1]])
    assert np.isfinite(batch.fixed_points).all() and batch.fixed_points.dtype == np.float32


def test_cases_without_landmarks_make_an_empty_mask() -> None:
    cases = [case("a", 0.1, np.zeros((0, 3))), case("b", 0.2, np.zeros((0, 3)))]
    batch = batches.assemble([tuple(cases)])
    assert batch.fixed_points.shape == (1, 0, 3) and batch.point_mask.shape == (1, 0)


def finished(before: set[threading.Thread]) -> bool:
    """Whether all threads started since have ended, given some time to."""
    for _ in range(100):
        if set(threading.enumerate()) <= before:
            return True
        time.sleep(0.05)
    return False


def test_prefetch_keeps_the_order_and_ends_its_thread() -> None:
    before = set(threading.enumerate())
    assert list(batches.prefetch(lambda s: s * s, range(3, 9))) == [(s, s * s) for s in range(3, 9)]
    assert list(batches.prefetch(lambda s: s, range(4, 4))) == []
    assert finished(before)


def test_prefetch_stops_when_its_reader_does() -> None:
    before = set(threading.enumerate())
    made: list[int] = []
    for step, _ in batches.prefetch(lambda s: made.append(s), range(1000), ahead=2):
        if step == 1:
            break
    assert finished(before)
    assert len(made) <= 6  # Two read, two waiting, one or two in the making.


def test_prefetch_raises_what_making_a_batch_raised() -> None:
    before = set(threading.enumerate())

    def make(step: int) -> int:
        if step == 2:
            raise ValueError("no such case")
        return step

    seen = []
    with pytest.raises(ValueError, match="no such case"):
        for step, _ in batches.prefetch(make, range(5)):
            seen.append(step)
    assert seen == [0, 1]
    assert finished(before)
