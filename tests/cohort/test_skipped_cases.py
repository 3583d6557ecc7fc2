"""Cases that cannot be read while a cohort is prepared: policy "strict" stops, "skip" goes on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lmreg_jax.cohort import cache
from lmreg_jax.cohort.cohort import Cohort, held_out_pairs, read_cohort, training_pairs
from lmreg_jax.errors import InputError
from tests import tiny_cohort

OPTIONS = {"shape": (12, 8, 12), "spacing_mm": 26.0, "alignment": "moments", "progress": False}
DAMAGE = {
    "image truncated": lambda root: os.truncate(root / "images/c1.nii.gz", 500),
    "image missing": lambda root: (root / "images/c1.nii.gz").unlink(),
    "lungs damaged": lambda root: (root / "lungs/c1.nii.gz").write_bytes(b"no image"),
    "landmarks no table": lambda root: (root / "landmarks/c1.csv").write_text("name,x\n", encoding="utf-8"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny_cohort.write_cohort(tmp_path / "cohort")


def read(root: Path, **changes: object) -> Cohort:
    return read_cohort(root, **(OPTIONS | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("how", DAMAGE)
def test_strict_names_the_file_and_skip_goes_on_without_the_case(
    how: str, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGE[how](root)
    with pytest.raises(InputError, match=r"c1\.(nii\.gz|csv)"):
        read(root)
    for _ in range(2):  # The second time from the cache.
        caplog.clear()
        cohort = read(root, policy="skip", cache=tmp_path / "cache")
        assert [case.name for case in cohort.cases] == ["c0", "c2", "c3", "c4"]
        assert list(cohort.skipped) == ["c1"] and "c1." in cohort.skipped["c1"]
        assert "1 of 5 cases skipped" in caplog.text
    assert training_pairs(cohort) == [("c0", "c2"), ("c2", "c0")]


def test_pairs_of_a_skipped_case_go_with_it(root: Path) -> None:
    (root / "pairs.csv").write_text("fixed,moving\nc0,c1\nc0,c2\nc3,c4\n", encoding="utf-8")
    (root / "images/c1.nii.gz").unlink()
    cohort = read(root, policy="skip")
    assert training_pairs(cohort) == [("c0", "c2")] and held_out_pairs(cohort, "test") == [("c3", "c4")]
    (root / "pairs.csv").write_text("fixed,moving\nc0,nobody\n", encoding="utf-8")
    with pytest.raises(InputError, match="no case 'nobody'"):  # A mistake in a table is not skipped.
        read(root, policy="skip")


def test_a_skipped_reference_is_told_and_another_chosen_where_none_was_named(root: Path) -> None:
    whole = read(root)
    image = root / f"images/{whole.reference}.nii.gz"
    image.write_bytes(image.read_bytes()[:500])
    cohort = read(root, policy="skip")
    assert cohort.reference != whole.reference and list(cohort.skipped) == [whole.reference]
    with pytest.raises(InputError, match=rf"reference '{whole.reference}' was skipped"):
        read(root, policy="skip", reference=whole.reference)


def test_without_any_readable_case_it_stops(root: Path) -> None:
    for image in (root / "images").iterdir():
        os.truncate(image, 500)
    message = "no training case is left, 3 of 5 cases cannot be used; first: .*images/c"
    with pytest.raises(InputError, match=message):
        read(root, policy="skip")


def test_a_whole_case_is_read_as_it_was_written(root: Path, tmp_path: Path) -> None:
    direct, cached = read(root), read(root, cache=tmp_path / "cache")
    for one, other in zip(direct.cases, cached.cases, strict=True):
        whole = cache.fresh(other)
        assert not isinstance(whole.image, np.memmap) and isinstance(other.image, np.memmap)
        np.testing.assert_array_equal(whole.image, one.image)
        np.testing.assert_array_equal(whole.lungs, one.lungs)
        assert cache.fresh(one) is one
