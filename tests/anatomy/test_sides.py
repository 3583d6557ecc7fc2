"""Which lung is which, and whether a mask lies on its scan."""

from __future__ import annotations

import numpy as np
import pytest

from lmreg_jax.anatomy.sides import given_lungs
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume
from tests.anatomy.small_thorax import dice, lungs, scan


def test_labels_the_other_way_are_exchanged() -> None:
    mask = lungs()
    found, notes = given_lungs("mask", Volume(np.array([0, 2, 1])[mask.data], mask.affine), scan())
    np.testing.assert_array_equal(found.data, mask.data)
    assert "lungmask" in notes[0]
    found, notes = given_lungs("mask", mask, scan())
    assert not notes
    np.testing.assert_array_equal(found.data, mask.data)


@pytest.mark.parametrize("label", [1, 5])
def test_sides_are_told_where_a_mask_does_not(label: int) -> None:
    mask = lungs()
    found, _ = given_lungs("mask", Volume((mask.data > 0) * label, mask.affine), scan())
    for side in (1, 2):
        assert dice(found.data == side, mask.data == side) > 0.99
        alone, _ = given_lungs("mask", Volume((mask.data == side) * label, mask.affine), scan())
        np.testing.assert_array_equal(alone.data, side * (mask.data == side))


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1)])
def test_a_mirrored_mask_is_refused(axes: tuple[int, ...]) -> None:
    mask = lungs()
    for data in (mask.data, np.array([0, 2, 1])[mask.data], mask.data > 0):
        with pytest.raises(InputError, match=r"mask.nii: .*exchanged"):
            given_lungs("mask.nii", Volume(np.flip(data, axes).astype(np.uint8), mask.affine), scan())
