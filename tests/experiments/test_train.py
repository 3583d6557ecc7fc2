"""`experiments.train.train` on tiny cohorts: what it writes, how it resumes, what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import experiments.train as program
from experiments import lung
from experiments.run import command, data, scalars
from experiments.run.data import load_cohort
from lmreg_jax.cohort import batches
from lmreg_jax.cohort.cohort import training_pairs
from lmreg_jax.errors import InputError
from lmreg_jax.io.nifti import write_volume
from lmreg_jax.model import checkpoint, registrar
from lmreg_jax.model import config as configuration
from lmreg_jax.training import step as training
from tests import tiny_cohort
from tests.tiny_training import compiled_once, rows, saved_state, settings  # noqa: F401

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def cohort_root(folder: Path) -> Path:
    splits = ("train",) * 3 + ("validation",) * 2 + ("test",) * 2
    return tiny_cohort.write_cohort(folder / "cohort", splits)


@pytest.fixture
def config(cohort_root: Path, folder: Path) -> ConfigDict:
    return settings(cohort_root, folder)


@pytest.fixture(scope="module")
def finished(cohort_root: Path, folder: Path) -> Path:
    """A training that nothing interrupted, evaluated. Read only."""
    workdir = folder / "finished"
    program.train(settings(cohort_root, folder), workdir)
    return workdir


def interrupt_before(step: int, patch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C would, when that step is about to start."""
    original = batches.prefetch

    def prefetch(make: Any, steps: range, ahead: int = 2) -> Iterator[Any]:
        for number, made in original(make, steps, ahead):
            if number == step:
                raise KeyboardInterrupt
            yield number, made

    patch.setattr(batches, "prefetch", prefetch)


def test_a_training_leaves_all_its_files(finished: Path, config: ConfigDict) -> None:
    stored = configuration.from_json((finished / "config.json").read_text(encoding="utf-8"))
    assert configuration.differences(stored, config) == []
    assert saved_state(finished)[0] == STEPS
    assert saved_state(finished, checkpoint.BEST)[0] in (2, STEPS)
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["2", "4"]
    for name in ("csv", "json", "md"):
        assert (finished / f"evaluation.{name}").stat().st_size > 0
    names = {p.name for p in (finished / "figures").glob("*.png")}
    assert {"loss_curves.png", "tre.png", "worst_pair_overview.png"} <= names
    assert not list(finished.rglob("*.tmp"))


def test_scalars_hold_every_term_and_the_validation(finished: Path) -> None:
    found = rows(finished)
    losses = [row for row in found if row["loss"]]
    assert [int(row["step"]) for row in losses] == [1, 2, 3, 4]
    for row in losses:
        kl, image, landmark = (float(row[name]) for name in ("kl", "image", "landmark"))
        weighted = lung.get_config().objective.landmark_weight * landmark
        assert float(row["loss"]) == pytest.approx(kl + image + weighted, rel=1e-5)
        assert landmark > 0 and float(row["skipped"]) == 0
    validated = [row for row in found if row["val_tre_mm"]]
    assert [int(row["step"]) for row in validated] == [2, 4]
    assert all(0 < float(row["val_dice"]) <= 1 for row in validated)


