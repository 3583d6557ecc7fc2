"""The one error that means "the input is at fault, not the program"."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LONGEST = 2000  # characters of a message: one that quotes a broken file could be as long as that


OUT_OF_MEMORY = (
    "out of memory: close other programs, resample the scans to coarser voxels, or train on fewer pairs a"
    " batch (train.pairs_per_batch)"
)


class InputError(ValueError):
    """A user's input cannot be used.

    The message is shown as it is: it names the file or value, says what was needed and what to do.
    """

    def __init__(self, message: str = "") -> None:
        if len(message) > LONGEST:
            half = LONGEST // 2
            message = f"{message[:half]} [...] {message[-half:]}"
        super().__init__(message)


def exits_cleanly(main: Callable[..., T]) -> Callable[..., T]:
    """Wraps a command's `main`: an `InputError` becomes one line on stderr and exit status 2.

    Disk trouble while writing (full, read-only, no permission) is the user's to mend as well, so
    `OSError` is reported in the same way, and so is memory that runs out. Anything else is a bug and
    keeps its traceback.
    Signs that the terminal's encoding lacks (a plus-minus in ASCII) are shown as "?".
    """

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> T:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            return main(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            print(f"error: {OUT_OF_MEMORY}", file=sys.stderr)
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            print(f"error: {name}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(2)

    return wrapped


def _out_of_memory(error: Exception) -> bool:
    """Python's own error, or XLA's, which is a RuntimeError that begins with a code."""
    return isinstance(error, MemoryError) or str(error).startswith(("RESOURCE_EXHAUSTED", "Out of memory"))
