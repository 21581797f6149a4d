"""The rules by which blocks are tried again, and a study on 64 nodes that come and go, in simulated time.

What is real and what is simulated: tests/helpers/simulated.py. Ray itself is used in tests/cluster/test_faults.py.
"""

import asyncio
import contextlib
import io
import json
import signal
import sys
import sysconfig
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest
import ray
import ray.train
import torch
import torch.nn.functional as F
from helpers.plans import planned
from helpers.simulated import SimulatedCluster, Trouble
from helpers.studies import Tiny, stages, tiny
from ray import exceptions
from rich.console import Console
from safetensors.torch import save
from torch import nn

import mi_ray.cluster.blocks
import mi_ray.cluster.worker
from mi_ray.classifiers import build_classifier
from mi_ray.cluster.actors import ProgressActor
from mi_ray.cluster.blocks import Beside, Blocks, RayCluster, Steps
from mi_ray.cluster.callbacks import Callbacks, _as_folder
from mi_ray.cluster.connect import connect, paths_of_ones_own
from mi_ray.cluster.retries import ENDURED, GivenUpError, fault_of
from mi_ray.cluster.runner import attacking, judge_and_write
from mi_ray.cluster.session import Failure, Outcome, Session
from mi_ray.cluster.train_loop import (
    ANY_PROCESS,
    CHECKPOINT,
    OWN_PROCESS,
    TrainingConfig,
    TrainingValues,
    _Run,
    cause_of_failure,
    fit,
    fit_task,
    handed,
    measured,
    train_loop,
)
from mi_ray.cluster.training import RUN, _Meanwhile, _remove_checkpoints, _Trainings
from mi_ray.cluster.trials import Job, SettingTrainable, grid_trials
from mi_ray.cluster.tuning import Request, TrialProgress, _evaluate_grid, _fit, _lost, begin_together
from mi_ray.cluster.worker import Item, _telling, workbench
from mi_ray.data import Dataset
from mi_ray.device import NotFiniteError, PassCounter
from mi_ray.events import about, event, written_to
from mi_ray.own_code import own_modules
from mi_ray.page.facts import provenance
from mi_ray.parameters import Method
from mi_ray.progress import Stage
from mi_ray.store.files import Files
from mi_ray.study.folder import mark


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A grid of some hundred settings on two classifiers."""
    axis = {"linspace": [0.01, 0.9, 16]}
    return tiny(
        tmp_path_factory.mktemp("many"),
        points={"count": 300},
        executions=3,
        attacks=[{"pgd": {"steps": 1}, "epsilon": 0.1, "goal": ["untargeted", "targeted"]}],
        defenses=[{"gaussian_noise": {"sigma": axis}}, {"mi_ol": {"lam": axis}}, {"mi_pl": {"lam": axis}}],
    )


@pytest.fixture(scope="module")
def some(study: Tiny) -> list[Item]:
    """Eight blocks."""
    return study.bench.results.missing(study.plan.attacks[0], 20)[:8]


def shown(items: Sequence[Item]) -> Stage:
    return Stage("test", sum(stop - start for _, start, stop in items), "points", Console(file=io.StringIO()))


def run(items: list[Item], cluster: SimulatedCluster, limit: float | None = None) -> dict[int, Exception]:
    ran = Blocks(cluster, items, limit, shown(items)).run()
    assert ran.forward == sum(cluster.stored.values())
    return ran.failures


def test_blocks_of_lost_workers_and_nodes_run_again_and_each_is_stored_once(some: list[Item]) -> None:
    cluster = SimulatedCluster(2, 0, {0: Trouble(kills=ENDURED["worker lost"]), 3: Trouble(kills=1)})
    cluster.at(6.0, "lose", 0)
    cluster.at(30.0, "join", 0)
    assert run(some, cluster) == {}
    assert cluster.stored == dict.fromkeys(range(8), 1)


def test_blocks_that_run_are_shown_by_their_passes_and_those_that_are_done_or_lost_are_not(some: list[Item]) -> None:
    """20 points a block, of one pass each: half of them, as the simulated blocks tell, and never more than are planned."""
    cluster, stage = SimulatedCluster(2, 0, {0: Trouble(kills=1)}), shown(some)
    advance, planned = stage.advance, 20 * 0.25 * len(some)

    def advanced(count: int, passes: float | None = None) -> None:
        advance(count, passes)
        assert stage.passed + stage.under_way <= planned  # What has ended is not under way as well while it is shown.

    stage.advance = advanced  # type: ignore[method-assign]
    blocks = Blocks(cluster, some, None, stage, passes=lambda work: 0.25)
    told = list[tuple[int, float]]()
    for _ in blocks.steps():
        told.append((len(cluster.running()), stage.under_way))
    assert (8, 8 * 5.0) in told
    assert all(under_way <= 5.0 * len(some) for _, under_way in told)
    assert stage.under_way == 0
    assert stage.passed == 20 * 0.25 * len(some)


def test_a_block_tells_of_its_passes_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mi_ray.cluster.worker, "TOLD_EVERY", 0.001)
    passes, progress, heard = PassCounter(), Mock(), threading.Event()
    progress.tell.remote.side_effect = lambda *_: heard.set()
    passes.watch(torch.zeros(7, 1))
    with _telling(passes, progress, (3, 1)):
        assert heard.wait(30)
    progress.tell.remote.assert_called_with("passes", {"turn": (3, 1), "passes": 7})
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(tell)")]
    assert passes.take() == (7, 0)


def test_a_block_that_kills_every_worker_is_given_up_and_the_others_finish(some: list[Item]) -> None:
    cluster = SimulatedCluster(2, 0, {2: Trouble(kills=1000)})
    failures = run(some, cluster)
    assert set(failures) == {2}
    assert f"died {ENDURED['worker lost'] + 1} times" in str(failures[2])
    assert len(cluster.stored) == len(some) - 1


def test_a_block_that_fails_by_itself_is_not_tried_again_and_its_own_error_is_told(some: list[Item]) -> None:
    cluster = SimulatedCluster(1, 0, {1: Trouble(error=ValueError("the poison works"))})
    failures = run(some, cluster)
    assert {position: str(error) for position, error in failures.items()} == {1: "the poison works"}
    assert len(cluster.log) == len(some)


def test_a_block_that_storage_refused_is_tried_again(some: list[Item]) -> None:
    cluster = SimulatedCluster(1, 0, {1: Trouble(error=OSError("no space left on device"))})
    failures = run(some, cluster)
    assert "no space left" in str(failures[1])
    assert len(cluster.log) == len(some) + ENDURED["storage"]


def test_a_block_out_of_memory_runs_again_with_a_node_for_itself_and_in_the_same_shape(some: list[Item]) -> None:
    cluster = SimulatedCluster(2, 0, {7: Trouble(memory=7.5)})
    assert run(some, cluster) == {}
    tries = [task for task in cluster.log if task.turn[0] == 7]
    assert [task.alone for task in tries] == [False, True]
    assert all(task.item is some[7] for task in tries)
    assert not any(task.alone for task in cluster.log if task.turn[0] != 7)


def test_a_block_that_no_node_has_memory_for_is_reported_with_the_remedy(some: list[Item]) -> None:
    cluster = SimulatedCluster(2, 0, {7: Trouble(memory=100)})
    failures = run(some, cluster)
    assert set(failures) == {7}
    assert "nodes with more memory" in str(failures[7])
    assert len([task for task in cluster.log if task.turn[0] == 7]) == 2


def test_a_block_that_hangs_is_stopped_at_the_time_limit_and_runs_again(some: list[Item]) -> None:
    cluster = SimulatedCluster(2, 0, {5: Trouble(hangs=1)})
    assert run(some, cluster, limit=20.0) == {}
    assert cluster.stored == dict.fromkeys(range(8), 1)


def test_a_block_that_always_hangs_is_reported_with_the_limit(some: list[Item]) -> None:
    cluster = SimulatedCluster(2, 0, {5: Trouble(hangs=1000)})
    failures = run(some, cluster, limit=20.0)
    assert set(failures) == {5}
    assert "resources.block.time_limit (20 s)" in str(failures[5])


def test_blocks_that_wait_for_a_node_are_not_taken_to_hang(some: list[Item]) -> None:
    cluster = SimulatedCluster(0, 0)
    cluster.at(500.0, "join", 0)
    assert run(some, cluster, limit=20.0) == {}


class TellsItsCauseError(Exception):
    """As of a library whose errors have a text of that name."""

    cause = "disk"


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (exceptions.WorkerCrashedError(), "worker lost"),
        (exceptions.ActorDiedError(), "worker lost"),
        (exceptions.NodeDiedError("x"), "node lost"),
        (exceptions.OutOfMemoryError("x"), "out of memory"),
        (exceptions.RayTaskError("f", "t", MemoryError()), "out of memory"),
        (
            exceptions.RayTaskError("f", "t", RuntimeError("DefaultCPUAllocator: can't allocate memory")),
            "out of memory",
        ),
        (exceptions.RayTaskError("f", "t", exceptions.WorkerCrashedError()), "worker lost"),
        (exceptions.RayTaskError("f", "t", FileNotFoundError()), "storage"),
        (exceptions.RayTaskError("f", "t", ValueError("the worker died")), "error"),
        (TellsItsCauseError(), "error"),
    ],
)
def test_what_ended_an_attempt_is_recognised(error: Exception, fault: str) -> None:
    assert fault_of(error) == fault


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        (ValueError("a plugin is not there"), "error"),
        (RuntimeError("Connection closed by peer"), "worker lost"),
        (SimpleNamespace(_base_exc=ValueError("wrapped")), "error"),
        (SimpleNamespace(health_check_failure=exceptions.ActorDiedError()), "worker lost"),
        (SimpleNamespace(health_check_failure=exceptions.OutOfMemoryError("x")), "out of memory"),
    ],
)
def test_what_ended_a_training_is_told_from_a_lost_worker(ended: Any, fault: str) -> None:
    error = RuntimeError("Training failed due to worker errors")
    error.worker_failures = {0: ended}  # type: ignore[attr-defined]
    assert fault_of(cause_of_failure(error)) == fault


def test_workers_look_where_the_driver_looks_beside_its_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = str(Path(sys.prefix) / "work/study")  # a person's folder may lie below the prefix, as /usr/src/app does
    installed = [sysconfig.get_path(name) for name in ("stdlib", "purelib")]
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    archive = str(Path(sys.prefix) / f"lib/python{version}.zip")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *installed, f"{installed[0]}/lib-dynload", archive, below])
    assert paths_of_ones_own() == [str(tmp_path), below]


def blocks_of(study: Tiny) -> list[list[Item]]:
    """All blocks of a study, in the stages in which they can be done."""
    return [
        [item for work in works for item in study.bench.results.missing(work, 20)] for kind, works in stages(study.plan)
    ]


def test_ray_is_begun_in_another_folder_unless_modules_in_this_one_may_be_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its workers import from the folder in which it is begun before they look at what is installed."""
    begun: list[Path] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: begun.append(Path.cwd()))
    monkeypatch.setattr(ray._private.worker, "print_to_stdstream", ray._private.worker.print_to_stdstream)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    connect(None)
    assert Path.cwd() == tmp_path
    sys.path.append(str(tmp_path))  # as where a sweep names a person's own code
    connect(None)
    assert [path.resolve() for path in begun] == [Path(sys.prefix).resolve(), tmp_path.resolve()]


