"""The whole comparison on tiny subjects: its holes, refusals, tuning, claims; and the ablations."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

import experiments.train
from experiments import ablations, compare, lung
from experiments.comparison import methods, report, settings, tuning
from experiments.comparison.methods import Method, Result
from experiments.comparison.tables import HOLE, Cell
from experiments.run.data import load_cohort
from lmreg_jax.cohort.cohort import Cohort, held_out_pairs
from lmreg_jax.errors import InputError
from lmreg_jax.evaluation import baselines
from lmreg_jax.evaluation.baselines import Answer, AntsSettings, ElastixSettings
from lmreg_jax.evaluation.metrics import Summary
from lmreg_jax.imaging.volume import apply_affine
from lmreg_jax.model import config as configuration
from lmreg_jax.model import registrar
from tests import tiny_cohort

SHIFTS = {"elastix": (0.5, 0.0, 0.0), "ants": (0.0, 0.5, 0.0)}  # voxels, of the stand-ins below
SPLITS = ("train",) * 3 + ("validation",) * 2 + ("test",) * 3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    folder = tmp_path_factory.mktemp("comparison")
    config = lung.get_config()
    config.data.root = str(tiny_cohort.write_cohort(folder / "cohort", SPLITS))
    config.data.cache = str(folder / "cache")
    config.data.shape, config.data.spacing_mm = (12, 8, 12), 26.0
    config.data.alignment = "moments"
    config.model.encoder, config.model.decoder, config.model.final = (4,), (4,), ()
    config.model.normalisation = "none"
    config.objective.integration_steps = 2
    return config


@pytest.fixture(scope="module")
def cohort(config: ConfigDict) -> Cohort:
    return load_cohort(config, progress=False)


@pytest.fixture(scope="module")
def register(config: ConfigDict) -> registrar.Registrar:
    return registrar.registrar(config, configuration.initial_params(config), "best/1")


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, register: Any) -> list[str]:
    """Programs and trainings that take no time; the list names the calls of the programs."""
    calls: list[str] = []

    def program(name: str) -> Callable[..., Answer]:
        def answer(fixed: Any, moving: Any, spacing: Any, given: Any, masks: Any) -> Answer:
            calls.append(name)
            shift = np.array(SHIFTS[name]) * getattr(given, "step", 1.0)
            return Answer(np.broadcast_to(shift, (*fixed.shape, 3)).astype(np.float32), 2.0, 4.0)

        return answer

    for name in SHIFTS:
        monkeypatch.setitem(baselines.REGISTER, name, program(name))
    monkeypatch.setattr(baselines, "version", lambda name: "1.0")
    monkeypatch.setattr(compare, "network", lambda *_: register)
    refinement = {"1 step": settings.RefinementSettings(1), "2 steps": settings.RefinementSettings(2)}
    candidates: dict[str, Any] = {
        "elastix": {"only": ElastixSettings()},
        "ants": {"far": AntsSettings(step=40.0), "near": AntsSettings(step=1.0)},
        "voxelmorph_refined": {"1 step": settings.RefinementSettings(1)},
        "refined": refinement,
    }
    monkeypatch.setattr(settings, "CANDIDATES", candidates)
    return calls


@pytest.mark.slow
def test_the_whole_comparison_and_going_on(
    config: ConfigDict, cohort: Cohort, stand_ins: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    found = compare.compare(config, tmp_path, isolated=False, progress=False)
    pairs = held_out_pairs(cohort, "test")
    # u is one shift: its TRE is |spacing * (p + shift - q)|, here computed without the package.
    errors = [
        np.linalg.norm((cohort.case(f).landmarks + SHIFTS["elastix"] - cohort.case(m).landmarks) * 26, axis=1)
        for f, m in pairs
    ]
    listed = found["methods"]["elastix"]["pairs"]
    assert [(p["fixed"], p["moving"]) for p in listed] == pairs
    np.testing.assert_allclose([p["tre_mm"] for p in listed], errors, rtol=1e-5)
    assert found["methods"]["elastix"]["all"]["tre_mm"]["mean"] == pytest.approx(np.mean(errors), rel=1e-5)
    kept = {t["method"]: t["name"] for t in found["tuning"] if t["kept"]}
    assert kept["ants"] == "near" and set(kept) == {"elastix", "ants", "voxelmorph_refined", "refined"}
    table = list(csv.DictReader((tmp_path / "tables/table_1.csv").open(encoding="utf-8")))
    assert [row["pair"] for row in table] == [f"{m} -> {f}" for f, m in pairs] + ["All", "[Hu], All"]
    assert float(table[0]["Elastix"]) == pytest.approx(errors[0].mean(), rel=1e-4)
    assert (table[-1]["Elastix"], table[-1]["Ours sd"], table[-1]["Affine only"]) == ("4.47", "1.68", "")
    for name in ("table_2", "table_3", "table_4", "table_5", "tuning", "claims"):
        assert all((tmp_path / "tables" / f"{name}.{suffix}").stat().st_size for suffix in ("md", "tex"))
    figures = {"boxes.png", "tre_against_initial.png", "landmarks.png", "overlays.png"}
    assert {p.name for p in (tmp_path / "figures").iterdir()} == figures
    calls = len(stand_ins)
    assert calls == stand_ins.count("ants") + stand_ins.count("elastix") == (2 * 2 + 3) + (2 + 3)
    again = compare.compare(config, tmp_path, isolated=False, progress=False)
    assert len(stand_ins) == calls
    assert again["methods"] == found["methods"] and again["tests"] == found["tests"]


def test_a_method_that_fails_on_a_pair_is_a_hole(
    config: ConfigDict, cohort: Cohort, stand_ins: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    works = baselines.REGISTER["elastix"]
    bad = cohort.case(held_out_pairs(cohort, "test")[1][0]).image

    def sometimes(fixed: Any, *rest: Any) -> Answer:
        if np.array_equal(fixed, bad):
            raise RuntimeError("itk::ERROR: no samples\nsecond line")
        return works(fixed, *rest)

    monkeypatch.setitem(baselines.REGISTER, "elastix", sometimes)
    chosen = ("affine", "elastix", "ours")
    found = compare.compare(config, tmp_path, methods=chosen, tuning_pairs=0, isolated=False, progress=False)
    pair = found["methods"]["elastix"]["pairs"][1]
    assert pair["error"] == "itk::ERROR: no samples" and "tre_mm" not in pair
    table = list(csv.DictReader((tmp_path / "tables/table_1.csv").open(encoding="utf-8")))
    assert table[1]["Elastix"] == "" and float(table[0]["Elastix"]) > 0
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "Elastix: 2 of 3 pairs" in text and "itk::ERROR: no samples" in text
    assert {d["second"]: d["pairs"] for d in found["tests"]["tre_mm"]} == {"affine": 3, "elastix": 2}
    # Mended, only the hole is filled.
    monkeypatch.setitem(baselines.REGISTER, "elastix", works)
    calls = len(stand_ins)
    found = compare.compare(config, tmp_path, methods=chosen, tuning_pairs=0, isolated=False, progress=False)
    assert len(stand_ins) == calls + 1 and not found["methods"]["elastix"]["pairs"][1]["error"]


def test_before_affine_is_the_scanners_own_millimetres(cohort: Cohort) -> None:
    """u carries a voxel of the fixed grid to where the same scanner mm lie on the moving grid."""
    fixed, moving = (cohort.case(name) for name in held_out_pairs(cohort, "test")[0])
    u = methods.before_affine(cohort).answer(fixed, moving).displacement
    x = np.array([3, 5, 7])
    np.testing.assert_allclose(
        apply_affine(moving.scan_from_grid, x + u[tuple(x)]), apply_affine(fixed.scan_from_grid, x), atol=1e-3
    )
    (result,) = methods.run(
        methods.before_affine(cohort), cohort, [(fixed.name, moving.name)], progress=False
    )
    assert result.measured is not None
    distance = np.linalg.norm(fixed.landmarks_mm - moving.landmarks_mm, axis=1)
    np.testing.assert_allclose(result.measured.tre_mm, distance, rtol=1e-6)


@pytest.mark.parametrize(("image", "sigma", "least"), [("ssd", 0.03, 0.1), ("lncc5", 0.1, 0.05)])
def test_refinement_lowers_its_own_image_term(
    cohort: Cohort, register: Any, tmp_path: Path, image: str, sigma: float, least: float
) -> None:
    """By at least the share `least`, measured without the package's own sampling and correlation."""
    chosen = settings.RefinementSettings(30, image=image, image_sigma=sigma)
    fixed, moving = (cohort.case(name) for name in held_out_pairs(cohort, "test")[0])
    plain = methods.learned("ours", register, tmp_path).answer(fixed, moving)
    better = methods.refined("refined", register, chosen, tmp_path).answer(fixed, moving)
    index = np.moveaxis(np.indices(cohort.shape), 0, -1)

    def difference(u: Any) -> float:
        from scipy import ndimage

        warped = ndimage.map_coordinates(moving.image, np.moveaxis(index + u, -1, 0), order=1, mode="nearest")
        if image == "ssd":
            return float(np.mean((warped - fixed.image) ** 2))
        count = ndimage.uniform_filter(np.ones(cohort.shape), 5, mode="constant")

        def mean(values: Any) -> Any:
            return ndimage.uniform_filter(values.astype(np.float64), 5, mode="constant") / count

        f, w = fixed.image - mean(fixed.image).mean(), warped - mean(warped).mean()
        variances = (mean(f * f) - mean(f) ** 2) * (mean(w * w) - mean(w) ** 2)
        return 1 - float(np.mean((mean(f * w) - mean(f) * mean(w)) ** 2 / (variances + 1e-8)))

    assert difference(better.displacement) < (1 - least) * difference(plain.displacement)


