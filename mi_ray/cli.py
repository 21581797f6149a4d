"""The command line: parses, calls, prints; nothing else. Heavy imports wait until a verb needs them."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from mi_ray.config import Sweep
from mi_ray.events import written_to
from mi_ray.figures.draw import Drawn, draw, find_figure
from mi_ray.progress import ctrl_c
from mi_ray.store.blocks import Store
from mi_ray.store.files import DamagedFileError
from mi_ray.store.locks import lock_store, lock_study
from mi_ray.store.manifest import is_finished, is_sealed, read_manifest, seal, seal_again, seal_figures, unseal
from mi_ray.sweep_files import find_sweep, load_sweep, packaged_sweeps, parse_overrides, start_folder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Sweep inference-time defenses against adversarial attacks on Ray.\n\n"
    "**How much adversarial accuracy does each defense buy, at what price in clean accuracy, and is that number "
    "true?** Start with `mi-ray sweep quickstart`; look first with `mi-ray plan`; read the rows with "
    '`mi_ray.read_records("results")`. Exit codes: 0 every cell is there; 1 work failed; 2 a bad file or option.',
)
cluster = typer.Typer(no_args_is_help=True, help="Files that start clusters: cluster.yaml and those in cluster/.")
app.add_typer(cluster, name="cluster")
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True, soft_wrap=True, highlight=False)

MANY_CELLS = 10_000  # with records in files of their own: reading them takes seconds from here on

Files = Annotated[
    list[str], typer.Argument(help="Sweep files (YAML), or names that `mi-ray sweeps` lists.", metavar="FILE…")
]
Out = Annotated[str, typer.Option("--out", help="The store: a folder, or a URI such as s3://bucket/results.")]
Address = Annotated[
    str | None, typer.Option("--address", help="A Ray cluster: `auto` or host:port. Left out: a local Ray.")
]
Smoke = Annotated[bool, typer.Option("--smoke", help="The sweep's own small variant, as study NAME-smoke.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value of the file, e.g. points.count=100.", metavar="KEY=VALUE"),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Replace the file's seed.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show tracebacks and Ray's own messages.")]
Log = Annotated[str | None, typer.Option("--log", help="Append events to this file, as JSON lines.", metavar="FILE")]
Tensorboard = Annotated[
    str | None, typer.Option("--tensorboard", help="Write TensorBoard curves there.", metavar="DIR")
]
Callback = Annotated[
    list[str] | None,
    typer.Option("--callback", help="A Ray Tune callback of yours, package.module:factory.", metavar="NAME"),
]
StoreArgument = Annotated[str, typer.Argument(help="The store: a results folder or URI.", metavar="STORE")]


def _load(files: list[str], smoke: bool, overrides: list[str] | None, seed: int | None) -> list[Sweep]:
    changes = parse_overrides(overrides or ())
    sweeps = [load_sweep(file, smoke=smoke, overrides=changes, seed=seed) for file in files]
    for file, sweep in zip(files, sweeps, strict=True):
        if sweep.names_code:
            _look_here(find_sweep(file).resolve().parent)
    names = [sweep.name for sweep in sweeps]
    if len(set(names)) != len(names):
        raise ValueError(f"the studies of one command must have different names; got {', '.join(names)}")
    for figure in {name for sweep in sweeps for name in sweep.figures}:
        find_figure(figure)
    return sweeps


def _look_here(*folders: Path) -> None:
    """Let modules in these folders and in the current one be imported, after all that is installed.

    Only where a file or an option names a person's own code: else a `torch.py` that lies in a folder would be run.
    """
    for folder in map(str, (Path.cwd(), *folders)):
        if folder not in sys.path:
            sys.path.append(folder)


def _prepare(sweep: Sweep) -> Any:
    from mi_ray.study.prepare import prepare

    return prepare(sweep)


def _options(*values: Any) -> dict[str, Any]:
    """The options that every verb which computes takes, by name."""
    names = ("out", "address", "smoke", "overrides", "seed", "log", "tensorboard", "callbacks")
    return dict(zip(names, values, strict=True))


def _run(files: list[str], until: Any, options: dict[str, Any]) -> None:
    sweeps = _load(files, options["smoke"], options["overrides"], options["seed"])
    if options["callbacks"]:
        _look_here()
    began = time.perf_counter()
    watched = {"tensorboard": options["tensorboard"], "callbacks": tuple(options["callbacks"] or ())}
    try:
        with ctrl_c(exits=True), written_to(options["log"]):
            failed = _run_all(sweeps, until, options["out"], options["address"], watched)
    except KeyboardInterrupt:
        errors.print("stopped; what is finished is stored, and the same command goes on from there", style="yellow")
        raise typer.Exit(130) from None
    console.print(f"{time.perf_counter() - began:.1f} s in all", highlight=False)
    if failed:
        raise typer.Exit(1)


def _run_all(sweeps: list[Sweep], until: Any, out: str, address: str | None, watched: dict[str, Any]) -> bool:
    """Run the studies that are not finished, in order; True when something failed."""
    failed, todo = False, [sweep for sweep in sweeps if not is_finished(sweep, out)]
    for sweep in sweeps:
        if sweep not in todo:
            console.print(f"{sweep.name}: finished already, nothing to compute", highlight=False)
            if until == "sweep":
                _show_study(Store(out), sweep.name)
                console.print(f"  {out}/studies/{sweep.name}/figures/", highlight=False)
    if todo:
        studies = [_prepare(sweep) for sweep in todo]
        store = Store(out, create=True)
        from mi_ray.cluster import one_ray, run_study

        with one_ray(), lock_store(store, _told):
            for study in studies:
                with lock_study(store, study.sweep.name, _told) as waited:
                    if waited and is_finished(study.sweep, out):
                        console.print(f"{study.sweep.name}: finished meanwhile, nothing to compute", highlight=False)
                        continue
                    outcome = run_study(study, store, address, console, until, watched)
                    failed |= _report(store, out, study, outcome) if until == "sweep" else bool(outcome.failures)
    return failed


def _told(text: str) -> None:
    console.print(text, style="yellow", highlight=False)


def _report(store: Store, out: str, study: Any, outcome: Any) -> bool:
    """Draw the figures and print what came out; True when a cell or a figure is not there."""
    sweep = study.sweep
    bad = [row for row in outcome.cells if row["state"] != "done"]
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in outcome.seconds.items())
    drawn = Drawn((), {})
    if len(bad) < len(outcome.cells):
        drawn = _draw(store, sweep)
        _show_study(store, sweep.name)
    if not bad:
        seal(store, sweep, drawn=not drawn.failures)
    _show_passes(store, sweep.name, outcome.counted)
    if len(store.folders("records")) > MANY_CELLS:
        console.print(
            f"note: `mi-ray compact {out}` brings the records of so many cells into few files", highlight=False
        )
    console.print(
        f"{sweep.name}: {len(outcome.cells) - len(bad)} of {len(outcome.cells)} cells ({spent})", highlight=False
    )
    for path in drawn.paths:
        console.print(f"  {out}/{path}", highlight=False)
    for row in bad[:20]:
        what = f"{row['classifier']} {row['attack']} {row['defense']} {row['defense_params']}"
        errors.print(f"{row['state']}: {what}: {row['cause']}", style="red", markup=False)
    if len(bad) > 20:
        errors.print(f"… and {len(bad) - 20} more cells; see cells.parquet", style="red")
    if bad:
        errors.print("the same command tries what is not done again, and nothing else", style="yellow")
    return bool(bad or drawn.failures)


def _draw(store: Store, sweep: Sweep) -> Drawn:
    """Draw the figures of a study, and say which could not be drawn and why."""
    drawn = draw(store, sweep.name, sweep.figures)
    for name, cause in drawn.failures.items():
        errors.print(f"figure {name} could not be drawn: {cause}", style="red", markup=False)
    return drawn


def _show(parts: Iterable[RenderableType]) -> None:
    for part in parts:
        console.print(part)


def _show_study(store: Store, study: str) -> None:
    """What a study found: its frontiers and what its checks say."""
    from mi_ray.figures.terminal import study_summary
    from mi_ray.store.read import read_cells

    _show(study_summary(read_cells(store, study)))


def _show_passes(store: Store, study: str, counted: dict[str, int]) -> None:
    from mi_ray.figures.terminal import passes_summary

    _show(passes_summary(read_manifest(store, study)["planned"], counted))


@app.command()
def sweep(
    files: Files,
    out: Out = "results",
    address: Address = None,
    smoke: Smoke = False,
    set_: Set = None,
    seed: Seed = None,
    log: Log = None,
    tensorboard: Tensorboard = None,
    callback: Callback = None,
    verbose: Verbose = False,
) -> None:
    """Do all that is missing of each study, in order, and draw its figures.

    Safe to stop at any time: the same command goes on where it was, and ends with the same rows.
    """
    _run(files, "sweep", _options(out, address, smoke, set_, seed, log, tensorboard, callback))


@app.command()
def train(
    files: Files,
    out: Out = "results",
    address: Address = None,
    smoke: Smoke = False,
    set_: Set = None,
    seed: Seed = None,
    log: Log = None,
    tensorboard: Tensorboard = None,
    callback: Callback = None,
    verbose: Verbose = False,
) -> None:
    """Train the classifiers of each study that are not in the store yet (Ray Train)."""
    _run(files, "train", _options(out, address, smoke, set_, seed, log, tensorboard, callback))


@app.command()
def attack(
    files: Files,
    out: Out = "results",
    address: Address = None,
    smoke: Smoke = False,
    set_: Set = None,
    seed: Seed = None,
    log: Log = None,
    tensorboard: Tensorboard = None,
    callback: Callback = None,
    verbose: Verbose = False,
) -> None:
    """Craft the adversarial examples of each study that are not in the store yet, and train what they need."""
    _run(files, "attack", _options(out, address, smoke, set_, seed, log, tensorboard, callback))


@app.command()
def figures(
    files: Files,
    out: Out = "results",
    smoke: Smoke = False,
    set_: Set = None,
    seed: Seed = None,
    verbose: Verbose = False,
) -> None:
    """Draw a study's figures and tables again from its Parquet; computes nothing else."""
    failed = False
    for loaded in _load(files, smoke, set_, seed):
        store = Store(out)
        drawn = _draw(store, loaded)
        seal_figures(store, loaded, drawn.paths, drawn=not drawn.failures)
        failed |= bool(drawn.failures)
        for path in drawn.paths:
            console.print(f"{out}/{path}", highlight=False)
    if failed:
        raise typer.Exit(1)


