"""A sweep (`-m`): the folder of its runs, and the list of those that failed."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

from mnist_cnn.errors import UserError, flat, one_line


class Sweep:
    """The folder and the failed runs of a sweep. Some launchers start runs in other processes, which it doesn't see.

    `conf/config.yaml` gets the folder by the resolver `${sweep_dir:…}`, which this registers.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._new_folders: list[Path] = []  # the folder and its parents, as far as they did not exist; innermost first
        self._failures: list[str] = []
        # Cached with the configuration, so that runs in other processes use the same folder.
        OmegaConf.register_new_resolver("sweep_dir", self._choose, use_cache=True, replace=True)

    def __reduce__(self) -> tuple[type["Sweep"], tuple[()]]:
        return Sweep, ()  # a run in another process keeps a list of its own

    def _choose(self, run_dir: str | None) -> str:
        self._folder = Path(run_dir or f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_sweep")
        with suppress(OSError):  # a name that is too long, which is reported when the folder is made
            self._new_folders = [folder for folder in (self._folder, *self._folder.parents) if not folder.exists()]
        return str(self._folder)

    def failed(self, number: int, settings: Sequence[str], error: Exception) -> str:
        """Record that run `number` failed, and return the line that says so. `settings` are its overrides."""
        varied = ", ".join(setting for setting in settings if setting not in sys.argv)
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {flat(error)}"
        line = f"run {number} ({one_line(varied, 200)}): {one_line(why, 400)}" if varied else f"run {number}: {why}"
        self._failures.append(line)
        return line

    def account(self) -> str:
        """A heading and a line for each failed run; empty if none has failed."""
        count = len(self._failures)
        head = "1 run of the sweep failed:" if count == 1 else f"{count} runs of the sweep failed:"
        return "\n".join([head, *(f"  {line}" for line in self._failures)]) if count else ""

    def discard_if_empty(self) -> bool:
        """Remove the sweep's folder if this sweep made it and no run left anything in it; returns whether it did."""
        record = "multirun.yaml"  # Hydra writes it before it knows whether any run can start
        if self._folder is None or not self._new_folders or not self._folder.is_dir():
            return False
        if any(path.name != record for path in self._folder.iterdir()):
            return False
        (self._folder / record).unlink(missing_ok=True)
        with suppress(OSError):  # other runs may have a folder beside it
            for folder in self._new_folders:
                folder.rmdir()
        return True
