"""What a command tells while it works."""

from __future__ import annotations

import sys
import time
from typing import Any


class Clock:
    """Tells what is being done, on stderr, and keeps how long each took."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.begin = self.last = time.perf_counter()
        self.doing = ""
        self.seconds: dict[str, float] = {}

    def say(self, doing: str) -> None:
        """Starts the next thing to be done."""
        now = time.perf_counter()
        if self.doing:
            self.seconds[self.doing] = round(self.seconds.get(self.doing, 0.0) + now - self.last, 2)
        self.doing, self.last = doing, now
        if not self.quiet:
            print(f"{now - self.begin:6.1f} s  {doing}", file=sys.stderr, flush=True)

    def progress(self, steps: Any) -> Any:
        """A progress bar around the steps, where somebody can see it."""
        from tqdm import tqdm

        return tqdm(steps, leave=False, disable=True if self.quiet else None)

    def total(self) -> float:
        return time.perf_counter() - self.begin