def _occupied(out: str) -> bool:
    """Whether there is something where the store is to be."""
    place = Path(out)
    return "://" in out or place.is_file() or (place.is_dir() and any(place.iterdir()))


@app.command()
def plan(
    files: Files,
    out: Out = "results",
    smoke: Smoke = False,
    set_: Set = None,
    seed: Seed = None,
    verbose: Verbose = False,
) -> None:
    """Show a study's cells, its distinct work, what is stored already, and its cost against cell by cell."""
    sweeps = _load(files, smoke, set_, seed)
    from mi_ray.figures.terminal import plan_table
    from mi_ray.study.estimate import estimate, together

    studies = [_prepare(loaded) for loaded in sweeps]
    for study in studies:
        found = estimate(study, Store(out) if _occupied(out) else None)
        console.print(plan_table(f"{study.sweep.name} ({out})", found.rows))
        for line in found.lines:
            console.print(line, highlight=False)
    if len(studies) > 1:
        console.print(together(studies), highlight=False)


@app.command()
def status(
    store: StoreArgument = "results",
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every few seconds until nothing runs.")] = False,
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks.", min=0.1)] = 3.0,
    verbose: Verbose = False,
) -> None:
    """Show each study of a store: how far it is, also while it runs.

    With --watch it ends when every study has ended (exit code 1 where one is not complete), or on Ctrl-C.
    """
    from mi_ray.figures.terminal import states_table
    from mi_ray.store.manifest import study_states

    opened = Store(store)
    if not watch:
        console.print(states_table(study_states(opened)))
        return
    ended = False
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while not ended:
            found = study_states(opened)
            live.update(states_table(found), refresh=True)
            ended = bool(found) and all(state[1] in ("complete", "incomplete") for state in found)
            if not ended:
                time.sleep(every)
    if ended and any(state[1] != "complete" for state in found):
        raise typer.Exit(1)