@pytest.mark.parametrize(("second", "chosen"), [(2.0, 4), (3.2, 4), (3.4, 2), (math.nan, 2)])
def test_the_best_checkpoint_is_the_latest_that_is_not_clearly_worse(
    second: float, chosen: int, config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clearly: by more than a standard error of 0.3 mm."""
    first = {"tre_mm": 3.0, "tre_mm_error": 0.3, "dice": math.nan, "dice_error": math.nan}
    scores = iter([first, first | {"tre_mm": second}])
    more = {"tre_initial_mm": 9.0, "folding_percent": 0.0}
    monkeypatch.setattr(program.evaluation, "validation_scores", lambda *_: next(scores) | more)
    program.train(config, tmp_path / "run", evaluate=False)
    step, _ = saved_state(tmp_path / "run", checkpoint.BEST)
    assert step == chosen
    found = checkpoint.metrics(checkpoint.store(tmp_path / "run", checkpoint.BEST, 1))
    assert found == pytest.approx({"tre_mm": {2: 3.0, 4: second}[step], "least": min(3.0, second)})
    assert registrar.load(tmp_path / "run").source == f"best/{step}"


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(
    step: int, finished: Path, config: ConfigDict, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_before(step, patch)
        program.train(config, tmp_path / "run", evaluate=False)
    program.train(config, tmp_path / "run", evaluate=False)
    for name in (checkpoint.LATEST, checkpoint.BEST):
        (found_step, found), (wanted_step, wanted) = (
            saved_state(workdir, name) for workdir in (tmp_path / "run", finished)
        )
        assert found_step == wanted_step
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    assert rows(tmp_path / "run") == rows(finished)


def test_cut_off_between_checkpoint_and_validation_loses_no_validation(
    finished: Path, config: ConfigDict, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def cut_off(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(program.evaluation, "validation_scores", cut_off)
        program.train(config, tmp_path / "run", evaluate=False)
    program.train(config, tmp_path / "run", evaluate=False)
    assert rows(tmp_path / "run") == rows(finished)


def test_a_finished_training_runs_no_further_step(
    finished: Path, config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(finished)
    monkeypatch.setattr(batches, "assemble", lambda *_: pytest.fail("a batch was assembled"))
    program.train(config, finished, evaluate=False)
    assert rows(finished) == before


def test_the_replicated_state_has_the_layout_of_the_step() -> None:
    """Another name of the devices' axis, and the second step would be compiled anew."""
    state = training.TrainState(np.int32(0), {"a": np.zeros(3, np.float32)}, ())
    replicated = training.replicate(state)
    pass_on = jax.pmap(lambda s: s, axis_name=training.DEVICES)
    for one, other in zip(*map(jax.tree.leaves, (replicated, pass_on(replicated))), strict=True):
        assert one.sharding == other.sharding


class Noted:
    """A term of a step that records when it is fetched from the device."""

    def __init__(self, value: float, fetched: Callable[[], None]) -> None:
        self._value, self._fetched = value, fetched

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        self._fetched()
        return np.float32(self._value)


def noting_steps(events: list[str], patch: pytest.MonkeyPatch, bad: Collection[int] = ()) -> None:
    """Steps that change nothing, and note in `events` when they are launched and looked at."""

    def parallel_train_step(*_: Any, **__: Any) -> Callable[..., Any]:
        def step(state: Any, *_: Any) -> Any:
            number = sum(event.startswith("launch") for event in events)
            events.append(f"launch {number}")
            names = [*scalars.TERMS, "grad_norm"]
            values = dict.fromkeys(names, math.nan if number in bad else 1.0)
            terms: dict[str, Any] = {name: np.float32(value) for name, value in values.items()}
            return state, terms | {"skipped": Noted(number in bad, lambda: events.append(f"look {number}"))}

        return step

    patch.setattr(program, "parallel_train_step", parallel_train_step)


def test_a_step_is_looked_at_when_the_next_one_has_been_launched(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the device never waits; before a checkpoint or a validation, all are looked at."""
    config.train.steps, config.train.checkpoint_every, config.train.validate_every = 6, 4, 5
    events: list[str] = []
    noting_steps(events, monkeypatch)
    original = checkpoint.save

    def save(store: Any, step: int, *rest: Any) -> None:
        events.append(f"save {store.folder.name}/{step}")
        original(store, step, *rest)

    monkeypatch.setattr(checkpoint, "save", save)
    program.train(config, tmp_path / "run", evaluate=False)
    text = (
        "launch 0, launch 1, look 0, launch 2, look 1, launch 3, look 2, look 3, save checkpoints/4,"
        " launch 4, look 4, save best/5, launch 5, look 5, save best/6, save checkpoints/6"
    )
    assert events == text.split(", ")


def test_skipped_steps_are_reported_by_their_own_numbers(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 5 is launched before step 4 is looked at; it is the fourth that ends the training."""
    config.train.steps, config.train.checkpoint_every, config.train.validate_every = 20, 20, 20
    events: list[str] = []
    noting_steps(events, monkeypatch, bad=(1, 3, 4, 5))
    with pytest.raises(command.NotFinite, match=r"step 4: "):
        program.train(config, tmp_path / "run", evaluate=False)
    assert events[-3:] == ["look 3", "launch 5", "look 4"]
    text = (tmp_path / "run/skipped_steps.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["step"] for line in text.splitlines()] == [1, 3, 4]
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_a_loss_that_stays_nan_stops_and_keeps_the_last_good_state(
    finished: Path, config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = batches.prefetch
    given = {}

    def spoilt(make: Any, steps: range, ahead: int = 2) -> Iterator[Any]:
        for step, (pairs, batch) in original(make, steps, ahead):
            given[step] = pairs
            bad = batch._replace(moving=np.full_like(batch.moving, np.nan)) if step >= 2 else batch
            yield step, (pairs, bad)

    monkeypatch.setattr(batches, "prefetch", spoilt)
    with pytest.raises(command.NotFinite, match=r"step 3: .*image.*learning_rate") as error:
        program.train(config, tmp_path / "run", evaluate=False)
    assert str(tmp_path / "run") in str(error.value)
    step, arrays = saved_state(tmp_path / "run")
    assert step == 2 and all(np.isfinite(a).all() for a in arrays)
    skipped = [
        json.loads(t) for t in (tmp_path / "run/skipped_steps.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["step"] for line in skipped] == [2, 3]
    # For replay: the names are those of the batch, and seed and step give them again.
    cohort = load_cohort(config, progress=False)
    kind = {"seed": config.train.seed, "both_orders": config.train.both_orders}
    again = batches.pairs_of_step(training_pairs(cohort), config.train.pairs_per_batch, 2, **kind)
    assert skipped[0]["pairs"] == [list(pair) for pair in again] == [list(pair) for pair in given[2]]
    # Mended, the run goes on from there, to where it would have come anyway.
    monkeypatch.undo()
    program.train(config, tmp_path / "run", evaluate=False)
    for one, other in zip(saved_state(tmp_path / "run")[1], saved_state(finished)[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_was_learnt_is_kept_where_the_last_step_is_not_applied(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends with status 0, so all its steps must be in the checkpoint, and none be done again."""
    original = batches.prefetch

    def spoilt(make: Any, steps: range, ahead: int = 2) -> Iterator[Any]:
        for step, (pairs, batch) in original(make, steps, ahead):
            last = step == STEPS - 1
            yield step, (pairs, batch._replace(moving=np.full_like(batch.moving, np.nan)) if last else batch)

    monkeypatch.setattr(batches, "prefetch", spoilt)
    program.train(config, tmp_path / "run", evaluate=False)
    step, arrays = saved_state(tmp_path / "run")
    assert step == STEPS and all(np.isfinite(a).all() for a in arrays)
    store = checkpoint.store(tmp_path / "run", checkpoint.LATEST, 2)
    states = [checkpoint._read(store.folder / str(step))["state"] for step in (2, STEPS)]
    kernels = [state["params"]["params"]["mean"]["kernel"] for state in states]
    assert np.abs(kernels[1] - kernels[0]).max() > 0  # Step 3 was applied.


def test_a_folder_of_another_config_is_refused_by_the_names_that_differ(
    finished: Path, config: ConfigDict
) -> None:
    config.train.learning_rate = 0.5
    config.objective.landmark_weight = 7.0
    with pytest.raises(InputError, match=r"objective\.landmark_weight, train\.learning_rate differ"):
        program.train(config, finished)


def test_a_refused_start_does_not_claim_its_folder(config: ConfigDict, tmp_path: Path) -> None:
    """A mistyped root, then the right one, with the same workdir."""
    root, config.data.root = config.data.root, str(tmp_path / "typo")
    with pytest.raises(InputError, match="typo"):
        program.train(config, tmp_path / "run")
    config.data.root = root
    command.open_workdir(tmp_path / "run", config)
    assert configuration.read(tmp_path / "run/config.json").data.root == root


def test_a_checkpoint_of_another_architecture_is_refused(
    finished: Path, config: ConfigDict, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").symlink_to(finished / "checkpoints")
    config.model.final = (4,)
    with pytest.raises(InputError, match="another architecture"):
        program.train(config, tmp_path / "run")


@pytest.mark.parametrize("content", [b"{", b"[1, 2]", b"\xff\xfe", b""])
def test_an_unreadable_config_is_named(content: bytes, config: ConfigDict, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json: not a readable configuration"):
        program.train(config, tmp_path)
    with pytest.raises(InputError, match=r"config\.json: not a readable configuration"):
        registrar.load(tmp_path)


def test_a_workdir_below_a_file_is_refused(config: ConfigDict, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be written"):
        program.train(config, tmp_path / "file/run")


@pytest.mark.parametrize(
    ("splits", "message"),
    [(("train",), "two"), (("train", "train", "test"), "one test case")],
)
def test_too_few_cases_are_told_before_training(
    splits: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    root = tiny_cohort.write_cohort(tmp_path / "cohort", splits)
    with pytest.raises(InputError, match=message):
        program.train(settings(root, tmp_path), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


def test_three_train_seeds_are_three_trainings_on_the_same_data(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setenv("LMREG_CACHE", str(tmp_path))
    monkeypatch.setattr(data.phantom, "write_cohort", lambda _, **options: written.append(options["seed"]))
    weights, folders = [], []
    for data_seed, train_seed in ((0, 0), (0, 1), (0, 2), (1, 2)):
        config.data.seed, config.train.seed = data_seed, train_seed
        weights.append(np.asarray(configuration.initial_params(config)["params"]["mean"]["kernel"]))
        folders.append(data.embedded_root(config))
    assert written == [0, 0, 0, 1]
    assert folders[0] == folders[1] == folders[2] != folders[3]
    assert np.abs(weights[0] - weights[1]).max() > 0 and np.abs(weights[1] - weights[2]).max() > 0
    np.testing.assert_array_equal(weights[2], weights[3])


def test_devices_that_do_not_divide_the_batch_are_named(config: ConfigDict, tmp_path: Path) -> None:
    config.train.pairs_per_batch = 6
    with pytest.raises(
        InputError, match=r"is 6;.*of the 4 devices of 1 process\(es\): --config\.train\.pairs_per_batch=8$"
    ):
        program.train(config, tmp_path / "run")


def test_bare_scans_train_without_landmarks(tmp_path: Path) -> None:
    """No table, no masks, no landmarks: VoxelMorph. There is nothing held out to evaluate on."""
    for i in range(2):
        write_volume(tmp_path / f"scans/s{i}.nii.gz", tiny_cohort.subject(np.eye(4))[0])
    config = settings(tmp_path / "scans", tmp_path)
    config.data.alignment = "identity"
    config.data.lungs = "none"
    config.train.steps = 1
    assert program.train(config, tmp_path / "run") == {}
    assert [float(row["landmark"]) for row in rows(tmp_path / "run")] == [0]
    assert registrar.load(tmp_path / "run").source == "checkpoints/1"


def test_weights_of_an_earlier_training_are_the_start(
    finished: Path, config: ConfigDict, tmp_path: Path
) -> None:
    config.init.weights = str(finished)
    params = program.initial_params(config)
    wanted = registrar.load(finished).params
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    config.init.weights = str(tmp_path)
    with pytest.raises(InputError, match="no checkpoint"):
        program.initial_params(config)
