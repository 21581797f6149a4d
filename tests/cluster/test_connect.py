"""A Ray of this machine that does not come up is started again, and at last told in one line."""

import logging
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from ray._private import ray_constants

from mi_ray import cli
from mi_ray.cluster import connect as connecting
from mi_ray.cluster import one_ray, session
from mi_ray.cluster.connect import STARTS, NoRayError, connect, print_again
from mi_ray.config import Resources
from mi_ray.progress import ctrl_c


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Lets the first so many starts of Ray fail; returns what was done to it."""

    def fail(times: int) -> list[str]:
        done: list[str] = []

        def init(**options: Any) -> None:
            assert options["address"] == "local"
            assert options["_node_ip_address"] == "127.0.0.1"
            done.append("init")
            if done.count("init") <= times:
                raise Exception("The current node timed out during startup.\nIts last lines: …")  # noqa: TRY002 - what Ray raises

        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(ray, "shutdown", lambda: done.append("shutdown"))
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        return done

    return fail


def test_a_ray_that_does_not_come_up_is_ended_and_started_again(starts: Callable[[int], list[str]]) -> None:
    done = starts(STARTS - 1)
    connect(None)
    assert done == ["init", "shutdown"] * (STARTS - 1) + ["init"]


def test_one_that_never_comes_up_is_told_in_one_line(
    starts: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = starts(STARTS)
    with pytest.raises(
        NoRayError, match="did not start on this machine in 3 attempts: The current node timed out"
    ) as told:
        connect(None)
    assert done == ["init", "shutdown"] * STARTS
    assert "\n" not in str(told.value)

    def refuse(**options: object) -> None:
        raise told.value

    monkeypatch.setattr(sys, "argv", ["mi-ray", "list"])
    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_ray_that_was_imported_before_asks_for_the_token_and_stays_on_this_machine() -> None:
    """As by `from ray import tune` in a person's own program or plugin: Ray reads its environment when it is imported."""
    program = """
import ray.tune
from ray._private import services
from ray._raylet import AuthenticationMode, get_authentication_mode
from mi_ray.cluster.connect import prepare_environment

assert get_authentication_mode() == AuthenticationMode.DISABLED
prepare_environment(local=True)
assert get_authentication_mode() == AuthenticationMode.TOKEN
print(services.get_node_ip_address())
"""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "127.0.0.1", done.stderr