@app.command()
def check(
    store: StoreArgument = "results",
    repair: Annotated[bool, typer.Option("--repair", help="Remove what is wrong, for a sweep to make again.")] = False,
    verbose: Verbose = False,
) -> None:
    """Read every file of a store again and validate it: form, content, uniqueness, agreement with its inputs.

    A study with a problem counts as unfinished from then on, so that the next `mi-ray sweep` of it looks at everything
    and computes what is damaged.
    """
    from mi_ray.store.check import check_store, studies_of

    opened = Store(store)
    problems, counted = check_store(opened)
    for problem in problems:
        errors.print(problem.text, style="red", markup=False)
    for study in studies_of(opened, problems):
        if unseal(opened, study):
            errors.print(f"{study}: the next `mi-ray sweep` of it looks at all of its files again", style="yellow")
    if repair:
        from mi_ray.store.compact import discard

        paths = list(dict.fromkeys(problem.path for problem in problems if problem.path))
        for path in paths:
            discard(opened, path)
        console.print(f"{len(paths)} removed; `mi-ray sweep` makes them again", highlight=False)
    console.print(f"{counted} files checked, {len(problems)} problems", highlight=False)
    if problems:
        raise typer.Exit(1)


@cluster.command(name="check")
def cluster_check(
    file: Annotated[
        Path, typer.Argument(help="A `ray up` file, a KubeRay manifest or a Slurm script.", metavar="FILE")
    ],
    limit: Annotated[float, typer.Option(help="Megabytes of files that may be sent to each node.", min=0)] = 100.0,
    verbose: Verbose = False,
) -> None:
    """Find what is wrong with a cluster file that Ray's own validation lets pass: open ports, secrets, unknown keys.

    Exit codes: 0 nothing, or warnings alone; 1 errors; 2 not a cluster file.
    """
    from mi_ray.launch.check import check_cluster_file

    kind, complaints = check_cluster_file(file, limit)
    for complaint in complaints:
        style = "red" if complaint.level == "error" else "yellow"
        errors.print(f"{complaint}", style=style, markup=False)
    bad = sum(complaint.level == "error" for complaint in complaints)
    console.print(f"{file}: {kind}; {bad} errors, {len(complaints) - bad} warnings", highlight=False, markup=False)
    if bad:
        raise typer.Exit(1)


