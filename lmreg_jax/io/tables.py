"""Landmark and other CSV tables, and writing that never leaves half a file."""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lmreg_jax.errors import InputError

Array = NDArray[Any]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside `path` (same suffix), renamed to it on success, removed on failure.

    Folders above are made. A reader, or a second writer, thus never sees half a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
