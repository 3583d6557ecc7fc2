"""Anatomy against the header, for all ways to flip a chest."""

from __future__ import annotations

import numpy as np
import pytest

from lmreg_jax.anatomy.orientation import check_orientation
from lmreg_jax.anatomy.segmentation import segment_lungs
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.io.nifti import read_volume
from tests.anatomy.small_thorax import lungs, scan
from tests.shared_data import shared


def notes(data: np.ndarray, affine: np.ndarray) -> tuple[str, ...]:
    volume = Volume(data, affine)
    return check_orientation("scan", volume, segment_lungs(volume))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_flips_of_a_whole_chest_are_told(index: int) -> None:
    ct = scan(index)
    assert notes(ct.data, ct.affine) == ()
    assert "situs inversus" in notes(ct.data[::-1], ct.affine)[0]
    for axes, words in [
        ((1,), "front and back"),
        ((2,), "head and feet"),
        ((0, 1), "front"),
        ((1, 2), "head"),
    ]:
        with pytest.raises(InputError, match=words):
            notes(np.flip(ct.data, axes), ct.affine)


@pytest.mark.parametrize("part", [np.s_[:, :, 50:], np.s_[:, :, :50], np.s_[:, :, 30:55], np.s_[:, :, :30]])
def test_parts_of_a_chest_are_not_doubted(part: tuple[slice, ...]) -> None:
    ct, mask = scan(), lungs()
    assert check_orientation("scan", *(Volume(v.data[part], v.affine) for v in (ct, mask))) == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "cip_ct64",
        "cptac_C3N-00247",
        "dx_A0001",
        "lidc_0314",
        "pyradiomics_lung1_base_cut_off",
        "pyradiomics_lung2",
    ],
)
def test_real_scans_are_not_doubted_and_their_flips_are(name: str) -> None:
    ct = read_volume(shared(f"chest_ct/{name}.nii.gz"))
    assert notes(ct.data, ct.affine) == ()
    for axis in (1, 2):
        with pytest.raises(InputError, match="contradicts"):
            notes(np.flip(ct.data, axis), ct.affine)
