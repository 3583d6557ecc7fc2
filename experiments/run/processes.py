"""One training by several processes, on one machine or many, joined by `jax.distributed`.

Process 0 leads: it alone holds the workdir and writes there, validates and evaluates. Each process
reads its own share of every batch. What all must know alike (the state at the start, whether to stop)
goes over the devices; waiting for each other, and the last words of a process that ends early, go
through the coordinator's table of keys, where a wait may be long and Python can look after signals.

A process that ends early says so there; a thread of each of the others reads it and ends its own
process, with the same status, even inside a collective that will never come back. One that is killed
says nothing, and with process 0 the table goes: JAX then ends the others from C++, where no Python
runs. `last_words` speak for all of these.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from absl import flags
from jax import lax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from experiments.run import preemption
from experiments.run.last_words import LastWords
from lmreg_jax.cohort.pairs import AllPairs
from lmreg_jax.errors import InputError, exits_cleanly
from lmreg_jax.model import config as configuration

T = TypeVar("T")

JOIN_SECONDS = 300  # for all processes to have started
POLL_SECONDS = 1.0
FAREWELL_SECONDS = 10.0  # for the others to have read why this process ends
DIED_SECONDS = 5.0  # for the reason of a broken connection to be known

AGAIN = (
    "The checkpoints are whole: start all processes again by the same command, and the run goes on from"
    " the last one."
)

log = logging.getLogger(__name__)


class Team:
    """The processes of a training; this class by itself is one process alone."""

    index = 0
    count = 1

    @property
    def lead(self) -> bool:
        """Whether this process is the one that writes."""
        return self.index == 0

    def devices(self) -> list[jax.Device] | None:
        """Those of the train step, as `parallel_train_step` takes them (None: all of all processes)."""
        return jax.local_devices()

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of a global batch; the parts stand in the order of the processes."""
        size = len(items) // self.count
        return list(items[self.index * size : (self.index + 1) * size])

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: the same answer in all, which all must ask for."""
        return flag

    def from_lead(self, tree: T) -> T:
        """Process 0's arrays."""
        return tree

    def meet(self, place: str, word: str = "") -> list[str]:
        """Waits until all processes are here. Gives all their words to the lead, nothing to others."""
        return [word]

    def lead_first(self, work: Callable[[], T]) -> T:
        """work() in every process, in the others when the lead has done it (they find its files)."""
        made = work() if self.lead else None
        self.meet("the lead has done it")
        return work() if made is None else made


class Several(Team):
    """Two processes or more; ends this one when another has ended early."""

    def __init__(self) -> None:
        from jax._src import distributed  # The table of keys has no public name.

        self.index, self.count = jax.process_index(), jax.process_count()
        self._keys: Any = distributed.global_state.client
        self._meetings = 0
        self._ending = threading.Lock()
        self._over = threading.Event()
        self._largest = jax.pmap(lambda value: lax.pmax(value, "all"), axis_name="all")
        self._last_words = LastWords(_if_killed(self.index, self.count))
        threading.Thread(target=self._watch, daemon=True).start()

    def devices(self) -> list[jax.Device] | None:
        return None

    def any(self, flag: bool) -> bool:
        flags = np.full(jax.local_device_count(), flag, np.int32)
        return bool(self._largest(flags).addressable_shards[0].data.any())

    def from_lead(self, tree: T) -> T:
        answer: T = multihost_utils.broadcast_one_to_all(tree, is_source=self.lead)
        return answer

    def meet(self, place: str, word: str = "") -> list[str]:
        self._meetings += 1
        here = f"lmreg/meetings/{self._meetings} {place}"
        self._keys.key_value_set(f"{here}/{self.index}", word)
        if not self.lead:
            self._wait_for(f"{here}/go")
            return []
        words = [self._wait_for(f"{here}/{i}") for i in range(self.count)]
        self._keys.key_value_set(f"{here}/go", "")
        return words

    def _wait_for(self, key: str) -> str:
        """The key's value when it is there; in short waits, between which Python handles signals."""
        while True:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                value: str = self._keys.blocking_key_value_get(key, round(1000 * POLL_SECONDS))
                return value

    def _watch(self) -> None:
        silent = 0
        while not self._over.wait(POLL_SECONDS):
            try:
                ended = self._ended()
                silent = 0
            except jax.errors.JaxRuntimeError:
                silent += 1
                ended = {0: {"status": 1, "message": f"gone without a word. {AGAIN}"}} if silent > 2 else {}
            if ended:
                self._follow(ended)

    def _ended(self) -> dict[int, dict[str, Any]]:
        """Status and message of the processes that have ended early."""
        found = self._keys.key_value_dir_get("lmreg/ended/")
        return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}

    def _follow(self, ended: dict[int, dict[str, Any]]) -> NoReturn:
        index, words = next((i, w) for i, w in ended.items() if not w.get("follows") or len(ended) == 1)
        with self._ending:
            print(f"process {self.index}: process {index} has ended: {words['message']}", file=sys.stderr)
            self._end(words["status"], words["message"], follows=True)

    def leave(self, error: BaseException) -> NoReturn:
        """Ends this process by `error`, shown as for one process alone, and tells the others why."""
        deadline = time.monotonic() + DIED_SECONDS
        while not isinstance(error, (InputError, OSError, SystemExit)) and time.monotonic() < deadline:
            time.sleep(0.2)  # Perhaps the connection broke because another one has ended: that matters.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                if ended := self._ended():
                    self._follow(ended)
        with self._ending:
            status = _show(error)
            if isinstance(error, jax.errors.JaxRuntimeError):
                print(
                    "If the connection broke, another process was killed, or its machine is down: look at"
                    f" what the others said. {AGAIN}",
                    file=sys.stderr,
                )
            self._end(status, str(error) if status != preemption.RESUME_STATUS else "told to stop")

    def _end(self, status: int, message: str, *, follows: bool = False) -> NoReturn:
        """Leaves without waiting for anything else: the usual way out would meet at a barrier first.

        The lead keeps the table of keys, so it goes last.
        """
        try:
            words = json.dumps({"status": status, "message": message, "follows": follows})
            self._keys.key_value_set(f"lmreg/ended/{self.index}", words)
            deadline = time.monotonic() + FAREWELL_SECONDS
            awaited = set(range(self.count)) if self.lead else {0}
            while not awaited <= self._ended().keys() and time.monotonic() < deadline:
                time.sleep(0.05)
            if self.lead:
                time.sleep(0.5)  # For the answers to be on their way.
        except jax.errors.JaxRuntimeError:
            pass
        self._last_words.take_back()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)

    def part(self) -> None:
        """The end of a training that all have come to."""
        self.meet("all is done")
        self._over.set()
        jax.distributed.shutdown()
        self._last_words.take_back()


