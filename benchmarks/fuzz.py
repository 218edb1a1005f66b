"""Gives every way into the program hostile input, and holds it to the contract of `fuzz_contract.py`.

    python benchmarks/fuzz.py all --cases 10000 --seed 0

| kind | what is hostile | what is run | what is replaced |
|---|---|---|---|
| checkpoints | a checkpoint | `mnist-cnn predict` | nothing |
| pictures | a picture and its name | `mnist-cnn predict` | nothing |
| mirrors | a server's answers | fetching and reading MNIST | MNIST by a small one, and the limits by lower ones |
| runs | a run's folder: config.yaml and its checkpoints | `train.py resume=…` | training, but for one case in eight |
| settings | the command line | `train.py …` | training, but for one case in fifty; there is no network |

Training that is not replaced is stopped by a signal after its first step. Hypothesis makes the cases: unlike atheris it
is maintained for every Python that we support, and makes structured values. The folder of the first fault of each sort
is kept.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fuzz_contract import Fault, Kind, empty_folder
from fuzz_files import checkpoints, pictures
from fuzz_mirrors import mirrors
from fuzz_train import good_run, runs, settings
from hypothesis import HealthCheck, Phase, Verbosity, given, seed
from hypothesis import settings as hypothesis_settings

KINDS: dict[str, Callable[[Path, Path], Kind[Any]]] = {
    "checkpoints": checkpoints,
    "runs": runs,
    "pictures": pictures,
    "mirrors": mirrors,
    "settings": settings,
}
_ROUND = 250  # cases that Hypothesis makes at once: it remembers all of them


@dataclass
class Tally:
    """What came of the cases of one kind."""

    cases: int = 0
    refused: int = 0
    used: int = 0
    seconds: float = 0
    slowest: float = 0
    memory: int = 0
    faults: dict[str, str] = field(default_factory=dict)  # by signature

    def row(self, kind: str) -> str:
        return (
            f"| `{kind}` | {self.cases:,} | {self.refused:,} | {self.used:,} | {self.seconds:.0f} | {self.slowest:.1f} "
            f"| {self.memory / 1e6:.0f} | {len(self.faults)} |"
        )


def run_cases(kind: Kind[Any], cases: int, number: int, tally: Tally, fault: Callable[[Fault], None]) -> None:
    """Hold so many cases to the contract; the same number gives the same cases. `fault` is told of each new Fault."""

    @seed(number)
    @hypothesis_settings(
        max_examples=cases, deadline=None, database=None, verbosity=Verbosity.quiet, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(kind.cases)
    def hold(case: Any) -> None:
        tally.cases += 1
        try:
            outcome = kind.hold(case)
        except Fault as found:
            if found.signature not in tally.faults:
                tally.faults[found.signature] = str(found)
                fault(found)
            return
        tally.refused += outcome.refused
        tally.used += not outcome.refused
        tally.slowest, tally.memory = max(tally.slowest, outcome.seconds), max(tally.memory, outcome.memory)

    hold()


def fuzz(name: str, run: Path, cases: int, first_seed: int, minutes: float, keep: Path) -> Tally:
    """Fuzz one kind until there were so many cases, or for so long."""
    folder, tally, begin, number = empty_folder(), Tally(), time.monotonic(), first_seed
    kind = KINDS[name](folder, run)

    def fault(found: Fault) -> None:
        kept = keep / f"{name}-{number}-{len(tally.faults)}"
        shutil.copytree(folder, kept, symlinks=True, dirs_exist_ok=True)
        print(f"FAULT in {name}, seed {number}, kept in {kept}: {found}\n", flush=True)

    while tally.cases < cases and time.monotonic() - begin < 60 * minutes:
        run_cases(kind, min(_ROUND, cases - tally.cases), number, tally, fault)
        number += 1_000_003  # the seeds of the next rounds are not those of --seed 1
    tally.seconds = time.monotonic() - begin
    shutil.rmtree(folder)
    return tally


def main() -> int:
    """Fuzz the kinds asked for; exit status 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=(*KINDS, "all"))
    parser.add_argument("--cases", type=int, default=10_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60 * 24, help="at most so long for each kind")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_faults"), help="where the folders of faults go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep, run = options.keep.absolute(), good_run(empty_folder())
    names = list(KINDS) if options.kind == "all" else [options.kind]
    tallies = {name: fuzz(name, run, options.cases, options.seed, options.minutes, keep) for name in names}
    shutil.rmtree(run.parent)
    columns = ("kind", "cases", "refused", "used", "seconds", "slowest, s", "memory, MB", "faults")
    print(f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}")
    print("\n".join(tally.row(name) for name, tally in tallies.items()))
    return 1 if any(tally.faults for tally in tallies.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
