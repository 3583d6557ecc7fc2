"""The PyTorch peer of the benchmarks does the same work: equal output from equal weights."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from benchmarks.agreement import differences
from benchmarks.speed_worker import TOLERANCE


@pytest.mark.parametrize("normalise", [False, True])
def test_register_and_loss_agree(normalise: bool) -> None:
    found = differences((32, 16, 48), normalise)
    assert found.pop("largest_voxels") > 0.5
    assert max(found.values()) < TOLERANCE, found
