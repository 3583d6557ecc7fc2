"""NIfTI files written slab by slab, and deflated by several threads.

Deflating takes longer than all else about writing a large scan, and a whole field in memory more
room than there is.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging._slabs import THREADS, slabs
from lmreg_jax.io.tables import replacing

Array = NDArray[Any]

NIFTI = (".nii", ".nii.gz")
GZIP_HEADER = b"\x1f\x8b\x08" + bytes(7)  # no name, no time: equal voxels make equal files (by one packer)
HEADER_BYTES = 352  # of a single file without extensions, the four bytes that say so included


def deflater() -> tuple[Any, int]:
    """A module with zlib's `compressobj`, and the level to take.

    Intel's ISA-L, where it is installed, is six times as fast as zlib's first level and packs nearly as much.
    """
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib, 1
    return isal_zlib, 2


def header_of(affine: Array, shape: Iterable[int], dtype: Any) -> Any:
    """A NIfTI-1 header in mm, its affine in both forms: ITK reads the qform, most others the sform."""
    header = nib.Nifti1Header()
    header.set_data_shape(tuple(int(n) for n in shape))
    header.set_data_dtype(dtype)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1, 0)
    header["magic"], header["vox_offset"] = b"n+1", HEADER_BYTES
    return header


def write_nifti(path: str | os.PathLike[str], header: Any, parts: Iterable[Array]) -> None:
    """Writes a .nii or .nii.gz from its header and its voxels, in arrays that follow each other.

    Each part [X, Y, n] continues the last axis. Written under a temporary name, then renamed.
    """
    path = Path(path)
    if not path.name.endswith(NIFTI):
        raise InputError(f"{path}: images are written as .nii or .nii.gz")

    def pieces() -> Iterator[bytes]:
        yield header.binaryblock + bytes(HEADER_BYTES - len(header.binaryblock))
        for part in parts:
            yield part.astype(header.get_data_dtype(), copy=False).tobytes(order="F")

    with replacing(path) as temporary, open(temporary, "wb") as file:
        if path.name.endswith(".gz"):
            _write_gzip(file, pieces())
        else:
            file.writelines(pieces())


def rounded(array: Array, bits: int) -> Array:
    """float32 numbers rounded to `bits` bits of mantissa: a relative error of 2^-(bits + 1) at most.

    The zeros that it leaves deflate; the digits of a computed field that mean nothing do not.
    """
    drop = 23 - bits
    whole = np.ascontiguousarray(array, np.float32).view(np.uint32)
    # A carry out of the mantissa goes to the exponent, as it should.
    half = np.uint32(1 << (drop - 1))
    return ((whole + half) & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)).view(np.float32)


def in_parts(array: Array) -> Iterator[Array]:
    """An array [X, Y, Z] in slabs of its last axis."""
    return (array[..., first:stop] for first, stop in slabs(array.shape))


def _write_gzip(file: BinaryIO, parts: Iterable[bytes]) -> None:
    """One gzip stream of all parts, each deflated by a thread.

    Deflate blocks that end on a full flush know nothing of each other and can simply be joined.
    """

    library, level = deflater()

    def deflate(part: bytes) -> tuple[bytes, bytes]:
        packer = library.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        return packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH), part

    check = size = 0
    file.write(GZIP_HEADER)
    with ThreadPoolExecutor(THREADS) as pool:
        for group in _groups(parts, THREADS):
            for packed, part in pool.map(deflate, group):
                file.write(packed)
                check, size = zlib.crc32(part, check), size + len(part)
    file.write(zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS).flush())
    file.write(struct.pack("<LL", check, size % 2**32))


def _groups(parts: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    for part in parts:
        group.append(part)
        if len(group) == size:
            yield group
            group = []
    yield group
