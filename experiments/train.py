"""Train, validate, evaluate: one command, resumed by the same command.

    python -m experiments.train --config=experiments/lung.py [--workdir=DIR] [--config.NAME=VALUE]

On several processes or machines the same command is started once for each, with --coordinator,
--processes and --process, or with --distributed (see `processes`).
A run that is told to stop (SIGTERM, SIGUSR1, Ctrl-C) saves and ends with status 75: run it again.
Status 2: something that you can mend, named on the last line; the last checkpoint is whole.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.evaluate import held_out_evaluation
from experiments.run import command, lock, preemption, processes, provenance, scalars
from experiments.run.curves import loss_curves
from experiments.run.data import load_cohort
from experiments.run.supply import Supply
from lmreg_jax import _compilation_cache as compilation_cache
from lmreg_jax.affine import reference
from lmreg_jax.cohort import batches
from lmreg_jax.cohort.cohort import Cohort, held_out_pairs, split_names, training_pairs
from lmreg_jax.errors import InputError, exits_cleanly
from lmreg_jax.evaluation import cohort as evaluation
from lmreg_jax.model import checkpoint, keras, registrar
from lmreg_jax.model import config as configuration
from lmreg_jax.training.config import make_augmentation, make_optimiser
from lmreg_jax.training.step import initial_state, parallel_train_step, replicate, unreplicate

log = logging.getLogger("experiments.train")
CONFIG = command.define_config("experiments/lung.py")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; default: runs/ and the config's name.")
DETERMINISTIC = flags.DEFINE_bool("deterministic", False, "The same bits in every run on one machine.")
processes.define_flags()


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    evaluate: bool = True,
    cohort: Cohort | None = None,
    team: processes.Team | None = None,
) -> dict[str, Any]:
    """Trains into `workdir`, alone there and ready to be told to stop; see `story`.

    cohort: in place of the one that `config.data` names, for comparisons on the same inputs.
    team: the processes that do it together; by default this one alone.
    Returns the summary of the held-out evaluation (empty without held-out pairs, and in processes
    other than the lead).
    Raises InputError for what a user can mend (the loss staying non-finite as NotFinite), and
    Preempted, which ends the program with status 75, where it was told to stop.
    """
    configuration.validate(config)
    team = processes.Team() if team is None else team
    devices = jax.device_count() if team.count > 1 else jax.local_device_count()
    if config.train.pairs_per_batch % devices:
        of = f" of {team.count} processes" if team.count > 1 else ""
        even = 2 if config.train.both_orders and devices % 2 else 1
        least = devices * even * -(-config.train.pairs_per_batch // (devices * even))
        raise InputError(
            f"config.train.pairs_per_batch is {config.train.pairs_per_batch};"
            f" it must be a multiple of the {devices} devices{of}: --config.train.pairs_per_batch={least}"
        )
    with (
        lock.held(workdir) if team.lead else contextlib.nullcontext(),
        preemption.watched() as stop,
    ):
        if team.lead:
            command.open_workdir(workdir, config)
        return story(config, workdir, stop, team, evaluate, cohort)


def story(
    config: ConfigDict,
    workdir: Path,
    stop: preemption.Stop,
    team: processes.Team,
    evaluate: bool,
    cohort: Cohort | None,
) -> dict[str, Any]:
    """Data, model, optimiser, restore, loop, evaluation.

    `team.lead` stands before all that is done once; `team.meet` after it, where the others wait.
    """
    if cohort is None:
        cohort = team.lead_first(lambda: load_cohort(config, progress=team.lead))
    pairs = training_pairs(cohort)
    if not pairs:
        raise InputError(f"{cohort.root}: no training pair; at least two training cases are needed")
    validation = held_out_pairs(cohort, "validation")
    if evaluate:
        held_out_pairs(cohort, "test")  # What is wrong with them is told now, not after the training.
    log.info(
        "%d training cases, %d pairs, %d validation pairs; alignment: %s; %d device(s): %s",
        len(split_names(cohort, "train")),
        len(pairs),
        len(validation),
        cohort.alignment,
        jax.device_count() if team.count > 1 else jax.local_device_count(),
        jax.local_devices()[0].device_kind,
    )
    policy = config.data.policy
    supply = Supply(cohort, policy, workdir if team.lead else None)

    if team.lead:
        masks = (c.lungs for c in supply.each("train", ["lungs"]) if c.lungs is not None)
        lungs = reference.of_masks(masks, cohort.spacing_mm)
        if lungs is not None:
            reference.write(workdir, lungs)

    network = configuration.network(config)
    optimiser = make_optimiser(config)
    params = initial_params(config) if team.lead else configuration.initial_params(config)
    state = initial_state(params, optimiser)
    register = registrar.registrar(config, params)  # Once: each one compiles anew.
    devices = team.devices()
    step_on_grid = {  # By how much coarser the grid is; compiled on first use.
        factor: parallel_train_step(
            devices,
            apply=network.apply,
            objective=configuration.objective(config, factor),
            optimiser=optimiser,
            augment=make_augmentation(config, factor),
            passes=config.model.passes,
            rematerialise=config.train.rematerialise,
        )
        for factor in {1, config.train.coarse_factor}
    }
    key = jax.random.key(config.seed)
    least = np.inf  # of the validation scores

    def factor_of(step: int) -> int:
        return config.train.coarse_factor if step < config.train.coarse_steps else 1

    def make(step: int) -> tuple[list[batches.Pair], Any]:
        def draw(usable: Sequence[batches.Pair]) -> list[batches.Pair]:
            return batches.pairs_of_step(
                usable,
                config.train.pairs_per_batch,
                step,
                seed=config.seed,
                both_orders=config.train.both_orders,
            )

        return supply.batch(pairs, draw, factor_of(step), team.share)

    def due(done: int, every: int) -> bool:
        return done % every == 0 or done == config.train.steps

    def validate(done: int) -> None:
        """Scores the state of `done`, keeps it where none is clearly better, then writes its row.

        In this order: a run that is cut off in between validates again.
        """
        nonlocal least
        model = register._replace(params=unreplicate(state).params)
        with stop.at_once():  # It may take minutes, and can be done again.
            scores = supply.scored(
                lambda usable: evaluation.validation_scores(model, cohort, usable), validation
            )
        score, uncertain = evaluation.to_choose_by(scores)
        # The latest that is not worse than the least by more than a standard error [Breiman 1984]:
        # few subjects validate, and what has been trained longer, at a lower rate, deserves the doubt.
        if score <= least + uncertain:
            least = min(least, score)
            checkpoint.save(best, done, unreplicate(state), {"tre_mm": float(score), "least": float(least)})
        rows.add(done, {f"val_{name}": scores[name] for name in scalars.SCORES})

    with stop.deferred(), contextlib.ExitStack() as files:
        first = 0
        if team.lead:
            latest = files.enter_context(checkpoint.store(workdir, checkpoint.LATEST, config.train.keep))
            best = files.enter_context(checkpoint.store(workdir, checkpoint.BEST, 1))
            rows = files.enter_context(scalars.Writer(workdir))
            restored = checkpoint.restore(latest, state)
            if restored is not None:
                first, state = restored
                log.info("resuming %s at step %d", workdir, first)
            provenance.record(workdir, config, first)
            rows.rewind(first)
            least = checkpoint.best_metrics(best).get("least", np.inf)
        processes.check_alike(team, config, pairs)
        begin, state = team.from_lead((np.int32(first), state))
        first = int(begin)
        state = replicate(state, devices)
        unscored = first and validation and due(first, config.train.validate_every)
        if team.lead and unscored and not rows.validated(first):
            validate(first)
        team.meet("start")
        skipped = 0
        bar = tqdm(
            total=config.train.steps,
            initial=first,
            desc="train",
            unit="step",
            mininterval=1,
            disable=not team.lead,
        )
        for step, (chosen, batch) in batches.prefetch(make, range(first, config.train.steps)):
            state, terms = step_on_grid[factor_of(step)](state, batch, key)
            done = step + 1
            bar.update()
            if team.lead and due(done, config.train.log_every):
                rows.add(done, terms)
                bar.set_postfix({name: f"{float(terms[name]):.4g}" for name in scalars.TERMS})
            skipped = skipped + 1 if float(terms["skipped"]) else 0
            if skipped and team.lead:
                rows.add_skipped(step, chosen, terms)
                named = ", ".join(f"{moving} -> {fixed}" for fixed, moving in chosen)
                log.warning(
                    "step %d not applied: %s not finite; pairs %s", step, scalars.non_finite(terms), named
                )
            if skipped >= config.train.max_skipped:
                bar.close()
                raise command.NotFinite(scalars.non_finite(terms), step, workdir)
            if validation and due(done, config.train.validate_every):
                if team.lead:
                    with contextlib.suppress(preemption.Preempted):  # The resumed run validates then.
                        validate(done)
                team.meet("validated")
            stopping = team.any(stop.asked)
            # After the validation: a run that is cut off in between repeats it. Not within a series of
            # skipped steps, which may have a cause that is mended; but at the end nothing may be lost.
            sound = not skipped or done == config.train.steps
            if stopping or (sound and due(done, config.train.checkpoint_every)):
                if team.lead:
                    checkpoint.save(latest, done, unreplicate(state))
                team.meet("saved")
            if stopping:
                bar.close()
                log.warning("stopped after step %d; the same command goes on from there", done)
                raise preemption.Preempted
        bar.close()

    supply.learn(team.meet("trained", json.dumps(supply.lost)))
    summary: dict[str, Any] = {}
    if team.lead:
        loss_curves(workdir / "figures" / "loss_curves.png", workdir / scalars.FILE)
        summary = held_out_evaluation(cohort, workdir, policy=policy) if evaluate else {}
    supply.report()
    return summary


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
        train(config, workdir, team=team)


if __name__ == "__main__":
    command.run(main)
