"""Which of several processes this is, and who has started them, as torchrun, SLURM and Lightning say by variables."""

import os
import sys
import time
from typing import NamedTuple

from mnist_cnn.config import written
from mnist_cnn.errors import ConfigError

# Variables that tell a process which of several it is, and how many there are.
_RANKS = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}
_COUNTS = ("NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS_PER_NODE",
           "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "JSM_NAMESPACE_RANK")  # fmt: skip


class Started(NamedTuple):
    """The processes that a program has started for one run: so many on each of so many machines."""

    by: str  # torchrun or srun
    here: int
    machines: int

    @property
    def all(self) -> int:
        return self.here * self.machines


def check_environment() -> None:
    """Raise ConfigError for environment variables of processes that nobody has started, or that can't exist."""
    names = (*_RANKS, *_RANKS.values(), *_COUNTS)
    environment = {name: os.environ[name] for name in names if os.environ.get(name)}
    for name, value in environment.items():
        if not (value.isascii() and value.isdecimal()):
            raise ConfigError(f"{written(name, value)} in the environment: it must be a whole number; unset it.")
    for rank, count in _RANKS.items():
        processes = environment.get(count, "1")
        if rank in environment and int(environment[rank]) >= int(processes):
            raise ConfigError(
                f"{rank}={environment[rank]} in the environment: {count} is {processes}, so there is no such process; "
                "unset it."
            )
    launched, tasks = started(), environment.get("SLURM_NTASKS", "1")
    # SLURM calls a job "interactive" where somebody types commands: there, a command of one process is as good as any.
    if launched is None and int(tasks) > 1 and os.environ.get("SLURM_JOB_NAME") != "interactive":
        raise ConfigError(
            f"SLURM_NTASKS={tasks} in the environment: the job has {tasks} tasks, but this one process was not started "
            "by srun. For one run in all of them, write srun before the command and add trainer=ddp; for one process, "
            "ask for --ntasks=1, or unset SLURM_NTASKS."
        )
    if launched and launched.by == "srun" and str(launched.all) != environment["SLURM_STEP_NUM_TASKS"]:
        raise ConfigError(
            f"srun has started {environment['SLURM_STEP_NUM_TASKS']} processes on {launched.machines} machines; there "
            "must be as many on each: add --ntasks-per-node."
        )


def started() -> Started | None:
    """The processes that torchrun or srun has started for this run; None if neither has started this one."""
    count = {name: int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", *_COUNTS)}
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here = count["LOCAL_WORLD_SIZE"]
        return Started("torchrun", here, count["WORLD_SIZE"] // here)
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        machines = count["SLURM_STEP_NUM_NODES"]
        return Started("srun", count["SLURM_STEP_NUM_TASKS"] // machines, machines)
    return None


def wait_for_slurm() -> None:
    """In a job of SLURM, wait until SLURM ends it, for ten minutes at most; elsewhere, return at once.

    To preempt a job, SLURM sends SIGTERM, and requeues the job after a grace time. One that has ended by then is over.
    """
    if os.environ.get("SLURM_JOB_ID") and os.environ.get("SLURM_JOB_NAME") != "interactive":
        print("waiting for SLURM to end or requeue this job", file=sys.stderr, flush=True)
        time.sleep(600)


def is_first_process() -> bool:
    """Whether this process writes and prints for the run: it has rank 0, or there is no other."""
    ranks = ("RANK",) if os.environ.get("RANK") else ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return all(int(os.environ.get(name) or 0) == 0 for name in ranks)