def test_a_study_on_64_nodes_of_which_many_vanish_ends_with_every_block_stored_once(study: Tiny) -> None:
    trouble = {1: Trouble(kills=2), 2: Trouble(hangs=1), 3: Trouble(memory=7.5), 4: Trouble(error=ValueError("poison"))}
    total = work = 0.0
    for number, items in enumerate(blocks_of(study)):
        cluster = SimulatedCluster(64, number, trouble)
        for moment in range(200):  # every half a minute one goes, and another comes a little later
            cluster.at(5.0 + 30 * moment, "lose", cluster.random.randrange(64))
            cluster.at(20.0 + 30 * moment, "join", moment)
        failures = run(items, cluster, limit=60.0)
        assert set(failures) == {4}
        assert cluster.stored == dict.fromkeys(set(range(len(items))) - {4}, 1)
        assert max(len(node.running) for node in cluster.nodes) == 0
        total, work = total + len(items), work + cluster.slept
        busy = cluster.slept / (64 * 4) + 60.0 * 2 + 15.0 * 4  # slots, the hanging block, stragglers
        assert cluster.time < busy * 1.2
    assert total > 1000


def test_events_are_json_lines_with_block_attempt_and_cause(some: list[Item], tmp_path: Path) -> None:
    with written_to(tmp_path / "log.jsonl"), about(study="many"):
        run(some, SimulatedCluster(1, 0, {1: Trouble(kills=1), 2: Trouble(error=ValueError("poison"))}))
    event("after", key="x")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {line["study"] for line in lines} == {"many"}
    of_block: dict[tuple[int, ...], list[Any]] = {}
    for line in lines:
        assert line["key"] == some[0][0].key
        of_block.setdefault(tuple(line["points"]), []).append((line["event"], line["attempt"], line.get("fault")))
    assert len(of_block) == len(some)
    assert of_block[some[1][1:]] == [
        ("block begun", 1, None),
        ("block lost", 1, "worker lost"),
        ("block begun", 2, None),
        ("block done", 2, None),
    ]
    assert of_block[some[2][1:]] == [("block begun", 1, None), ("block failed", 1, "error")]
    assert next(line for line in lines if line["event"] == "block failed")["cause"] == "poison"


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--log must name a file that can be written"), written_to(tmp_path):
        pass


