"""MetaImage and NRRD files that are damaged, or claim what they cannot hold, are refused in words."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmreg_jax.errors import InputError
from lmreg_jax.io.read import read_scan
from lmreg_jax.io.transforms import read_transform

SHAPE = (12, 10, 14)


@pytest.fixture
def sitk() -> Any:
    return pytest.importorskip("SimpleITK")


def save(sitk: Any, path: Path, compressed: bool, components: int = 1) -> np.ndarray:
    """Random int16 HU, or a random field of float32; the array [X, Y, Z(, 3)] as it was given."""
    random = np.random.default_rng(0)
    data = (
        random.integers(-1000, 1000, SHAPE).astype(np.int16)
        if components == 1
        else random.normal(size=(*SHAPE, components)).astype(np.float32)
    )
    axes = (2, 1, 0) if components == 1 else (2, 1, 0, 3)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(axes)), isVector=components > 1)
    image.SetSpacing((2.0, 3.0, 4.0))
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return data


def values(path: Path) -> np.ndarray:
    scan = read_scan(path)
    return scan.to_native(scan.volume.data)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_whole_files_are_read(sitk: Any, suffix: str, compressed: bool, tmp_path: Path) -> None:
    data = save(sitk, tmp_path / f"a{suffix}", compressed)
    np.testing.assert_array_equal(values(tmp_path / f"a{suffix}"), data)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_bit_changed_in_compressed_voxels_is_noticed(sitk: Any, suffix: str, tmp_path: Path) -> None:
    """ITK reads such a MetaImage as if it were whole; half of its voxels are then others."""
    path = tmp_path / f"a{suffix}"
    data = save(sitk, path, compressed=True)
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for place in random.integers(len(whole) - 2000, len(whole), 30):
        content = bytearray(whole)
        content[place] ^= 1 << random.integers(8)
        path.write_bytes(bytes(content))
        try:
            np.testing.assert_array_equal(values(path), data)  # zlib's last bits pad the last byte
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 25


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("components", [1, 3])
def test_a_header_that_claims_more_than_the_file_holds(
    sitk: Any, suffix: str, compressed: bool, components: int, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    save(sitk, path, compressed, components)
    name, mark = (b"DimSize", b" = ") if suffix == ".mha" else (b"sizes", b": ")
    axes = b"3 " if components == 3 and suffix == ".nrrd" else b""
    content, count = re.subn(
        rb"(?m)^%s.*$" % name, name + mark + axes + b"900 900 900", path.read_bytes(), count=1
    )
    assert count == 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"the header claims \(900, 900, 900\) voxels .* can hold"):
        read_scan(path) if components == 1 else read_transform(path)


def test_what_itk_reads_is_not_refused(sitk: Any, tmp_path: Path) -> None:
    """Flags in another spelling, and a gzip stream of several parts."""
    data = save(sitk, tmp_path / "a.mha", compressed=True)
    content = (tmp_path / "a.mha").read_bytes()
    assert b"CompressedData = True" in content
    for flag in (b"T", b"1", b"true"):
        (tmp_path / "b.mha").write_bytes(
            content.replace(b"CompressedData = True", b"CompressedData = " + flag)
        )
        np.testing.assert_array_equal(values(tmp_path / "b.mha"), data)
    save(sitk, tmp_path / "c.nrrd", compressed=True)
    header, _, packed = (tmp_path / "c.nrrd").read_bytes().partition(b"\n\n")
    raw = gzip.decompress(packed)
    parts = gzip.compress(raw[:1001]) + gzip.compress(raw[1001:])
    (tmp_path / "c.nrrd").write_bytes(header + b"\n\n" + parts)
    np.testing.assert_array_equal(values(tmp_path / "c.nrrd"), data)
    (tmp_path / "c.nrrd").write_bytes(header + b"\n\n" + parts[:-30])
    with pytest.raises(InputError, match=r"c\.nrrd: its voxels are not whole"):
        values(tmp_path / "c.nrrd")


def test_truncated_voxels_are_refused(sitk: Any, tmp_path: Path) -> None:
    for name, compressed in (("a.mha", False), ("b.mha", True), ("c.nrrd", False), ("d.nrrd", True)):
        path = tmp_path / name
        save(sitk, path, compressed)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(InputError, match=name):
            read_scan(path)


@pytest.mark.parametrize("value", ["0", "-2"])
def test_spacings_of_zero_and_below_are_refused(sitk: Any, value: str, tmp_path: Path) -> None:
    """ITK reads -2 as 2."""
    path = tmp_path / "a.mha"
    save(sitk, path, compressed=False)
    old = b"ElementSpacing = 2 3 4"
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, f"ElementSpacing = {value} 3 4".encode()))
    with pytest.raises(InputError, match=f"voxel spacing {value} mm in the header; it must be above 0"):
        read_scan(path)


def test_voxels_elsewhere_are_found_or_named(sitk: Any, tmp_path: Path) -> None:
    save(sitk, tmp_path / "a.mhd", compressed=False)
    (tmp_path / "a.raw").unlink()
    with pytest.raises(InputError, match=r"the file of its voxels, .*a\.raw, is not there"):
        read_scan(tmp_path / "a.mhd")
    header = (tmp_path / "a.mhd").read_text(encoding="utf-8").replace("a.raw", "slice%03d.raw 1 14 1")
    (tmp_path / "a.mhd").write_text(header, encoding="utf-8")
    with pytest.raises(InputError, match="its voxels lie in several files"):
        read_scan(tmp_path / "a.mhd")
