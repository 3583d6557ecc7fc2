"""Train, validate, evaluate: one command, resumed by the same command.

    python -m experiments.train --config=experiments/lung.py [--workdir=DIR] [--config.NAME=VALUE]

On several processes or machines the same command is started once for each, with --coordinator,
--processes and --process, or with --distributed (see `processes`).
A run that is told to stop (SIGTERM, SIGUSR1, Ctrl-C) saves and ends with status 75: run it again.
Status 2: an error that the user can fix, named on the last line; the last checkpoint is whole.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments.evaluate import held_out_evaluation
from experiments.run import command, lock, preemption, processes, provenance, scalars
from experiments.run.curves import loss_curves
from experiments.run.data import load_cohort
from experiments.run.supply import Supply
from experiments.run.terms import Terms, due
from lmreg_jax import _compilation_cache as compilation_cache
from lmreg_jax.affine import reference
from lmreg_jax.cohort import batches
from lmreg_jax.cohort.cohort import Cohort, held_out_pairs, split_names, training_pairs
from lmreg_jax.core.settings import own_settings
from lmreg_jax.errors import exits_cleanly
from lmreg_jax.evaluation import cohort as evaluation
from lmreg_jax.model import checkpoint, keras, registrar
from lmreg_jax.model import config as configuration
from lmreg_jax.training.config import make_augmentation, make_optimiser
from lmreg_jax.training.step import TrainState, initial_state, parallel_train_step, replicate, unreplicate

log = logging.getLogger("experiments.train")
CONFIG = command.define_config("experiments/lung.py")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; default: runs/ and the config's name.")
DETERMINISTIC = flags.DEFINE_bool("deterministic", False, "The same bits in every run on one machine.")
processes.define_flags()


class Run(NamedTuple):
    """What a training is made of; nothing in it changes from step to step."""

    config: ConfigDict
    workdir: Path
    team: processes.Team
    stop: preemption.Stop
    cohort: Cohort
    supply: Supply
    pairs: Sequence[batches.Pair]
    validation: Sequence[batches.Pair]
    register: registrar.Registrar
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    initial: TrainState
    latest: checkpoint.Store
    best: checkpoint.Store


@own_settings()
def train(
    config: ConfigDict,
    workdir: Path,
    *,
    evaluate: bool = True,
    cohort: Cohort | None = None,
    team: processes.Team | None = None,
) -> dict[str, Any]:
    """Trains into `workdir`, alone there and ready to be told to stop.

    cohort: in place of the one that `config.data` names, for comparisons on the same inputs.
    team: the processes that do it together; by default this one alone.
    Returns the summary of the held-out evaluation (empty without held-out pairs, and in processes
    other than the lead).
    Raises InputError for an error that the user can fix (the loss staying non-finite as NotFinite),
    and Preempted, which ends the program with status 75, where it was told to stop.
    """
    configuration.validate(config)
    team = team or processes.Team()
    team.check_divides(config)
    with contextlib.ExitStack() as opened:
        opened.enter_context(lock.held(workdir) if team.lead else contextlib.nullcontext())
        stop = opened.enter_context(preemption.watched())
        if team.lead:
            command.open_workdir(workdir, config)
        run = prepare(config, workdir, team, stop, evaluate, cohort)
        with stop.deferred(), scalars.Writer(workdir, silent=not team.lead) as rows:
            first, state = restore(run, rows)
            loop(run, rows, first, state)
        return finish(run, evaluate)


def prepare(
    config: ConfigDict,
    workdir: Path,
    team: processes.Team,
    stop: preemption.Stop,
    evaluate: bool,
    cohort: Cohort | None,
) -> Run:
    """Data, model and optimiser. Raises InputError on a cohort that cannot be trained on."""
    cohort = cohort or team.lead_first(lambda: load_cohort(config, progress=team.lead))
    pairs, validation = training_pairs(cohort), held_out_pairs(cohort, "validation")
    if evaluate:
        held_out_pairs(cohort, "test")  # An error in them is reported now, not after the training.
    log.info(
        "%d training cases, %d pairs, %d validation pairs; alignment: %s; %d device(s): %s",
        len(split_names(cohort, "train")),
        len(pairs),
        len(validation),
        cohort.alignment,
        team.device_count,
        jax.local_devices()[0].device_kind,
    )
    supply = Supply(cohort, config.data.policy, workdir if team.lead else None, config.data.memory_gb)
    if team.lead:
        masks = (case.lungs for case in supply.each("train", ["lungs"]) if case.lungs is not None)
        if (lungs := reference.of_masks(masks, cohort.spacing_mm)) is not None:
            reference.write(workdir, lungs)
    optimiser = make_optimiser(config)
    step = parallel_train_step(
        team.devices,
        apply=configuration.network(config).apply,
        objective=configuration.objective(config),
        optimiser=optimiser,
        augment=make_augmentation(config),
        passes=config.model.passes,
        rematerialise=config.train.rematerialise,
    )
    params = initial_params(config)
    return Run(
        config=config,
        workdir=workdir,
        team=team,
        stop=stop,
        cohort=cohort,
        supply=supply,
        pairs=pairs,
        validation=validation,
        register=registrar.registrar(config, params),
        step=step,
        initial=initial_state(params, optimiser),
        latest=checkpoint.store(workdir, checkpoint.LATEST, config.train.keep),
        best=checkpoint.store(workdir, checkpoint.BEST, 1),
    )


def restore(run: Run, rows: scalars.Writer) -> tuple[int, TrainState]:
    """The step to start at and the state on the devices: of the latest checkpoint, or the initial one."""
    first, state = checkpoint.restore(run.latest, run.initial) or (0, run.initial)
    run.team.check_alike(run.config, run.pairs, first)
    state = replicate(run.team.from_lead(state), run.team.devices)
    if first:
        log.info("resuming %s at step %d", run.workdir, first)
    if run.team.lead:
        provenance.record(run.workdir, run.config, first)
    rows.rewind(first)
    validating = run.validation and first and due(run.config, first, run.config.train.validate_every)
    if validating and not run.team.from_lead(np.bool_(rows.validated(first))):
        validate(run, rows, first, state)
        if run.team.any(run.stop.asked):
            run.team.part()
            raise preemption.Preempted
    return first, state


def loop(run: Run, rows: scalars.Writer, first: int, state: TrainState) -> None:
    """All steps from `first` on. The terms of a step are looked at when the next one has been launched:
    the device need not wait for this program.

    Raises Preempted, after a checkpoint, where any process was told to stop; NotFinite.
    """
    config, train, team = run.config, run.config.train, run.team
    key = jax.random.key(train.seed)
    with Terms(config, run.workdir, rows, first) as terms:
        for step, (pairs, batch) in batches.prefetch(run_batch(run), range(first, train.steps)):
            asked = team.any(run.stop.asked)
            state, launched = run.step(state, batch, key)
            terms.look()
            terms.last = step, pairs, launched
            done = step + 1
            stopping = bool(asked)
            validating = run.validation and due(config, done, train.validate_every)
            saving = due(config, done, train.checkpoint_every)
            if stopping or validating or saving:
                terms.look()
            if terms.skipped >= train.max_skipped:
                team.part()  # All see the same terms.
                raise terms.not_finite()
            if validating:
                validate(run, rows, done, state)
                stopping = bool(team.any(run.stop.asked))
            # After the validation: a run that is cut off in between repeats it. Not within a series of
            # skipped steps, whose cause may be fixed; but at the end nothing may be lost.
            if stopping or (saving and (not terms.skipped or done == train.steps)):
                checkpoint.save(run.latest, done, unreplicate(state))
            if stopping:
                log.warning("stopped after step %d; the same command resumes from there", done)
                team.part()
                raise preemption.Preempted


def finish(run: Run, evaluate: bool) -> dict[str, Any]:
    """Loss curves, and the tables of the held-out pairs by the best checkpoint; in the lead alone."""
    run.team.part()
    summary: dict[str, Any] = {}
    if run.team.lead:
        loss_curves(run.workdir / "figures" / "loss_curves.png", run.workdir / scalars.FILE)
        if evaluate:
            summary = held_out_evaluation(run.cohort, run.workdir, policy=run.config.data.policy)
    run.supply.report()
    return summary


def validate(run: Run, rows: scalars.Writer, done: int, state: TrainState) -> None:
    """Scores the state of `done`, keeps it where none is clearly better, then writes its row.

    In this order: a run that is cut off in between validates again.
    """
    least = checkpoint.metrics(run.best).get("least", np.inf)
    scores: dict[str, float] = {}
    if run.team.lead:
        model = run.register._replace(params=unreplicate(state).params)
        with contextlib.suppress(preemption.Preempted), run.stop.at_once():  # The resumed run validates then.
            scores = run.supply.scored(
                lambda usable: evaluation.validation_scores(model, run.cohort, usable), run.validation
            )
    score, uncertain = evaluation.to_choose_by(scores) if scores else (np.inf, 0.0)
    # The latest that is not worse than the least by more than a standard error [Breiman 1984]: few
    # subjects validate, and what has been trained longer, at a lower rate, deserves the doubt.
    if run.team.from_lead(np.bool_(scores and score <= least + uncertain)):
        checkpoint.save(run.best, done, unreplicate(state), {"tre_mm": score, "least": min(least, score)})
    if scores:
        rows.add(done, {f"val_{name}": scores[name] for name in scalars.SCORES})


def run_batch(run: Run) -> Callable[[int], tuple[list[batches.Pair], Any]]:
    """The function that makes the pairs and this process's batch of a step."""
    train = run.config.train

    def make(step: int) -> tuple[list[batches.Pair], Any]:
        def draw(usable: Sequence[batches.Pair]) -> list[batches.Pair]:
            return batches.pairs_of_step(
                usable, train.pairs_per_batch, step, seed=train.seed, both_orders=train.both_orders
            )

        return run.supply.batch(run.pairs, draw, run.team.share)

    return make


def initial_params(config: ConfigDict) -> Any:
    """Random parameters, or those of `config.init.weights` (Keras HDF5 or a training's folder)."""
    params = configuration.initial_params(config)
    if not config.init.weights:
        return params
    weights = Path(config.init.weights)
    if weights.is_dir():
        return jax.tree.map(jax.numpy.asarray, checkpoint.load_params(weights, params)[1])
    return keras.import_keras(weights, configuration.network(config))


@exits_cleanly
def main(arguments: list[str]) -> None:
    command.no_arguments(arguments)
    command.quiet_log()
    if DETERMINISTIC.value:
        provenance.make_deterministic()
    compilation_cache.enable()
    config = CONFIG.value
    workdir = Path(WORKDIR.value) if WORKDIR.value else command.default_workdir()
    with processes.joined() as team:
        exits_cleanly(train)(config, workdir, team=team)


if __name__ == "__main__":
    command.run(main)
