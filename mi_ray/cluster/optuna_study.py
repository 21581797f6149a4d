"""Optuna's own side of a search, without Ray: the sampler, and the storage in which `optuna-dashboard` finds a copy of it."""

import contextlib
import hashlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mi_ray.config import OptunaSearch as SearchSettings
from mi_ray.own_code import first_line

if TYPE_CHECKING:  # The actors of a search's trials import the search, and propose nothing.
    import optuna

ANSWERED_IN = 10.0  # seconds after which a storage that is a display alone is given up
LINE_WRITTEN_IN = 0.5  # seconds within which another process has written the rest of a journal's line
OURS = "mi_ray"  # what a study in Optuna's own storage says of itself, if it is a search of ours


def sampler_of(settings: SearchSettings, seed: int, choices: int) -> "optuna.samplers.BaseSampler":
    """The Optuna sampler that a sweep names, seeded. choices: how many parameters of a trial have several values.

    NSGA-II draws each parameter of a child anew with a probability that is by default 1 / (number of parameters); of one
    parameter it would inherit nothing. A value between those of both parents, and a little beyond, is inherited of a range:
    were either parent's own value taken, half of the settings would be ones that have been tried already.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if settings.sampler == "tpe":
        with warnings.catch_warnings():  # `group` is experimental, and a conditional space needs it.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(multivariate=True, group=True, seed=seed)
    with warnings.catch_warnings():  # Ways to cross ranges are experimental, all but the uniform one.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.NSGAIISampler(
            seed=seed,
            population_size=max(2, settings.round),
            mutation_prob=1 / max(2, choices),
            crossover=optuna.samplers.nsgaii.BLXAlphaCrossover(),
        )


class DamagedJournalError(ValueError):
    """A journal file has a line that is none, so that whatever were added to it could not be read."""


def open_storage(settings: SearchSettings) -> "optuna.storages.BaseStorage | None":
    """Optuna's own storage that a sweep names; None where it names none. Raises ValueError where it cannot be opened."""
    if settings.storage is None:
        return None
    try:
        return _opened(settings.storage)
    except Exception as error:  # A database's driver raises what it likes.
        raise ValueError(f"search: the storage {settings.storage} cannot be opened: {_cause(error)}") from error


def try_storage(settings: SearchSettings) -> None:
    """Raise ValueError where the storage that a sweep names can never be opened.

    A damaged journal, a database that is locked and a server that does not answer stop no study: `Mirror` tells of them.
    """
    from sqlalchemy.exc import OperationalError

    try:
        open_storage(settings)
    except ValueError as error:
        cause, url = error.__cause__, str(settings.storage)
        passing = isinstance(cause, OperationalError) and (not url.startswith("sqlite") or "locked" in str(cause))
        if not passing and not isinstance(cause, DamagedJournalError):
            raise


def _opened(storage: str) -> "optuna.storages.BaseStorage":
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" in storage:
        return RDBStorage(storage)
    _refuse_cut(Path(storage))
    try:
        return JournalStorage(JournalFileBackend(storage))
    except OSError:
        raise
    except Exception as error:  # Whatever a line raises that is read as one of its own.
        raise DamagedJournalError(_damaged(first_line(error))) from error


def _refuse_cut(journal: Path) -> None:
    """Raise DamagedJournalError where a journal ends within a line: what is added there would be lost with that line."""

    def is_cut() -> bool:
        with contextlib.suppress(FileNotFoundError), journal.open("rb") as file:
            return file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n"
        return False

    if is_cut():
        time.sleep(LINE_WRITTEN_IN)  # Another process may be writing that very line.
        if is_cut():
            raise DamagedJournalError(_damaged("its last line is cut off"))


def _damaged(cause: str) -> str:
    return f"the journal is damaged ({cause}). Remedy: move the file away, or name another storage"


def _cause(error: Exception) -> str:
    return first_line(getattr(error, "orig", None) or error)


def study_name(sweep: str, classifier: str, store: str, seed: int) -> str:
    """What a search is called in Optuna's own storage: no other search has the name, in whatever store and of what seed."""
    return f"{sweep} on {classifier} ({hashlib.sha256(f'{seed} {store}'.encode()).hexdigest()[:8]})"


class Mirror:
    """A copy of a search in Optuna's own storage, where a person's dashboard finds it.

    Nothing depends on it. What fails there, or takes longer than `ANSWERED_IN`, is told once, and nothing more is copied.
    tell: takes a line for people. objectives: what the search makes as large as it can.
    """

    def __init__(self, storage: str, name: str, objectives: Sequence[str], tell: Callable[[str], None]) -> None:
        self._storage, self._name, self._objectives, self._tell = storage, name, objectives, tell
        self._opened: optuna.storages.BaseStorage | None = None
        self._copied: set[int] = set()
        self._given_up = False
        self._try(self._begin)

    def copy(self, study: "optuna.Study") -> None:
        """Copy the trials that have ended since the last call."""
        ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        new = [trial for trial in ended if trial.number not in self._copied]
        self._copied |= {trial.number for trial in new}
        self._try(lambda: self._add(new))

    def _begin(self) -> None:
        self._opened = _opened(self._storage)
        begin_anew(self._opened, self._name, self._objectives)

    def _add(self, trials: "Sequence[optuna.trial.FrozenTrial]") -> None:
        import optuna

        assert self._opened is not None
        if "://" not in self._storage:
            _refuse_cut(Path(self._storage))
        # By its name each time: a number may by now be that of another study, where somebody has deleted this one.
        study = optuna.load_study(study_name=self._name, storage=self._opened)
        for trial in trials:
            study.add_trial(trial)

    def _try(self, copying: Callable[[], None]) -> None:
        """Copy something in a thread of its own, which is left behind where it hangs."""
        if self._given_up:
            return
        failed: list[Exception] = []

        def tried() -> None:
            try:
                copying()
            except Exception as error:  # A database's driver raises what it likes.
                failed.append(error)

        thread = threading.Thread(target=tried, name="copy of a search", daemon=True)
        thread.start()
        thread.join(ANSWERED_IN)
        if thread.is_alive() or failed:
            cause = f"it has not answered for {ANSWERED_IN:g} s" if thread.is_alive() else _cause(failed[0])
            self._given_up = True
            self._tell(
                f"note: the search {self._name!r} is not shown in {self._storage} from now on; no result depends on that. "
                f"The cause: {cause}"
            )


def begin_anew(storage: "optuna.storages.BaseStorage", name: str, objectives: Sequence[str]) -> None:
    """An empty study of a name in a storage, in place of what an earlier run of ours left there.

    Raises ValueError where the study is not ours. objectives: what the search makes as large as it can.
    """
    import optuna

    if name in optuna.get_all_study_names(storage):
        if OURS not in optuna.load_study(study_name=name, storage=storage).user_attrs:
            raise ValueError(f"it has a study {name!r} already that is not of mi_ray; name another storage")
        optuna.delete_study(study_name=name, storage=storage)
    study = optuna.create_study(study_name=name, storage=storage, directions=["maximize"] * len(objectives))
    study.set_user_attr(OURS, "written anew by each run; the results are in the store")
    with warnings.catch_warnings():  # Names of objectives are experimental, and only shown.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(objectives))
