"""Optuna's own side of a search, without Ray: the sampler, and the storage in which `optuna-dashboard` finds the search."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mi_ray.config import OptunaSearch as SearchSettings
from mi_ray.own_code import first_line

if TYPE_CHECKING:  # The actors of a search's trials import the search, and propose nothing.
    import optuna

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


def open_storage(settings: SearchSettings) -> "optuna.storages.BaseStorage | None":
    """Optuna's own storage that a sweep names; None where it names none. Raises ValueError where it cannot be opened."""
    if settings.storage is None:
        return None
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        if "://" in settings.storage:
            return RDBStorage(settings.storage)
        return JournalStorage(JournalFileBackend(settings.storage))
    except Exception as error:  # A database's driver raises what it likes.
        cause = getattr(error, "orig", None) or error
        raise ValueError(f"search: the storage {settings.storage} cannot be opened: {first_line(cause)}") from error


def begin_anew(storage: "optuna.storages.BaseStorage", name: str, objectives: Sequence[str]) -> None:
    """An empty study of a name in a storage, in place of what an earlier run of ours left there.

    A search that went on from stored trials would propose other settings than an undisturbed one. Raises ValueError
    where the study is not ours. objectives: what the search makes as large as it can.
    """
    import optuna

    if name in optuna.get_all_study_names(storage):
        if OURS not in optuna.load_study(study_name=name, storage=storage).user_attrs:
            raise ValueError(
                f"search: the storage has a study {name!r} already that is not of mi_ray; name another storage"
            )
        optuna.delete_study(study_name=name, storage=storage)
    study = optuna.create_study(study_name=name, storage=storage, directions=["maximize"] * len(objectives))
    study.set_user_attr(OURS, "written anew by each run; the results are in the store")
    with warnings.catch_warnings():  # Names of objectives are experimental, and only shown.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(objectives))
