"""A sweep run from Python: what the result says, what is drawn, what fails and what is left alone. No Ray is started."""

import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.studies import DEFENSE_GRID, TINY, Tiny, derived, finish, problems_in, tiny
from helpers.sweeps import document
from rich.console import Console

import mi_ray
import mi_ray.cluster
import mi_ray.run
from mi_ray.cluster.session import Failure
from mi_ray.events import event
from mi_ray.run import run_sweeps
from mi_ray.store.blocks import Store
from mi_ray.store.manifest import study_state
from mi_ray.study.prepare import Study
from mi_ray.sweep_files import load_sweep

DRAWN = document(**{**TINY, "defenses": DEFENSE_GRID[:1]})
SWEEP = {
    **DRAWN,
    "figures": ["frontier_table"],
}  # Drawing the others takes most of the time of a test that looks at none.
FIGURE = """
def make(store, study):
    path = f'studies/{study}/figures/own.txt'
    store.write_bytes(path, b'x')
    return [path]
"""
FAILURES = dict[str, Failure]()  # what the run in the place of Ray notes as failed
CERTIFIED = list[dict[str, Any]]()  # what it says of certificates


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A finished study; read only. None of its figures are drawn."""
    one = tiny(tmp_path_factory.mktemp("run"), defenses=DEFENSE_GRID[:1], figures=SWEEP["figures"])
    finish(one)
    return one


@pytest.fixture
def out(original: Tiny, tmp_path: Path) -> str:
    """A copy of the finished study's store."""
    return str(shutil.copytree(original.store.root, tmp_path / "results"))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """In the place of Ray: a run that finds everything in the store. Returns (study, stage) of each that was started."""
    runs = list[tuple[str, str]]()

    def run_study(study: Study, store: Store, address: Any, console: Any, until: str, *told: Any) -> Any:
        runs.append((study.sweep.name, until))
        console.print("progress")
        one = tiny(store.root, defenses=DEFENSE_GRID[:1])
        rows = derived(one) if until == "sweep" else []
        if rows:
            finish(one)
            told[-1](store, study.sweep.name)
        said = {"failures": dict(FAILURES), "certified": list(CERTIFIED)}
        return SimpleNamespace(cells=rows, seconds={"attack": 1.0}, counted={"x": 1}, **said)

    monkeypatch.setattr(mi_ray.cluster, "run_study", run_study)
    FAILURES.clear()
    CERTIFIED.clear()
    return runs


def test_a_finished_study_is_handed_back_with_its_rows(out: str, computed: Any, original: Tiny, capsys: Any) -> None:
    result = mi_ray.run_sweep(SWEEP, out, progress=False)
    assert (result.name, result.out, result.did, result.complete) == ("tiny", out, "nothing", True)
    assert (dict(result.failures), computed) == ({}, [])
    assert len(result.cells) == len(original.plan.cells)
    assert len(result.records()) == 60 * len(original.plan.cells)
    assert set(result.records([("defense", "==", "none")])["defense"]) == {"none"}
    assert capsys.readouterr() == ("", "")


def test_what_is_missing_is_computed_its_figures_are_drawn_and_the_study_is_sealed(
    out: str, computed: Any, capsys: Any
) -> None:
    result = mi_ray.run_sweep(DRAWN, out, set={"seed": 1}, progress=False)
    assert computed == [("tiny", "sweep")]
    assert (result.did, result.complete, result.seconds, result.counted) == (
        "computed",
        True,
        {"attack": 1.0},
        {"x": 1},
    )
    assert {Path(path).suffix for path in result.figures} >= {".png", ".pdf", ".md"}
    assert all(Path(path).is_file() for path in result.figures)
    assert result.planned["attack_forward"] > 0
    assert study_state(load_sweep(DRAWN, overrides={"seed": 1}), out) == "finished"
    assert capsys.readouterr() == ("", "")


def test_a_certificate_that_failed_is_in_the_result_and_leaves_the_study_open(out: str, computed: Any) -> None:
    CERTIFIED.append({"classifier": "f", "sigma": 0.25, "state": "failed", "cause": "certificates: out of memory"})
    result = mi_ray.run_sweep(SWEEP, out, seed=1, progress=False)
    assert dict(result.failures) == {"f certificate sigma 0.25": "certificates: out of memory"}
    assert study_state(load_sweep(SWEEP, overrides={"seed": 1}), out) == "open"
    CERTIFIED[0]["state"] = "done"
    assert mi_ray.run_sweep(SWEEP, out, seed=1, progress=False).complete


