"""The command line: parses, calls, prints; nothing else. Heavy imports wait until a verb needs them."""

import contextlib
import io
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.text import Text

if TYPE_CHECKING:
    from mi_ray.plan.work import Until
    from mi_ray.run import StudyResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Sweep inference-time defenses against adversarial attacks on Ray.\n\n"
    "**How much adversarial accuracy does each defense buy, at what price in clean accuracy, and is that number "
    "true?** Start with `mi-ray sweep quickstart`; look first with `mi-ray plan`; read the rows with "
    '`mi_ray.read_records("results")`. Exit codes: 0 every cell is there; 1 work failed; 2 a bad file or option; '
    "130 stopped by Ctrl-C; 143 stopped by SIGTERM.",
)
cluster = typer.Typer(
    no_args_is_help=True, help="Files that start clusters: of `ray up`, of KubeRay, and Slurm scripts."
)
app.add_typer(cluster, name="cluster")
# A name or a path may have brackets in it, which are no markup.
console = Console(soft_wrap=True, markup=False, width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def _version(wanted: bool) -> None:
    if wanted:
        from mi_ray.store.manifest import versions

        _say("\n".join(f"{name} {version}" for name, version in versions().items()))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Print what is installed, as a study's manifest names it.",
        ),
    ] = False,
) -> None:
    """What stands before a verb."""


# What the parser of a command line raises; typer has it from click, or in newer versions of its own, under no public name.
UsageError: Any = typer.BadParameter.__base__
SHOWN = 20  # failures of a study that are printed; all of them are in its cells.parquet

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


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"must be a whole number; got {text!r}") from error


def _seconds(text: str) -> float:
    return _at_least(text, 0.1, "seconds")


def _megabytes(text: str) -> float:
    return _at_least(text, 0.0, "megabytes")


