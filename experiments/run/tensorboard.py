"""Scalars for TensorBoard, written in step with the run.

tensorboardX's own SummaryWriter hands them to a thread; where the disk is full that thread dies,
and the run then waits for ever on a queue that nobody empties. Its file writer is used directly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLUSH_SECONDS = 10.0

log = logging.getLogger(__name__)


class Board:
    """Writes to `folder`; without tensorboardX, or once its disk is full, it does nothing."""

    def __init__(self, folder: Path, first: int = 0) -> None:
        """first: the step that a resumed run starts at; TensorBoard drops what lies after it."""
        self._writer: Any = None
        self._flushed = 0.0
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2
        except ImportError:
            return
        self._event = event_pb2.Event
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"), "")
            if first:
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._write(self._event(wall_time=time.time(), step=first, session_log=start))
        except OSError as error:
            self._give_up(error)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """One point a name."""
        if self._writer is None:
            return
        from tensorboardX.summary import scalar

        try:
            for name, value in scalars.items():
                self._write(self._event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Writes what is left."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            self._give_up(error)
        self._writer = None

    def _write(self, event: Any) -> None:
        self._writer.write_event(event)

    def _give_up(self, error: OSError) -> None:
        log.warning("TensorBoard's file cannot be written (%s); scalars.csv has all of it", error.strerror)
        self._writer = None
