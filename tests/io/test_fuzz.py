"""Readers against properties (hypothesis) and against broken files (`tests.fuzz`, a small count)."""

from __future__ import annotations

import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as arrays  # noqa: E402

from experiments import lung  # noqa: E402
from lmreg_jax.cohort.table import Row, read_cases, read_pairs  # noqa: E402
from lmreg_jax.errors import LONGEST, InputError  # noqa: E402
from lmreg_jax.imaging.volume import Volume, apply_affine  # noqa: E402
from lmreg_jax.io.nifti import read_volume, write_volume  # noqa: E402
from lmreg_jax.io.points import (  # noqa: E402
    read_points,
    write_points,
)
from lmreg_jax.io.tables import read_table  # noqa: E402
from lmreg_jax.model import config as configuration  # noqa: E402
from lmreg_jax.model.keras import import_keras  # noqa: E402
from lmreg_jax.model.unet import UNet  # noqa: E402
from tests import fuzz_readers  # noqa: E402
from tests.mutations import mutated  # noqa: E402

ROOT = Path(__file__).parents[2]
# The folder of a test serves all its examples, each of which writes its file anew.
many = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
coordinates = st.floats(-1e4, 1e4).map(lambda v: round(v, 4))
names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)


@st.composite
def volumes(draw: Any) -> Volume:
    """Any orientation (axes permuted, flipped, turned a little), spacing and type."""
    shape = draw(st.tuples(*[st.integers(2, 6)] * 3))
    dtype = draw(st.sampled_from([np.uint8, np.int16, np.int32, np.float32]))
    limits: dict[str, Any] = {"min_value": -1000, "max_value": 1000, "width": 32}
    elements = st.floats(**limits) if dtype == np.float32 else st.integers(0, 200)
    data = draw(arrays.arrays(dtype, shape, elements=elements))
    permutation = np.eye(3)[list(draw(st.permutations(range(3))))]
    signs = np.diag(draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)))
    angle = draw(st.floats(-0.3, 0.3))
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ permutation @ signs @ np.diag(draw(st.tuples(*[st.floats(0.3, 9)] * 3)))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return Volume(data, affine)


@many
@given(volume=volumes(), suffix=st.sampled_from([".nii", ".nii.gz"]))
def test_a_volume_comes_back_in_ras_with_every_voxel_at_its_place(
    volume: Volume, suffix: str, tmp_path: Path
) -> None:
    write_volume(tmp_path / f"volume{suffix}", volume)
    found = read_volume(tmp_path / f"volume{suffix}")
    assert nib.aff2axcodes(found.affine) == ("R", "A", "S")
    assert found.data.dtype == volume.data.dtype
    index = np.argwhere(np.ones(volume.data.shape))
    mm = apply_affine(volume.affine, index)
    # The header keeps float32: 6e-8 of positions up to 600 mm.
    there = apply_affine(np.linalg.inv(found.affine), mm)
    assert np.abs(there - np.rint(there)).max() < 1e-3
    i, j, k = np.rint(there).astype(int).T
    np.testing.assert_array_equal(found.data[i, j, k], volume.data[tuple(index.T)])


@many
@given(
    points=st.dictionaries(names, st.tuples(*[coordinates] * 3), min_size=1, max_size=8),
    suffix=st.sampled_from([".csv", ".fcsv", ".mrk.json"]),
)
def test_landmarks_come_back_by_any_name(points: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"points{suffix}"
    write_points(file, {name: np.array(p) for name, p in points.items()})
    found = read_points(file)
    assert list(found) == list(points)
    for name, point in points.items():
        np.testing.assert_allclose(found[name], point, atol=1e-9)


@many
@given(content=st.binary(max_size=300) | st.text(string.printable, max_size=300).map(str.encode))
def test_any_bytes_are_read_or_refused_by_name(content: bytes, tmp_path: Path) -> None:
    network = UNet(encoder=(4,), decoder=(4,), final=())
    readers = {
        "points.csv": read_points,
        "points.fcsv": read_points,
        "points.mrk.json": read_points,
        "weights.h5": lambda path: import_keras(path, network),
        "table.csv": lambda path: read_table(path, ("a",)),
        "config.json": configuration.read,
        "image.nii": read_volume,
        "image.nii.gz": read_volume,
    }
    for name, read in readers.items():
        (tmp_path / name).write_bytes(content)
        try:
            read(tmp_path / name)
        except InputError as error:
            assert str(tmp_path) in str(error)


@many
@given(
    cell=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)
    | st.lists(
        st.sampled_from(["..", ".", "images", "c.nii", "~", "/", "C:", "\\", "//", ""]), max_size=6
    ).map("/".join)
)
def test_no_path_of_a_table_leads_out_of_its_folder(cell: str, tmp_path: Path) -> None:
    """Whatever stands in the table; there is something to find outside."""
    root = tmp_path / "cohort"
    (root / "images").mkdir(parents=True, exist_ok=True)
    for path in (tmp_path / "c.nii", root / "c.nii", root / "images" / "c.nii"):
        path.touch()
    quoted = '"' + cell.replace('"', '""') + '"'
    (root / "cases.csv").write_text(f"case,image\na,{quoted}\n", encoding="utf-8")
    try:
        rows = read_cases(root)
    except InputError:
        return
    for row in rows:
        assert row.image.resolve().is_relative_to(root.resolve())


