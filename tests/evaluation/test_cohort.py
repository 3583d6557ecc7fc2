"""Tables of known registrations: what stands in which cell, and what stays empty."""

from __future__ import annotations

import csv
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmreg_jax.cohort.case import Case
from lmreg_jax.cohort.cohort import Cohort
from lmreg_jax.errors import InputError
from lmreg_jax.evaluation import cohort as evaluation
from lmreg_jax.evaluation.tables import summarise, write_tables
from lmreg_jax.report.cohort import write_figures

SHAPE, SPACING = (16, 12, 14), (2.0, 3.0, 4.0)
SHIFT = np.array([2.0, 0.0, -1.0])  # voxels, fixed -> moving, of every pair below
HEADER = (
    "pair,tre_initial_mm,tre_mm,tre_unseen_initial_mm,tre_unseen_mm,dice_initial,dice,"
    "folding_percent,sd_log_jacobian,seconds"
)
NAN = [np.nan] * 3


def case(name: str, shift: Any, *, annotated: bool = True, **changes: Any) -> Case:
    """A lung pair of boxes and points, all moved by `shift` voxels."""
    shift = np.asarray(shift)
    moved = shift.astype(int)
    lungs = np.zeros(SHAPE, np.uint8)
    lungs[2:6, 3:9, 4:10], lungs[8:12, 3:9, 4:10] = 2, 1
    image = np.random.default_rng(3).random(SHAPE, np.float32)
    missing = 0.0 if annotated else np.nan
    fields: dict[str, Any] = {
        "name": name,
        "split": "test",
        "image": np.roll(image, moved, (0, 1, 2)),
        "lungs": np.roll(lungs, moved, (0, 1, 2)) if annotated else None,
        "lobes": None,
        "landmarks": np.array([[5.0, 5, 5], [6, 4, 8]]) + shift + missing,
        "points": np.array([[7.0, 5, 6]]) + shift + missing,
        "landmarks_mm": np.array([[0.0, 0, 0], [1, 1, 1]]) + 3 * shift,
        "points_mm": np.array([NAN]),
        "scan_from_grid": np.eye(4),
    }
    return Case(**(fields | changes))


def cohort(*cases: Case) -> Cohort:
    return Cohort(
        root=Path("cohort"),
        cases=cases,
        landmark_names=("carina", "trachea_1"),
        point_names=("spur",),
        shape=SHAPE,
        spacing_mm=SPACING,
        affine=np.diag([*SPACING, 1.0]),
        alignment="moments",
        reference="a",
        pairs=None,
    )


def shifting(fixed: Any, moving: Any) -> evaluation.Registration:
    displacement = np.broadcast_to(SHIFT, (*SHAPE, 3)).astype(np.float32)
    return evaluation.Registration(np.roll(moving, (-2, 0, 1), (0, 1, 2)), displacement)


TWO = cohort(case("a", [0, 0, 0]), case("b", SHIFT), case("c", 2 * SHIFT))
PAIRS = [("a", "b"), ("b", "c")]
LENGTH = math.hypot(4.0, 4.0)  # |SHIFT * SPACING|, mm


def test_identity_leaves_every_number_as_it_was() -> None:
    (result,) = evaluation.evaluate_pairs(evaluation.identity_register, TWO, [("a", "b")], progress=False)
    np.testing.assert_allclose(result.tre_initial_mm, LENGTH)
    np.testing.assert_array_equal(result.tre_mm, result.tre_initial_mm)
    np.testing.assert_allclose(result.tre_before_affine_mm, 3 * np.linalg.norm(SHIFT))
    # Boxes 4 x 6 x 6, moved by (2, 0, -1): 2 x 6 x 5 of them stay in the same lung's box.
    assert result.dice_labels["left_lung"] == pytest.approx((60 / 144, 60 / 144))
    assert result.dice == result.dice_initial
    assert (result.folding_percent, result.sd_log_jacobian) == (0, 0)