def test_other_weights_are_another_answer(cohort: Cohort, register: Any, tmp_path: Path) -> None:
    import jax

    fixed, moving = (cohort.case(name) for name in held_out_pairs(cohort, "test")[0])
    other = register._replace(params=jax.tree.map(lambda a: a + 0.1, register.params))
    for r in (register, register, other):
        methods.learned("ours", r, tmp_path).answer(fixed, moving)
    assert len(list((tmp_path / "ours").iterdir())) == 2


def test_voxelmorph_is_the_same_training_without_the_landmark_term(
    config: ConfigDict, cohort: Cohort, tmp_path: Path, monkeypatch: Any
) -> None:
    seen: list[tuple[ConfigDict, Any]] = []
    monkeypatch.setattr(experiments.train, "train", lambda c, folder, **k: seen.append((c, k["cohort"])))
    monkeypatch.setattr(registrar, "load", lambda folder: folder)
    for name in ("ours", "voxelmorph"):
        assert compare.network(name, config, cohort, tmp_path / name, None) == tmp_path / name
    (ours, _), (theirs, given) = seen
    assert configuration.differences(ours, config) == []
    assert configuration.differences(theirs, config) == ["objective.landmark_weight"]
    assert theirs.objective.landmark_weight == 0 and given is cohort
    assert compare.network("ours", config, cohort, tmp_path, tmp_path / "given") == tmp_path / "given"
    assert len(seen) == 2