def test_what_a_block_needs_is_asked_for_before_a_training_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "connect", lambda address: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "nodes", list)
    resources = Resources.model_validate({"block": {"cpus": 64}})
    sweep = SimpleNamespace(resources=resources)
    study = SimpleNamespace(address=None, sweep=sweep, store=SimpleNamespace(local=True), outcome=session.Outcome())
    with pytest.raises(ValueError, match="one piece of work asks for 64 CPUs at once, this machine has 2"):
        session.Session.connect(study, 1.0)  # type: ignore[arg-type]
    told = list[str]()
    study.address, study.tell = "auto", lambda text, style: told.append(text)  # A cluster may grow.
    session.Session.connect(study, 1.0)  # type: ignore[arg-type]
    assert told == [
        "note: no node of the cluster has 64 CPUs now, as resources.block asks for: blocks wait until one joins"
    ]


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([{"CPU": 2.0, "GPU": 1.0}], False),
        ([{"CPU": 2.0}, {"CPU": 1.0, "GPU": 1.0}], True),  # together they have it, and neither alone
        ([], True),
    ],
)
def test_a_block_that_no_node_has_room_for_is_told(nodes: list[dict[str, float]], told: bool) -> None:
    block = Resources.model_validate({"block": {"cpus": 2, "gpus": 1}}).block
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    dead = [{"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    why = session.no_place(block, [*alive, *dead])
    assert (why is not None) == told
    assert why is None or "no node of the cluster has 2 CPUs and 1 GPU now" in why


def test_where_nothing_is_left_to_train_no_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a store was copied from a machine with GPUs to one without."""
    monkeypatch.setattr(session, "connect", lambda address: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "nodes", list)
    sweep = SimpleNamespace(resources=Resources.model_validate({"train": {"gpus": 1}}))
    study = SimpleNamespace(address=None, sweep=sweep, store=SimpleNamespace(local=True), outcome=session.Outcome())
    session.Session.connect(study, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one piece of work asks for 1 GPUs at once, this machine has 0"):
        session.Session.connect(study, 1.0, 1.0)  # type: ignore[arg-type]


def test_the_callers_handlers_of_signals_are_put_back() -> None:
    def mine(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGUSR1, mine)
    try:
        with one_ray():
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as Tune does
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_sigterm_is_a_commands_own_again_once_ray_has_started(
    starts: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts(0)
    monkeypatch.setattr(ray, "init", lambda **options: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    with ctrl_c(exits=True):
        own = signal.getsignal(signal.SIGTERM)
        connect(None)
        assert signal.getsignal(signal.SIGTERM) is own


def test_what_prints_the_output_of_tasks_is_put_back(
    starts: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mine(data: object, ignore_prefix: bool = False) -> None: ...

    starts(0)
    caplog.set_level(logging.INFO, "mi_ray")  # With -v, which a test before this one may have asked for, Ray prints on.
    monkeypatch.setattr(connecting, "_PRINTING", {})
    monkeypatch.setattr(ray._private.worker, "print_to_stdstream", mine)
    connect(None)
    assert ray._private.worker.print_to_stdstream is not mine
    print_again()
    assert ray._private.worker.print_to_stdstream is mine


PLAIN = """
from dataclasses import dataclass
from torch import nn
from mi_ray.defenses import DEFENSES, RandomTransform

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))

@DEFENSES.register
@dataclass(frozen=True)
class Plain(RandomTransform):
    'Changes nothing.'
    name = 'plain'
    def transform(self, x, draws, predicted, pool):
        return x[None].expand(draws.executions, *x.shape)
    @classmethod
    def identity(cls):
        return {}
"""
OWN = {
    "name": "own",
    "plugins": ["plain"],
    "dataset": "digits",
    "points": {"count": 20},
    "classifiers": [{"name": "linear", "factory": "plain:network", "mean": [0.5] * 3, "std": [0.5] * 3}],
    "attacks": [{"pgd": {"steps": 1, "step_size": 0.02}, "epsilon": 0.05}],
    "defenses": ["plain"],
    "draws": 1,
    "executions": 2,
    "figures": [],
    "checks": "cheap",
}


@pytest.mark.ray
@pytest.mark.long  # It starts a Ray of its own, and a local one after it.
@pytest.mark.timeout(600)
def test_a_ray_of_the_callers_own_runs_plugins_that_lie_elsewhere_and_is_left_as_it_was(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "plain.py").write_text(PLAIN)
    (elsewhere / "signal.py").write_text("raise RuntimeError('it stands in the place of a module of Python')")
    (elsewhere / "own.yaml").write_text(yaml.safe_dump(OWN))
    program = """
import os, sys
import ray
import mi_ray

def computed(out):
    found = mi_ray.run_sweep(sys.argv[1], out, progress=False)
    assert set(found.cells["state"]) == {"done"}, found.failures

before = dict(os.environ)
computed("local")  # in a Ray that is started for it
assert os.environ == before
ray.init(num_cpus=2, address="local", log_to_driver=False)
before = dict(os.environ)
computed("joined")
assert ray.is_initialized() and os.environ == before
assert ray.get(ray.remote(lambda: 1).remote()) == 1
"""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    command = [sys.executable, "-c", program, str(elsewhere / "own.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=plain, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ray_does_not_take_the_callers_folder_for_a_project_of_uvs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `uv run` Ray else starts its workers by uv, in an environment of their own that may lack this program."""
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(connecting, "_read_again", lambda: None)
    connecting.prepare_environment(local=True)
    assert not ray_constants.env_bool("RAY_ENABLE_UV_RUN_RUNTIME_ENV", True)