def test_the_right_shift_is_perfect_and_the_wrong_one_doubles_the_error() -> None:
    (right,) = evaluation.evaluate_pairs(shifting, TWO, [("a", "b")], progress=False)
    np.testing.assert_allclose(right.tre_mm, 0, atol=1e-6)
    np.testing.assert_allclose(right.tre_unseen_mm, 0, atol=1e-6)
    assert (right.dice, right.dice_lungs_mean[1], right.hausdorff95_mm[1]) == (1, 1, 0)
    (wrong,) = evaluation.evaluate_pairs(shifting, TWO, [("b", "a")], progress=False)
    np.testing.assert_allclose(wrong.tre_mm, 2 * LENGTH)


def test_all_pools_landmarks_not_pairs() -> None:
    """Three known landmarks of errors 1, 1 (one pair) and 4 (another): 2, not the pairs' 2.5."""
    (first,) = evaluation.evaluate_pairs(shifting, TWO, [("a", "b")], progress=False)
    second = first._replace(tre_mm=np.array([4.0, np.nan]), dice=0.5)
    first = first._replace(tre_mm=np.array([1.0, 1.0]), dice=1.0)
    total = summarise([first, second])
    assert total["tre_mm"] == pytest.approx((2.0, math.sqrt(3), 3))
    assert total["dice"] == pytest.approx((0.75, math.sqrt(0.125), 2))
    assert math.isnan(summarise([])["dice"].mean)


def test_tables_have_the_promised_columns_rows_and_empty_cells(tmp_path: Path) -> None:
    bare = case("bare", SHIFT, annotated=False)
    one = case("one", SHIFT, landmarks=np.array([[7.0, 5, 4], NAN]), landmarks_mm=np.array([NAN] * 2))
    some = cohort(*TWO.cases, bare, one)
    pairs = [("a", "b"), ("a", "bare"), ("a", "one")]
    results = evaluation.evaluate_pairs(shifting, some, pairs, progress=False)
    write_tables(tmp_path / "new", results, some)
    assert {f.name for f in (tmp_path / "new").iterdir()} == {
        "evaluation.csv", "evaluation.json", "evaluation.md"
    }  # fmt: skip

    lines = (tmp_path / "new" / "evaluation.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == HEADER
    rows = {row["pair"]: row for row in csv.DictReader(lines)}
    assert list(rows) == ["b -> a", "bare -> a", "one -> a", "All", "All sd"]
    annotated = [c for c in HEADER.split(",")[1:7] if c != "folding_percent"]
    assert all(rows["bare -> a"][column] == "" for column in annotated)
    assert rows["bare -> a"]["folding_percent"] == "0"
    assert float(rows["b -> a"]["tre_initial_mm"]) == pytest.approx(LENGTH, abs=1e-4)
    assert all(float(row["seconds"]) > 0 for name, row in rows.items() if name != "All sd")

    whole = json.loads((tmp_path / "new" / "evaluation.json").read_text(encoding="utf-8"))
    assert whole["all"]["tre_mm"]["n"] == 3
    assert whole["pairs"][0]["landmarks"]["carina"]["tre_initial_mm"] == pytest.approx(LENGTH)
    assert whole["pairs"][2]["landmarks"]["trachea_1"]["tre_mm"] is None
    assert whole["pairs"][2]["tre_before_affine_mm"]["mean"] is None
    assert whole["pairs"][1]["points"]["spur"]["tre_unseen_mm"] is None
    assert {"jax", "flax", "numpy", "python", "lmreg_jax"} <= set(whole["versions"])
    assert whole["cohort"]["alignment"] == "moments"

    text = (tmp_path / "new" / "evaluation.md").read_text(encoding="utf-8")
    assert "| b -> a |" in text and "| **All** |" in text and " nan" not in text


def test_tables_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = evaluation.evaluate_pairs(shifting, TWO, PAIRS, progress=False)
    write_tables(tmp_path, results, TWO)
    before = (tmp_path / "evaluation.csv").read_text(encoding="utf-8")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_tables(tmp_path, results[:1], TWO)
    assert (tmp_path / "evaluation.csv").read_text(encoding="utf-8") == before
    assert len(list(tmp_path.iterdir())) == 3


def test_time_is_the_median_of_three_calls_after_one_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lasting = [10.0, *[0.3, 0.1, 0.2], *[0.6, 0.4, 0.5]]  # seconds a call; the first compiles
    calls: list[float] = []
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: sum(calls))

    def counted(fixed: Any, moving: Any) -> evaluation.Registration:
        calls.append(lasting[len(calls)])
        return shifting(fixed, moving)

    results = evaluation.evaluate_pairs(counted, TWO, PAIRS, progress=False)
    assert calls == lasting
    assert [result.seconds for result in results] == pytest.approx([0.2, 0.5])

    calls.clear()
    lasting[:] = [10.0, 6.0, 7.0]  # above five seconds, one timed call a pair
    results = evaluation.evaluate_pairs(counted, TWO, PAIRS, progress=False)
    assert [result.seconds for result in results] == pytest.approx([6.0, 7.0])


