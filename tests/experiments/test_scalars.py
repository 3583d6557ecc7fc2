"""The run's record: rows after the step that a run resumes at are dropped."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from experiments.run import scalars


def test_a_resumed_run_drops_what_lies_behind_its_checkpoint(tmp_path: Path) -> None:
    with scalars.Writer(tmp_path) as rows:
        rows.rewind(0)
        for step in (10, 20, 30):
            rows.add(step, {"loss": step, "kl": float("nan")})
        for step in (14, 25):
            rows.add_skipped(step, [("a", "b")], {"loss": float("inf")})
        rows.rewind(20)
        rows.add(30, {"loss": 7})
    with (tmp_path / scalars.FILE).open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["kl"]) for row in table] == [
        ("10", "10", ""),
        ("20", "20", ""),
        ("30", "7", ""),
    ]
    lines = (tmp_path / scalars.SKIPPED).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 14, "pairs": [["a", "b"]], "loss": "inf"}]


def test_rows_that_a_fault_of_the_disk_has_left_are_passed_over(tmp_path: Path) -> None:
    """Each of them once ended a resumed run with a traceback."""
    path = tmp_path / scalars.FILE
    with scalars.Writer(tmp_path) as table:
        table.rewind(0)
        table.add(1, {"loss": 1.5})
        sound = path.read_text(encoding="utf-8")
        _, row = sound.splitlines()
        damaged = ["\u00b2" + row[1:], row.replace("1.5", "x" * 200_000), row.replace("1.5", '"'), row + ",1"]
        for line in damaged:
            path.write_text(f"{sound}{line}\n", encoding="utf-8")
            table.rewind(9)
            assert [(row["step"], row["loss"]) for row in table.read()] == [("1", "1.5")]