@pytest.mark.parametrize("local", [True, False])
def test_what_is_set_for_ray_is_taken_back_and_what_a_person_has_set_stays(
    local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"HOME": "here", "RAY_ADDRESS": "there", "RAY_USAGE_STATS_ENABLED": "1"}
    monkeypatch.setattr(os, "environ", dict(before))
    monkeypatch.setattr(connecting, "_read_again", lambda: None)
    connecting.prepare_environment(local=local)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"  # Ctrl-C reaches us, in a Ray of the caller's own too.
    os.environ |= {"PYTHONBREAKPOINT": "ray's", "OTHER": "a plugin's"}
    connecting.restore_environment(before)
    assert os.environ == {**before, "OTHER": "a plugin's"}


def test_a_run_ends_its_own_actor_and_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[object] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "kill", killed.append)
    monkeypatch.setattr(ray, "shutdown", lambda: pytest.fail("the caller's Ray must go on"))
    run: Any = SimpleNamespace(_progress="the actor")
    session.Session.close(run)
    session.Session.close(run)
    assert killed == ["the actor"]


@pytest.mark.parametrize(("cores", "kept"), [(2, None), (8, None), (64, "78")])
def test_processes_that_wait_are_kept_beside_those_that_work_up_to_eight(
    cores: int, kept: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    wanted = connecting._wanted(local=True)
    assert wanted.get("RAY_num_workers_soft_limit") == kept
    seconds = int(wanted.get("RAY_idle_worker_killing_time_threshold_ms", 0)) / 1000
    assert seconds == (24 * 3600 if kept is None else 0)
    assert "RAY_num_workers_soft_limit" not in connecting._wanted(local=False)
    assert "RAY_idle_worker_killing_time_threshold_ms" not in connecting._wanted(local=False)


@pytest.mark.parametrize(
    ("address", "told", "path", "asked"),
    [
        (None, "", [], None),
        (None, "/a:/b", ["/a", "/b"], None),
        (None, "", ["/a"], "/a"),
        (None, "/a", ["/b", "/a"], "/b:/a"),
        (None, "/a", [], ""),
        ("head:6379", "/a", ["/a"], "/a"),  # Another node's environment says something else.
        ("head:6379", "", [], ""),
    ],
)
def test_only_workers_that_look_elsewhere_than_the_environment_says_ask_for_one_of_their_own(
    address: str | None, told: str, path: list[str], asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that Ray has started ahead can be used by no others."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.append(options))
    monkeypatch.setattr(ray._private.worker, "print_to_stdstream", ray._private.worker.print_to_stdstream)
    monkeypatch.setattr(sys, "path", [*path, sysconfig.get_path("scripts"), sysconfig.get_path("stdlib")])
    monkeypatch.setenv("PYTHONPATH", told)
    connecting.connect(address)
    wanted = {} if asked is None else {"runtime_env": {"env_vars": {"PYTHONPATH": asked}}}
    assert {name: value for name, value in given[0].items() if name == "runtime_env"} == wanted


def test_the_folder_of_commands_is_told_through_a_link_to_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python names the real folder of the command that it runs, and its installation by the way that it was reached."""
    (tmp_path / "real" / "bin").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "link" / "bin"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "real" / "bin"), str(tmp_path / "real")])
    assert connecting.paths_of_ones_own() == [str(tmp_path / "real")]


def test_what_is_set_for_ray_train_are_variables_that_it_reads() -> None:
    from ray.train.v2._internal import constants

    known = {value for name, value in vars(constants).items() if name.endswith("_ENV_VAR")}
    wanted = {name: value for name, value in connecting._wanted(local=True).items() if name.startswith("RAY_TRAIN_")}
    assert {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"} <= wanted.keys() <= known