@many
@given(pairs=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=6))
def test_pairs_are_as_written_or_refused_with_their_line(pairs: list[Any], tmp_path: Path) -> None:
    lines = "".join(f"{fixed},{moving}\n" for fixed, moving in pairs)
    (tmp_path / "pairs.csv").write_text("fixed,moving\n" + lines, encoding="utf-8")
    rows = [Row(name, "train", tmp_path) for name in "abcd"]
    sound = len(set(pairs)) == len(pairs) and all(a != b for a, b in pairs)
    try:
        found = read_pairs(tmp_path, rows)
    except InputError as error:
        assert not sound and "line " in str(error)
    else:
        assert sound and found == tuple(pairs)


@many
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(*[st.integers(2, 300)] * 3),
    rate=st.floats(1e-9, 1.0),
    root=st.text(max_size=20),
)
def test_a_config_comes_back_as_it_was(seed: int, shape: Any, rate: float, root: str, tmp_path: Path) -> None:
    config = lung.get_config()
    config.train.seed, config.train.learning_rate = seed, rate
    config.data.shape, config.data.root = shape, root
    (tmp_path / "config.json").write_text(configuration.to_json(config), encoding="utf-8")
    found = configuration.read(tmp_path / "config.json")
    assert configuration.differences(found, config) == []
    assert found.data.shape == shape and found.train.learning_rate == rate


@many
@given(text=st.text(max_size=5000))
def test_a_message_is_never_endless(text: str) -> None:
    message = str(InputError(text))
    assert len(message) <= LONGEST + 10
    assert message == text or (message[:100], message[-100:]) == (text[:100], text[-100:])


def test_mutations_are_determined_by_their_seed_and_do_change_something() -> None:
    import random

    content, other = b"name,x,y,z\na,1,2,3\n", b"name,x,y,z\nb,4,5,6\n"
    first, second = (
        [mutated(content, other, random.Random(i), text=True) for i in range(200)] for _ in range(2)
    )
    assert first == second
    assert sum(m != content for m in first) > 180
    assert len(set(first)) > 150


@pytest.mark.slow
def test_a_hundred_broken_files_of_every_kind(tmp_path: Path) -> None:
    """The real thing, in processes of their own: python -m tests.fuzz --count 10000."""
    command = [sys.executable, "-m", "tests.fuzz", "--count", "400", "--keep", str(tmp_path), "--seed", "7"]
    for kind in fuzz_readers.KINDS:
        if fuzz_readers.available(kind) and fuzz_readers.KINDS[kind].share >= 3:
            command += ["--kind", kind]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    print(answer.stdout)
    assert answer.returncode == 0, answer.stdout + answer.stderr[-2000:]


def test_the_valid_files_are_read(tmp_path: Path) -> None:
    """Else the fuzz would only ever see refusals."""
    for kind, known in fuzz_readers.KINDS.items():
        if not fuzz_readers.available(kind):
            continue
        folder = tmp_path / kind
        folder.mkdir()
        for path in known.write(folder):
            assert fuzz_readers.complaint(kind, path) == "", kind


def test_json_nested_without_end_is_refused(tmp_path: Path) -> None:
    """Python's parser recurses; it ends with an error of its own kind."""
    (tmp_path / "config.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json"):
        configuration.read(tmp_path / "config.json")