def test_given_up_work_says_that_the_same_command_goes_on(some: list[Item]) -> None:
    failures = run(some, SimulatedCluster(1, 0, {0: Trouble(kills=1000)}))
    assert isinstance(failures[0], GivenUpError)
    assert "same command" in str(failures[0])


def test_actors_of_a_run_wait_for_one_another_and_no_longer_once_one_is_late() -> None:
    async def begin() -> None:
        actor = ProgressActor.__ray_metadata__.modified_class()
        first = asyncio.create_task(actor.await_all("grid", 2, 60.0))
        await asyncio.sleep(0.01)
        assert not first.done()
        await actor.await_all("other grid", 1, 60.0)
        assert not first.done()
        await asyncio.gather(first, actor.await_all("grid", 2, 60.0))
        await actor.await_all("late", 3, 0.01)
        await actor.await_all("late", 3, 60.0)

    asyncio.run(asyncio.wait_for(begin(), 20))


@pytest.mark.parametrize(("together", "waits"), [(1, []), (3, [("sweep", 3)])])
def test_an_actor_is_ready_once_those_that_begin_with_it_are(
    monkeypatch: pytest.MonkeyPatch, together: int, waits: list[tuple[str, int]]
) -> None:
    waited: list[tuple[str, int]] = []
    actor = SimpleNamespace(await_all=SimpleNamespace(remote=lambda run, count, seconds: waited.append((run, count))))
    monkeypatch.setattr("mi_ray.cluster.trials.workbench", lambda *given: None)
    monkeypatch.setattr("mi_ray.cluster.trials.ray.get", lambda reference, timeout: reference)
    monkeypatch.setattr(SettingTrainable, "_start", lambda self, config: None)
    job: Any = Job(
        [None], own_modules([]), None, 50, (0, 1), lambda config: None, progress=[actor], together=together, run="sweep"
    )  # type: ignore[arg-type, return-value]
    SettingTrainable.setup(SettingTrainable.__new__(SettingTrainable), {}, job)
    assert waited == waits


NODES = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}, {"CPU": 1.0}]


@pytest.mark.parametrize(
    ("cpus", "gpus", "at_once", "trials", "asked", "together"),
    [
        (1, 0, 99, 99, "", 8),
        (2, 0, 99, 99, "", 3),
        (1, 0.25, 99, 99, "", 4),
        (1, 0, 3, 99, "", 3),
        (1, 0, 99, 2, "", 2),
        (1, 0, 99, 99, "4", 4),
    ],
)
def test_as_many_trials_begin_together_as_fit_on_the_nodes_and_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, cpus: float, gpus: float, at_once: int, trials: int, asked: str, together: int
) -> None:
    nodes = [{"Alive": True, "Resources": node} for node in NODES] + [{"Alive": False, "Resources": {"CPU": 64.0}}]
    monkeypatch.setattr("mi_ray.cluster.tuning.ray.nodes", lambda: nodes)
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", asked)
    block = SimpleNamespace(cpus=cpus, gpus=gpus)
    sweep = SimpleNamespace(search=None, resources=SimpleNamespace(block=block))
    session: Any = SimpleNamespace(sweep=sweep, address="auto")
    request: Any = SimpleNamespace(resolve=SimpleNamespace(trials=range(trials)))
    assert begin_together(session, request, at_once) == together


def test_a_stage_counts_the_passes_of_each_block_as_its_work_has_them(study: Tiny) -> None:
    costs = study.study.planner.costs
    items = [item for work in study.plan.attacks[:2] for item in study.bench.results.missing(work, 100)]
    assert len({work.key for work, _, _ in items}) == 2
    stage = shown(items)
    Blocks(SimulatedCluster(1, seed=0), items, None, stage, (), lambda work: float(sum(costs.of(work)))).run()
    assert stage.passed == sum((stop - start) * sum(costs.of(work)) for work, start, stop in items)
    assert stage.done == sum(stop - start for _, start, stop in items) < stage.passed


def test_the_time_left_of_trainings_goes_by_what_an_image_of_each_costs() -> None:
    trainings = _Trainings.__new__(_Trainings)
    told: Any = SimpleNamespace(read=lambda what: ({"plain": 100, "adversarial": 20}, []))
    trainings.session = told
    trainings._wanted, trainings._passes = {"plain": 100, "adversarial": 100}, {"plain": 200.0, "adversarial": 2000.0}
    stage = Stage("train", 200, "images", Console(file=io.StringIO()), passes=2200)
    for _ in range(2):  # Told twice, it counts once.
        trainings._show(stage)
        assert (stage.done, stage.passed) == (120, 600)


@pytest.mark.parametrize(("by_passes", "passed"), [(True, 700), (False, 50)])
def test_the_time_left_of_settings_goes_by_their_passes_where_these_are_known(by_passes: bool, passed: float) -> None:
    stage = Stage("sweep", 100, "points", Console(file=io.StringIO()), passes=1400 if by_passes else 0)
    progress = TrialProgress(stage, SimpleNamespace(), None, by_passes=by_passes)  # type: ignore[arg-type]
    told: Any = {"forward": 700, "backward": 0, "computed": 50, "points": 50, "time_this_iter_s": 2.0, "spans": []}
    progress.on_trial_result(0, [], Mock(num_failures=0), {**told, "began": 0.0})
    assert (stage.done, stage.passed) == (50, passed)


