"""A sweep from its file to its figures, called from Python; the command line calls the same functions."""

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from rich.console import Console

from mi_ray.config import Sweep
from mi_ray.events import written_to
from mi_ray.figures.draw import Drawn, draw, find_figure
from mi_ray.own_code import look_in
from mi_ray.plan.work import Until
from mi_ray.progress import ctrl_c
from mi_ray.store.blocks import Store
from mi_ray.store.files import Files, refuse_odd, refuse_whole_bucket
from mi_ray.store.keys import canonical
from mi_ray.store.locks import lock_store, lock_study
from mi_ray.store.manifest import read_manifest, report_path, seal, seal_figures, study_state
from mi_ray.sweep_files import SweepSource, find_sweep, load_sweep, parse_yaml

if TYPE_CHECKING:  # What takes seconds to import is imported by the functions that need it.
    import pandas as pd

    from mi_ray.cluster.session import Outcome
    from mi_ray.study.estimate import StudyCost
    from mi_ray.study.prepare import Study

Did = Literal["computed", "drew", "nothing"]
# The figures that are of what one key of a sweep asks for, and without it of nothing.
DRAWS = {"certified_accuracy": "certify", "fig2": "counterparts", "presets_table": "variants"}
MANY_CELLS = 10_000  # with records in files of their own: reading them takes seconds from here on