def _at_least(text: str, least: float, unit: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        raise typer.BadParameter(f"must be {unit}, a number at least {least:g}; got {text!r}")
    return number


Seed = Annotated[int | None, typer.Option("--seed", help="Replace the file's seed.", parser=_whole, metavar="NUMBER")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show tracebacks and Ray's own messages.")]
Log = Annotated[str | None, typer.Option("--log", help="Append events to this file, as JSON lines.", metavar="FILE")]
Tensorboard = Annotated[
    str | None, typer.Option("--tensorboard", help="Write TensorBoard curves there.", metavar="DIR")
]
Callback = Annotated[
    list[str] | None,
    typer.Option("--callback", help="A Ray Tune callback of yours, package.module:factory.", metavar="NAME"),
]
# The verbs that run studies, each as far as the stage of its name, and what `--help` says of them.
RUNS: "dict[Until, str]" = {
    "sweep": "Do all that is missing of each study, in order, and draw its figures.\n\n"
    "Safe to stop at any time: the same command goes on where it was, and ends with the same rows.",
    "train": "Train the classifiers of each study that are not in the store yet.",
    "attack": "Craft the adversarial examples of each study that are not in the store yet, and train what they need.",
}
StoreArgument = Annotated[str, typer.Argument(help="The store: a results folder or URI.", metavar="STORE")]


def _verb(until: "Until") -> Callable[..., None]:
    """The command that runs studies as far as a stage: all that do so have the same options."""

    def run(
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
        """Run the studies of these files as far as the verb says; exit code 1 where something of them failed."""
        began = time.perf_counter()
        from mi_ray.progress import ctrl_c, exit_code
        from mi_ray.run import run_sweeps
        from mi_ray.sweep_files import parse_overrides

        try:
            with ctrl_c(exits=True):
                results = run_sweeps(
                    files,
                    out,
                    smoke=smoke,
                    set=parse_overrides(set_ or ()),
                    seed=seed,
                    address=address,
                    until=until,
                    progress=console,
                    log=log,
                    tensorboard=tensorboard,
                    callbacks=callback or (),
                    ended=_show_result,
                )
        except KeyboardInterrupt:
            errors.print("stopped; what is finished is stored, and the same command goes on from there", style="yellow")
            raise typer.Exit(exit_code()) from None
        _say(f"{time.perf_counter() - began:.1f} s in all")
        if not all(result.complete for result in results):
            raise typer.Exit(1)

    return run


def _say(text: str) -> None:
    console.print(text, highlight=False)


def _tell(text: str) -> None:
    console.print(text, style="yellow", highlight=False)


def _show(parts: Iterable[RenderableType]) -> None:
    for part in parts:
        console.print(part)


def _show_result(result: "StudyResult") -> None:
    """What a run left of a study: its frontiers and verdicts, its cost, its files, and what failed."""
    if result.did != "computed":
        what = "nothing to compute" if result.did == "nothing" else "its figures alone were drawn again"
        _say(f"{result.name}: finished already, {what}")
    if result.until == "sweep":
        _show_study(result)
    for what, cause in list(result.failures.items())[:SHOWN]:
        errors.print(f"failed: {what}: {cause}", style="red")
    if len(result.failures) > SHOWN:
        errors.print(f"… and {len(result.failures) - SHOWN} more failures; see cells.parquet", style="red")
    if result.failures:
        errors.print("the same command tries what is not done again, and nothing else", style="yellow")


def _show_study(result: "StudyResult") -> None:
    from mi_ray.figures.reading import read_study
    from mi_ray.figures.terminal import passes_summary, study_summary
    from mi_ray.store.blocks import Store

    cells, names = read_study(Store(result.out), result.name)
    done = int((cells["state"] == "done").sum())
    if done:
        _show(study_summary(cells, names))
    if result.did == "computed":
        _show(passes_summary(result.planned, result.counted))
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
        _say(f"{result.name}: {done} of {len(cells)} cells ({spent})")
    for path in result.figures:
        _say(f"  {path}")


for _until, _help in RUNS.items():
    app.command(name=_until, help=_help)(_verb(_until))


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
    from mi_ray.run import draw_figures, load_sweeps
    from mi_ray.sweep_files import parse_overrides

    failed = False
    for loaded in load_sweeps(files, smoke=smoke, set=parse_overrides(set_ or ()), seed=seed):
        drawn = draw_figures(loaded, out)
        for path in drawn.paths:
            _say(f"{out}/{path}")
        for name, cause in drawn.failures.items():
            errors.print(f"failed: figure {name}: {cause}", style="red")
            failed = True
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    store: StoreArgument = "results",
    study: Annotated[
        list[str] | None,
        typer.Option("--study", help="A study of the store; several are shown side by side.", metavar="NAME"),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="The file to write.", metavar="FILE")] = None,
    verbose: Verbose = False,
) -> None:
    """Write the page that shows a study, or several side by side: one HTML file that opens without a network.

    Every sweep writes its own, `report.html` in the study's folder. Without --study that of every study is made again,
    and where one fails the others are written all the same.
    Several are written into one file, `report-A-B.html` here unless --to names another.
    """
    from mi_ray.page.write import write_pages
    from mi_ray.store.blocks import Store

    written = write_pages(Store(store), study or (), to)
    for path in written.paths:
        _say(path)
    for name, cause in written.failures.items():
        errors.print(f"failed: the page of {name}: {cause}", style="red")
    if written.failures:
        raise typer.Exit(1)


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
    from mi_ray.figures.terminal import plan_table
    from mi_ray.run import plan_sweeps
    from mi_ray.sweep_files import parse_overrides

    plans, together = plan_sweeps(files, out, smoke=smoke, set=parse_overrides(set_ or ()), seed=seed)
    for found in plans:
        console.print(plan_table(f"{found.study} ({out})", found.rows))
        for line in found.lines:
            console.print(line, highlight=False)
    if len(plans) > 1:
        console.print(together, highlight=False)


@app.command()
def status(
    store: StoreArgument = "results",
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every few seconds until nothing runs.")] = False,
    every: Annotated[
        float, typer.Option("--every", help="Seconds between two looks.", parser=_seconds, metavar="SECONDS")
    ] = 3.0,
    verbose: Verbose = False,
) -> None:
    """Show each study of a store: how far it is, also while it runs.

    With --watch it ends when every study has ended (exit code 1 where one is not complete), or on Ctrl-C.
    """
    from rich.live import Live

    from mi_ray.figures.terminal import states_table
    from mi_ray.store.blocks import Store
    from mi_ray.store.manifest import ENDED, overviews

    opened = Store(store)
    if not watch:
        console.print(states_table(overviews(opened)))
        return
    ended = False
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while not ended:
            found = overviews(opened)
            live.update(states_table(found), refresh=True)
            ended = bool(found) and all(state[1].startswith(ENDED) for state in found)
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
    from mi_ray.store.blocks import Store
    from mi_ray.store.check import check_store, studies_of
    from mi_ray.store.compact import discard
    from mi_ray.store.locks import lock_store
    from mi_ray.store.manifest import unseal

    opened = Store(store)
    with lock_store(opened, _tell, alone=True) if repair else contextlib.nullcontext():
        problems, counted = check_store(opened)
        for problem in problems:
            errors.print(problem.text, style="red")
        for study in studies_of(opened, problems):
            if unseal(opened, study):
                errors.print(f"{study}: the next `mi-ray sweep` of it looks at all of its files again", style="yellow")
        if repair:
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
    limit: Annotated[
        float,
        typer.Option(help="Megabytes of files that may be sent to each node.", parser=_megabytes, metavar="MEGABYTES"),
    ] = 100.0,
    verbose: Verbose = False,
) -> None:
    """Find what is wrong with a cluster file that Ray's own validation lets pass: open ports, secrets, unknown keys.

    Exit codes: 0 nothing, or warnings alone; 1 errors; 2 not a cluster file.
    """
    from mi_ray.launch.check import check_cluster_file

    kind, complaints = check_cluster_file(file, limit)
    for complaint in complaints:
        style = "red" if complaint.level == "error" else "yellow"
        errors.print(f"{complaint}", style=style)
    bad = sum(complaint.level == "error" for complaint in complaints)
    console.print(f"{file}: {kind}; {bad} errors, {len(complaints) - bad} warnings", highlight=False)
    if bad:
        raise typer.Exit(1)