# --- refusals -------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_told_at_once(
    config: ConfigDict, tmp_path: Path, monkeypatch: Any
) -> None:
    def write(name: str, **changes: Any) -> Path:
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(changes)
        (tmp_path / name).mkdir()
        (tmp_path / name / configuration.FILE).write_text(configuration.to_json(other), encoding="utf-8")
        return tmp_path / name

    with pytest.raises(InputError, match=r"methods elastix,snap: some of before,affine"):
        compare.check(config, ("elastix", "snap"), {})
    longer = write("longer", **{"train.steps": 7})
    with pytest.raises(InputError, match=r"longer: trained with another config \(train\.steps differ\)"):
        compare.check(config, ("ours",), {"ours": longer})
    with pytest.raises(InputError, match=r"longer: trained with landmarks"):
        compare.check(config, ("voxelmorph",), {"voxelmorph": longer})
    off = write("off", **{"objective.landmark_weight": 0.0})
    compare.check(config, ("voxelmorph",), {"voxelmorph": off})

    def absent(name: str) -> str:
        raise InputError("antspyx is not installed")

    monkeypatch.setattr(baselines, "version", absent)
    with pytest.raises(
        InputError, match=r"not installed; or do without: --methods=before,affine,elastix,vox"
    ):
        compare.check(config, ("ants",), {})


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
