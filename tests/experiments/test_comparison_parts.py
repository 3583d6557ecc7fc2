"""What the comparison is made of: statistics against closed forms, tables, answers kept on disk."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.comparison import stats, store, tables
from experiments.comparison.tables import HOLE, Cell, Table
from lmreg_jax.evaluation.baselines import Answer

NAN = float("nan")


# --- statistics -----------------------------------------------------------------------------------


def test_holm_on_a_family_worked_by_hand() -> None:
    """0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1, which may not fall below the 0.06 before it."""
    found = stats.holm([0.01, 0.04, NAN, 0.03, 0.005])
    np.testing.assert_allclose(found, [0.03, 0.06, NAN, 0.06, 0.02])
    np.testing.assert_allclose(stats.holm([0.9, 0.8]), [1.0, 1.0])
    assert stats.holm([]).size == 0


def test_holm_is_that_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).random(30) ** 3
    np.testing.assert_allclose(stats.holm(p), multitest.multipletests(p, method="holm")[1], atol=1e-12)


def test_signed_rank_in_closed_form() -> None:
    """All ten differences of one sign: 2 of the 2^10 sign patterns are as extreme."""
    assert stats.signed_rank(-np.arange(1.0, 11.0)) == pytest.approx(2 / 2**10)
    # Ranks 1 to 4, the least one positive: W = 1, reached by 2 of 16 patterns on each side.
    assert stats.signed_rank([1.0, -2.0, -3.0, -4.0]) == pytest.approx(4 / 16)
    assert stats.signed_rank(np.zeros(5)) == 1.0
    assert np.isnan(stats.signed_rank([]))


def test_bootstrap_interval_is_the_normal_one_for_many_values() -> None:
    """400 normal values: mean ± 1.96 s / sqrt(n); 9999 draws leave about 1.5 % of its width."""
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = stats.bootstrap(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.08 * half)
    assert stats.bootstrap(values) == found  # the same draws each time
    assert stats.bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)
    assert np.isnan(stats.bootstrap([1.0]).low) and np.isnan(stats.bootstrap([]).mean)


def test_a_hole_leaves_its_pair_out_of_a_difference() -> None:
    found = stats.compare("ours", "ants", [1.0, 2.0, NAN, 4.0], [2.0, 4.0, 1.0, NAN])
    assert (found.pairs, found.smaller, found.difference.mean) == (2, 2, -1.5)


# --- tables ---------------------------------------------------------------------------------------

TABLE = Table(
    "t",
    "A title: 100 %",
    ["a_b", "x", "y"],
    [["first|1", Cell(1.25, 0.5, best=True), Cell(NAN)], ["second", Cell(3.0, mark="†"), HOLE]],
    ["A note."],
)


def test_markdown_has_holes_bold_and_escapes() -> None:
    lines = tables.markdown(TABLE).splitlines()
    assert lines[0] == "## A title: 100 %"
    assert lines[2:6] == [
        "| a_b | x | y |",
        "| --- | ---: | ---: |",
        rf"| first\|1 | **1.25 ± 0.50** | {HOLE} |",
        f"| second | 3.00† | {HOLE} |",
    ]
    assert lines[-1] == "A note."


def test_csv_keeps_numbers_and_leaves_holes_empty() -> None:
    rows = list(csv.DictReader(io.StringIO(tables.as_csv(TABLE))))
    assert rows[0] == {"a_b": "first|1", "x": "1.25", "x sd": "0.5", "y": ""}
    assert rows[1] == {"a_b": "second", "x": "3", "x sd": "", "y": ""}


def test_latex_is_escaped_and_balanced() -> None:
    text = tables.latex(TABLE)
    assert r"\caption{A title: 100 \%}" in text and r"a\_b & x & y \\" in text
    assert r"\textbf{1.25 $\boldsymbol{\pm}$ 0.50} & -- \\" in text
    assert text.count("{") == text.count("}") and text.count(r"\begin{") == text.count(r"\end{")


def test_the_best_is_as_printed_and_never_a_hole_or_a_part() -> None:
    cells = [Cell(1.004), Cell(0.996), Cell(NAN), Cell(0.5, mark="†"), Cell(2.0)]
    assert [c.best for c in tables.with_best(cells)] == [True, True, False, False, False]
    assert [c.best for c in tables.with_best(cells, largest=True)] == [False] * 4 + [True]
    assert not tables.with_best([Cell(1.0), Cell(NAN)])[0].best  # nothing to be better than


# --- the cache, and the other process -------------------------------------------------------------


def test_an_answer_is_made_once_and_again_where_its_file_is_damaged(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Answer:
        made.append(1)
        return Answer(np.full((2, 2, 2, 3), float(len(made)), np.float32), 1.5, 2.5)

    for _ in range(2):
        found = store.stored(tmp_path, "a -> b/../c", "key", make)
        assert found.displacement.max() == 1 and (found.seconds, found.cpu_seconds) == (1.5, 2.5)
    (file,) = tmp_path.iterdir()  # a name of a case cannot lead out of the folder
    file.write_bytes(file.read_bytes()[:200])
    assert store.stored(tmp_path, "a -> b/../c", "key", make).displacement.max() == 2
    assert store.stored(tmp_path, "a -> b/../c", "other", make).displacement.max() == 3


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    def fails() -> Answer:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.stored(tmp_path, "a", "key", fails)
    assert not list(tmp_path.iterdir())


def test_a_digest_tells_values_shapes_and_settings_apart() -> None:
    array = np.arange(6.0)
    parts = [
        (array,),
        (array.reshape(2, 3),),
        (array.astype(np.float32),),
        (array + 1,),
        (array, {"a": 1}),
        (array, {"a": 2}),
    ]
    assert len({store.digest(*part) for part in parts}) == len(parts)
    assert store.digest(array[::-1], {"b": 1, "a": 2}) == store.digest(array[::-1].copy(), {"a": 2, "b": 1})


@pytest.mark.slow
def test_a_process_that_dies_costs_one_call() -> None:
    with store.separate_process() as call:
        first = call(os.getpid)
        assert first != os.getpid() and call(os.getpid) == first
        with pytest.raises(RuntimeError, match="process died"):
            call(os._exit, 11)
        assert call(os.getpid) not in (first, os.getpid())
        with pytest.raises(ZeroDivisionError):
            call(divmod, 1, 0)


@pytest.mark.slow
def test_the_other_process_ends_when_this_one_is_killed(tmp_path: Path) -> None:
    """Killed outright, the parent cannot tidy up; the other ends by itself within seconds."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal\nfrom experiments.comparison_store import separate_process\n"
        "if __name__ == '__main__':\n    with separate_process() as call:\n"
        "        print(call(os.getpid), flush=True)\n        os.kill(os.getpid(), signal.SIGKILL)\n",
        encoding="utf-8",
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    other = int(done.stdout)
    for _ in range(600):
        # A zombie (its new parent has not looked yet) has ended as well.
        state = Path(f"/proc/{other}/stat")
        if not state.exists() or state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(other, signal.SIGKILL)
    pytest.fail("it lives on")