@app.command()
def compact(store: StoreArgument = "results", verbose: Verbose = False) -> None:
    """Bring the records of many small files into few large ones, for stores with tens of thousands of cells.

    `records/` stays one Parquet dataset with the same rows. It waits for sweeps that write to the store.
    """
    from mi_ray.progress import stage
    from mi_ray.store.blocks import Store
    from mi_ray.store.compact import compact as bring
    from mi_ray.store.locks import lock_store
    from mi_ray.store.manifest import is_sealed, seal_again

    opened = Store(store)
    with lock_store(opened, _tell, alone=True):
        sealed = [study for study in opened.folders("studies") if is_sealed(opened, study)]
        with stage("compact", len(opened.folders("records")), "cells", console) as shown:
            done, left = bring(opened, shown.advance)
        for study in sealed:
            seal_again(opened, study)
    for why in left:
        errors.print(f"left as it is: {why}", style="red")
    console.print(f"{done:,} cells compacted, {len(opened.compacted.places):,} in all", highlight=False)
    if left:
        raise typer.Exit(1)


@app.command()
def sweeps(verbose: Verbose = False) -> None:
    """List the sweeps that come with the program, which `sweep` and `plan` take by their names."""
    from mi_ray.figures.terminal import sweeps_table
    from mi_ray.sweep_files import packaged_sweeps

    console.print(sweeps_table(packaged_sweeps()))


@app.command()
def init(
    folder: Annotated[str, typer.Argument(help="The folder; it is made if it is not there.", metavar="DIR")],
    verbose: Verbose = False,
) -> None:
    """Copy a commented sweep, with a defense of one's own beside it, into a folder: where a study of yours begins."""
    from mi_ray.sweep_files import start_folder

    copies = start_folder(folder)
    for file in copies:
        console.print(f"{file}", highlight=False)
    (sweep_file,) = (file for file in copies if file.suffix == ".yaml")
    console.print(f"now: mi-ray sweep {sweep_file} --smoke", highlight=False)


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="attack, defense, objective or figure.", metavar="KIND")],
    name: Annotated[str, typer.Argument(help="Its name, in sweep files too.", metavar="NAME")],
    folder: Annotated[str, typer.Option("--folder", help="Where the files go.")] = ".",
    verbose: Verbose = False,
) -> None:
    """Write a working attack, defense or objective to change into yours, with its test; or a figure."""
    from mi_ray.plugins import new_plugin

    files = new_plugin(kind, name, folder)
    for file in files:
        _say(f"{file}")
    _say(f"now: figures: [{name}] in a sweep beside it" if kind == "figure" else f"now: mi-ray test-plugin {files[0]}")