@app.command()
def compact(store: StoreArgument = "results", verbose: Verbose = False) -> None:
    """Bring the records of many small files into few large ones, for stores with tens of thousands of cells.

    `records/` stays one Parquet dataset with the same rows. It waits for sweeps that write to the store.
    """
    from mi_ray.progress import stage
    from mi_ray.store.compact import compact as bring

    opened = Store(store)
    with lock_store(opened, _told, alone=True):
        sealed = [study for study in opened.folders("studies") if is_sealed(opened, study)]
        with stage("compact", len(opened.folders("records")), "cells", console) as shown:
            done, left = bring(opened, shown.advance)
        for study in sealed:
            seal_again(opened, study)
    for why in left:
        errors.print(f"left as it is: {why}", style="red", markup=False)
    console.print(f"{done:,} cells compacted, {len(opened.compacted.places):,} in all", highlight=False)
    if left:
        raise typer.Exit(1)


@app.command()
def sweeps(verbose: Verbose = False) -> None:
    """List the sweeps that come with the program, which `sweep` and `plan` take by their names."""
    from mi_ray.figures.terminal import sweeps_table

    console.print(sweeps_table(packaged_sweeps()))


@app.command()
def init(
    folder: Annotated[str, typer.Argument(help="The folder; it is made if it is not there.", metavar="DIR")],
    verbose: Verbose = False,
) -> None:
    """Copy a commented sweep, with a defense of one's own beside it, into a folder: where a study of yours begins."""
    copies = start_folder(folder)
    for file in copies:
        console.print(f"{file}", highlight=False)
    (sweep_file,) = (file for file in copies if file.suffix == ".yaml")
    console.print(f"now: mi-ray sweep {sweep_file} --smoke", highlight=False)


@app.command()
def gc(
    store: StoreArgument = "results",
    yes: Annotated[bool, typer.Option("--yes", help="Remove them.")] = False,
    verbose: Verbose = False,
) -> None:
    """List what no study of a store refers to; remove it with --yes."""
    from mi_ray.store.manifest import unreferenced

    opened = Store(store)
    loose = unreferenced(opened)
    for path, size in loose:
        console.print(f"{path}  {size:,} bytes", highlight=False)
        if yes:
            opened.remove(path)
    total = sum(size for _, size in loose)
    console.print(
        f"{len(loose)} folders, {total:,} bytes {'removed' if yes else 'could go: --yes removes them'}",
        highlight=False,
    )


@app.command(name="list")
def list_(
    plugin: Annotated[list[str] | None, typer.Option("--plugin", help="Import this module first.")] = None,
    verbose: Verbose = False,
) -> None:
    """Show every registered dataset, architecture, objective, attack and defense with its parameters."""
    from mi_ray.data import SOURCES
    from mi_ray.parameters import default_of, load_plugins, plain
    from mi_ray.study.prepare import METHODS

    if plugin:
        _look_here()
    load_plugins(plugin or ())
    for registry in (SOURCES, METHODS.architectures, METHODS.objectives, METHODS.attacks, METHODS.defenses):
        console.print(f"\n[bold]{registry.noun}[/]")
        for name in registry:
            cls = registry[name]
            first = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
            console.print(f"  [cyan]{name}[/]  {first}  [dim]{cls.__module__}[/]", highlight=False)
            for key, parameter in cls.parameters().items():
                usual = "required" if key in cls.required() else f"default {plain(default_of(cls, key))}"
                line = f"      {key}: {parameter.help}; {parameter.allowed()}; {usual}"
                console.print(line, markup=False, highlight=False)


def _fail(message: object, code: int) -> NoReturn:
    errors.print(f"error: {message}", style="red", markup=False)
    raise SystemExit(code)


def main() -> None:
    """The console script: every expected failure is one message and an exit code, never a traceback."""
    verbose = bool({"-v", "--verbose"} & set(sys.argv))
    logging.basicConfig(level=logging.WARNING)
    if verbose:
        logging.getLogger("mi_ray").setLevel(logging.DEBUG)
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        errors.print("\nstopped; the same command goes on from here", style="yellow")
        raise SystemExit(130) from None
    except (ValueError, DamagedFileError) as error:
        if verbose:
            raise
        _fail(error, 2)
    except OSError as error:
        if verbose:
            raise
        _fail(f"reading or writing must be possible and have room: {error}", 1)


if __name__ == "__main__":
    main()
