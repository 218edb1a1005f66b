"""Describes this installation and this machine for a bug report, and names what is wrong with them.

Reports are posted in public, so nothing in one is private: no name of a user, a machine or a folder, and of environment
variables only numbers and known words. Any part may be broken, so a failure in one does not stop the others.
"""

import ctypes
import locale
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_cnn import __version__
from mnist_cnn.errors import one_line

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Facts = dict[str, str | int | bool]

# What each distribution is imported as. torch comes before those that need it: where it is broken, they are too.
_PACKAGES = {
    "numpy": "numpy", "scipy": "scipy", "scikit-learn": "sklearn", "statsmodels": "statsmodels",
    "matplotlib": "matplotlib", "pillow": "PIL.Image",
    "h5py": "h5py", "pyyaml": "yaml", "omegaconf": "omegaconf", "hydra-core": "hydra", "msgspec": "msgspec",
    "filelock": "filelock", "tqdm": "tqdm", "mlxtend": "mlxtend",
    "torch": "torch", "torchvision": "torchvision", "torchmetrics": "torchmetrics", "lightning": "lightning.pytorch",
    "onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime",
    "optuna": "optuna", "sqlalchemy": "sqlalchemy",
}  # fmt: skip
# Where the second is broken, the first is not tried: it would be blamed for it, or say more than one line.
_STANDS_ON = {"torchvision": "torch", "torchmetrics": "torch", "lightning": "torch", "onnxruntime": "numpy"}
_MALICIOUS = {("lightning", "2.6.2"), ("lightning", "2.6.3")}
_CPU_CAPABILITIES = ("avx2", "avx512_f", "avx512_bf16", "amx_tile", "amx_bf16")
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_ALLOCATOR = r"lib(?:jemalloc|tcmalloc|mimalloc|snmalloc|hoard)[\w.-]*"
# Reading EMNIST takes longer than everything else together, so data sets are verified while there is time.
_SECONDS_TO_VERIFY, _BYTES_TO_VERIFY = 1.5, 100e6


@dataclass(frozen=True)
class Diagnosis:
    """Facts by subject, and one line for each thing that is wrong."""

    subjects: dict[str, Facts]
    problems: list[str]

    def to_dict(self) -> dict[str, Facts | list[str]]:
        return {**self.subjects, "problems": self.problems}

    def summary(self) -> str:
        lines = []
        for subject, facts in self.subjects.items():
            lines += [subject, *(f"  {name:<28}{value}" for name, value in facts.items())]
        return "\n".join([*lines, *(f"problem: {problem}" for problem in self.problems or ["none found"])])


def examine(data_root: Path) -> Diagnosis:
    """Collect everything, in little more than the time of importing torch and Lightning. Nothing is downloaded."""
    packages, usable, problems = _packages()
    subjects = {"system": _ask(_system), "packages": packages}
    if "torch" in usable:
        subjects |= {"torch": _ask(_torch), "devices": _ask(_devices)}
    subjects |= {"environment": _ask(_environment), "memory and disk": _ask(lambda: _memory_and_disk(data_root))}
    if {"numpy", "tqdm"} <= usable:
        subjects["data sets"] = _ask(lambda: _data_sets(data_root))
    return Diagnosis(subjects, problems)


def _ask(question: Callable[[], Facts]) -> Facts:
    try:
        return question()
    except Exception as error:  # whatever it is, the other facts may explain it
        return {"not available": _public(error)}


def _packages() -> tuple[Facts, set[str], list[str]]:
    """The version of each package, the names of those that can be imported, and what is wrong with the others."""
    needed = _requirements()
    versions, usable = dict[str, str | int | bool](), set[str]()
    problems = [] if needed else ["mnist-cnn or packaging is not installed: pip install -e ."]
    for name, module in _PACKAGES.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
            problems += [f"{name} is not installed"] if name in needed and needed[name].marker is None else []
            continue
        versions[name] = version
        if (name, version) in _MALICIOUS:
            problems.append(f"{name} {version} is malicious: uninstall it, and replace every key that was used here")
            continue
        if name in needed and version not in needed[name].specifier:
            problems.append(f"{name} {version} is not one of the tested versions, {needed[name].specifier}")
        if _STANDS_ON.get(name, name) not in {name, *usable}:
            continue
        try:
            import_module(module)
            usable.add(name)
        except Exception as error:
            problems.append(f"{name} {version} can't be imported: {_public(error)}")
    return versions, usable, problems


def _requirements() -> "dict[str, Requirement]":
    """The packages that using and training networks need, by name, with their versions; empty if that is not known."""
    with suppress(ImportError, metadata.PackageNotFoundError):
        from packaging.requirements import Requirement

        everything = map(Requirement, metadata.requires("mnist-cnn") or [])
        return {one.name.lower(): one for one in everything if not one.marker or "train" in str(one.marker)}
    return {}


def _system() -> Facts:
    model = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "mnist-cnn": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        # After its number, a kernel's release may hold anything, also the machine's name.
        "platform": f"{platform.system()} {re.sub(r'[^0-9.].*', '', platform.release())} {platform.machine()}",
        "C library": " ".join(platform.libc_ver()).strip() or "unknown",
        "processor": one_line(model[1], 80) if model else platform.machine(),
        "processors": f"{allowed} of {os.cpu_count()}",
        "cgroup's quota and period": one_line(_read("/sys/fs/cgroup/cpu.max"), 40) or "none",
        "locale": one_line(locale.setlocale(locale.LC_CTYPE), 40),
        "encoding": f"text {locale.getpreferredencoding(False)}, file names {sys.getfilesystemencoding()}",
    }