def test_validation_scores_agree_with_the_table() -> None:
    scores = evaluation.validation_scores(shifting, TWO, [*PAIRS, ("b", "a")])
    total = summarise(evaluation.evaluate_pairs(shifting, TWO, [*PAIRS, ("b", "a")], progress=False))
    assert {key: scores.pop(f"{key}_error") for key in ("tre_mm", "dice")} == pytest.approx(
        {key: total[key].sd / total[key].n ** 0.5 for key in ("tre_mm", "dice")}
    )
    assert set(scores) == {"tre_initial_mm", "tre_mm", "dice", "folding_percent"}
    assert scores == pytest.approx({key: total[key].mean for key in scores})
    bare = cohort(case("a", [0, 0, 0], annotated=False), case("b", SHIFT))
    empty = evaluation.validation_scores(shifting, bare, [("a", "b")])
    assert math.isnan(empty["tre_mm"]) and math.isnan(empty["dice"])


def test_a_checkpoint_is_chosen_by_tre_and_without_it_by_overlap() -> None:
    scores = {"tre_mm": 3.0, "tre_mm_error": 0.2, "dice": 0.9, "dice_error": 0.01}
    assert evaluation.to_choose_by(scores) == (3.0, 0.2)
    assert evaluation.to_choose_by(scores | {"tre_mm": math.nan}) == (-0.9, 0.01)
    # Of one landmark or pair there is no standard error.
    assert evaluation.to_choose_by(scores | {"tre_mm_error": math.nan}) == (3.0, 0.0)


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="no case 'd'"):
        evaluation.evaluate_pairs(shifting, TWO, [("a", "d")], progress=False)

    def broken(fixed: Any, moving: Any) -> evaluation.Registration:
        return evaluation.Registration(moving, np.full((*SHAPE, 3), np.nan))

    def small(fixed: Any, moving: Any) -> evaluation.Registration:
        return evaluation.Registration(moving, np.zeros((8, 6, 7, 3)))

    with pytest.raises(InputError, match=r"b -> a: .* not finite"):
        evaluation.evaluate_pairs(broken, TWO, [("a", "b")], progress=False)
    with pytest.raises(InputError, match=r"\(8, 6, 7, 3\), needed is \(16, 12, 14, 3\)"):
        evaluation.validation_scores(small, TWO, [("a", "b")])


def test_a_mask_without_sides_has_a_dice_but_no_sides() -> None:
    plain = [replace(c, lungs=(c.lungs != 0).astype(np.uint8)) for c in TWO.cases]
    (result,) = evaluation.evaluate_pairs(shifting, cohort(*plain), [("a", "b")], progress=False)
    assert result.dice == 1 and result.dice_labels == {}
    assert math.isnan(result.dice_lungs_mean[1])


def test_figures_of_the_median_and_the_worst_pair(tmp_path: Path) -> None:
    pairs = [("a", "b"), ("b", "a"), ("c", "a")]  # errors 0, twice and three times the shift
    results = evaluation.evaluate_pairs(shifting, TWO, pairs, progress=False)
    shown = evaluation._shown(results)
    assert {title: result.name for title, result in shown.items()} == {
        "median pair": "a -> b",
        "worst pair": "a -> c",
    }
    files = write_figures(tmp_path, shifting, TWO, pairs[:1])
    assert (
        {f.name for f in files}
        == {f.name for f in tmp_path.iterdir()}
        == {
            "tre.png",
            *(f"pair_1_{kind}.png" for kind in ("overview", "field", "landmarks")),
        }
    )
