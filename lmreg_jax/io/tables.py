"""Landmark and other CSV tables, and writing that never leaves half a file."""

from __future__ import annotations

import codecs
import csv
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lmreg_jax.errors import InputError, undone

DECIMAL_COMMA = re.compile(r"^([+-]?\d+),(\d+)$")
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


def text_of(path: Path, kind: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark, as spreadsheets write it.

    kind: what it should be, for the InputError where it is missing or no text.
    """
    try:
        raw = path.read_bytes()
        utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return raw.decode("utf-16" if utf16 else "utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such table") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable {kind} file ({reason(error)})") from error


def read_rows(path: Path) -> list[list[str]]:
    """The lines of a CSV as stripped cells, between commas, or semicolons or tabs if the first line has any.

    Between these, a number with a decimal comma gets a point.
    """
    lines = text_of(path, "CSV").splitlines()
    delimiter = next((d for d in ";\t" if lines and d in lines[0]), ",")
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, strict=True)]
    except csv.Error as error:
        raise InputError(f"{path}: not a readable CSV file ({reason(error)})") from error
    if delimiter == ",":
        return rows
    return [[DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in row] for row in rows]


def read_table(path: Path, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV as (line number, {column: stripped cell}); blank lines are left out.

    Raises InputError, naming the file, where it cannot be read or lacks a `required` column.
    """
    lines = read_rows(path)
    header = [cell.lower() for cell in lines[0]] if lines else []
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
        if not any(cells):
            continue
        if len(cells) > len(header) and any(cells[len(header) :]):
            raise InputError(
                f"{path}, line {number}: {len(cells)} cells for {len(header)} columns (a decimal "
                "comma? write 1.5, not 1,5)"
            )
        padded = cells + [""] * (len(header) - len(cells))
        rows.append((number, dict(zip(header, padded, strict=False))))
    return rows


def reason(error: BaseException) -> str:
    """The first line of an error's message: what fits into a message of our own."""
    return str(error).strip().split("\n")[0] or type(error).__name__
