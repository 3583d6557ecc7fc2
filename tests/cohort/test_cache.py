"""Prepared cohorts on disk: found again, made anew where files, options or bytes changed."""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest

from lmreg_jax.cohort import cache as cohort_cache
from lmreg_jax.cohort import prepare
from lmreg_jax.cohort.table import read_cases
from tests.tiny_cohort import edit, read


def equal(a, b):
    for x, y in zip(a.cases, b.cases, strict=True):
        for name in ("image", "lungs", "landmarks", "landmarks_mm", "scan_from_grid"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))
        assert (x.name, x.split, x.alignment) == (y.name, y.split, y.alignment)
    assert (a.reference, a.landmark_names, a.point_names) == (
        b.reference,
        b.landmark_names,
        b.point_names,
    )
    np.testing.assert_array_equal(a.affine, b.affine)


def count_preparations(monkeypatch):
    calls = []
    original = prepare.prepare

    def counted(*arguments):
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr("lmreg_jax.cohort.cohort.prepare", counted)
    return calls


def test_the_cache_gives_the_same_cohort_without_reading_scans(root, tmp_path, monkeypatch):
    calls = count_preparations(monkeypatch)
    plain = read(root)
    first = read(root, cache=tmp_path / "cache")
    second = read(root, cache=tmp_path / "cache")
    assert len(calls) == 2  # without a cache, and once for it
    equal(plain, first)
    equal(plain, second)
    assert not second.cases[0].image.flags.writeable  # mapped from the file, never changed


def test_the_cache_notices_changed_files_and_options(root, tmp_path, monkeypatch):
    calls = count_preparations(monkeypatch)
    cache = tmp_path / "cache"
    read(root, cache=cache)
    read(root, cache=cache, window=(-900, 300))
    edit(root / "landmarks/c0.csv", "left_tip", "left_top")
    assert "left_top" in read(root, cache=cache).landmark_names
    edit(root / "cases.csv", "c3,test", "c3,validation")
    assert read(root, cache=cache).case("c3").split == "validation"
    assert len(calls) == 4


def test_the_slices_of_a_dicom_folder_belong_to_the_case(tmp_path):
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / "scans/c0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "scans/c0" / name).write_bytes(b"slice")
    (tmp_path / "cases.csv").write_text("case,image\nc0,scans/c0\nc1,scans/c0::1.2.3\n", encoding="utf-8")
    first, second = read_cases(tmp_path)
    assert [path.name for path in first.files] == [path.name for path in second.files] == ["a.dcm", "b.dcm"]


@pytest.mark.parametrize("damage", ["truncate", "remove", "json", "values"])
def test_a_damaged_cache_entry_is_made_anew(root, tmp_path, damage, caplog):
    cache = tmp_path / "cache"
    want = read(root, cache=cache)
    (entry,) = cache.iterdir()
    victim = entry / "image_0001.npy"
    if damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-100])
    elif damage == "remove":
        victim.unlink()
    elif damage == "json":
        (entry / "cohort.json").write_text("{", encoding="utf-8")
    else:
        (entry / "cohort.json").write_text(json.dumps({"sizes": {}}), encoding="utf-8")
    again = read(root, cache=cache)
    assert "made anew" in caplog.text
    equal(again, read(root))
    assert [path.name for path in cache.iterdir()] == [entry.name]
    equal(read(root, cache=cache), again)
    del want


def test_a_cache_that_cannot_be_written_is_only_a_warning(root, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    cohort = read(root, cache=tmp_path / "file" / "cache")
    assert len(cohort.cases) == 5 and "could not be written" in caplog.text


def start(root, cache):
    cohort = read(root, cache=cache)
    assert len(cohort.cases) == 5


def test_two_processes_may_start_at_once(root, tmp_path):
    context = multiprocessing.get_context("spawn")
    cache = tmp_path / "cache"
    workers = [context.Process(target=start, args=(root, cache)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert len(list(cache.iterdir())) == 1  # one entry, no leftovers
    equal(read(root, cache=cache), read(root))


def test_cases_stay_in_memory_up_to_the_limit_least_recently_used_first_out(root, tmp_path, monkeypatch):
    cohort = read(root, cache=tmp_path / "cache")
    read_files = []
    original = cohort_cache._read_whole
    monkeypatch.setattr(
        cohort_cache, "_read_whole", lambda case, file: read_files.append(case) or original(case, file)
    )
    memory = cohort_cache.Memory(2 * cohort.cases[0].image.nbytes, ("image",))
    for index in (0, 1, 0, 2, 0, 1, 2):  # room for two: 2 displaces 1, 1 displaces 2, 2 displaces 0
        case = memory(cohort.cases[index])
        np.testing.assert_array_equal(case.image, cohort.cases[index].image)
        assert not isinstance(case.image, np.memmap)
    assert read_files == ["c0", "c1", "c2", "c1", "c2"]
    nothing = cohort_cache.Memory(0, ("image",))
    assert [nothing(cohort.cases[3]).name for _ in range(2)] == ["c3", "c3"]
    assert read_files[-2:] == ["c3", "c3"]