@app.command(name="test-plugin")
def test_plugin(
    file: Annotated[Path, typer.Argument(help="A Python file; its code runs.", metavar="FILE")],
    verbose: Verbose = False,
) -> None:
    """Hold a plugin's classes against the contract of their kind; each failure is a line, and exit code 1.

    Shapes, the ball and the pixel box, randomness that is keyed by the point, passes as counted, gradients, any size.
    """
    from mi_ray.plugins import contract_failures

    if not file.is_file() or file.suffix != ".py":
        raise ValueError(f"a plugin must be a Python file; {file} is {'none' if file.exists() else 'not there'}")
    failures = contract_failures(file, lambda what: _say(f"holding {what} against its contract"))
    for failure in failures:
        errors.print(failure, style="red")
    if failures:
        raise typer.Exit(1)
    _say(f"{file}: the contract is kept")


@app.command()
def why(
    file: Annotated[str, typer.Argument(help="A sweep file, or a name that `mi-ray sweeps` lists.", metavar="FILE")],
    out: Out = "results",
    smoke: Smoke = False,
    set_: Set = None,
    seed: Seed = None,
    verbose: Verbose = False,
) -> None:
    """Say for each thing that would be computed again which part of its key changed, against the nearest that is stored."""
    from mi_ray.run import why_sweep
    from mi_ray.sweep_files import parse_overrides

    for line in why_sweep(file, out, smoke=smoke, set=parse_overrides(set_ or ()), seed=seed):
        _say(line)


@app.command()
def schema(verbose: Verbose = False) -> None:
    """Print a JSON Schema of sweep files, by which an editor completes and checks them.

    A file names it in a comment: `# yaml-language-server: $schema=sweep.schema.json`.
    """
    import json

    from mi_ray.schema import sweep_schema

    sys.stdout.write(json.dumps(sweep_schema(), indent=1, ensure_ascii=False) + "\n")


@app.command()
def compare(
    store: StoreArgument,
    left: Annotated[str, typer.Argument(help="A study.", metavar="A")],
    right: Annotated[str, typer.Argument(help="The study that is held against it.", metavar="B")],
    csv: Annotated[Path | None, typer.Option("--csv", help="Write all of it there too.", metavar="FILE")] = None,
    verbose: Verbose = False,
) -> None:
    """Show the cells that two studies both have: B's accuracy less A's on common points, with paired intervals."""
    from mi_ray.figures.comparing import compared, names_of_both
    from mi_ray.figures.terminal import comparison_table
    from mi_ray.store.blocks import Store

    opened = Store(store)
    found = compared(opened, left, right)
    console.print(comparison_table(found, left, right, names_of_both(opened, left, right)))
    if csv is not None:
        found.to_csv(csv, index=False)


@app.command()
def export(
    store: StoreArgument,
    file: Annotated[Path, typer.Argument(help="A .csv, .xlsx or .json file.", metavar="FILE")],
    study: Annotated[str, typer.Option("--study", help="The study.", metavar="NAME")],
    verbose: Verbose = False,
) -> None:
    """Write a study's cells for other programs: CSV, Excel, or RobustBench's form (.json)."""
    from mi_ray.figures.exporting import export as write_export
    from mi_ray.store.blocks import Store

    _say(f"{file}: {write_export(Store(store), study, file)} entries")


