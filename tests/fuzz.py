"""Cuts files short, changes words in them, and gives them another kind's name; then reads them.

    python -m tests.fuzz --count 2000 [--seed 1]

The files are a user's own: damaged or of the wrong kind, not hostile. Each must be read, or refused with an
InputError that names it; whatever else a reader raises is printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.transforms import Transform
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.io.nifti import write_volume
from lmreg_jax.io.points import read_points, write_points
from lmreg_jax.io.read import read_scan
from lmreg_jax.io.transforms import read_transform, write_displacement, write_itk

GRID = np.array([[-2.0, 0, 0, 10], [0, 2.5, 0, -12], [0, 0, 3, -9], [0, 0, 0, 1]])
POINTS = {f"landmark_{i}": np.array([i - 3.25, 2.0 * i, 1.5]) for i in range(5)}
WORDS = (b"", b"nan", b"-1", b"0", b"1e999", b"1,5", b"null", b"[]", b'"', b"\xff\xfe", b"9" * 400, b"x")
READERS: dict[str, Callable[[Path], object]] = {
    **dict.fromkeys(("a.nii", "a.nii.gz", "a.mha", "a.nrrd"), read_scan),
    **dict.fromkeys(("p.csv", "p.fcsv", "p.mrk.json"), read_points),
    **dict.fromkeys(("t.h5", "t.tfm", "t.txt", "f.nii.gz", "f.mha", "f.nrrd"), read_transform),
}


def write_valid(folder: Path) -> None:
    """One small valid file of each name in READERS."""
    import SimpleITK as sitk  # noqa: N813

    chance = np.random.default_rng(1)
    voxels = chance.integers(-1000, 200, (9, 8, 7)).astype(np.int16)
    field = chance.standard_normal((6, 5, 4, 3)).astype(np.float32)
    transform = Transform(np.eye(4), field, np.diag([2.0, 2, 3, 1]), np.diag([1.1, 0.9, 1, 1]))
    for name in READERS:
        path = folder / name
        if name.startswith("p"):
            write_points(path, POINTS)
        elif name.startswith("t"):
            itk = folder / f"{name}.tfm" if name.endswith(".txt") else path
            write_itk(itk, transform)
            itk.rename(path)
        elif ".nii" in name and name.startswith("a"):
            write_volume(path, Volume(voxels, GRID))
        elif ".nii" in name:
            write_displacement(path, transform, (6, 5, 4), transform.grid)
        else:
            is_field = name.startswith("f")
            sitk.WriteImage(sitk.GetImageFromArray(field if is_field else voxels, isVector=is_field), path)


def broken(content: bytes, binary: bool, chance: random.Random) -> bytes:
    """Cut short (half of the time in its first 400 bytes), or, in a text, with one word replaced."""
    if binary or chance.random() < 0.5:
        return content[: chance.randrange(chance.choice((len(content), min(len(content), 400))))]
    word = chance.choice(list(re.finditer(rb"[\w.+-]+", content[:2000])) or [None])
    if word is None:
        return b""
    return content[: word.start()] + chance.choice(WORDS) + content[word.end() :]


def complaints(count: int, seed: int) -> list[str]:
    """What `count` broken files show: a line for each that is neither read nor refused by its name."""
    chance = random.Random(seed)
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_valid(folder)
        for kind, read in READERS.items():
            read(folder / kind)  # else the fuzz would only see refusals
        contents = {kind: (folder / kind).read_bytes() for kind in READERS}
        for number in range(count):
            kind, source = (chance.choice(list(READERS)) for _ in range(2))
            whole, binary = contents[kind], kind.endswith((".nii", ".gz", ".h5"))
            content = contents[source] if chance.random() < 0.2 else broken(whole, binary, chance)
            path = folder / f"{number}{kind[1:]}"
            path.write_bytes(content)
            try:
                READERS[kind](path)
            except InputError as error:
                if path.name not in str(error):
                    lines.append(f"{kind} {number}: the message does not name the file: {error}")
            except Exception as error:
                lines.append(f"{kind} {number}: {type(error).__name__}: {error}")
            path.unlink()
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    lines = complaints(args.count, args.seed)
    print("\n".join(lines) or f"{args.count} files, no complaint")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
