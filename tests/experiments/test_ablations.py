"""What follows from a comparison's results, tuning, tables, claims, and the ablations; on tiny subjects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

import experiments.train
from experiments import ablations
from experiments.comparison import methods, report, tuning
from experiments.comparison.methods import Method, Result
from experiments.comparison.tables import HOLE, Cell
from experiments.run.data import load_cohort
from lmreg_jax.cohort.cohort import Cohort, held_out_pairs
from lmreg_jax.errors import InputError
from lmreg_jax.evaluation.baselines import Answer
from lmreg_jax.evaluation.metrics import Summary
from lmreg_jax.model import config as configuration
from lmreg_jax.model import registrar
from tests.experiments.test_comparison import tiny_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    return tiny_config(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def cohort(config: ConfigDict) -> Cohort:
    return load_cohort(config, progress=False)


@pytest.fixture(scope="module")
def register(config: ConfigDict) -> registrar.Registrar:
    return registrar.registrar(config, configuration.initial_params(config), "best/1")


# --- tuning, claims -------------------------------------------------------------------------------


def fake_results(cohort: Cohort, shift: float, fail: int | None = None) -> list[Result]:
    """Results of u = shift along x, one of them perhaps failed."""

    def answer(fixed: Any, moving: Any) -> Answer:
        u = np.zeros((*cohort.shape, 3), np.float32)
        u[..., 0] = shift
        return Answer(u, 1.0, 1.0)

    found = methods.run(Method("elastix", answer), cohort, held_out_pairs(cohort, "test"), progress=False)
    return [r._replace(measured=None, error="no") if i == fail else r for i, r in enumerate(found)]


def test_tuning_keeps_the_least_error_among_those_that_never_fail(cohort: Cohort, monkeypatch: Any) -> None:
    results = {
        2.0: fake_results(cohort, 2.0),
        0.0: fake_results(cohort, 0.0),
        0.01: fake_results(cohort, 0, 1),
    }
    monkeypatch.setattr(tuning, "run", lambda method, *_, **__: results[method])
    candidates = {"far": 2.0, "near": 0.0, "fails": 0.01}
    pairs = held_out_pairs(cohort, "test")
    trials = tuning.tune("elastix", candidates, lambda s: s, cohort, pairs)
    assert tuning.kept(trials) == 0.0
    monkeypatch.setattr(tuning, "describe", str)
    rows = tuning.table(trials, pairs).rows
    assert [row[0] for row in rows] == ["Elastix: far", "Elastix: near (kept)", "Elastix: fails"]
    assert [row[-1] for row in rows] == ["", "", "1"]
    assert tuning.kept(tuning.tune("elastix", candidates, lambda s: s, cohort, [])) == 2.0


def test_tuning_never_sees_a_test_case(cohort: Cohort) -> None:
    pairs = tuning.tuning_pairs(cohort, 6)
    assert pairs == [("c3", "c4"), ("c4", "c3")]
    assert tuning.tuning_pairs(cohort, 1) == [("c3", "c4")] and tuning.tuning_pairs(cohort, 0) == []


def test_claims_are_met_or_not(cohort: Cohort) -> None:
    results = {"voxelmorph": fake_results(cohort, 2.0), "ours": fake_results(cohort, 0.0)}
    ratio = [report.pooled(results[name], "tre_mm").mean for name in ("ours", "voxelmorph")]
    table = report.claims(results)
    assert table is not None
    rows = {row[0]: row for row in table.rows}
    first = rows["TRE: ours / VoxelMorph, means"]
    assert isinstance(first[1], Cell) and first[1].mean == pytest.approx(ratio[0] / ratio[1])
    assert first[3] == ("yes" if ratio[0] / ratio[1] <= 0.68 else "no")
    assert rows["TRE: ours / Elastix"][3] == HOLE and rows["folding of ours (%)"][3] == "yes"
    assert report.claims({"ours": results["ours"]}) is None


def test_all_is_marked_and_never_best_where_pairs_are_missing(cohort: Cohort) -> None:
    results = {"elastix": fake_results(cohort, 0.0, fail=0), "ours": fake_results(cohort, 2.0)}
    table = report.table_1(results)
    first, all_ = table.rows[0], table.rows[-2]
    assert isinstance(first[1], Cell) and first[1].text == HOLE
    assert isinstance(all_[1], Cell) and all_[1].mark == "†" and not all_[1].best
    known = np.hstack([r.measured.tre_mm for r in results["elastix"] if r.measured])
    assert all_[1].mean == pytest.approx(Summary.of(known).mean)


# --- ablations ------------------------------------------------------------------------------------


def test_an_ablation_changes_the_training_alone(cohort: Cohort, config: ConfigDict) -> None:
    few = ablations.training_cohort(cohort, ablations.Ablation("subjects", "2", subjects=2))
    names = [c.name for c in few.cases if c.split == "train"]
    assert len(names) == 2 and cohort.reference in names
    assert [c.name for c in few.cases if c.split != "train"] == ["c3", "c4", "c5", "c6", "c7"]
    kinds = ablations.training_cohort(cohort, ablations.Ablation("landmarks", "3", landmarks=3))
    assert kinds.landmark_names == tuple(cohort.landmark_names[i] for i in (0, 2, 4))
    np.testing.assert_array_equal(kinds.cases[0].landmarks, cohort.cases[0].landmarks[[0, 2, 4]])
    everything = ablations.training_cohort(
        cohort, ablations.Ablation("landmarks", "all", landmarks=ablations.ALL_POINTS)
    )
    assert len(everything.landmark_names) == len(everything.cases[0].landmarks)
    assert len(cohort.landmark_names) == len(cohort.cases[0].landmarks) == 5  # as it was
    same = ablations.Ablation("lambda", "10", {"objective.precision": config.objective.precision})
    assert not ablations.differs(same, config, cohort)
    assert ablations.differs(same._replace(changes={"objective.precision": 77.0}), config, cohort)
    assert not ablations.differs(ablations.Ablation("subjects", "5", subjects=5), config, cohort)


def test_every_ablation_names_values_that_the_config_has(config: ConfigDict) -> None:
    for ablation in ablations.ABLATIONS:
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(ablation.changes)
        configuration.validate(changed)


def test_ablations_are_resumed_and_a_failed_run_is_a_hole(
    config: ConfigDict, register: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    trained: list[tuple[str, int, float]] = []

    def train(changed: ConfigDict, folder: Path, **_: Any) -> None:
        trained.append((folder.name, changed.train.seed, changed.objective.precision))
        if changed.objective.precision == 100:
            raise InputError("step 3: image not finite")

    monkeypatch.setattr(experiments.train, "train", train)
    monkeypatch.setattr(registrar, "load", lambda folder: register)
    config = config.copy_and_resolve_references()
    config.objective.precision = 10.0
    found = ablations.ablate(config, tmp_path, seeds=(0, 1), only=("lambda",), progress=False)
    assert trained == [
        ("base_as_configured_seed0", 0, 10.0),
        ("base_as_configured_seed1", 1, 10.0),
        ("lambda_1_seed0", 0, 1.0),
        ("lambda_1_seed1", 1, 1.0),
        ("lambda_100_seed0", 0, 100.0),
        ("lambda_100_seed1", 1, 100.0),
    ]
    assert [row["name"] for row in found["rows"]] == ["as configured", "1", "100"]
    assert found["rows"][0]["runs"][0]["test_tre_mm"] > 0
    text = (tmp_path / "ablations.md").read_text(encoding="utf-8")
    assert f"| lambda: 100 | {HOLE} |" in text and "step 3: image not finite" in text
    assert json.loads((tmp_path / "ablations.json").read_text(encoding="utf-8")) == found
    with pytest.raises(InputError, match="the groups are landmark_term, reading"):
        ablations.ablate(config, tmp_path, only=("lamda",))
