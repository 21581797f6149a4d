"""Joining a Ray cluster, or starting one on this machine that nobody else can reach."""

import contextlib
import importlib
import logging
import os
import secrets
import socket
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mi_ray.events import event
from mi_ray.own_code import first_line, imported_first, is_installed
from mi_ray.progress import take_back_sigterm

CONNECT_SECONDS = 10.0
STARTS = 3  # a local Ray that does not come up, as on a machine that is busy with something else, is started again
HIGHEST_PORT = 65_535
FEW = 8  # cores, on which all processes that wait while others work are kept; on more of them as many
HELPERS = 6  # processes of Ray Train, of Tune and of our own that compute nothing
DAY = 24 * 60 * 60 * 1000  # milliseconds
OF_RAY = ("RAY_", "TUNE_", "PYTHONBREAKPOINT")  # how names of variables that are for Ray alone begin
_PRINTING: dict[str, Any] = {}  # What printed the output of tasks before `_note` took its place.


def prepare_environment(*, local: bool) -> None:
    """Set what Ray reads when it is first imported or started, until `restore_environment`; what a person has set stays.

    local: whether Ray is started on this machine, rather than joined.
    """
    for name, value in _wanted(local).items():
        os.environ.setdefault(name, value)
    if local and "ray" in sys.modules:
        _read_again()


def restore_environment(before: Mapping[str, str]) -> None:
    """Take back what we and Ray have set for Ray since then: a program may go on with a Ray of its own, or join a cluster."""
    new = {name for name in os.environ.keys() - before.keys() if name.startswith(OF_RAY)}
    for name in new:
        del os.environ[name]
    if new and "ray" in sys.modules:
        _read_again()


