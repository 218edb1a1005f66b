"""Adapts torch to this machine: memory for activations, number of threads, and whether bfloat16 is fast.

Nothing here changes a result, except for rounding, which depends on the number of threads.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# A step with fewer floating-point operations per thread than this gets fewer threads. Measured on two idle cores of an
# AMD EPYC, two threads take 0.9 to 1.6 times as long as one for 8 to 68 million operations (`mlp`, `tiny` and small
# batches of `baseline`), and 0.65 to 0.85 times for 250 million. Beside another program, two threads take several times
# as long, because they wait for each other dozens of times in a step; one thread takes no longer than before.
_OPERATIONS_PER_THREAD = 64e6
_TORCH_DEFAULT_THREADS = torch.get_num_threads()
# The container's CPU quota and period in microseconds: "200000 100000" means two processors.
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def keep_freed_memory() -> None:
    """Make glibc keep the memory of activations for the next step instead of returning it to the kernel.

    Otherwise the kernel maps and zeroes it again in every step, which then takes 1.1 to 2 times as long (measured with
    `baseline` and batches of 128 to 2048). Does nothing with another C library.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD in malloc.h
    mallopt(mmap_max, 0)  # allocate large blocks on the heap too …
    mallopt(trim_threshold, -1)  # … and never shrink the heap


def use_threads(operations: float) -> None:
    """Set torch's number of threads to what a step of `operations` floating-point operations keeps busy.

    It is at most the number of available processors. If OMP_NUM_THREADS or MKL_NUM_THREADS is set, nothing changes.
    """
    if not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & set(os.environ):
        torch.set_num_threads(max(1, min(processors(), int(operations / _OPERATIONS_PER_THREAD))))


@contextmanager
def threads(operations: float) -> Iterator[None]:
    """`use_threads` inside a `with` block; the previous number is restored after it."""
    before = torch.get_num_threads()
    use_threads(operations)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ask_cuda_itself() -> None:
    """Have torch ask CUDA, not NVIDIA's management library, whether there is a GPU, for the rest of this process.

    torch's optimisers ask in every step. Lightning has them go through that library, because a process that has asked
    CUDA can't use it in processes that it forks. Loading it takes 0.1 ms or more, a fifth of a step of `mlp`.
    """
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, however that comes about (Linux only).

    Otherwise a process of several waits for half an hour for another that was killed.
    """
    if sys.platform.startswith("linux"):
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG in sys/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def processors() -> int:
    """The number of processors that this process may use, by its CPU affinity and its container's quota.

    It is at most torch's own default, which counts physical cores, not hardware threads.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = min(allowed, _TORCH_DEFAULT_THREADS)
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # there is no such file, or the quota is "max"
        return allowed


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively; True if that is not known (not x86, or torch 2.10)."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("architecture") != "x86_64":
        return True
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