def test_a_setting_whose_actor_died_before_its_first_word_is_known_by_its_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its result has no configuration then. It is to be computed as blocks, and does not end the command."""
    died, done = exceptions.ActorDiedError(), {"trial": 0}
    trials: Any = [SimpleNamespace(config={"trial": 0}), SimpleNamespace(config={"trial": 1})]
    made = list[Any]()

    class Tuner:
        def __init__(self, trainable: object, *, run_config: Any, **settings: object) -> None:
            self.callbacks = run_config.callbacks

        def fit(self) -> list[Any]:
            made.append(self.callbacks[0])
            self.callbacks[0].on_step_end(1, trials)
            return [SimpleNamespace(config=done, error=None), SimpleNamespace(config=None, error=died)]

    monkeypatch.setattr("mi_ray.cluster.tuning.tune.Tuner", Tuner)
    monkeypatch.setattr("mi_ray.cluster.tuning.tune.with_parameters", lambda trainable, job: SimpleNamespace())
    monkeypatch.setattr("mi_ray.cluster.tuning.tune.with_resources", lambda trainable, needs: trainable)
    size = SimpleNamespace(cpus=1, gpus=0)
    sweep = SimpleNamespace(name="two", resources=SimpleNamespace(block=size))
    session: Any = SimpleNamespace(sweep=sweep, callbacks=SimpleNamespace(tune=lambda name: []))
    job: Any = SimpleNamespace(resolve=lambda config: config, names={})
    progress = TrialProgress(Stage("sweep", 2, "points", Console(file=io.StringIO())), job, None)
    request = Request("sweep of 2 settings", job.resolve, 2)
    assert _fit(session, request, job, 2, progress) == [({"trial": 0}, None), ({"trial": 1}, died)]
    assert made == [progress]


def test_of_blocks_that_fail_alike_one_line_is_printed_and_every_cause_is_kept() -> None:
    said: list[str] = []
    session = Session.__new__(Session)
    session.outcome = Outcome()
    session.tell = lambda text, style=None: said.append(text)  # type: ignore[method-assign]
    for key, cause in (("a", "no memory"), ("b", "no memory"), ("c", "no disk"), ("a", "no disk")):
        session.fail(key, "attack on f", ValueError(f"a traceback\n{cause}\n"))
    assert said == ["failed: attack on f: no memory", "failed: attack on f: no disk"]
    assert session.outcome.failures == {
        "a": ("attack on f", "no disk", False),
        "b": ("attack on f", "no memory", False),
        "c": ("attack on f", "no disk", False),
    }


def test_an_attacked_cell_that_may_be_refused_has_the_cause_of_its_clean_outputs(tmp_path: Path) -> None:
    plan = tiny(tmp_path, defenses=[{"reject": {"of": {"mi_pl": 0.6}, "threshold": 0.1}}]).plan
    attacked = next(cell for cell in plan.cells if cell.defense.name == "reject" and cell.clean is not None)
    assert attacked.clean is not None
    ((clean, _),) = attacked.clean.components
    session = Session.__new__(Session)
    session.outcome = Outcome()
    assert session.cause_of(attacked) is None
    session.outcome.failures[clean.key] = Failure("outputs of F", "no memory")
    assert session.cause_of(attacked) == "outputs of F: no memory"


@pytest.mark.parametrize("what", ["complete", "recover", "error"])
def test_a_trial_that_is_over_gives_back_the_blocks_that_it_holds(what: str) -> None:
    ended: list[str] = []
    locks = SimpleNamespace(ended=SimpleNamespace(remote=ended.append))
    job: Any = SimpleNamespace(locks=[locks], resolve=lambda config: SimpleNamespace(works=()))
    progress = TrialProgress(Stage("search", 1, "points", Console(file=io.StringIO())), job, None)
    trial: Any = Mock(trial_id="t1", num_failures=0, config={})
    progress.on_trial_start(0, [], trial)
    getattr(progress, f"on_trial_{what}")(0, [], trial)
    assert ended == ["t1"]


def grid(
    study: Tiny, monkeypatch: pytest.MonkeyPatch, places: int, *, listens: bool, lost: dict[str, str]
) -> list[Any]:
    """What runs of a grid with so many places, one of whose blocks is given up: connecting, blocks, and Tune's request."""
    ran: list[Any] = []

    def blocks(session: Any, name: str, counted: str, works: Sequence[Any], *, beside: None) -> Steps:
        yield from ()
        if works:
            ran.append(len(works))
            lost[works[0].key] = "a block that was given up"

    monkeypatch.setattr("mi_ray.cluster.tuning.computing", blocks)
    monkeypatch.setattr("mi_ray.cluster.tuning._run", lambda session, request: ran.append(request))
    session: Any = SimpleNamespace(
        study=study.study,
        sweep=study.study.sweep,
        bench=study.bench,
        unreported=set(),
        callbacks=SimpleNamespace(listens=listens),
        outcome=SimpleNamespace(failures=lost),
        possible=lambda work: True,
        places=lambda: places,
        connect=lambda cpus: ran.append("connected"),
        cause_of=lambda cell: "the attack failed" if cell.identity["goal"] == "targeted" else None,
    )
    _evaluate_grid(session, study.plan)
    return ran


@pytest.mark.parametrize(("places", "listens", "by_blocks"), [(48, True, False), (48, False, False), (49, True, True)])
def test_settings_that_are_fewer_than_places_run_as_blocks_before_their_trials_report(
    study: Tiny, monkeypatch: pytest.MonkeyPatch, places: int, listens: bool, by_blocks: bool
) -> None:
    lost: dict[str, str] = {}
    connected, *of_blocks, request = grid(study, monkeypatch, places, listens=listens, lost=lost)
    # What has failed is read by no trial: it would fail what has not.
    read = {name for trial in request.resolve.trials for name in trial.reads}
    failed = {cell.inputs.name for cell in study.plan.cells if cell.identity["goal"] == "targeted"}
    assert read
    assert failed
    assert not read & failed
    assert connected == "connected"
    assert of_blocks == ([sum(work.component is not None for work in study.plan.outputs)] if by_blocks else [])
    trials = request.resolve.trials
    assert len(trials) == (47 if by_blocks else 48)
    assert not {work.key for trial in trials for work in trial.works} & lost.keys()
    assert (request.points == 0) == (request.passes == 0) == by_blocks


