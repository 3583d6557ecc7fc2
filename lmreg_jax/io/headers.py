"""What the text header of a MetaImage or NRRD file says of orientation, which ITK does not report.

ITK takes a file without orientation as LPS, ignores MetaImage's AnatomicalOrientation and NRRD's spaces
other than those of the patient, and reads a negative spacing as a positive one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lmreg_jax.errors import InputError

NRRD = (".nrrd", ".nhdr")
HEADER_LINES, LINE_BYTES = 1000, 10_000
SPACINGS = ("elementspacing", "elementsize", "spacings")
MATRICES = ("transformmatrix", "orientation", "rotation")  # MetaImage's names of one matrix
PATIENT_SPACES = (
    "leftposteriorsuperior",
    "rightanteriorsuperior",
    "leftanteriorsuperior",
    "lps",
    "ras",
    "las",
)
FROM = np.array([["R", "L"], ["A", "P"], ["I", "S"]])  # where an axis of MetaImage (LPS) begins, and ends
NO_ORIENTATION = "taken as LPS, as ITK does; left and right, or front and back, may be exchanged"


def read_header(path: str) -> dict[str, str]:
    """{name in lower case: value} of the lines before the voxels.

    Raises InputError where a voxel spacing is not above 0.
    """
    nrrd = path.lower().endswith(NRRD)
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        for _ in range(HEADER_LINES):
            line = file.readline(LINE_BYTES)
            if not line.strip():  # of NRRD the header's end; of both the file's
                break
            name, mark, value = line.decode("latin-1").partition(":" if nrrd else "=")
            if mark and not line.startswith(b"#"):
                fields[name.strip().lower()] = value.strip(" \t\r\n=")
            if name.strip().lower() == "elementdatafile":
                break
    for spacing in SPACINGS:
        for word in fields.get(spacing, "").split():
            try:
                negative = float(word) <= 0  # NaN: in NRRD not an axis of space
            except ValueError:
                continue  # ITK reports it
            if negative:
                raise InputError(f"{path}: voxel spacing {word} mm in the header; expected a number above 0")
    return fields


def orientation_notes(path: str, fields: Mapping[str, str]) -> tuple[str, ...]:
    """What is missing or contradictory in the header's orientation; () where it is complete."""
    if path.lower().endswith(NRRD):
        return _nrrd_notes(fields)
    letters = fields.get("anatomicalorientation", "").upper()
    matrix = next((fields[name] for name in MATRICES if name in fields), None)
    if matrix is None:
        only = f" (AnatomicalOrientation {letters} alone is not obeyed)" if letters.isalpha() else ""
        return (f"the header holds no orientation{only}: {NO_ORIENTATION}",)
    axes = np.array(matrix.split(), float)
    if axes.size != 9 or not letters.isalpha():
        return ()
    axes = axes.reshape(3, 3)
    main = np.abs(axes).argmax(axis=1)
    ends = [(axes[i, a] < 0).astype(int) for i, a in enumerate(main)]
    begin = "".join(FROM[a, e] for a, e in zip(main, ends, strict=True))
    end = "".join(FROM[a, 1 - e] for a, e in zip(main, ends, strict=True))
    if letters in (begin, end):  # ITK writes where the axes begin, a few programs where they end
        return ()
    return (
        f"AnatomicalOrientation {letters} contradicts the TransformMatrix ({begin}), which is obeyed, as ITK"
        " does: one of them is wrong",
    )


def _nrrd_notes(fields: Mapping[str, str]) -> tuple[str, ...]:
    space = fields.get("space")
    if space is not None and "space directions" not in fields:
        return (f"the header holds no space directions: {NO_ORIENTATION}",)
    if space is None:
        return (f"the header names no space: {NO_ORIENTATION}",)
    if space.lower().replace("-", "").replace(" ", "") not in PATIENT_SPACES:
        return (f"the header's space, {space}, is not of the patient: {NO_ORIENTATION}",)
    return ()
