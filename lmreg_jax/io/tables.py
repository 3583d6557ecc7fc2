"""Landmark and other CSV tables, and writing that never leaves half a file."""

from __future__ import annotations

import csv
import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lmreg_jax.errors import InputError, undone

Array = NDArray[Any]
TEMPORARY = ".writing-"  # how names begin that are no results yet


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name next to `path` (same suffix), renamed to it on success, removed on failure.

    Folders above are made; a symbolic link stays one, and the file that it names is replaced. A reader,
    or a second writer, thus never sees half a file.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target.parent, Path(path).name)
    with undone(partial(temporary.unlink, missing_ok=True)):
        yield temporary
        put_file(temporary, target)


def temporary_name(folder: Path, name: str = "") -> Path:
    """A new hidden name in `folder`, with the suffix of `name`, however long that is."""
    return (
        folder / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}{''.join(Path(name).suffixes[-2:])[-16:]}"
    )


def put_file(temporary: Path, path: Path) -> None:
    """Renames `temporary` to `path`, or copies it there where `path` is a file that is mounted."""
    if os.path.lexists(path) and not path.is_file():
        raise InputError(f"{path}: not a regular file; name another")
    try:
        os.replace(temporary, path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        shutil.copyfile(temporary, path)
        temporary.unlink()


def read_table(path: Path, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV as (line number, {column: stripped cell}); blank lines are left out.

    Raises InputError, naming the file, where it cannot be read or lacks a `required` column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: spreadsheets write a byte order mark
        lines = list(csv.reader(text.splitlines(), strict=True))
    except FileNotFoundError:
        raise InputError(f"{path}: no such table") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file ({reason(error)})") from error
    header = [cell.strip().lower() for cell in lines[0]] if lines else []
    missing = [name for name in required if name not in header]
    if missing:
        raise InputError(
            f"{path}: column {', '.join(missing)} is missing; the first line must name "
            f"{','.join(required)} (found: {','.join(header) or 'nothing'})"
        )
    named = [name for name in header if name]
    if len(set(named)) != len(named):
        raise InputError(f"{path}: a column is there twice in {','.join(header)}")
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
            raise InputError(
                f"{path}, line {number}: {len(cells)} cells for {len(header)} columns (a decimal "
                "comma? write 1.5, not 1,5)"
            )
        padded = [cell.strip() for cell in cells] + [""] * (len(header) - len(cells))
        rows.append((number, dict(zip(header, padded, strict=False))))
    return rows


def reason(error: BaseException) -> str:
    """The first line of an error's message: what fits into a message of our own."""
    return str(error).strip().split("\n")[0] or type(error).__name__
