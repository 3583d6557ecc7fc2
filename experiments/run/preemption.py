"""Being told to stop: SIGTERM (a cluster's preemption), SIGUSR1 (SLURM's early warning), Ctrl-C.

The first signal asks the training to save and to end with status 75, "run me again" (EX_TEMPFAIL
of sysexits.h; `sbatch --requeue` and a shell's `while` can act on it). The second ends at once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RESUME_STATUS = 75
SIGNALS = tuple(
    number for name in ("SIGTERM", "SIGINT", "SIGUSR1") if (number := getattr(signal, name, None)) is not None
)

log = logging.getLogger(__name__)


class Preempted(SystemExit):
    """The run was told to stop and can be resumed: ends the program with RESUME_STATUS."""

    def __init__(self) -> None:
        super().__init__(RESUME_STATUS)


class Stop:
    """Whether a stop was `asked` for; inside `deferred` it only waits to be seen there."""

    def __init__(self) -> None:
        self.asked = False
        self._deferred = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal sets `asked`, and the caller ends at a place of its own choice."""
        yield from self._mode(True)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal (or one that is waiting) raises Preempted: for long work that is repeated."""
        yield from self._mode(False)

    def _mode(self, deferred: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, deferred
        try:
            self._raise_if_due()
            yield
        finally:
            self._deferred = before

    def _raise_if_due(self) -> None:
        if self.asked and not self._deferred:
            raise Preempted

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._raise_if_due()


@contextmanager
def watched() -> Iterator[Stop]:
    """Handles SIGNALS inside; outside of `deferred` the first one raises Preempted at once.

    Python runs its handlers between two of its own instructions, so not while XLA compiles or a
    device works. A thread therefore reads the signals as they come and ends the program on the
    second one. Only the main thread can do this: in any other, nothing is handled.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, stop._handle) for number in SIGNALS}
    reader = threading.Thread(target=_read_signals, args=(reading,), daemon=True)
    reader.start()
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writing)  # Ends the reader.
        reader.join(timeout=1)
        os.close(reading)


def _read_signals(reading: int) -> None:
    seen = 0
    while numbers := os.read(reading, 64):
        for number in numbers:
            if number not in SIGNALS:
                continue
            seen += 1
            if seen == 1:
                log.warning(
                    "%s: saving after this step, then ending with status %d; a second signal ends at once",
                    signal.Signals(number).name,
                    RESUME_STATUS,
                )
            else:
                os.write(2, b"second signal: ending at once; the last checkpoint is whole\n")
                os._exit(128 + number)