@dataclass(frozen=True)
class StudyResult:
    """What a run left of one study, and what it spent on it.

    name: the study's name; that of a smoke run ends in "-smoke". out: its store. until: the stage that was asked for.
    did: "computed"; "drew", where only its figures had to be drawn again; "nothing", where it was finished already.
    figures: the files of its figures and tables, and the page that shows it. failures: the cause by what failed:
    trainings, attacks, cells, figures.
    seconds: by stage. planned, counted: passes as planned for an empty store and as made in this run, by stage and
    direction.
    """

    name: str
    out: str
    until: Until
    did: Did
    figures: Sequence[str]
    failures: Mapping[str, str]
    seconds: Mapping[str, float] = field(default_factory=dict)
    planned: Mapping[str, int] = field(default_factory=dict)
    counted: Mapping[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all that was asked for is there: every cell and figure, or every result up to an earlier stage."""
        return not self.failures

    @property
    def cells(self) -> "pd.DataFrame":
        """One row per cell, as in cells.parquet. Raises ValueError where no run has come as far as the cells."""
        from mi_ray.store.read import read_cells

        return read_cells(self.out, self.name)

    def records(self, filters: object = None, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """One row per cell and point. filters, columns: as `mi_ray.read_records` takes them."""
        from mi_ray.store.read import read_records

        return read_records(self.out, self.name, filters, columns)


def run_sweep(
    source: SweepSource,
    out: str | Path = "results",
    *,
    smoke: bool = False,
    set: Mapping[str, object] | None = None,
    seed: int | None = None,
    address: str | None = None,
    until: Until = "sweep",
    progress: bool | Console = True,
    log: str | Path | None = None,
    tensorboard: str | Path | None = None,
    callbacks: Sequence[str] = (),
) -> StudyResult:
    """Do all that is missing of a study, and draw its figures: what `mi-ray sweep` does.

    source: a sweep file, the name of a packaged sweep such as "quickstart", or what a file would hold, as a mapping.
    out: the store, a folder or a URI. smoke: run the sweep's own small variant. set: values by dotted key, such as
    {"points.count": 100}. seed: replaces the sweep's. address: a Ray cluster, "auto" or host:port; a local Ray when left
    out. until: "train" and "attack" end after that stage. progress: False is silent, a console is written to. log: a
    file for events, as JSON lines. tensorboard: a folder for curves. callbacks: Ray Tune callbacks, each as
    "package.module:factory".

    Work that fails is in the result's `failures`, and the same call tries it again. Raises ValueError for a bad sweep or
    option before any work. A run that ends early, by an exception or a Ctrl-C, is continued by the same call. Threads of one
    process take turns.
    """
    (result,) = run_sweeps(
        [source],
        out,
        smoke=smoke,
        set=set,
        seed=seed,
        address=address,
        until=until,
        progress=progress,
        log=log,
        tensorboard=tensorboard,
        callbacks=callbacks,
    )
    return result


def run_sweeps(
    sources: Sequence[SweepSource],
    out: str | Path = "results",
    *,
    smoke: bool = False,
    set: Mapping[str, object] | None = None,
    seed: int | None = None,
    address: str | None = None,
    until: Until = "sweep",
    progress: bool | Console = True,
    log: str | Path | None = None,
    tensorboard: str | Path | None = None,
    callbacks: Sequence[str] = (),
    ended: Callable[[StudyResult], None] | None = None,
) -> list[StudyResult]:
    """Run several studies, one after another, on one Ray and in one store; `run_sweep` says what the arguments mean.

    Every sweep is read and planned before the first one is run. ended: is handed each study's result at its end, that of one
    which is finished already at once. Returns the results in the order of `sources`.
    """
    if until not in get_args(Until):
        raise ValueError(f"until must be one of {', '.join(get_args(Until))}; got {until!r}")
    sweeps = load_sweeps(sources, smoke=smoke, set=set, seed=seed)
    _refuse_place(str(out))
    if callbacks:
        look_in(Path.cwd())
    console = progress if isinstance(progress, Console) else Console(quiet=not progress, soft_wrap=True, markup=False)
    curves = _folder_for("--tensorboard", tensorboard)
    runs = _Runs(str(out), address, until, console, log, curves, tuple(callbacks))
    results = {}
    with ctrl_c():
        for result in runs.each(sweeps):
            results[result.name] = result
            if ended is not None:
                ended(result)
    return [results[sweep.name] for sweep in sweeps]


def plan_sweep(
    source: SweepSource,
    out: str | Path = "results",
    *,
    smoke: bool = False,
    set: Mapping[str, object] | None = None,
    seed: int | None = None,
) -> "StudyCost":
    """What a study would compute, what of it is stored, and what the rest costs: what `mi-ray plan` shows.

    The arguments are those of `run_sweep`. Nothing is written. Raises ValueError for a bad sweep or option.
    """
    return plan_sweeps([source], out, smoke=smoke, set=set, seed=seed)[0][0]


def plan_sweeps(
    sources: Sequence[SweepSource],
    out: str | Path = "results",
    *,
    smoke: bool = False,
    set: Mapping[str, object] | None = None,
    seed: int | None = None,
) -> tuple[list["StudyCost"], str]:
    """The plan of each of several studies, and one line on what they cost together in one store; none of a single study."""
    sweeps = load_sweeps(sources, smoke=smoke, set=set, seed=seed)
    _refuse_place(str(out))
    from mi_ray.study.estimate import estimate, together

    store = Store(out) if _occupied(str(out)) else None
    studies = [_prepared(sweep, several=len(sweeps) > 1) for sweep in sweeps]
    return [estimate(study, store) for study in studies], together(studies) if len(studies) > 1 else ""


def why_sweep(
    source: SweepSource,
    out: str | Path = "results",
    *,
    smoke: bool = False,
    set: Mapping[str, object] | None = None,
    seed: int | None = None,
) -> list[str]:
    """Which parts of keys changed, where a sweep would compute what is not stored: what `mi-ray why` prints."""
    (sweep,) = load_sweeps([source], smoke=smoke, set=set, seed=seed)
    from mi_ray.study.precision import decisions
    from mi_ray.study.prepare import prepare
    from mi_ray.study.why import why

    study, store = prepare(sweep), Store(out) if _occupied(str(out)) else None
    return why(study.decided(decisions(store, study)), store)


def _prepared(sweep: Sweep, *, several: bool) -> "Study":
    """A sweep made ready. Raises ValueError for one that cannot be, which is named where a command has several."""
    from mi_ray.study.prepare import prepare

    try:
        return prepare(sweep)
    except ValueError as error:
        if several:
            raise ValueError(f"{sweep.name}: {error}") from error
        raise


def draw_figures(sweep: Sweep, out: str | Path = "results") -> Drawn:
    """Draw a stored study's figures and tables again: what `mi-ray figures` does. Nothing else is computed."""
    store = Store(out)
    drawn = _with_page(store, draw(store, sweep.name, sweep.figures), sweep.name)
    seal_figures(store, sweep, drawn.paths, drawn=not drawn.failures)
    return drawn


def _with_page(store: Store, drawn: Drawn, study: str) -> Drawn:
    """What was drawn, and the page that shows the study: as with a figure, one that fails costs nothing else."""

    def make(store: Store, study: str) -> list[str]:
        from mi_ray.page.write import make as make_page  # Pandas and the template engine take a moment to import.

        return make_page(store, study)

    page = draw(store, study, (), {"report": make})
    return Drawn((*drawn.paths, *page.paths), {**drawn.failures, **page.failures})


def load_sweeps(
    sources: Sequence[SweepSource],
    *,
    smoke: bool = False,
    set: Mapping[str, object] | None = None,
    seed: int | None = None,
) -> list[Sweep]:
    """Read the sweeps of one command, and let the code that they name be found beside their files.

    Raises ValueError for a bad sweep, for two of one name, and for a figure that nobody knows or that would stay empty.
    """
    sweeps = [load_sweep(source, smoke=smoke, overrides=set, seed=seed) for source in sources]
    names = [sweep.name for sweep in sweeps]
    if len({*names}) != len(names):
        raise ValueError(f"the studies of one command must have different names; got {', '.join(names)}")
    for source, sweep in zip(sources, sweeps, strict=True):
        if sweep.names_code:
            beside = [] if isinstance(source, Mapping) else [find_sweep(source).resolve().parent]
            look_in(Path.cwd(), *beside)
    for sweep in sweeps:
        for figure in sweep.figures:
            find_figure(figure)
            key = DRAWS.get(figure)
            if key is not None and not getattr(sweep, key):
                raise ValueError(f"figures: {figure} draws what `{key}` asks for, which {sweep.name} leaves out")
    return sweeps


def _folder_for(option: str, folder: str | Path | None) -> str | None:
    """A folder that is to be written to, which is made. Raises ValueError where there can be none; None stays None."""
    if folder is None:
        return None
    try:
        if not str(folder):
            raise NotADirectoryError(errno.ENOTDIR, "an empty name")
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
    except OSError as error:
        raise ValueError(f"{option} must name a folder that can be written; {folder}: {error.strerror}") from error
    return str(folder)


def _try_storages(sweeps: Sequence[Sweep]) -> None:
    """Open Optuna's own storages that sweeps name. Raises ValueError, before any work, where one can never be opened."""
    for search in (sweep.search for sweep in sweeps):
        if search is not None and search.storage is not None:
            # This module imports no Ray, which must find its environment set up.
            from mi_ray.cluster.optuna_study import try_storage

            try_storage(search)


def _refuse_place(out: str) -> None:
    """Raise ValueError where no store may be made, by its address alone."""
    refuse_odd(out)
    refuse_whole_bucket(out)


def _occupied(out: str) -> bool:
    """Whether there is something in the place where the store is to be."""
    if "://" in out:
        return bool(Files(out).names(""))
    place = Path(out).expanduser()
    return place.is_file() or (place.is_dir() and any(place.iterdir()))


_TURN = threading.RLock()


@contextmanager
def _in_turn(tell: Callable[[str], None]) -> Iterator[bool]:
    """Let one thread run sweeps at a time, since a process has one Ray and one environment; yields whether another ran first."""
    free = _TURN.acquire(blocking=False)
    if not free:
        tell("another thread of this process runs a sweep: waiting for its end")
        _TURN.acquire()
    try:
        yield not free
    finally:
        _TURN.release()


@dataclass(frozen=True)
class _Runs:
    """Where and how the studies of one call run."""

    out: str
    address: str | None
    until: Until
    console: Console
    log: str | Path | None
    tensorboard: str | None
    callbacks: Sequence[str]

    def each(self, sweeps: Sequence[Sweep]) -> Iterator[StudyResult]:
        """Run the studies that have something left to do; the results of finished ones come first."""
        states = {sweep.name: study_state(sweep, self.out) for sweep in sweeps}
        left = []
        for sweep in sweeps:
            state = states[sweep.name]
            if state == "finished" or (state == "figures" and self.until != "sweep"):
                yield self._finished(sweep)
            elif state == "figures":
                drawn = draw_figures(sweep, self.out)
                yield self._result(sweep, "drew", drawn.paths, _undrawn(drawn))
            else:
                left.append(sweep)
        if left:
            yield from self._computed(left)

    def _computed(self, sweeps: Sequence[Sweep]) -> Iterator[StudyResult]:
        """Prepare all of the studies, so that a mistake in any of them is told before there is any work; run each."""
        from mi_ray.cluster import one_ray

        with _in_turn(self._tell) as turned, written_to(self.log):  # Another thread's events are not this one's.
            studies = [_prepared(sweep, several=len(sweeps) > 1) for sweep in sweeps]
            for note in dict.fromkeys(note for study in studies for note in study.notes):
                self._tell(note)
            _try_storages(sweeps)
            if self.out.startswith("memory://"):
                raise ValueError(
                    f"a store must be in a place that all processes see, which memory is not; got {self.out}"
                )
            store = Store(self.out, create=True)
            with one_ray(), lock_store(store, self._tell):
                for study in studies:
                    with lock_study(store, study.sweep.name, self._tell) as waited:
                        # Another run, which was waited for, may have finished it.
                        finished = (turned or waited) and study_state(study.sweep, self.out) == "finished"
                        result = self._finished(study.sweep) if finished else self._run(store, study)
                    yield result

    def _run(self, store: Store, study: "Study") -> StudyResult:
        from mi_ray.cluster import run_study

        sweep = study.sweep
        if differ := _differences(store, sweep):
            self._tell(
                f"note: {sweep.name} in {store.uri} was a sweep with other values of {', '.join(differ)}, and becomes this one; "
                "what both need is computed once, and `mi-ray gc` finds what only the other one needed"
            )
        drawn = Drawn((), {})

        def draw_again(store: Store, name: str) -> None:
            """Draw the figures of the cells as they are: before the checks, which they show as not run, and after them."""
            nonlocal drawn
            drawn = draw(store, name, sweep.figures)

        where = (self.address, self.console)
        outcome = run_study(study, store, *where, self.until, self.tensorboard, self.callbacks, draw_again)
        if self.until != "sweep":
            return self._result(sweep, "computed", (), _failures(outcome), seconds=outcome.seconds)
        drawn = _with_page(store, drawn, sweep.name)
        failures = _failures(outcome)
        if not failures:
            seal(store, sweep, drawn=not drawn.failures)
        if len(store.folders("records")) > MANY_CELLS:
            self._tell(f"note: `mi-ray compact {self.out}` brings the records of so many cells into few files")
        planned = read_manifest(store, sweep.name)["planned"]
        spent = {"seconds": outcome.seconds, "planned": planned, "counted": outcome.counted}
        return self._result(sweep, "computed", drawn.paths, {**failures, **_undrawn(drawn)}, **spent)

    def _finished(self, sweep: Sweep) -> StudyResult:
        store, page = Store(self.out), report_path(sweep.name)
        drawn = sorted(store.files(f"studies/{sweep.name}/figures"))
        return self._result(sweep, "nothing", [*drawn, page] if store.exists(page) else drawn, {})

    def _result(
        self, sweep: Sweep, did: Did, paths: Sequence[str], failures: Mapping[str, str], **spent: Mapping[str, Any]
    ) -> StudyResult:
        out = Store(self.out).uri
        files = tuple(f"{out}/{path}" for path in paths)
        return StudyResult(sweep.name, out, self.until, did, files, failures, **spent)

    def _tell(self, text: str) -> None:
        self.console.print(text, style="yellow", highlight=False, markup=False)


def _differences(store: Store, sweep: Sweep) -> list[str]:
    """The keys of a sweep, but for its figures and resources, that its study in the store had other values of."""
    path = f"studies/{sweep.name}/study.yaml"
    if not store.exists(path):
        return []
    try:
        before = parse_yaml(path, store.read_bytes(path).decode())
    except ValueError:
        return []  # It is damaged, and written anew.
    now = sweep.document()
    known = before if isinstance(before, dict) else {}
    keys = [key for key in now if key in known and key not in ("figures", "resources")]
    return [key for key in keys if canonical(known[key]) != canonical(now[key])]


def _failures(outcome: "Outcome") -> dict[str, str]:
    """The cause by what failed: the trainings, what no row is missing of (a check, a search), and then the rows."""
    rows = dict[str, str]()
    for row in outcome.cells:
        if row["state"] != "done":
            what = f"{row['classifier']} {row['attack']} {row['defense']} {row['defense_params']}"
            rows[what] = row["cause"] or f"the cell is {row['state']}"
    for row in outcome.certified:
        if row["state"] != "done":
            rows[f"{row['classifier']} certificate sigma {row['sigma']:g}"] = row["cause"]
    found = dict[str, str]()
    for failure in dict.fromkeys(outcome.failures.values()):
        if failure.training or str(failure) not in rows.values():
            # Two attacks on a classifier have the same name here.
            found[failure.what] = "; ".join(filter(None, (found.get(failure.what), failure.cause)))
    return found | rows


def _undrawn(drawn: Drawn) -> dict[str, str]:
    return {f"figure {name}": cause for name, cause in drawn.failures.items()}
