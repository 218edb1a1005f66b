"""Runs the trials of a search, one after another, beside any other workers on the same study."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import NoReturn

from optuna import TrialPruned
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from mnist_cnn.config import Config
from mnist_cnn.errors import Interrupted, UserError, as_user_error, one_line
from mnist_cnn.files import write_file
from mnist_cnn.hydra_cli.configure import configured
from mnist_cnn.report.run import EpochRow
from mnist_cnn.search import methods
from mnist_cnn.search.database import GRACE_SECONDS, fail_stale_trials, first_number, retry
from mnist_cnn.search.space import Space
from mnist_cnn.training.callbacks import EndedEarly, EpochWatch
from mnist_cnn.training.resume.saved import check_files
from mnist_cnn.training.run import train

# The attribute of a failed trial that says why it failed.
ERROR = "error"
# Where so many trials in a row fail, it is not their values that are wrong.
_MOST_FAILURES = 10
_SECONDS_BETWEEN_LOOKS = 1.0


class _TrialFailed(Exception):
    """The trial can't be finished; the search goes on without it."""


class _NotNeeded(Exception):
    """Another worker has begun the last trial of the search at the same moment."""


class Worker:
    """Trains trials of a study, each as a run in `folder`, until `trials` of them are done, whoever trained them.

    A trial is done when it is complete or pruned. Of a grid, those that failed count too: they have had their turn.
    """

    def __init__(self, space: Space, study: Study, folder: Path, trials: int, sampler: str, seed: int | None) -> None:
        self._space, self._study, self._folder = space, study, folder
        self._sampler, self._seed = sampler, seed
        self._trials = min(trials, methods.combinations(space)) if sampler == "grid" else trials
        self._failures = 0  # in a row
        self._number = -1  # of the running trial
        self._is_lost = False  # to another worker

    def run(self) -> None:
        """Run trials until the study has enough. Those that other workers are running are waited for.

        UserError if every trial fails, or the machine can't train; Interrupted after a signal.
        """
        was_waiting = False
        with _signals_interrupt():
            while True:
                fail_stale_trials(self._study)
                trials = self._study.get_trials(deepcopy=False)
                running = sum(trial.state == TrialState.RUNNING for trial in trials)
                done = sum(map(self._is_done, trials))
                if done >= self._trials:
                    return
                is_waiting = done + running >= self._trials
                if not is_waiting or any(trial.state == TrialState.WAITING for trial in trials):
                    self._run_one(len(trials))
                    continue
                if not was_waiting:
                    _say(
                        f"waiting for other workers, which have {running} of the trials; those of a killed worker are "
                        f"taken over after {GRACE_SECONDS} s"
                    )
                was_waiting = is_waiting
                time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _is_done(self, trial: FrozenTrial) -> bool:
        has_failed = trial.state == TrialState.FAIL and ERROR in trial.user_attrs
        return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or (self._sampler == "grid" and has_failed)

    def _run_one(self, begun: int) -> None:
        """Run the next trial; `begun` is the number of those so far, with which the sampler's seed changes.

        With one seed for all, a search that goes on would choose what it has chosen before.
        """
        if self._seed is not None:
            seed = (self._seed * 1_000_003 + begun) % 2**32
            self._study.sampler = methods.sampler(self._sampler, seed, self._space)
        self._number, self._is_lost = -1, False
        try:
            self._study.optimize(self._objective, n_trials=1, catch=(_TrialFailed, _NotNeeded))
        except (KeyboardInterrupt, OSError):
            if self._number >= 0 and not self._is_lost:
                retry(self._study, self._number)
            raise
        except Exception:
            if not self._is_lost:
                raise
            _say("this worker was silent for so long that its trial was given to another one")

    def _objective(self, trial: Trial) -> float:
        """Train one trial; returns the validation accuracy of its kept epoch."""
        trials = self._study.get_trials(deepcopy=False)
        before = trials[: trial.number]
        if sum(other.state != TrialState.FAIL or self._is_done(other) for other in before) >= self._trials:
            raise _NotNeeded
        self._number = trial.number
        number = first_number(trials[trial.number])
        folder = self._folder / f"trial_{number:03}"
        try:
            config, command = self._configured(trial, number, folder)
            accuracy = self._train(trial, config, command)
        except EndedEarly as end:
            _say(f"trial {number}: pruned, {end}")
            raise TrialPruned from None
        except UpdateFinishedTrialError:
            self._is_lost = True
            raise
        except Exception as error:
            told = as_user_error(error)
            # What is wrong with the machine, its files or its packages is so for every trial.
            if told is None or isinstance(error, OSError | ModuleNotFoundError):
                raise
            self._fail(trial, number, folder, one_line(str(told), 1000))
            raise _TrialFailed from error
        self._failures = 0
        _say(f"trial {number}: validation accuracy {accuracy:.2%}")
        return accuracy

    def _configured(self, trial: Trial, number: int, folder: Path) -> tuple[Config, str]:
        """The configuration of a new trial, or of one that is begun again and goes on in its folder, if it is here."""
        settings = self._space.suggest(trial)
        _say(f"\ntrial {number}: {' '.join(settings[len(self._space.fixed) :])}")
        config, command = configured([*settings, f"run_dir={folder}"])
        if number != trial.number and folder.is_dir():
            check_files(folder)
            config = replace(config, run_dir=None, resume=str(folder))
        return config, command

    def _train(self, trial: Trial, config: Config, command: str) -> float:
        reported = 0

        def report(rows: Sequence[EpochRow]) -> None:
            nonlocal reported
            for row in rows[reported:]:
                trial.report(row["val/accuracy"], int(row["epoch"]))
            reported = len(rows)

        def goes_on(rows: Sequence[EpochRow]) -> bool:
            report(rows)
            return not (rows and trial.should_prune())

        with redirect_stdout(StringIO()):  # a run prints its test accuracy, which must not guide the search
            run = train(config, command, [EpochWatch(goes_on)])
        assert run is not None
        assert run.val is not None
        report(run.history)
        return run.val.accuracy

    def _fail(self, trial: Trial, number: int, folder: Path, why: str) -> None:
        trial.set_user_attr(ERROR, why)
        folder.mkdir(exist_ok=True)
        write_file(folder / "error.txt", f"{why}\n".encode())
        _say(f"trial {number}: failed: {why}")
        self._failures += 1
        if self._failures == _MOST_FAILURES:
            raise UserError(f"{_MOST_FAILURES} trials in a row have failed, the last one because: {why}")


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the search as Ctrl-C does, also between two runs, which handle them themselves."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names if threading.current_thread() is threading.main_thread()]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