def test_what_ran_as_blocks_has_trials_only_where_somebody_listens(
    study: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = sum(work.component is not None for work in study.plan.outputs)
    assert grid(study, monkeypatch, 49, listens=False, lost={}) == ["connected", settings]


def test_of_settings_that_have_ended_every_lost_one_is_computed_and_every_failed_one_told(
    study: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    monkeypatch.setattr(
        "mi_ray.cluster.tuning.compute_missing",
        lambda session, name, counted, works, starved: computed.extend(work.key for work in works),
    )
    trials = grid_trials([work for work in study.plan.outputs if work.component is not None])[:5]
    died, wrong = exceptions.ActorDiedError(), ValueError("wrong")
    ended = [({"at": at}, error) for at, error in enumerate((None, died, wrong, died, wrong))]
    failures: dict[str, str] = {}
    session: Any = SimpleNamespace(
        outcome=SimpleNamespace(failures=failures),
        fail=lambda key, name, error: failures.update({key: str(error)}),
    )
    request: Any = SimpleNamespace(resolve=lambda config: trials[config["at"]])
    assert _lost(session, request, ended) == [trials[1], trials[3]]
    assert set(computed) == {work.key for at in (1, 3) for work in trials[at].works}
    assert failures == {work.key: "wrong" for at in (2, 4) for work in trials[at].works}


def test_every_attack_is_computed_and_those_on_the_images_of_others_after_all_of_these(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[Any] = []

    def noted(session: Any, name: str, counted: str, works: Sequence[Any], *_: Any, **__: Any) -> Steps:
        yield from ()
        begun.extend(works if name == "attack" else ())

    monkeypatch.setattr("mi_ray.cluster.runner.computing", noted)
    attack = {"transfer": {}, "epsilon": 0.1, "images": [{"pgd": {"steps": 2}}]}
    plan = planned(attacks=[attack], checks="cheap")
    session: Any = SimpleNamespace(outcome=Outcome())
    assert list(attacking(session, plan)) == []
    assert {work.key for work in begun} == {work.key for work in plan.attacks}
    assert [bool(work.given) for work in begun] == [False, True]


def test_what_a_run_has_counted_and_how_long_it_took_stand_on_its_page(tmp_path: Path) -> None:
    one = tiny(tmp_path)
    mark(one.store, one.study, one.plan, "running")
    session: Any = SimpleNamespace(
        outcome=Outcome(seconds={"attack": 12.0}, counted={"attack_forward": 3400}),
        store=one.store,
        study=one.study,
        sweep=one.study.sweep,
        cells_written=None,
        tell=lambda line: None,
    )
    judge_and_write(session, one.plan, Mock(judged=lambda checked: []), checking=True)
    told = dict(provenance(one.store.read_json(f"studies/{one.study.sweep.name}/manifest.json")))
    assert told["seconds of the last run"].startswith("attack 12, records ")  # the writing of the cells is timed too
    assert told["passes counted in the last run"] == "attack forward 3,400"


def test_a_search_on_a_cluster_begins_one_setting_at_a_time() -> None:
    sweep = SimpleNamespace(search=SimpleNamespace(trials=9, round=3))
    session: Any = SimpleNamespace(sweep=sweep, address="auto")
    assert begin_together(session, Request("search", lambda config: None, 100), 8) == 1  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("cpus", "free", "begun"), [(1, 4, ["a", "b", "c"]), (1, 3, ["a", "b"]), (2, 4, ["a"]), (4, 2, ["a"])]
)
def test_as_many_trainings_run_at_once_in_order_as_there_are_cpus_for_and_at_least_one(
    monkeypatch: pytest.MonkeyPatch, cpus: int, free: float, begun: list[str]
) -> None:
    todo: Any = [
        SimpleNamespace(key=key, entry=SimpleNamespace(workers=n)) for key, n in (("a", 2), ("b", 1), ("c", 1))
    ]
    monkeypatch.setattr(_Trainings, "_start", lambda self, work, data: work.key)
    session: Any = SimpleNamespace(sweep=SimpleNamespace(resources=SimpleNamespace(train=SimpleNamespace(cpus=cpus))))
    trainings = _Trainings(session, todo, _Meanwhile(session, None), lambda key: None)
    trainings._fill(free, None)
    assert list(trainings.running) == begun
    assert [trainings.retries[key].tried for key in "abc"] == [int(key in begun) for key in "abc"]
    trainings._fill(free, None)
    assert list(trainings.running) == begun


def test_a_training_that_ran_out_of_memory_goes_on_alone_once_all_others_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    todo: Any = [SimpleNamespace(key=key, entry=SimpleNamespace(workers=1, name=key)) for key in "abc"]
    monkeypatch.setattr(_Trainings, "_start", lambda self, work, data: work.key)
    session: Any = SimpleNamespace(
        sweep=SimpleNamespace(resources=SimpleNamespace(train=SimpleNamespace(cpus=1))),
        untrained=set(),
        outcome=Outcome(),
    )
    meanwhile = _Meanwhile(session, None)
    trainings = _Trainings(session, todo, meanwhile, lambda key: None)
    ends = {"a": [exceptions.OutOfMemoryError("no memory")], "b": [], "c": []}

    def ended(task: Any) -> None:
        if ends[task]:
            raise ends[task].pop()

    monkeypatch.setattr(ray, "get", ended)
    monkeypatch.setattr("mi_ray.cluster.training.finished", lambda store, key: True)
    monkeypatch.setattr("mi_ray.cluster.training._remove_checkpoints", lambda session, key: None)
    session.store = None
    trainings._fill(2, None)
    assert list(trainings.running) == ["a", "b"]
    trainings._ended("a")  # type: ignore[arg-type]
    trainings._fill(2, None)
    assert list(trainings.running) == ["b", "c"]
    for other in "bc":
        trainings._ended(other)  # type: ignore[arg-type]
        meanwhile.tasks = ["a block beside trainings"]
        trainings._fill(2, None)
        assert not {"a"} & {*trainings.running}
    meanwhile.tasks = ()
    trainings.waiting.append(todo[1])
    trainings._fill(2, None)
    assert list(trainings.running) == ["a"]


def test_no_further_block_of_a_work_begins_once_one_has_shown_that_it_is_not_finite(study: Tiny) -> None:
    first, second = (study.bench.results.missing(work, 20) for work in study.plan.attacks[:2])
    items = [*first, *second]
    cluster = SimulatedCluster(1, 0, {0: Trouble(error=NotFiniteError("NaN"))})
    failures = run(items, cluster)
    assert set(failures) == {0}
    computed = {items[position][0].key for position in cluster.stored}
    assert second[0][0].key in computed
    assert sum(items[position][0].key == first[0][0].key for position in cluster.stored) < len(first) - 1


def test_the_longest_blocks_are_begun_first(study: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is begun last would run while all other places have nothing left to do."""
    begun = list[Any]()

    def blocks(cluster: Any, items: Sequence[Item], *given: Any) -> Any:
        begun.extend(work for work, _, _ in items)
        return SimpleNamespace(steps=lambda beside: iter(()), ran=mi_ray.cluster.blocks.Ran())

    monkeypatch.setattr(mi_ray.cluster.blocks, "Blocks", blocks)
    monkeypatch.setattr(mi_ray.cluster.blocks, "RayCluster", lambda session: None)
    works = [*study.plan.outputs, *study.plan.attacks]
    session: Any = SimpleNamespace(
        sweep=study.study.sweep,
        study=study.study,
        possible=lambda work: True,
        bench=SimpleNamespace(results=SimpleNamespace(missing=lambda work, size, limit: [(work, 0, size)])),
        outcome=SimpleNamespace(
            timed=lambda name: contextlib.nullcontext(),
            spent=SimpleNamespace(stage=lambda *given: None),
            failures={},
            count=lambda *given: None,
        ),
        connect=lambda cpus: None,
        console=Console(file=io.StringIO()),
        places=lambda: 1,
    )
    mi_ray.cluster.blocks.compute_missing(session, "outputs", "evaluation", works)
    costs = [sum(study.study.planner.costs.of(work)) for work in begun]
    assert len({*costs}) > 2
    assert costs == sorted(costs, reverse=True)


def test_blocks_beside_something_else_take_the_places_that_it_leaves_and_begin_no_more_once_it_is_over(
    some: list[Item],
) -> None:
    cluster, beside = SimulatedCluster(2, seed=0), Beside(places=0)
    blocks = Blocks(cluster, some, None, shown(some))
    at_once = list[int]()
    for step, tasks in enumerate(blocks.steps(beside)):
        at_once.append(len(tasks))
        beside.places, beside.over = {0: 2, 3: 3}.get(step, beside.places), step >= 6
        cluster.time += 100.0  # No step waits, so that whoever goes through them does.
    assert at_once[0] == 0
    assert at_once[1:4] == [2, 2, 2]
    assert max(at_once[4:]) == 3
    assert 0 < len(cluster.stored) < len(some)
    assert blocks.ran.forward == sum(cluster.stored.values()), "a block that had begun was dropped"


def test_what_is_done_meanwhile_begins_where_there_is_room_and_anew_with_each_classifier_more() -> None:
    begun, taken = list[Beside](), list[str]()

    def of_trained(beside: Beside) -> Steps:
        begun.append(beside)
        while not beside.over:
            yield [f"block {len(begun)}"]
        yield [f"last block {len(begun)}"]

    session: Any = SimpleNamespace(study="study", take_up=taken.append)
    meanwhile = _Meanwhile(session, of_trained)
    meanwhile.step(4)
    assert (begun, list(meanwhile.tasks)) == ([], []), "nothing is trained yet"
    meanwhile.begin()
    meanwhile.step(0)
    assert (begun, list(meanwhile.tasks)) == ([], []), "there is no room"
    meanwhile.step(4)
    assert (len(begun), begun[0].places, list(meanwhile.tasks)) == (1, 4, ["block 1"])
    meanwhile.step(3)
    assert begun[0].places == 3
    meanwhile.begin()
    meanwhile.step(3)
    assert list(meanwhile.tasks) == ["last block 1"]
    meanwhile.step(3)
    assert list(meanwhile.tasks) == []
    meanwhile.step(3)
    assert (len(begun), list(meanwhile.tasks)) == (2, ["block 2"])
    assert taken == ["study", "study"], "the classifier more is not in the workbench"


def test_nothing_is_done_meanwhile_where_nothing_is_to_be_done() -> None:
    session: Any = SimpleNamespace()
    meanwhile = _Meanwhile(session, None)
    meanwhile.begin()
    meanwhile.step(4)
    meanwhile.end()
    assert not meanwhile.tasks


@pytest.mark.parametrize(
    ("waiting", "cpus", "gpus", "told", "starved", "places"),
    [
        (0, 1, 0.0, "ab", False, 5),
        (1, 1, 0.0, "ab", False, 0),  # one that waits needs the room
        (0, 2, 0.0, "ab", False, 2),
        (0, 4, 0.0, "ab", False, 0),
        (0, 1, 0.5, "ab", False, 1),
        (0, 1, 0.0, "a", False, 5),  # the process of a single worker has its place from the beginning
        (0, 1, 0.0, "b", False, 0),  # two workers are still to be placed
        (0, 1, 0.0, "ab", True, 0),  # one ran out of memory before
    ],
)
def test_blocks_beside_trainings_have_the_room_that_those_leave_and_none_while_one_needs_it(
    monkeypatch: pytest.MonkeyPatch, waiting: int, cpus: float, gpus: float, told: str, starved: bool, places: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    sizes = SimpleNamespace(
        train=SimpleNamespace(cpus=1 if cpus < 4 else 2, gpus=gpus), block=SimpleNamespace(cpus=cpus, gpus=gpus)
    )
    session: Any = SimpleNamespace(sweep=SimpleNamespace(resources=sizes))
    works: Any = [
        SimpleNamespace(key=key, entry=SimpleNamespace(workers=n)) for key, n in (("a", 2), ("b", 1), ("c", 1))
    ]
    trainings = _Trainings(session, works, _Meanwhile(session, None), lambda key: None)
    trainings.running, trainings.waiting = dict(enumerate(works[:2])), works[2 : 2 + waiting]  # type: ignore[assignment]
    trainings.images = dict.fromkeys(told, 64)
    if starved:
        trainings.retries["b"].failed("out of memory")
    assert trainings._free_places() == places


def test_a_block_beside_something_else_that_needs_a_whole_node_is_left_for_later(some: list[Item]) -> None:
    cluster, beside = SimulatedCluster(2, 0, {1: Trouble(error=MemoryError())}), Beside(places=4)
    blocks = Blocks(cluster, some, None, shown(some))
    for _ in blocks.steps(beside):
        cluster.time += 100.0
    assert beside.over
    assert not blocks.ran.failures
    assert 1 not in cluster.stored
    assert not any(task.alone for task in cluster.log)


class _Held(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 2)


def _trained(place: Path, width: int = 3, momentum: float = 0.9) -> _Run:
    """One worker's state after a step, with its checkpoint in a folder."""
    run = _Run.__new__(_Run)
    run.scratch, run.path, run.device = Files(place), f"key/{CHECKPOINT}", torch.device("cpu")
    plain: Any = _Held(width)
    run.plain, run.epoch, run.rows = plain, 0, []
    run.optimizer = torch.optim.SGD(run.plain.parameters(), lr=0.1, momentum=momentum)
    plain.layer(torch.ones(1, width)).sum().backward()
    run.optimizer.step()
    return run


def test_a_checkpoint_gives_back_the_epoch_the_weights_and_the_momentum(tmp_path: Path) -> None:
    first, second = _trained(tmp_path), _trained(tmp_path)
    first.epoch, first.rows = 3, [{"epoch": 0, "loss": 0.5}]
    first.save()
    second.restore()
    assert (second.epoch, second.rows) == (3, [{"epoch": 0, "loss": 0.5}])
    pairs = zip(first.plain.parameters(), second.plain.parameters(), strict=True)
    for one, other in pairs:
        assert torch.equal(one, other)
        buffers = [run.optimizer.state[p]["momentum_buffer"] for run, p in ((first, one), (second, other))]
        assert torch.equal(*buffers)


def test_dropout_goes_on_from_a_checkpoint_as_in_a_training_that_was_not_interrupted(tmp_path: Path) -> None:
    first, second = _trained(tmp_path), _trained(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.rand(5)  # what the epochs before the checkpoint drew
        first.save()
        undisturbed = F.dropout(torch.ones(64))
        torch.manual_seed(3)  # as a training begins
        second.restore()
        assert torch.equal(F.dropout(torch.ones(64)), undisturbed)


@pytest.mark.parametrize("kept", [None, torch.zeros(16, dtype=torch.uint8)])
def test_a_checkpoint_of_another_version_without_generators_that_fit_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: torch.Tensor | None
) -> None:
    first, second = _trained(tmp_path), _trained(tmp_path)
    first.epoch = 3
    with monkeypatch.context() as patched:
        patched.setattr(first, "random_states", lambda: {} if kept is None else {"cpu": kept})
        first.save()
    before = torch.get_rng_state()
    second.restore()
    assert second.epoch == 3
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("together", [False, True])
def test_an_epochs_accuracy_is_of_all_classes_also_where_those_of_one_stand_together(together: bool) -> None:
    """A folder of pictures is sorted by class, so that its first thousand may hold two classes of ten."""
    labels = np.repeat(np.arange(10), 400) if together else np.tile(np.arange(10), 400)
    places = measured(labels)
    assert len(places) == 1000
    assert np.bincount(labels[places]).tolist() == pytest.approx([100] * 10, abs=1)
    assert together or places.tolist() == list(range(1000))
    run = _Run.__new__(_Run)
    one_class: Any = nn.Sequential(nn.Flatten(), nn.Linear(1, 10))
    one_class[1].bias.data[0] = 100  # It answers class 0 to everything.
    run.plain = one_class
    images = torch.zeros(4000, 1, 1, 1, dtype=torch.uint8)
    assert run.accuracy(images, torch.from_numpy(labels)) == pytest.approx(0.1, abs=0.002)


def test_images_that_an_accuracy_is_measured_on_keep_their_labels() -> None:
    labels = np.repeat(np.arange(10), 400)
    images = np.broadcast_to(
        labels.astype(np.uint8)[:, None, None, None], (4000, 1, 1, 3)
    )  # Each pixel tells its label.
    given = handed(Dataset("sorted", 10, images, labels, images, labels))
    assert given["train_images"].shape == images.shape
    assert np.bincount(given["test_labels"]).tolist() == pytest.approx([100] * 10, abs=1)
    assert given["test_images"][:, 0, 0, 0].tolist() == given["test_labels"].tolist()


@pytest.mark.parametrize("count", [7, 1000])
def test_an_epochs_accuracy_is_of_the_whole_of_a_small_split(count: int) -> None:
    assert measured(np.arange(count)).tolist() == list(range(count))


SETTINGS = {
    "batch_size": 6,
    "flip": True,
    "crop_padding": 1,
    "precision": "fp32",
    "lr": 0.1,
    "warmup": 0,
    "lr_drops": [],
    "epochs": 4,
}


@pytest.fixture
def one_of_three(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Run]:
    """One of three workers as it goes on after an epoch, whose two others hold what it holds."""
    classifier = build_classifier(
        {
            "architecture": "cnn_small",
            "arguments": {"width": 2},
            "classes": 10,
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.5, 0.5, 0.5],
        }
    )
    run = _Run.__new__(_Run)
    run.plain, run.device, run.rank, run.world = classifier, torch.device("cpu"), 0, 3
    run.epoch, run.training = 1, cast(TrainingValues, SETTINGS)
    run.config = cast(TrainingConfig, {"seed": 1, "objective": Method("erm", {}), "training": SETTINGS})
    run.optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.copy_(value + value + value))
    run.model = nn.parallel.DistributedDataParallel(classifier)
    yield run
    torch.distributed.destroy_process_group()


def test_several_workers_keep_the_normalisation_whose_mean_over_three_is_another_number(one_of_three: _Run) -> None:
    before = {name: value.clone() for name, value in one_of_three.plain.named_buffers()}
    value = before["mean"][0, 2]
    assert (value + value + value) / 3 != value
    one_of_three.average_buffers()
    for name, buffer in one_of_three.plain.named_buffers():
        if name in ("mean", "std"):
            assert torch.equal(buffer, before[name])
        assert torch.allclose(buffer.float(), before[name].float())


def test_what_goes_on_with_three_workers_adds_up_gradients_in_the_order_of_what_was_not_interrupted(
    one_of_three: _Run,
) -> None:
    """Torch arranges gradients anew after the first backward pass of a process, and three numbers have several sums."""
    run, images, labels = one_of_three, torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8), torch.arange(12) % 10
    model: Any = run.model
    before = {name: value.clone() for name, value in run.plain.state_dict().items()}
    generator = torch.get_rng_state()
    assert not model.reducer._rebuild_buckets()
    run.take_up_order(images, labels)
    assert all(parameter.grad is None for parameter in run.plain.parameters())
    assert all(torch.equal(value, before[name]) for name, value in run.plain.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.reducer._rebuild_buckets()  # As each forward pass asks; it is done once, before the second one.


@pytest.mark.parametrize(("done", "calls"), [(1, ["order", "epoch 1", "epoch 2"]), (3, [])])
def test_a_training_that_goes_on_takes_up_the_order_before_its_next_epoch(
    monkeypatch: pytest.MonkeyPatch, done: int, calls: list[str]
) -> None:
    made = list[str]()

    class Run:
        def __init__(self, config: Any) -> None:
            self.rank, self.epoch, self.training, self.device = 1, done, {"epochs": 3}, torch.device("cpu")
            self.rows = list[dict[str, Any]]()

        def take_up_order(self, images: torch.Tensor, labels: torch.Tensor) -> None:
            made.append("order")

        def train_epoch(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
            made.append(f"epoch {self.epoch}")
            return {"loss": 0.5}

    split = {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.zeros(2, np.int64)}
    data = {f"{name}_{what}": value for name in ("train", "test") for what, value in split.items()}
    monkeypatch.setattr("mi_ray.cluster.train_loop._Run", Run)
    monkeypatch.setattr("mi_ray.cluster.train_loop.Store", Mock())
    monkeypatch.setattr(ray, "get", lambda reference: data)
    monkeypatch.setattr(ray.train, "report", Mock())
    config: Any = {"own": Mock(), "cpus": 1, "data": None, "store": "s", "key": "k"}
    train_loop(config)
    assert made == calls


def test_a_training_without_momentum_and_one_with_a_frozen_parameter_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    for place, momentum, frozen in ((tmp_path / "none", 0.0, ()), (tmp_path / "frozen", 0.9, ("layer.bias",))):
        first, second = _trained(place, momentum=momentum), _trained(place, momentum=momentum)
        for name, parameter in first.plain.named_parameters():
            if name in frozen:
                del first.optimizer.state[parameter]  # as SGD leaves what has no gradient
        first.epoch = 2
        first.save()
        second.restore()
        assert second.epoch == 2
        for one, other in zip(first.plain.parameters(), second.plain.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("what", ["cut short", "empty", "of another file", "of another network", "without its epoch"])
def test_a_checkpoint_that_is_none_leaves_a_training_at_its_beginning(tmp_path: Path, what: str) -> None:
    run = _trained(tmp_path, 3)
    other = _trained(tmp_path, 4)
    other.save()
    whole = (tmp_path / run.path).read_bytes()
    content = {
        "cut short": whole[:-20],
        "empty": b"",
        "of another file": b"<Error><Code>SlowDown</Code></Error>",
        "of another network": whole,
        "without its epoch": save({name: value.clone() for name, value in run.plain.state_dict().items()}),
    }
    (tmp_path / run.path).write_bytes(content[what])
    before = {name: value.clone() for name, value in run.plain.state_dict().items()}
    run.restore()
    assert run.epoch == 0
    assert all(torch.equal(value, before[name]) for name, value in run.plain.state_dict().items())


def test_nothing_is_possible_on_a_classifier_that_is_still_trained_or_has_failed(study: Tiny) -> None:
    session = Session.__new__(Session)
    session.outcome = Outcome()
    works = [*study.plan.attacks, *study.plan.outputs]
    (mine,) = {work.classifier for work in works}
    for untrained, failures, possible in (
        (set[str](), {}, True),
        ({"another"}, {"a third": Failure("training f", "no memory", training=True)}, True),
        ({mine}, {}, False),
        (set[str](), {mine: Failure("training f", "no memory", training=True)}, False),
    ):
        session.untrained, session.outcome.failures = untrained, failures
        assert {session.possible(work) for work in works} == {possible}


@pytest.mark.parametrize(("sizes", "cancelled"), [([2, 8], []), ([2, 3], ["block"]), ([], [])])
def test_a_block_that_asks_for_a_larger_node_than_any_is_cancelled(
    sizes: list[int], cancelled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No node at all, as between two of a cluster's, says nothing of what comes."""
    ended = list[Any]()
    cluster = mi_ray.cluster.blocks.RayCluster.__new__(mi_ray.cluster.blocks.RayCluster)
    cluster._alone = {"block": 4.0}  # type: ignore[dict-item]
    monkeypatch.setattr(mi_ray.cluster.blocks, "alive", lambda: [{"Resources": {"CPU": size}} for size in sizes])
    monkeypatch.setattr(cluster, "cancel", ended.append)
    monkeypatch.setattr(mi_ray.cluster.blocks.ray, "wait", lambda tasks, **options: (tasks, []))
    assert cluster.wait(["block"], 0.1) == ["block"]
    assert (ended, list(cluster._alone)) == (cancelled, [name for name in ["block"] if not cancelled])


def test_a_setting_with_a_long_name_has_a_folder_of_curves() -> None:
    assert _as_folder("mixup mi_ol lam=0.5") == "mixup mi_ol lam=0.5"
    long_ = [_as_folder(f"{'σ' * 150} {end}") for end in "ab"]
    assert len(set(long_)) == 2
    assert all(len(name.encode()) < 255 for name in long_)


def test_a_cell_whose_images_stand_on_a_failed_training_names_that() -> None:
    plan = planned(
        classifiers=[{"name": name, "architecture": {"cnn_small": 2}, "seed": at} for at, name in enumerate("ab")],
        attacks=[
            {"transfer": {}, "epsilon": 0.1, "classifiers": ["a"], "images": [{"pgd": {"steps": 2}, "classifier": "b"}]}
        ],
        defenses=["none"],
    )
    session: Any = SimpleNamespace(outcome=SimpleNamespace(failures={plan.classifiers[1].key: "training b: no memory"}))
    session._cause = lambda needs: Session._cause(session, needs)
    causes = {
        cell.inputs.attack is not None: Session.cause_of(session, cell)
        for cell in plan.cells
        if cell.classifier == plan.classifiers[0].key and not cell.members
    }
    assert causes == {False: None, True: "training b: no memory"}


def test_the_folder_of_checkpoints_goes_with_the_last_of_them_and_never_with_anothers(tmp_path: Path) -> None:
    session: Any = SimpleNamespace(scratch=str(tmp_path / "scratch"))
    for key in ("mine", "mine" + RUN, "yours"):
        (tmp_path / "scratch" / key).mkdir(parents=True)
    _remove_checkpoints(session, "mine")
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["yours"]
    _remove_checkpoints(session, "yours")
    assert not (tmp_path / "scratch").exists()


def test_a_worker_keeps_the_workbench_of_one_study_and_has_let_the_last_one_go_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []

    class Bench:
        """Stands in its own cache, as a workbench does."""

        def __init__(self, data: object, limits: object) -> None:
            made.append(weakref.ref(self))
            self.data, self.itself = data, self
            assert [one() for one in made] == [None] * (len(made) - 1) + [self]

    monkeypatch.setattr(mi_ray.cluster.worker, "Workbench", Bench)
    monkeypatch.setattr(mi_ray.cluster.worker, "_KEPT", {})
    monkeypatch.setattr(ray, "get", lambda reference: reference.hex())
    one, other = (Mock(hex=Mock(return_value=name)) for name in ("one", "other"))
    limits: Any = "limits"
    assert workbench([one], limits) is workbench([one], limits)
    assert workbench([other], limits).data == "other"
    assert len(made) == 2


def test_a_task_that_has_ended_is_not_held_against_the_nodes_any_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = object.__new__(RayCluster)
    cluster._alone = {"task": 4.0}  # type: ignore[dict-item]
    monkeypatch.setattr(ray, "get", lambda task: {})
    cluster.result("task")
    assert cluster._alone == {}


@pytest.mark.parametrize(
    ("workers", "gpus", "name", "options"),
    [
        (1, 0.0, "ANY_PROCESS", {"num_cpus": 2, "num_gpus": 0.0}),
        (2, 0.0, "ANY_PROCESS", {"num_cpus": 0}),
        (2, 1.0, "OWN_PROCESS", {"num_cpus": 0, "runtime_env": {}}),
        (1, 0.5, "OWN_PROCESS", {"num_cpus": 2, "num_gpus": 0.5, "runtime_env": {"env_vars": {"MI_RAY_TRAINS": "1"}}}),
    ],
)
def test_the_process_of_a_training_goes_on_with_blocks_where_it_holds_no_gpu(
    workers: int, gpus: float, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = {each: Mock() for each in ("ANY_PROCESS", "OWN_PROCESS")}
    for each, process in used.items():
        monkeypatch.setattr(f"mi_ray.cluster.train_loop.{each}", process)
    assert fit_task("train f", workers, 2, gpus) is used[name].options.return_value
    used[name].options.assert_called_once_with(name="train f", **options)


def test_a_process_of_its_own_ends_with_its_training() -> None:
    assert (ANY_PROCESS._default_options.get("max_calls"), OWN_PROCESS._default_options["max_calls"]) == (None, 1)


def test_a_process_that_goes_on_holds_nothing_of_a_training_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    trainer = Mock(fit=lambda: signal.signal(signal.SIGINT, lambda *of: None))  # as that of several workers does
    monkeypatch.setattr("ray.train.torch.TorchTrainer", lambda *args, **kwargs: trainer)
    monkeypatch.setattr("ray.get", lambda reference: None)
    try:
        fit({"key": "f", "cpus": 1, "gpus": 0, "scratch": "/scratch", "progress": Mock()}, 2)  # type: ignore[typeddict-item]
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_curves_of_a_training_lie_below_its_study_and_end_with_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    told = Callbacks(tensorboard=str(tmp_path / "curves"))
    row = {"loss": 1.0, "train_accuracy": 0.5, "test_accuracy": 0.4, "lr": 0.1}
    for epoch in (0, 1):
        told.epoch("study", "f", {**row, "epoch": epoch})
    told.close()
    (written,) = (tmp_path / "curves/study/training/f").iterdir()
    assert b"training/test_accuracy" in written.read_bytes()
    Callbacks().epoch("study", "f", {**row, "epoch": 0})  # Without a folder nothing is written.
    assert told.listens
    assert not Callbacks().listens
    assert [path.name for path in tmp_path.iterdir()] == ["curves"]
