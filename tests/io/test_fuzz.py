"""Readers against properties, and a few broken files of every kind (more: python -m tests.fuzz)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from lmreg_jax.imaging.volume import Volume, apply_affine  # noqa: E402
from lmreg_jax.io.nifti import read_volume, write_volume  # noqa: E402
from lmreg_jax.io.points import read_points, write_points  # noqa: E402
from tests import fuzz, spaces  # noqa: E402

# The folder of a test serves all its examples, each of which writes its file again.
many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
coordinates = st.floats(-1e4, 1e4).map(lambda v: round(v, 4))
names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)


@many
@given(
    dtype=st.sampled_from([np.uint8, np.int16, np.int32, np.float32]),
    orientation=st.sampled_from(spaces.ORIENTATIONS),
    angles=st.tuples(*[st.floats(-15, 15)] * 3),
    edges=st.tuples(*[st.floats(0.3, 9)] * 3),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
def test_a_volume_comes_back_in_ras_with_every_voxel_at_its_place(
    dtype: Any, orientation: Any, angles: Any, edges: Any, suffix: str, tmp_path: Path
) -> None:
    shape = (5, 4, 6)
    data = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    affine = spaces.rotation(angles) @ spaces.grid(shape, edges)
    stored = spaces.stored(Volume(data, affine), orientation)
    write_volume(tmp_path / f"volume{suffix}", Volume(np.asarray(stored.dataobj), stored.affine))
    read = read_volume(tmp_path / f"volume{suffix}")
    assert nib.aff2axcodes(read.affine) == ("R", "A", "S")
    assert read.data.dtype == dtype
    index = np.argwhere(np.ones(shape))
    there = apply_affine(np.linalg.inv(read.affine) @ affine, index)
    assert np.abs(there - np.rint(there)).max() < 1e-3  # The header keeps float32.
    np.testing.assert_array_equal(read.data[tuple(np.rint(there).astype(int).T)], data[tuple(index.T)])


@many
@given(
    points=st.dictionaries(names, st.tuples(*[coordinates] * 3), min_size=1, max_size=8),
    suffix=st.sampled_from([".csv", ".fcsv", ".mrk.json"]),
)
def test_landmarks_come_back_by_any_name(points: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"points{suffix}"
    write_points(file, {name: np.array(p) for name, p in points.items()})
    read = read_points(file)
    assert list(read) == list(points)
    for name, point in points.items():
        np.testing.assert_allclose(read[name], point, atol=1e-9)


def test_broken_files_are_read_or_refused_by_name() -> None:
    pytest.importorskip("SimpleITK")
    assert fuzz.complaints(150, seed=7) == []
