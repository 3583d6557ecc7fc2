"""What the text header of a MetaImage or NRRD file claims, held against the file, before ITK reads it.

ITK allocates what a header asks for, reads compressed voxels that are damaged as if they were whole,
and takes a negative spacing for a positive one. So that is looked at here.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmreg_jax.errors import InputError
from lmreg_jax.io.nifti import MAX_INFLATION, MAX_VOXELS

NRRD = (".nrrd", ".nhdr")
HEADER_BYTES, HEADER_LINE = 2**20, 4000  # where the header is looked for, its longest line
CHUNK = 2**20
ZLIB_OR_GZIP = 47  # zlib's word for: whichever of the two it is
TEXT, ZLIB = ("ascii", "text", "txt"), ("gzip", "gz")  # NRRD's encodings
PLAIN = (*TEXT, "raw", "hex")
YES = ("t", "1")  # how MetaImage's flags begin that are set
# What may stand before the voxels, in NRRD and in MetaImage.
SKIPS = ("line skip", "lineskip", "byte skip", "byteskip", "headersize")
SPACINGS = ("elementspacing", "elementsize", "spacings")


class Header(NamedTuple):
    """fields: values by name in lower case; end: where the data begin, if they are in the same file."""

    fields: dict[str, str]
    end: int


def information(sitk: Any, path: str | os.PathLike[str]) -> Any:
    """A SimpleITK reader that has read the header of `path`, and only that.

    Raises InputError where its text is damaged, a spacing is not above 0, the data lie in several
    files, the file cannot hold as many voxels as it claims, or the sum of compressed ones is wrong.
    RuntimeError where ITK itself cannot read it.
    """
    path = os.fspath(path)
    header = read_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    _check_spacing(path, header)
    _check_data(path, header, reader.GetSize(), _voxel_bytes(sitk, reader))
    return reader


def read_header(path: str) -> Header:
    """The lines `name = value` (MetaImage) or `name: value` (NRRD) before the data.

    Raises InputError on a line of thousands of characters: ITK's NRRD reader crashes over one.
    """
    nrrd = path.lower().endswith(NRRD)
    fields: dict[str, str] = {}
    end = 0
    with open(path, "rb") as file:
        while end < HEADER_BYTES:
            line = file.readline(HEADER_LINE + 1)
            end += len(line)
            if nrrd and len(line) > HEADER_LINE:
                raise InputError(f"{path}: a header line of over {HEADER_LINE} characters; it is damaged")
            if not line.strip():  # of NRRD the header's end; of both the file's
                break
            name, mark, value = line.decode("latin-1").partition(":" if nrrd else "=")
            if mark and not line.startswith(b"#"):
                fields[name.strip().lower()] = value.strip()
            if name.strip().lower() == "elementdatafile":
                break
    return Header(fields, end)


def _voxel_bytes(sitk: Any, reader: Any) -> int:
    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())  # "vector of 32-bit float"
    bits = re.search(r"(\d+)-bit", name)
    return int(bits[1] if bits else 64) // 8 * reader.GetNumberOfComponents()


def _check_spacing(path: str, header: Header) -> None:
    for name in SPACINGS:
        for word in header.fields.get(name, "").split():
            try:
                positive = float(word) > 0 or word.lower() == "nan"  # NRRD: not an axis of space
            except ValueError:
                continue  # ITK has its own words for that.
            if not positive:
                raise InputError(f"{path}: voxel spacing {word} mm in the header; it must be above 0")


def _check_data(path: str, header: Header, size: Sequence[int], voxel_bytes: int) -> None:
    fields = header.fields
    name = fields.get("elementdatafile", fields.get("data file", fields.get("datafile", "LOCAL")))
    if name.upper().startswith("LIST") or "%" in name:
        raise InputError(f"{path}: its voxels lie in several files; save it as one .nii.gz, .mha or .nrrd")
    local = name.upper() == "LOCAL"
    file = Path(path) if local else Path(path).parent / name
    if not os.path.isfile(file):  # (False, not an error, where the name is too long for a file.)
        raise InputError(f"{path}: the file of its voxels, {file}, is not there; copy both")
    encoding = fields.get("encoding", "raw").lower()
    packed = fields.get("compresseddata", "")[:1].lower() in YES or encoding not in PLAIN
    voxels = math.prod(size)
    held = file.stat().st_size
    if encoding in TEXT or fields.get("binarydata", "true")[:1].lower() not in YES:
        enough = 2 * voxels - 1 <= held  # a digit and a blank for each
    else:
        enough = voxels * voxel_bytes <= held * (MAX_INFLATION if packed else 1)
    if not enough or voxels > MAX_VOXELS:
        raise InputError(
            f"{path}: the header claims {tuple(size)} voxels of {voxel_bytes} bytes, more than the {held}"
            f" bytes of {file.name} can hold; it is truncated or damaged: copy or export it again"
        )
    if packed and encoding in ("raw", *ZLIB) and not any(fields.get(skip, "0") != "0" for skip in SKIPS):
        _check_packed(path, file, header.end if local else 0, voxels * voxel_bytes)


def _check_packed(path: str, file: Path, start: int, expected: int) -> None:
    """Unpacks voxels (zlib's format or gzip's), for their number and their sum, a piece at a time."""
    unpacker, length = zlib.decompressobj(ZLIB_OR_GZIP), 0
    rest = b""
    with open(file, "rb") as stream:
        stream.seek(start)
        try:
            while length <= expected:
                if unpacker.eof:
                    if length == expected:
                        break
                    # The next of several parts that make a gzip stream.
                    rest, unpacker = unpacker.unused_data, zlib.decompressobj(ZLIB_OR_GZIP)
                piece = unpacker.unconsumed_tail or rest or stream.read(CHUNK)
                rest = b""
                if not piece:
                    break
                length += len(unpacker.decompress(piece, CHUNK))
        except zlib.error as error:
            raise InputError(f"{path}: its voxels are damaged ({error}); copy or export it again") from None
    if length != expected or not unpacker.eof:
        raise InputError(
            f"{path}: its voxels are not whole, {length} of {expected} bytes; copy or export it again"
        )
