"""One training by several processes, on one machine or many, joined by `jax.distributed`.

Process 0 leads: it alone validates, evaluates and writes tables. Each process reads its share of
every batch; checkpoints are orbax's, which all processes read and save together, in one folder that
all of them see. A process that ends early breaks the others' connections to it: they end as well, and
the training resumes when all are started again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from lmreg_jax.cohort.pairs import AllPairs
from lmreg_jax.errors import InputError
from lmreg_jax.model import config as configuration
from lmreg_jax.training.step import any_process

T = TypeVar("T")

JOIN_SECONDS = 300  # for all processes to have started
AGAIN = (
    "process {} of {} ends, and with it all others. The checkpoints are whole: start all again by the same"
    " command, and the training resumes from the last checkpoint."
)


class Team:
    """The processes of a training; by default this one alone."""

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index, self.count, self.lead = index, count, index == 0
        # Whether a flag is set in any process: the same answer in all, which all must ask for.
        self.any: Callable[[bool], Any] = any_process() if count > 1 else bool
        self.devices = None if count > 1 else jax.local_devices()  # as `parallel_train_step` takes them

    @property
    def device_count(self) -> int:
        """All devices of all processes of the training."""
        return jax.device_count() if self.count > 1 else jax.local_device_count()

    def check_divides(self, config: ConfigDict) -> None:
        """InputError where the pairs of a batch do not divide over the devices."""
        devices, pairs = self.device_count, config.train.pairs_per_batch
        if pairs % devices:
            even = 2 if config.train.both_orders and devices % 2 else 1
            least = devices * even * -(-pairs // (devices * even))
            raise InputError(
                f"config.train.pairs_per_batch is {pairs}; it must be a multiple of the {devices} devices"
                f" of {self.count} process(es): --config.train.pairs_per_batch={least}"
            )

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of a global batch; the parts stand in the order of the processes."""
        size = len(items) // self.count
        return list(items[self.index * size : (self.index + 1) * size])

    def from_lead(self, tree: T) -> T:
        """Process 0's arrays."""
        answer: T = tree if self.count == 1 else multihost_utils.broadcast_one_to_all(tree, self.lead)
        return answer

    def lead_first(self, work: Callable[[], T]) -> T:
        """work() in every process; the others start when the lead is done, and find its files."""
        made = work() if self.lead else None
        if self.count > 1:
            multihost_utils.sync_global_devices("the lead is done")
        return work() if made is None else made

    def check_alike(self, config: ConfigDict, pairs: Sequence[tuple[str, str]], first: int) -> None:
        """InputError in a process whose config, pairs or first step are not the lead's."""
        names = pairs.names if isinstance(pairs, AllPairs) else list(pairs)
        text = configuration.to_json(config) + json.dumps([names, first])
        digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
        if not np.array_equal(self.from_lead(digest), digest):
            raise InputError(
                f"process {self.index} would train on other pairs ({len(pairs)} of them), from another step"
                f" ({first}) or with another config than process 0: give all the same flags and the same"
                " files; --workdir must be one folder that all of them see"
            )

    def part(self) -> None:
        """Waits for all, then ends the connection: from here on, each process ends alone."""
        if self.count > 1:
            multihost_utils.sync_global_devices("all is done")
            jax.distributed.shutdown()


def define_flags() -> None:
    """--coordinator, --processes, --process; or --distributed."""
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, for a training by several processes.")
    flags.DEFINE_integer("processes", 1, "How many processes there are.")
    flags.DEFINE_integer("process", -1, "Which of them this is, from 0.")
    flags.DEFINE_bool("distributed", False, "Several processes, as SLURM or Open MPI started them.")


@contextmanager
def joined() -> Iterator[Team]:
    """The team that the flags describe; before anything else touches jax's devices.

    Raises InputError where the flags do not fit together or the others do not come.
    """
    values: Any = flags.FLAGS
    if not (values.coordinator or values.distributed):
        if values.processes != 1 or values.process != -1:
            raise InputError("--processes and --process need --coordinator=HOST:PORT, the same for all")
        yield Team()
        return
    _initialize(values)
    team = Team(jax.process_index(), jax.process_count())
    if not team.lead:  # The lead logs for all; warnings and errors are each process's own.
        for name in ("lmreg_jax", "experiments"):
            logging.getLogger(name).setLevel(logging.WARNING)
    try:
        # Connects all devices now: the runtimes wait for minutes only, the lead may prepare for longer.
        multihost_utils.sync_global_devices("joined")
        yield team
    except BaseException as error:
        if not jax.distributed.is_initialized():  # All have parted.
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        print(AGAIN.format(team.index, team.count), file=sys.stderr, flush=True)
        # The usual way out would wait for the others, which cannot come.
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)


def _initialize(values: Any) -> None:
    if values.coordinator and values.distributed:
        raise InputError("--distributed finds the coordinator; omit one of the two")
    arguments: dict[str, Any] = {}
    if values.coordinator:
        if not 0 <= values.process < values.processes:
            raise InputError(
                f"--processes={values.processes} and --process={values.process}: expected how many there"
                " are, and which one this is, from 0"
            )
        host, _, port = values.coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise InputError(f"--coordinator={values.coordinator}: expected HOST:PORT")
        arguments = {
            "coordinator_address": values.coordinator,
            "num_processes": values.processes,
            "process_id": values.process,
            "cluster_detection_method": "deactivate",
        }
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # Signals are `preemption`'s.
    try:
        jax.distributed.initialize(initialization_timeout=JOIN_SECONDS, **arguments)
    except (ValueError, RuntimeError) as error:
        hint = "" if values.coordinator else "; without SLURM or Open MPI give --coordinator, --processes"
        text = " ".join(str(error).split())[:300]
        raise InputError(f"the processes could not be joined ({text}){hint}") from error
