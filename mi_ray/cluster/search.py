"""Searching for defense settings with Optuna: the space of a sweep's defenses, and settings proposed in fixed rounds."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

from mi_ray.cluster.optuna_study import Mirror, sampler_of
from mi_ray.cluster.trials import ACCURACIES, Config, Trial
from mi_ray.config import OptunaSearch as SearchSettings
from mi_ray.defenses import DEFENSES
from mi_ray.parameters import Axis, Method, plain
from mi_ray.plan.planner import Planner
from mi_ray.plan.work import Cell, ClassifierWork, merged, merged_attacks

if TYPE_CHECKING:  # The actors of a search's trials import this module, and propose nothing.
    import optuna


class RoundsSearch(Searcher):
    """Optuna in fixed rounds, told in the order in which it asked, so that the same seed proposes the same settings.

    It wraps Ray's `OptunaSearch`, and keeps the results of a round until all of them are there. after: called when a round
    has been told.
    """

    def __init__(self, inner: Searcher, settings: SearchSettings, after: Callable[[], None] | None = None) -> None:
        super().__init__(metric=list(ACCURACIES), mode=["max", "max"])
        self._inner, self._settings, self._after = inner, settings, after
        self._round: list[str] = []
        self._results: dict[str, tuple[Mapping[str, object] | None, bool]] = {}
        self._asked = 0

    def __getstate__(self) -> dict[str, object]:
        """Keep all but `after`, which may hold a session: Tune writes its searcher down to restore a run, which we never do."""
        return {**self.__dict__, "_after": None}

    def set_search_properties(self, metric: object, mode: object, config: Mapping[str, object], **spec: object) -> bool:
        """Refuse what Tune would set: the space and the objectives are the inner search's own."""
        return False

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next setting, or nothing while a round is still running."""
        if self._asked >= self._settings.trials:
            return Searcher.FINISHED
        if len(self._round) >= self._settings.round:
            return None
        with warnings.catch_warnings():  # Ray warns where a proposal takes a second, as on a machine that is busy.
            warnings.filterwarnings("ignore", "Define-by-run function", UserWarning)
            found: dict[str, Any] | None = self._inner.suggest(trial_id)
        self._round.append(trial_id)
        self._asked += 1
        return found

    def on_trial_result(self, trial_id: str, result: Mapping[str, object]) -> None:
        """Do nothing: a sampler is told of whole trials, and not of the blocks in between."""

    def on_trial_complete(self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False) -> None:
        """Keep the result; when the round is complete, tell all of it in order."""
        self._results[trial_id] = (result, error)
        if len(self._results) == len(self._round) and (
            len(self._round) == self._settings.round or self._asked >= self._settings.trials
        ):
            for asked in self._round:
                told, failed = self._results[asked]
                self._inner.on_trial_complete(asked, told, failed)
            self._round, self._results = [], {}
            if self._after is not None:
                self._after()

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a rerun proposes the same settings, whose results are in the store."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: see `save`."""


@dataclass(frozen=True)
class Space:
    """A search space: a defense, and values on the axes that this defense owns.

    axes: (defense, its axes) for each entry of the sweep.
    """

    axes: tuple[tuple[str, Mapping[str, Axis]], ...]

    @property
    def entries(self) -> list[str]:
        """The defenses as they are told apart: one may be there twice, with other axes."""
        return [f"{index}:{name}" for index, (name, _) in enumerate(self.axes)]

    @property
    def choices(self) -> int:
        """How many parameters there are to choose, of all defenses together."""
        several = [axis for _, axes in self.axes for axis in axes.values() if _is_open(axis)]
        return len(several) + (len(self.axes) > 1)

    def conditional(self, trial: "optuna.Trial") -> None:
        """Ask Optuna for a defense, then for this defense's parameters; the choices are in `trial.params`."""
        chosen = str(trial.suggest_categorical("defense", self.entries))
        self._ask(trial, self.entries.index(chosen))

    def whole(self, trial: "optuna.Trial") -> None:
        """Ask Optuna for a defense and for the parameters of all of them, of which `setting` takes the chosen one's.

        NSGA-II inherits only what all trials have in common, and would else inherit no parameter at all.
        """
        trial.suggest_categorical("defense", self.entries)
        for index in range(len(self.axes)):
            self._ask(trial, index)

    def _ask(self, trial: "optuna.Trial", index: int) -> None:
        for key, axis in self.axes[index][1].items():
            name = f"{self.entries[index]}.{key}"
            if axis.span is not None:
                trial.suggest_float(name, *axis.span)
            elif len(axis.values) > 1:
                trial.suggest_categorical(name, list(range(len(axis.values))))

    def setting(self, config: Config) -> Method:
        """The defense of a proposed configuration."""
        entry = str(config["defense"])
        name, axes = self.axes[int(entry.split(":")[0])]
        values = {}
        for key, axis in axes.items():
            if axis.span is not None:
                values[key] = _rounded(float(config[f"{entry}.{key}"]), axis.span)
            else:
                values[key] = axis.values[int(config.get(f"{entry}.{key}", 0))]
        return Method(name, {key: plain(value) for key, value in values.items() if value is not None})