def _wanted(local: bool) -> dict[str, str]:
    """What Ray is to read, by the names of variables."""
    cores = os.cpu_count() or 1
    processes = str(max(4, cores))
    wanted = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # Otherwise each report of an epoch takes two seconds.
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C must reach us, and not end as a normal return.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Trainers and trials start several light processes each; Ray's default of one a core warns about them.
        "RAY_worker_maximum_startup_concurrency": processes,
    }
    if local:
        wanted |= {
            # As many trials as begin together; a cluster's autoscaler must see the whole queue.
            "TUNE_MAX_PENDING_TRIALS_PG": processes,
            # A process for each training that asks whether its node will be taken away, which this machine will not.
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            "RAY_AUTH_MODE": "token",
            # Ray would else take the folder that it is started in for a project of uv's, under `uv run`.
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        }
        # Processes of blocks wait for the next blocks while those of trials work, which Ray ends otherwise: each has imported
        # torch and made its classifiers. Of many, which would take much memory, some are ended as before. Up to the number that
        # it keeps Ray also starts processes ahead, most of which nothing needs, so that on few cores they are kept by time.
        if cores <= FEW:
            wanted["RAY_idle_worker_killing_time_threshold_ms"] = str(DAY)
        else:
            wanted["RAY_num_workers_soft_limit"] = str(cores + FEW + HELPERS)
        # A fresh token that is in no file: another user of this machine cannot submit work to our Ray. The second
        # variable keeps Ray's node address, and so every port that it opens, on 127.0.0.1.
        if os.environ.get("RAY_AUTH_MODE", "token") == "token":
            wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        wanted["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return wanted


def _read_again() -> None:
    """Have a Ray that is imported already read its environment anew.

    A person's program or plugin may import Ray before anything here does. Without the token the Ray that is started would
    turn its own driver away, and without the second variable its ports would be open to other machines.
    """
    from ray._private import ray_constants

    native: Any = importlib.import_module("ray._raylet")
    ray_constants.ENABLE_RAY_CLUSTER = ray_constants.env_bool(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, True)
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = ray_constants.env_bool("RAY_ENABLE_UV_RUN_RUNTIME_ENV", True)
    native.Config.initialize("")
    native.AuthenticationTokenLoader.instance().reset_cache()


def check_address(address: str | None) -> None:
    """Raise ValueError unless a cluster could be there: None, "auto" with one running, or a host:port that answers."""
    if address is None:
        return
    if address == "auto":
        found = os.environ.get("RAY_ADDRESS") or Path("/tmp/ray/ray_current_cluster").exists()  # noqa: S108
        if not found:
            raise ValueError(
                "--address auto needs a Ray cluster running on this machine; found none. Start one with "
                "`ray start --head`, or leave --address out for a local Ray"
            )
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > HIGHEST_PORT or not host or "/" in host:
        raise ValueError(f"--address must be `auto` or host:port of a Ray head; got {address!r}")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or "it does not answer"
        raise ValueError(f"--address must be of a Ray head that answers; {address}: {why}") from error


def _note(data: Mapping[str, object], ignore_prefix: bool = False) -> None:
    """Write what Ray says of its cluster into the log of the run."""
    event("ray", lines=data["lines"])


def print_again() -> None:
    """Let Ray print what tasks print, as it did before it was started here: a program may go on with a Ray of its own."""
    if "ray" in _PRINTING:
        sys.modules["ray"]._private.worker.print_to_stdstream = _PRINTING.pop("ray")


@contextlib.contextmanager
def _nowhere() -> Iterator[None]:
    """Leave the current folder while the block runs, unless this process imports from it first too.

    Ray has its workers import from the folder that the driver is in before they look at what is installed.
    """
    here = Path.cwd()
    if str(here) in imported_first():
        yield
        return
    os.chdir(sys.prefix)
    try:
        yield
    finally:
        os.chdir(here)


def paths_of_ones_own() -> list[str]:
    """Where the driver looks for modules beside its own installation, for workers to look there before theirs.

    Another node has an installation of its own. The folders of plugins are not among them: those come after all that is
    installed, in workers too (`OwnModules`). Nor is the folder of commands, which Python looks in when it runs one of them.
    """
    zipped = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    commands = os.path.realpath(sysconfig.get_path("scripts"))  # Python follows links to the command that it runs.
    return [
        path
        for path in imported_first()
        if path and os.path.realpath(path) != commands and Path(path).name != zipped and not is_installed(path)
    ]


class NoRayError(RuntimeError):
    """Ray did not come up on this machine."""


def connect(address: str | None) -> None:
    """Join the Ray cluster at the address, or start one on this machine; the same one again while it lasts.

    Raises ValueError when the address does not accept us, NoRayError when none comes up on this machine.
    """
    import ray

    if ray.is_initialized():
        return
    # What fails is told once, with its cause, by us; -v shows Ray's own messages too.
    level = logging.INFO if logging.getLogger("mi_ray").isEnabledFor(logging.DEBUG) else logging.CRITICAL
    options: dict[str, Any] = {"log_to_driver": level == logging.INFO, "logging_level": level}
    if address is None:
        # "local": without an address Ray would join whatever cluster was started on this machine last.
        options |= {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    else:
        options["address"] = address
    if level != logging.INFO:
        # Ray prints a paragraph for each worker that dies, whatever it was asked to log; it goes to the run's log.
        _PRINTING.setdefault("ray", ray._private.worker.print_to_stdstream)
        ray._private.worker.print_to_stdstream = _note
    own = paths_of_ones_own()
    # Ray starts processes ahead, which those that ask for an environment of their own cannot use.
    if address is not None or own != [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]:
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(own)}}
    try:
        with _nowhere():
            _start(options) if address is None else ray.init(**options)
        take_back_sigterm()
    except ConnectionError as error:
        raise ValueError(f"--address must be of a Ray cluster that accepts us; {address}: {error}") from error


def _start(options: Mapping[str, Any]) -> None:
    """Start a Ray on this machine. Raises NoRayError when it does not come up in several attempts."""
    import ray

    for attempt in range(1, STARTS + 1):
        try:
            ray.init(**options)
        except Exception as error:  # Ray raises Exception itself where a node does not come up in time.
            ray.shutdown()  # Ends what of it was started.
            event("ray did not start", attempt=attempt, cause=str(error))
            if attempt == STARTS:
                raise NoRayError(
                    f"Ray did not start on this machine in {STARTS} attempts: {first_line(error)} A machine with less to do at "
                    "the time, or `--address` of a Ray that runs, helps; Ray's own logs say more. Nothing is lost: the same "
                    "command goes on"
                ) from error
        else:
            return