def _torch() -> Facts:
    import torch

    from mnist_cnn import machine

    build = torch.__config__.show()
    mkl, onednn = re.search(r"Math Kernel Library Version ([\d.]+)", build), re.search(r"MKL-DNN v([\d.]+)", build)
    gpu = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    facts: Facts = {
        "built for": " ".join(f"{name} {version}" for name, version in gpu.items() if version) or "CPU",
        "MKL": mkl[1] if mkl else "none",
        "oneDNN": onednn[1] if onednn else "none",
        "processors used at most": machine.processors(),
    }
    for step, operations in {"small": 0, "big": 1e12}.items():
        with machine.threads(operations):
            facts[f"threads in a {step} step"] = torch.get_num_threads()
    return facts


def _devices() -> Facts:
    import torch

    from mnist_cnn.machine import has_fast_bfloat16

    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch 2.10 has none
    driver = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", _read("/proc/driver/nvidia/version"))
    with warnings.catch_warnings(record=True) as warned:  # of a driver that is too old, for example
        warnings.simplefilter("always")
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    facts: Facts = {
        "CPU": torch.backends.cpu.get_cpu_capability(),
        "CPU capabilities": " ".join(name for name in _CPU_CAPABILITIES if known.get(name)) or "unknown",
        "bfloat16 is fast on the CPU": has_fast_bfloat16() if known else "unknown",
        "MPS": torch.backends.mps.is_available(),
        "NVIDIA driver": driver[1] if driver else "none",
        "CUDA devices": cards,
        **{f"CUDA warning {number}": _public(warning.message) for number, warning in enumerate(warned, 1)},
    }
    for index in range(cards):
        card = torch.cuda.get_device_properties(index)
        facts[f"CUDA device {index}"] = f"{card.name}, {_gib(card.total_memory)}, capability {card.major}.{card.minor}"
    return facts


def _environment() -> Facts:
    def value(name: str) -> str:
        text = os.environ.get(name, "not set")
        return text if re.fullmatch(r"[\d,]{1,40}|active|passive|not set", text, re.IGNORECASE) else "not understood"

    preloaded = os.environ.get("LD_PRELOAD")
    return {
        **{name: value(name) for name in _THREAD_SETTINGS},
        "LD_PRELOAD": " ".join(re.findall(_ALLOCATOR, preloaded)) or "another library" if preloaded else "not set",
        "mallopt": "available" if os.name == "posix" and hasattr(ctypes.CDLL(None), "mallopt") else "not available",
        "MNIST_MIRROR": "set" if os.environ.get("MNIST_MIRROR") else "not set",
    }


def _memory_and_disk(data_root: Path) -> Facts:
    facts: Facts = {}
    with suppress(ImportError):  # Windows has no such module
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        facts["memory"] = _gib(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        facts["RLIMIT_AS"] = "none" if most == resource.RLIM_INFINITY else _gib(most)
    limit = _read("/sys/fs/cgroup/memory.max") or _read("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    facts["cgroup's memory limit"] = _gib(int(limit)) if limit.isdigit() and int(limit) < 2**60 else "none"
    root = data_root.expanduser().absolute()
    folders: dict[str, Callable[[], Path]] = {
        "the data root": lambda: next(folder for folder in (root, *root.parents) if folder.exists()),
        "this folder": Path.cwd,
        "temporary files": lambda: Path(tempfile.gettempdir()),
    }
    for name, folder in folders.items():
        try:
            facts[f"free for {name}"] = _gib(shutil.disk_usage(folder()).free)
        except OSError as error:
            facts[f"free for {name}"] = _public(error)
    return facts


def _data_sets(data_root: Path) -> Facts:
    from mnist_cnn.data.sources import SOURCES, Source

    def state(source: Source) -> str:
        if not source.files:
            return "comes with a package"
        names = [root / source.folder / name for name, _ in source.files]
        present = [file for name in names for file in (name, name.with_suffix("")) if file.is_file()]
        if not present:
            return "absent"
        if time.monotonic() > deadline or sum(file.stat().st_size for file in present) > _BYTES_TO_VERIFY:
            return "found, not verified: that would take too long here"
        missing = len(source.missing(root))
        return f"{missing} of {len(names)} files missing or damaged" if missing else "verified"

    root, deadline = data_root.expanduser(), time.monotonic() + _SECONDS_TO_VERIFY
    return {name: state(known) for name, known in SOURCES.items()}


def _public(error: object) -> str:
    """What an exception or warning says, on one line. Of the paths in it, only names of libraries and modules stay."""

    def name_only(path: re.Match[str]) -> str:
        name = re.split(r"[/\\]", path[0])[-1]
        return f".../{name}" if re.match(r"[\w.+-]+\.(?:so|py|pyd|dll|dylib)\b", name) else "..."

    # A path begins with a slash, ~ or a drive, and ends before punctuation, or before a colon and a space.
    path = r"(?<![\w.])(?:[A-Za-z]:)?[/\\~](?:[^:'\"(),]|:(?=\S))*"
    return one_line(f"{type(error).__name__}: {re.sub(path, name_only, ' '.join(str(error).split()))}")


def _read(file: str) -> str:
    with suppress(OSError):
        return Path(file).read_text(errors="replace").strip()
    return ""


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
