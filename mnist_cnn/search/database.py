"""The study of a search in its database: a file in the search's folder, or a server that many machines share."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from mnist_cnn.errors import ConfigError, UserError, flat, one_line

FILE = "search.db"
# How often a worker sends a heartbeat, and after how long without one another worker takes over its trial.
HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 60
# How often a trial is restarted after its worker was killed: it may be the trial itself that uses up the memory.
_RETRIES = 10
_BUSY_SECONDS = 60  # how long a worker waits for another one's write to an SQLite file
_ATTRIBUTE = "mnist-cnn search"


def database_url(storage: str | None, folder: Path) -> URL:
    """The address of the database: `storage` or, if that is None, a file in the folder; ConfigError if it is none."""
    if storage is None:
        if "?" in str(folder.absolute()):
            raise ConfigError(
                f"-o {one_line(folder)}: its path has a question mark, which SQLite's addresses can't have."
            )
        return URL.create("sqlite", database=str(folder.absolute() / FILE))
    try:
        url = make_url(storage)
        url.get_dialect()
    except NoSuchModuleError:
        raise ConfigError(f"--storage {shown(url)}: there is no such kind of database.") from None
    except (ArgumentError, ValueError):
        raise ConfigError(
            "--storage: not the address of a database, such as postgresql+psycopg://USER@HOST/DATABASE or "
            "sqlite:///FILE.db."
        ) from None
    return url


def shown(url: URL) -> str:
    """An address without its password, which may also stand behind its question mark."""
    return one_line(url.set(query={}).render_as_string(hide_password=True))


@contextmanager
def database_errors(url: URL) -> Iterator[None]:
    """Turn what a database refuses into a UserError of one line."""
    try:
        yield
    except Exception as error:
        refusal: BaseException | None = error
        while refusal is not None and not isinstance(refusal, SQLAlchemyError):
            refusal = refusal.__cause__ or refusal.__context__  # Optuna 5.0 trips over it, and raises something else
        if refusal is None or isinstance(error, UserError):
            raise
        why = getattr(refusal, "orig", None) or refusal  # without the statement, which SQLAlchemy adds
        raise UserError(f"--storage {shown(url)}: {one_line(flat(why), 300)}") from error


def open_study(
    url: URL, folder: Path, words: list[str], sampler: BaseSampler, pruner: BasePruner, is_shared: bool
) -> Study:
    """The study of the search in this folder, new or begun before. In a database that `is_shared`, it has its name.

    ConfigError if it is there, and was another search than `words` say; UserError if the database can't be used.
    """
    name = folder.absolute().name if is_shared else "search"  # a folder may be renamed
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the search itself says what happens
    with database_errors(url):
        study = optuna.create_study(
            storage=_storage(url),
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            sampler=sampler,
            pruner=pruner,
        )
        before = study.user_attrs.get(_ATTRIBUTE)
        if before is None and not study.get_trials(deepcopy=False):
            study.set_user_attr(_ATTRIBUTE, words)
            return study
    if before != words:
        raise ConfigError(
            f"-o {one_line(folder)}: its search was begun {_difference(before, words)}; another needs another folder."
        )
    return study


def _difference(before: Any, words: list[str]) -> str:
    if not isinstance(before, list):
        return "by another program"
    other = [f"with {one_line(word, 100)}" for word in before if word not in words]
    return " and ".join([*other, *(f"without {one_line(word, 100)}" for word in words if word not in before)])


def retry(study: Study, number: int) -> None:
    """Have the trial of this number, which did not end by itself, begun again by the next worker that is free."""
    with warnings.catch_warnings():
        _ignore_experimental()
        RetryHeartbeatStaleTrialCallback()(study, study.get_trials(deepcopy=False)[number])


def first_number(trial: optuna.trial.FrozenTrial) -> int:
    """The number under which a trial was begun first; every time it is begun again, Optuna gives it a new one."""
    with warnings.catch_warnings():
        _ignore_experimental()
        first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return first if isinstance(first, int) else trial.number


def fail_stale_trials(study: Study) -> None:
    """Give up the trials whose workers have been killed, so that they are begun again."""
    with warnings.catch_warnings():
        _ignore_experimental()
        optuna.storages.fail_stale_trials(study)


def _ignore_experimental() -> None:
    """Heartbeats have been "experimental" since Optuna 2.9; pyproject.toml allows only versions that are tested."""
    warnings.simplefilter("ignore", ExperimentalWarning)


with warnings.catch_warnings():
    _ignore_experimental()
    _RETRY = RetryHeartbeatStaleTrialCallback(_RETRIES)


class _Database(RDBStorage):
    """Its heartbeats, which a thread sends, may fail while the server is away; the next one tells in time."""

    def record_heartbeat(self, trial_id: int) -> None:
        with suppress(SQLAlchemyError, StorageInternalError):
            super().record_heartbeat(trial_id)


def _storage(url: URL) -> RDBStorage:
    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")  # Optuna formats it
    engine: dict[str, Any] = {"pool_pre_ping": True}  # a server may have been started anew
    if url.get_backend_name() == "sqlite":
        engine["connect_args"] = {"timeout": _BUSY_SECONDS}
    attempts = 3  # two workers that start at once may both want to make the tables
    while True:
        try:
            with warnings.catch_warnings():
                _ignore_experimental()
                return _Database(
                    text,
                    engine,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=_RETRY,
                )
        except ImportError as error:
            driver = url.get_driver_name()
            way = "; for postgresql+psycopg://…: pip install 'psycopg[binary]'" if "psycopg" in driver else ""
            raise UserError(f"--storage {shown(url)}: its driver, {driver}, is not installed{way}") from error
        except SQLAlchemyError:
            attempts -= 1
            if not attempts:
                raise
            time.sleep(0.5)
