"""How is the machine put to good use? The memory of activations, the number of threads, and bfloat16 where it is fast.

What is done here changes no result but for rounding, which follows from the number of threads.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# With fewer floating-point operations than this for each thread in a step, another thread costs more than it brings:
# measured with `mlp` on two cores of an AMD EPYC, where a step of 8 million is slower on two, one of 32 million faster.
_OPERATIONS_PER_THREAD = 16e6
_TORCH_DEFAULT_THREADS = torch.get_num_threads()
# "200000 100000" is two processors: how a container is told of its share
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def keep_freed_memory() -> None:
    """Have the C library keep the memory of activations for the next step instead of returning it to the kernel.

    It would be mapped and filled with zeros by page faults anew in every step: 1.1 to 2 times the time of a step,
    measured with `baseline` and batches of 128 to 2048. For glibc only, and harmless elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mmap_max, trim_threshold = -4, -1  # their numbers in malloc.h
    mallopt(mmap_max, 0)  # large blocks from the heap too …
    mallopt(trim_threshold, -1)  # … which never shrinks


def use_threads(operations: float) -> None:
    """Let torch use as many threads as so many operations keep busy, on processors that are really ours.

    `operations` are the floating-point ones of a step. OMP_NUM_THREADS and MKL_NUM_THREADS have the last word.
    """
    if not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & set(os.environ):
        torch.set_num_threads(max(1, min(processors(), int(operations / _OPERATIONS_PER_THREAD))))


@contextmanager
def threads(operations: float) -> Iterator[None]:
    """The same for a while."""
    before = torch.get_num_threads()
    use_threads(operations)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def processors() -> int:
    """How many processors this process may use: as the scheduler allows it, and no more than its container's share.

    No more than torch takes by itself either: where a core runs two threads, that is one for each core.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = min(allowed, _TORCH_DEFAULT_THREADS)
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or its quota is "max"
        return allowed


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 by itself; True where that can't be told (no x86, or torch < 2.10)."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("architecture") != "x86_64":
        return True
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