def _if_killed(index: int, count: int) -> str:
    """What happened, as far as can be told from outside, and what to do."""
    cause = "it was killed (kill -9, the system out of memory) or crashed"
    if index:
        cause += ", or process 0 was and JAX has ended this one for it: look at what process 0 said"
    return f"process {index} of {count} has ended without a word: {cause}. {AGAIN}"


def check_alike(team: Team, config: ConfigDict, pairs: Sequence[tuple[str, str]]) -> None:
    """Waits until all are here; InputError in the lead where one has other values or other pairs."""
    found = pairs.names if isinstance(pairs, AllPairs) else list(pairs)
    text = configuration.to_json(config) + json.dumps(found)
    words = team.meet("alike", f"{len(pairs)} pairs, sum {hashlib.sha256(text.encode()).hexdigest()[:8]}")
    for index, word in enumerate(words):
        if word != words[0]:
            raise InputError(
                f"process {index} would train on other pairs or with another config than process 0"
                f" ({word}; {words[0]}): give all the same flags and the same files"
            )


def _show(error: BaseException) -> int:
    """Prints an error as the command alone would; its exit status."""

    def again() -> None:
        raise error

    try:
        exits_cleanly(again)()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    return 1


def define_flags() -> None:
    """--coordinator, --processes, --process; or --distributed."""
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, for a training by several processes.")
    flags.DEFINE_integer("processes", 1, "How many processes there are.")
    flags.DEFINE_integer("process", -1, "Which of them this is, from 0.")
    flags.DEFINE_bool("distributed", False, "Several processes, as SLURM or Open MPI started them.")


@contextmanager
def joined() -> Iterator[Team]:
    """The team that the flags describe; before anything else touches jax's devices.

    Inside, an error ends this process, and the others follow. Raises InputError where the flags do
    not fit together or the others do not come.
    """
    given: Any = flags.FLAGS
    if not (given.coordinator or given.distributed):
        if given.processes != 1 or given.process != -1:
            raise InputError("--processes and --process need --coordinator=HOST:PORT, the same for all")
        yield Team()
        return
    _initialize(given)
    if jax.process_count() == 1:
        yield Team()
        return
    team = Several()
    if not team.lead:  # The lead speaks for all; warnings and errors are each one's own.
        for name in ("lmreg_jax", "experiments"):
            logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield team
        team.part()
    except BaseException as error:
        team.leave(error)


def _initialize(given: Any) -> None:
    if given.coordinator and given.distributed:
        raise InputError("--distributed finds the coordinator by itself; leave one of the two away")
    arguments: dict[str, Any] = {}
    if given.coordinator:
        if not 0 <= given.process < given.processes:
            raise InputError(
                f"--processes={given.processes} and --process={given.process}: the first tells how many"
                " there are, the second which one this is, from 0"
            )
        host, _, port = given.coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise InputError(f"--coordinator={given.coordinator}: HOST:PORT is needed")
        arguments = {
            "coordinator_address": given.coordinator,
            "num_processes": given.processes,
            "process_id": given.process,
            "cluster_detection_method": "deactivate",
        }
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # Signals are `preemption`'s.
    try:
        jax.distributed.initialize(initialization_timeout=JOIN_SECONDS, **arguments)
    except (ValueError, RuntimeError) as error:
        hint = "" if given.coordinator else "; without SLURM or Open MPI give --coordinator, --processes"
        text = " ".join(str(error).split())[:300]
        raise InputError(f"the processes could not be joined ({text}){hint}") from error