def _rounded(value: float, span: tuple[float, float]) -> float:
    """A proposed value to six significant digits; an end of its range is the one that a grid has, to the last digit."""
    short = float(f"{value:.6g}")
    return next((end for end in span if float(f"{end:.6g}") == short), short)


def _is_open(axis: Axis) -> bool:
    """Whether an axis has more than one value."""
    return len(axis.values) > 1 if axis.span is None else axis.span[0] < axis.span[1]


def search_space(planner: Planner, classifier: ClassifierWork) -> Space:
    """The space of a sweep's defenses on a classifier; `none` has nothing to search and is left out.

    Raises ValueError when nothing is left.
    """
    found = tuple((method.name, axes) for method, axes in planner.axes(classifier) if method.name != "none")
    if not found:
        raise ValueError(
            f"search: optuna needs a defense to search on every classifier; {classifier.entry.name} has none"
        )
    return Space(found)


def search_cells(planner: Planner, classifier: str, setting: Method) -> list[Cell]:
    """The cells of one proposed setting on one classifier."""
    work = next(work for work in planner.classifiers if work.key == classifier)
    return list(planner.cells(work, planner.checked(DEFENSES.make(*setting))))


@dataclass(frozen=True)
class ResolveSearch:
    """Finds the trial of a configuration that Optuna proposes: what `Job.resolve` is for."""

    planner: Planner
    space: Space
    classifier: str

    def __call__(self, config: Config) -> Trial:
        """The trial, with the adaptive attacks on its setting and F's outputs on their images among its work."""
        setting = self.space.setting(config)
        cells = search_cells(self.planner, self.classifier, setting)
        known = {work.key for work in self.planner.attacks}
        attacks = [cell.inputs.attack for cell in cells if cell.inputs.attack and cell.inputs.attack.key not in known]
        given = [inputs.attack for work in attacks for inputs in work.given if inputs.attack is not None]
        # No plan knew of these before, as of the setting; the attacks on it come after them.
        attacks = [*(work for work in given if work.key not in known), *attacks]
        own = {work.key for work in attacks}
        outputs = [
            work
            for work in merged(work for cell in cells for work in cell.needs())
            if work.component is not None or (work.inputs.attack is not None and work.inputs.attack.key in own)
        ]
        # At the most executions. An attack that looks for the nearest image is read at each radius that is asked for.
        counted = sorted((cell for cell in cells if not cell.members), key=lambda cell: cell.identity["executions"])
        reads = {cell.inputs.name: cell.read for cell in counted}
        return Trial(self.classifier, setting, (*merged_attacks(attacks), *outputs), reads)


def optuna_search(
    space: Space, settings: SearchSettings, seed: int, name: str = "search", tell: Callable[[str], None] = print
) -> RoundsSearch:
    """The searcher of one classifier's frontier, which is in memory; a storage that the sweep names gets a copy of it.

    name: of the study in that storage. tell: takes a line for people, where the storage fails.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    sampler, memory = sampler_of(settings, seed, space.choices), optuna.storages.InMemoryStorage()
    asked = space.whole if settings.sampler == "nsgaii" else space.conditional
    both = {"metric": list(ACCURACIES), "mode": ["max", "max"]}
    inner = OptunaSearch(space=asked, sampler=sampler, storage=memory, study_name=name, **both)
    if settings.storage is None:
        return RoundsSearch(inner, settings)
    study, mirror = optuna.load_study(study_name=name, storage=memory), Mirror(settings.storage, name, ACCURACIES, tell)
    return RoundsSearch(inner, settings, lambda: mirror.copy(study))
