"""How a command ends: the error that means "the input is at fault", one line, an exit status.

0 results are in place; 2 an error that the user can fix; 128 + number: ended by a signal (Ctrl-C 130).
"""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
Undo = Callable[[], object]

LONGEST = 2000  # characters of a message: one that quotes a broken file could be as long as that
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE_S = 1.0  # between a signal and the end by force: XLA compiles for longer, and hears nothing
OUT_OF_MEMORY = (
    "out of memory: close other programs, resample the scans to coarser voxels, or train on fewer pairs a"
    " batch (train.pairs_per_batch)"
)
NO_DEVICE = ("Unable to initialize backend", "Unknown backend")  # how JAX's own errors begin

undo_at_end: list[Undo] = []  # what must not outlive a program that is ended by force


class InputError(ValueError):
    """A user's input cannot be used.

    The message is shown as it is: it names the file or value, what was expected and what to do.
    """

    def __init__(self, message: str = "") -> None:
        if len(message) > LONGEST:
            half = LONGEST // 2
            message = f"{message[:half]} [...] {message[-half:]}"
        super().__init__(message)


class Interrupted(KeyboardInterrupt):
    """A signal of ENDING, raised in the main thread."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def undone(undo: Undo) -> Iterator[None]:
    """Calls `undo` where the block fails, and where the program is ended by force inside it."""
    undo_at_end.append(undo)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            undo()
        raise
    finally:
        undo_at_end.remove(undo)


def exits_cleanly(main: Callable[..., T]) -> Callable[..., T]:
    """Wraps a command's `main`: errors that the user can fix become one line on stderr and status 2.

    These are InputError, disk trouble (OSError), paths that are not UTF-8, a device that is not there
    and memory that runs out. Anything else is a bug and keeps its traceback. Signals of ENDING end the
    command within PATIENCE_S, with 128 + their number, and leave no temporary file. Standard streams
    that break (`| head`, a full disk) do not end the work; see `printed`.
    """

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> T:
        with _standard_streams(), _signals():
            try:
                return main(*args, **kwargs)
            except (Exception, KeyboardInterrupt) as error:
                line, status = _ending(error)
                if not line:
                    raise
            _told.append(status)
            print(line, file=sys.stderr, flush=True)
            raise SystemExit(status)

    return wrapped


def _ending(error: BaseException) -> tuple[str, int]:
    """The line and the exit status for an error; no line for a bug."""
    text = str(error)
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "number", signal.SIGINT)
        return _interrupted(number), 128 + number
    if isinstance(error, InputError):
        line = text
    elif isinstance(error, OSError):
        line = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or text
    elif isinstance(error, UnicodeEncodeError) and "surrogate" in error.reason:
        line = f"{error.object}: the name is not UTF-8; rename the file or the folder"
    elif isinstance(error, MemoryError) or text.startswith(("RESOURCE_EXHAUSTED", "Out of memory")):
        line = OUT_OF_MEMORY
    elif isinstance(error, RuntimeError) and text.startswith(NO_DEVICE):
        line = f"JAX finds no such device: {text.splitlines()[0]}; unset JAX_PLATFORMS"
    else:
        return "", 1
    return f"error: {line}", 2


def _interrupted(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else f"interrupted by {signal.Signals(number).name}"


def printed() -> None:
    """OSError where what a command has printed did not arrive; a reader who left (`| head`) is fine."""
    sys.stdout.flush()
    broken = getattr(sys.stdout, "broken", None)
    if broken is not None and not isinstance(broken, BrokenPipeError):
        raise OSError(broken.errno, broken.strerror, "standard output")


class _Stream:
    """A standard stream whose failures are kept in `broken` and silence it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.broken: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._tried(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._tried(self.stream.flush)

    def _tried(self, action: Undo) -> None:
        if self.broken is not None:
            return
        try:
            action()
        except OSError as error:
            self.broken = error
            # What is still in its buffer goes nowhere, or Python would stumble over it at its end.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)


@contextlib.contextmanager
def _standard_streams() -> Iterator[None]:
    """Streams that are open, and that neither a closed pipe nor an odd character can break.

    A closed one (`2>&-`) becomes the null device: the next file to be opened would get its number, and
    whatever a library prints. Characters that the encoding lacks are shown as "?".
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
    before = sys.stdout, sys.stderr
    for name, stream in zip(("stdout", "stderr"), before, strict=True):
        stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        setattr(sys, name, _Stream(stream))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Inside, a signal of ENDING raises Interrupted; one that leads to no end in PATIENCE_S ends by force.

    Python runs handlers between its own instructions, not while XLA compiles, and an exception inside a
    library's callback is lost: so a thread reads the signals, too. Those that the caller ignores
    (`nohup`, a shell's background) stay ignored. Only the main thread can do this.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    reader = threading.Thread(target=_end_by_force, args=(reading,), daemon=True)
    reader.start()
    try:
        yield
    finally:
        if not _came:  # else the thread waits for the program's end
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            os.close(writing)  # ends the reader
            reader.join()
            os.close(reading)


_came: list[int] = []  # the signal that ends the program
_told: list[int] = []  # its status, once the line is printed


def _interrupt(number: int, frame: FrameType | None) -> None:
    for other in ENDING:
        signal.signal(other, signal.SIG_IGN)
    _came.append(number)
    sys.unraisablehook = lambda _: None  # what breaks on the way out is no news
    raise Interrupted(number)


def _end_by_force(reading: int) -> None:
    while heard := os.read(reading, 1):
        if heard[0] not in ENDING:
            continue
        time.sleep(PATIENCE_S)
        for undo in list(undo_at_end):
            with contextlib.suppress(Exception):
                undo()
        for child in multiprocessing.active_children():
            child.kill()
        if not _told:
            os.write(2, f"{_interrupted(heard[0])}\n".encode())
        os._exit(128 + heard[0])
