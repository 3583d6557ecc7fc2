"""Scalars of a run: to `WORKDIR/scalars.csv` and, where tensorboardX is installed, TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

FILE = "scalars.csv"
SKIPPED = "skipped_steps.jsonl"
TERMS = ("loss", "kl", "image", "landmark")
COLUMNS = (
    "step",
    *TERMS,
    "grad_norm",
    "skipped",
    "val_tre_initial_mm",
    "val_tre_mm",
    "val_dice",
    "val_folding_percent",
)


class Writer:
    """Appends a row for each call of `add`; on a resumed run `rewind` first."""

    def __init__(self, workdir: Path) -> None:
        self._path = workdir / FILE
        self._skipped = workdir / SKIPPED
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            self._board = None
        else:
            self._board = SummaryWriter(str(workdir / "tensorboard"), flush_secs=10)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def rewind(self, step: int) -> None:
        """Drops rows after `step`: a run that was cut off had gone on past its checkpoint."""
        rows = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
        _replace(self._path, text.getvalue())
        if self._skipped.exists():
            lines = self._skipped.read_text().splitlines(keepends=True)
            _replace(self._skipped, "".join(line for line in lines if json.loads(line)["step"] < step))

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """One row; names that are not in COLUMNS go to TensorBoard only."""
        numbers = {name: float(value) for name, value in values.items()}
        cells = [f"{numbers[c]:.7g}" if np.isfinite(numbers.get(c, np.nan)) else "" for c in COLUMNS[1:]]
        with self._path.open("a") as file:
            file.write(",".join([str(step), *cells]) + "\n")
        if self._board is not None:
            for name, number in numbers.items():
                group, _, rest = name.partition("_")
                tag = f"validation/{rest}" if group == "val" else f"train/{name}"
                self._board.add_scalar(tag, number, step)

    def add_skipped(self, step: int, pairs: Sequence[tuple[str, str]], values: Mapping[str, Any]) -> None:
        """A line of JSON: the step that was not applied, its pairs, its terms; for replay."""
        line = {"step": step, "pairs": list(pairs), **{k: str(float(v)) for k, v in values.items()}}
        with self._skipped.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def non_finite(values: Mapping[str, Any]) -> str:
    """The names of the values that are NaN or infinite, the terms first."""
    bad = [name for name, value in values.items() if not np.isfinite(float(value))]
    return ", ".join(sorted(bad, key=lambda name: (name not in TERMS[1:], name)))