def test_a_stage_that_there_is_not_is_refused_before_any_work(out: str, computed: Any) -> None:
    with pytest.raises(ValueError, match="until must be one of train, attack, sweep; got 'training'"):
        mi_ray.run_sweep(SWEEP, out, until="training")  # type: ignore[arg-type]
    assert computed == []


def test_progress_is_printed_unless_it_is_silenced(out: str, computed: Any, capsys: Any) -> None:
    mi_ray.run_sweep(SWEEP, out, seed=1, until="train")
    assert capsys.readouterr().out.endswith("\nprogress\n")  # after the note that the study was another one


def test_a_figure_that_fails_is_named_and_the_next_run_draws_figures_alone(
    out: str, computed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_figures").mkdir()
    (tmp_path / "own_figures/good.py").write_text(FIGURE)
    (tmp_path / "own_figures/bad.py").write_text("def make(store, study):\n    raise ZeroDivisionError('no bars')\n")
    changed = {"figures": ["own_figures.bad", "own_figures.good"]}
    assert mi_ray.run_sweep(SWEEP, out, set=changed, until="train").did == "nothing"  # Its rows are there.
    result = mi_ray.run_sweep(SWEEP, out, set=changed)
    assert (result.did, result.complete, computed) == ("drew", False, [])
    assert dict(result.failures) == {"figure own_figures.bad": "ZeroDivisionError: no bars (bad.py, line 2)"}
    assert result.figures == (f"{out}/studies/tiny/figures/own.txt", f"{out}/studies/tiny/report.html")
    (tmp_path / "own_figures/bad.py").write_text(FIGURE)
    sys.modules.pop("own_figures.bad")
    again = mi_ray.run_sweep(SWEEP, out, set=changed)
    assert (again.did, again.complete, computed) == ("drew", True, [])
    assert mi_ray.run_sweep(SWEEP, out, set=changed).did == "nothing"


@pytest.mark.long  # What a page is made of is held by page/test_facts.py, and what a figure that fails costs, above.
def test_a_page_that_fails_costs_nothing_else_and_is_made_by_the_next_run(
    out: str, computed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(store: Store, study: str) -> list[str]:
        raise RuntimeError("no paper")

    with monkeypatch.context() as patched:
        patched.setattr("mi_ray.page.write.make", failing)
        result = mi_ray.run_sweep(DRAWN, out, seed=1, progress=False)
    assert list(result.failures) == ["figure report"]
    assert result.failures["figure report"].startswith("RuntimeError: no paper (test_run.py, line ")
    assert any(path.endswith("fig3b.png") for path in result.figures)
    page = Path(out) / "studies/tiny/report.html"
    assert not page.exists()
    assert mi_ray.run_sweep(DRAWN, out, seed=1, progress=False).did == "drew"
    assert "Without a defense" in page.read_text(encoding="utf-8")
    page.write_text("another page")  # It is made again at any time, so no seal holds it.
    assert study_state(load_sweep(DRAWN, seed=1), out) == "finished"
    assert problems_in(Store(out)) == []
    page.unlink()
    assert study_state(load_sweep(DRAWN, seed=1), out) == "figures"


def test_cells_and_trainings_that_failed_are_in_the_result_with_their_causes(
    out: str, computed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAILURES["key"] = Failure("training f", "out of memory: 3 GiB", training=True)
    FAILURES["other"] = Failure("attack on f", "no disk")
    fake = mi_ray.cluster.run_study

    def some_fail(*arguments: Any) -> Any:
        outcome = fake(*arguments)
        outcome.cells[0] |= {"state": "failed", "cause": "attack on f: no disk"}
        outcome.cells[1] |= {"state": "missing", "cause": None}
        return outcome

    monkeypatch.setattr(mi_ray.cluster, "run_study", some_fail)
    result = mi_ray.run_sweep(SWEEP, out, seed=1)
    assert not result.complete
    assert result.failures["training f"] == "out of memory: 3 GiB"
    assert "attack on f" not in result.failures
    assert {"attack on f: no disk", "the cell is missing"} <= set(result.failures.values())
    assert study_state(load_sweep(SWEEP, seed=1), out) == "open"


def test_a_check_that_failed_leaves_the_study_open_though_no_row_is_missing(out: str, computed: Any) -> None:
    FAILURES["key"] = Failure("checks: attacks on f", "no memory")
    FAILURES["second"] = Failure("checks: attacks on f", "no disk")
    result = mi_ray.run_sweep(SWEEP, out, seed=1, progress=False)
    assert dict(result.failures) == {"checks: attacks on f": "no memory; no disk"}
    assert study_state(load_sweep(SWEEP, overrides={"seed": 1}), out) == "open"
    FAILURES.clear()
    assert mi_ray.run_sweep(SWEEP, out, seed=1, progress=False).complete
    assert study_state(load_sweep(SWEEP, overrides={"seed": 1}), out) == "finished"


def test_an_earlier_stage_tells_what_failed_in_it(out: str, computed: Any) -> None:
    FAILURES["key"] = Failure("attack on f", "a cause")
    result = mi_ray.run_sweep(SWEEP, out, seed=1, until="attack")
    assert (dict(result.failures), result.complete, result.figures) == ({"attack on f": "a cause"}, False, ())


def test_several_studies_are_read_before_any_is_run_and_told_as_they_end(out: str, computed: Any) -> None:
    other = {**SWEEP, "name": "other"}
    wrong = {**other, "attacks": [{"fgsm_x": {}, "epsilon": 0.1}]}
    for together in (run_sweeps, mi_ray.run.plan_sweeps):
        with pytest.raises(ValueError, match=r"^other: attacks\[0\]: unknown attack 'fgsm_x'"):
            together([SWEEP, wrong], out, seed=1)
    with pytest.raises(ValueError, match=r"^attacks\[0\]: unknown attack 'fgsm_x'"):
        run_sweeps([wrong], out)
    with pytest.raises(ValueError, match="must have different names; got tiny, tiny"):
        run_sweeps([SWEEP, SWEEP], out)
    assert computed == []
    ended = list[str]()
    results = run_sweeps([other, SWEEP], out, until="train", progress=False, ended=lambda one: ended.append(one.name))
    assert ended == ["tiny", "other"]  # the finished one comes first
    assert [one.name for one in results] == ["other", "tiny"]
    assert computed == [("other", "train")]


def test_a_plan_says_what_there_is_and_what_is_stored(
    out: str, original: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mi_ray.study.duration

    monkeypatch.setattr(mi_ray.study.duration, "MEASURE_SECONDS", 0.02)
    plan = mi_ray.plan_sweep(SWEEP, out)
    assert (plan.study, plan.cells, plan.points) == ("tiny", len(original.plan.cells), 60)
    assert {row.name: (row.pieces, row.stored) for row in plan.rows}["train"] == (1, 1)
    assert any("of passes on one core" in line for line in plan.lines)
    assert str(plan).splitlines()[:2] == [
        f"tiny: {plan.cells} cells x 60 points",
        "train: 1 pieces, 1 of them stored; {:,} forward and {:,} backward passes, of which 0 and 0 are left".format(
            *plan.rows[0].planned
        ),
    ]
    reported = original.study.sweep.points.count - original.study.sweep.points.selection
    (told,) = [line for line in plan.lines if line.startswith("can tell apart")]
    assert f"({reported} reported points)" in told
    empty = mi_ray.plan_sweep(SWEEP, Path(out).parent / "nowhere", set={"points.count": 30, "points.selection": 0})
    assert (empty.points, sum(row.stored for row in empty.rows)) == (30, 0)
    new = mi_ray.plan_sweep(SWEEP, f"file://{Path(out).parent}/nowhere")
    assert sum(row.stored for row in new.rows) == 0
    assert not (Path(out).parent / "nowhere").exists()


def test_a_store_in_the_memory_of_one_process_is_refused_before_any_work() -> None:
    with pytest.raises(
        ValueError, match="must be in a place that all processes see, which memory is not; got memory://a"
    ):
        mi_ray.run_sweep(SWEEP, "memory://a", progress=False)


def test_a_finished_study_is_recognised_without_anything_heavy(out: str, computed: Any, tmp_path: Path) -> None:
    code = (
        "import json, sys, mi_ray\n"
        "result = mi_ray.run_sweep(json.loads(sys.argv[1]), sys.argv[2])\n"
        "print(result.did, [name for name in ('torch', 'ray', 'pandas', 'matplotlib', 'scipy') if name in sys.modules])\n"
    )
    mi_ray.run_sweep(SWEEP, out)  # draws its figures
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(SWEEP), out], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "nothing []\n"


def test_a_store_may_be_named_from_the_home_folder(out: str, computed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(out).parent))
    found = mi_ray.run_sweep(SWEEP, f"~/{Path(out).name}", progress=False)
    assert found.did == "nothing"
    assert found.out == out
    assert len(found.cells) > 0


@pytest.mark.parametrize("before", [True, False])
def test_a_ray_that_the_caller_has_joined_is_left_as_it_is(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = [before]
    ray = SimpleNamespace(is_initialized=lambda: joined[0], shutdown=lambda: joined.__setitem__(0, False))
    monkeypatch.setitem(sys.modules, "ray", ray)
    with mi_ray.cluster.one_ray():
        joined[0] = True  # a study of the block joins it, if it has not been joined
    assert joined == [before]


def _meanwhile(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> threading.Thread:
    """A thread that makes a call while the first study runs, which goes on once the thread says that it waits."""
    fake, tell, waits = mi_ray.cluster.run_study, mi_ray.run._Runs._tell, threading.Event()
    thread = threading.Thread(target=call)

    def noted(runs: Any, text: str) -> None:
        tell(runs, text)
        if "another thread" in text:
            waits.set()

    def run_study(*arguments: Any) -> Any:
        if thread.ident is None:
            thread.start()
            assert waits.wait(60)
        return fake(*arguments)

    monkeypatch.setattr(mi_ray.run._Runs, "_tell", noted)
    monkeypatch.setattr(mi_ray.cluster, "run_study", run_study)
    return thread


def test_a_second_thread_waits_until_the_sweep_of_the_first_has_ended(
    out: str, computed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = ({**SWEEP, "name": name} for name in ("first", "second"))
    ended = list[list[tuple[str, str]]]()
    second = _meanwhile(monkeypatch, lambda: run_sweeps([other], out, until="train", progress=False))
    run_sweeps([first], out, until="train", progress=False, ended=lambda one: ended.append(list(computed)))
    second.join(60)
    assert ended == [[("first", "train")]]
    assert computed == [("first", "train"), ("second", "train")]


def test_a_second_thread_computes_nothing_of_what_the_first_has_finished(
    out: str, computed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list[str]()
    second = _meanwhile(monkeypatch, lambda: found.append(mi_ray.run_sweep(SWEEP, out, seed=1, progress=False).did))
    found.append(mi_ray.run_sweep(SWEEP, out, seed=1, progress=False).did)
    second.join(60)
    assert (found, len(computed)) == (["computed", "nothing"], 1)


def test_a_log_has_the_events_of_its_own_thread_and_not_of_the_one_that_it_waits_for(
    out: str, computed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = mi_ray.cluster.run_study

    def told(study: Study, *arguments: Any) -> Any:
        event("study begun", study=study.sweep.name)
        return fake(study, *arguments)

    monkeypatch.setattr(mi_ray.cluster, "run_study", told)
    first, other = ({**SWEEP, "name": name} for name in ("first", "second"))
    logs = [tmp_path / f"{name}.log" for name in ("first", "second")]
    second = _meanwhile(monkeypatch, lambda: run_sweeps([other], out, until="train", progress=False, log=logs[1]))
    run_sweeps([first], out, until="train", progress=False, log=logs[0])
    second.join(60)
    assert [[json.loads(line)["study"] for line in log.read_text().splitlines()] for log in logs] == [
        ["first"],
        ["second"],
    ]


def test_a_study_that_was_another_sweep_is_told_before_it_becomes_this_one(out: str, computed: Any) -> None:
    said = list[Console]()
    for changes in ({"seed": 1}, {"seed": 1}, {"seed": 2, "draws": 1, "figures": []}):
        said.append(Console(file=io.StringIO(), width=400))
        run_sweeps([SWEEP], out, set=changes, progress=said[-1])
    told = [console.file.getvalue() for console in said]  # type: ignore[attr-defined]
    assert ["was a sweep with other values of" in text for text in told] == [
        True,
        False,
        True,
    ]  # the store has one of seed 0
    assert "other values of seed, draws, and becomes" in told[2]
