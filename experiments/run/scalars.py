"""Scalars of a run: to `WORKDIR/scalars.csv` and, where tensorboardX is installed, TensorBoard."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from experiments.run.tensorboard import Board
from lmreg_jax.errors import InputError
from lmreg_jax.io.tables import replacing

FILE = "scalars.csv"
SKIPPED = "skipped_steps.jsonl"
REMEDY = (
    "make space there (or let it be written to) and give the same command again: the run goes on from"
    " its last checkpoint"
)
TERMS = ("loss", "kl", "image", "landmark")
SCORES = ("tre_initial_mm", "tre_mm", "dice", "folding_percent")  # of a validation
COLUMNS = (
    "step",
    *TERMS,
    "grad_norm",
    "skipped",
    *(f"val_{name}" for name in SCORES),
)


class Writer:
    """Appends a row for each call of `add`; on a resumed run `rewind` first.

    silent: writes nothing (processes other than the lead).
    """

    def __init__(self, workdir: Path, *, silent: bool = False) -> None:
        self.silent = silent
        self._path = workdir / FILE
        self._skipped = workdir / SKIPPED
        self._folder = workdir / "tensorboard"
        self._board: Board | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def rewind(self, step: int) -> None:
        """Drops rows after `step`: a run that was cut off had gone on past its checkpoint.

        A line that was cut short (the disk was full) goes as well.
        """
        if self.silent:
            return
        rows = [row for row in self.read() if int(row["step"]) <= step]
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
        _replace(self._path, text.getvalue())
        if self._skipped.exists():
            lines = self._skipped.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            _replace(self._skipped, "".join(line for line in lines if _step_of(line) < step))
        if self._board is not None:
            self._board.close()
        self._board = Board(self._folder, step)

    def read(self) -> list[dict[str, str]]:
        """The whole rows so far; what a fault of the disk has left of others is passed over."""
        if not self._path.exists():
            return []
        text = self._path.read_text(encoding="utf-8", errors="replace")
        header, *lines = text[: text.rfind("\n") + 1].split("\n")
        names = header.split(",")
        rows = (line.split(",") for line in lines)
        table = [dict(zip(names, cells, strict=True)) for cells in rows if len(cells) == len(names)]
        return [row for row in table if _is_whole(row)]

    def validated(self, step: int) -> bool:
        """Whether the scores of that step's validation are there."""
        names = [name for name in COLUMNS if name.startswith("val_")]
        return any(int(row["step"]) == step and any(row.get(n) for n in names) for row in self.read())

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """One row; names that are not in COLUMNS go to TensorBoard only."""
        if self.silent:
            return
        numbers = {name: float(value) for name, value in values.items()}
        cells = [f"{numbers[c]:.7g}" if np.isfinite(numbers.get(c, np.nan)) else "" for c in COLUMNS[1:]]
        _append(self._path, ",".join([str(step), *cells]))
        if self._board is not None:
            self._board.add(step, {_tag(name): number for name, number in numbers.items()})

    def add_skipped(self, step: int, pairs: Sequence[tuple[str, str]], values: Mapping[str, Any]) -> None:
        """A line of JSON: the step that was not applied, its pairs, its terms; for replay."""
        if self.silent:
            return
        line = {"step": step, "pairs": list(pairs), **{k: str(float(v)) for k, v in values.items()}}
        _append(self._skipped, json.dumps(line))


def _tag(name: str) -> str:
    group, _, rest = name.partition("_")
    return f"validation/{rest}" if group == "val" else f"train/{name}"


def _is_whole(row: Mapping[str, str]) -> bool:
    """Whether its step is a count, and every other cell a number or empty."""
    step = row.get("step", "")
    try:
        _ = [float(cell) for cell in row.values() if cell]
        return step.isascii() and step.isdigit() and int(step) >= 0
    except ValueError:
        return False


def _step_of(line: str) -> float:
    """The step of a line of JSON; infinite (so that it is dropped) where the line is cut short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")


def _append(path: Path, line: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); {REMEDY}") from error


def _replace(path: Path, text: str) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); {REMEDY}") from error


def non_finite(values: Mapping[str, Any]) -> str:
    """The names of the values that are NaN or infinite, the terms first."""
    bad = [name for name, value in values.items() if not np.isfinite(float(value))]
    return ", ".join(sorted(bad, key=lambda name: (name not in TERMS[1:], name)))
