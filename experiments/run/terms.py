"""The terms of a training's steps, looked at one step behind the device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.run import command, scalars

log = logging.getLogger("experiments.train")


def due(config: ConfigDict, done: int, every: int) -> bool:
    """Whether something is done after `done` steps: every so often, and at the end."""
    return done % every == 0 or done == config.train.steps


class Terms:
    """Logs the `last` step's terms when asked to `look`; counts the steps `skipped` in a row.

    last: the number of a step that has been launched, its pairs, its terms on the devices.
    """

    def __init__(self, config: ConfigDict, workdir: Path, rows: scalars.Writer, first: int) -> None:
        self.last: tuple[int, Sequence[tuple[str, str]], dict[str, jax.Array]] | None = None
        self.skipped = 0
        self._config, self._workdir, self._rows = config, workdir, rows
        self._step, self._terms = -1, dict[str, float]()
        total = config.train.steps
        self._bar = tqdm(
            total=total, initial=first, desc="train", unit="step", mininterval=1, disable=rows.silent
        )

    def __enter__(self) -> Terms:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def look(self) -> None:
        """Waits for the last step, unless it has been looked at, and logs its terms."""
        if self.last is None:
            return
        (self._step, pairs, launched), self.last = self.last, None
        terms = {name: float(value) for name, value in jax.device_get(launched).items()}
        self._terms = terms
        self._bar.update()
        if due(self._config, self._step + 1, self._config.train.log_every):
            self._rows.add(self._step + 1, terms)
            self._bar.set_postfix({name: f"{terms[name]:.4g}" for name in scalars.TERMS})
        self.skipped = self.skipped + 1 if terms["skipped"] else 0
        if self.skipped:
            self._rows.add_skipped(self._step, pairs, terms)
            names = ", ".join(f"{moving} -> {fixed}" for fixed, moving in pairs)
            bad = scalars.non_finite(terms)
            log.warning("step %d not applied: %s not finite; pairs %s", self._step, bad, names)

    def not_finite(self) -> command.NotFinite:
        """The error of the step that was looked at last."""
        return command.NotFinite(scalars.non_finite(self._terms), self._step, self._workdir)