@app.command()
def gc(
    store: StoreArgument = "results",
    yes: Annotated[bool, typer.Option("--yes", help="Remove them.")] = False,
    verbose: Verbose = False,
) -> None:
    """List what no study of a store refers to; remove it with --yes."""
    from mi_ray.store.blocks import Store
    from mi_ray.store.locks import lock_store
    from mi_ray.store.manifest import unreferenced

    opened = Store(store)
    # What a sweep has begun to store no study refers to yet.
    with lock_store(opened, _tell, alone=True) if yes else contextlib.nullcontext():
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
    """Show every dataset, source of networks, architecture, objective, attack and defense with its parameters, the trained
    classifiers that come with the program, and the figures and tables."""
    from mi_ray.data import SOURCES
    from mi_ray.figures.draw import figures_told
    from mi_ray.named import NETWORKS
    from mi_ray.own_code import load_plugins, look_in
    from mi_ray.parameters import default_of, plain
    from mi_ray.study.prepare import REGISTRIES
    from mi_ray.zoo import classifiers_told

    if plugin:
        look_in(Path.cwd())
    load_plugins(plugin or ())
    for registry in (
        SOURCES,
        NETWORKS,
        REGISTRIES.architectures,
        REGISTRIES.objectives,
        REGISTRIES.attacks,
        REGISTRIES.defenses,
    ):
        console.print(f"\n{registry.noun}", style="bold")
        for name in registry:
            cls = registry[name]
            first = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
            console.print(Text.assemble("  ", (name, "cyan"), f"  {first}  ", (cls.__module__, "dim")), highlight=False)
            for key, parameter in cls.parameters().items():
                usual = "required" if key in cls.required() else f"default {plain(default_of(cls, key))}"
                line = f"      {key}: {parameter.help}; {parameter.allowed()}; {usual}"
                console.print(line, highlight=False)
    for noun, told in (("zoo", classifiers_told()), ("figure or table", figures_told())):
        console.print(f"\n{noun}", style="bold")
        for name, first in told.items():
            console.print(Text.assemble("  ", (name, "cyan"), f"  {first}"), highlight=False)


def _fail(message: object, code: int) -> NoReturn:
    errors.print(f"error: {message}", style="red")
    raise SystemExit(code)


def _exit_code() -> int:
    """Parse the command line and do what it says; returns the exit code.

    A command that cannot be read gets one line in this program's own form, where the parser would draw a box of its own.
    """
    try:
        return int(app(prog_name="mi-ray", standalone_mode=False) or 0)
    except UsageError as error:
        if not error.format_message():  # A command without arguments, whose help is shown already.
            return 2
        _fail(_usage_line(error), 2)
    except BrokenPipeError:  # Whoever read the output, such as `head`, has had enough of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _usage_line(error: Any) -> str:
    """What is wrong with a command line: the option's rule and value where one has such a rule, else the usage too."""
    option = getattr(error, "param", None)
    if option is not None and error.message:
        return f"{max(option.opts, key=len)} {error.message}"
    said = error.format_message().rstrip(".")
    usage = "" if error.ctx is None else "; u" + " ".join(error.ctx.get_usage().split())[1:]
    return f"{said[:1].lower()}{said[1:]}{usage}"


def _show_what_there_is() -> None:
    """Have a terminal that lacks a character, such as ε, show another in its place, where Python would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def main() -> None:
    """The console script: every expected failure is one message and an exit code, never a traceback."""
    verbose = bool({"-v", "--verbose"} & set(sys.argv))
    logging.basicConfig(level=logging.WARNING)
    _show_what_there_is()
    warnings.filterwarnings("ignore", message=".* cells have no rows here")  # What failed is told cell by cell.
    if verbose:
        logging.getLogger("mi_ray").setLevel(logging.DEBUG)
    try:
        raise SystemExit(_exit_code())
    except KeyboardInterrupt:
        errors.print("\nstopped; the same command goes on from here", style="yellow")
        raise SystemExit(130) from None
    except ValueError as error:  # a bad file or option; what is damaged in a store is one too
        from mi_ray.store.files import NoAnswerError

        if isinstance(error, NoAnswerError):
            errors.print(f"error: {error}", style="red")
            os._exit(2)  # A request that nobody answers would keep the process alive.
        if verbose:
            raise
        _fail(error, 2)
    except RuntimeError as error:
        from mi_ray.cluster.connect import NoRayError

        if verbose or not isinstance(error, NoRayError):
            raise
        _fail(error, 1)
    except OSError as error:
        from mi_ray.store.leases import LeaseLostError

        if verbose:
            raise
        what = "" if isinstance(error, LeaseLostError) else "reading or writing must be possible and have room: "
        _fail(f"{what}{error}", 1)


if __name__ == "__main__":
    main()
