"""A Ray cluster of several nodes on this machine, its processes by what they do, and ways to end them."""

import os
import random
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read when Ray is imported: its nodes then find each other on 127.0.0.1 (see mi_ray/cluster/connect.py).
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "4")
os.environ.setdefault("RAY_worker_niceness", "0")  # else the tests beside them leave Ray's workers hardly any time
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
CURRENT = Path("/tmp/ray/ray_current_cluster")  # where Ray notes what `auto` means
# Seconds rather than half a minute until a silent node is taken to be lost.
QUICK = {"health_check_initial_delay_ms": 3000, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
STORE_BYTES = 120_000_000  # the least that Ray takes is 75 MB; a study of digits needs 10
KINDS = {
    "block": (": attack", ": outputs of"),
    "trial": ("SettingTrainable.train",),
    "training worker": ("RayTrainWorker",),
    "training": (": train ", "TrainController"),
    "progress": ("ProgressActor",),
}


class Nodes:
    """A head that computes nothing, and nodes that come and go. Everything is on 127.0.0.1."""

    def __init__(self, count: int = 2, cpus: int = 1) -> None:
        from ray.cluster_utils import Cluster

        self.cpus = cpus
        # Short, since sockets lie in it.
        self._place = tempfile.mkdtemp(prefix="mi-ray-", dir="/tmp")
        self._given = {"node_ip_address": "127.0.0.1", "object_store_memory": STORE_BYTES, "include_dashboard": False}
        known = CURRENT.read_text() if CURRENT.exists() else None
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={**self._given, "num_cpus": 0, "temp_dir": self._place, "_system_config": QUICK},
        )
        if known is not None:
            CURRENT.write_text(known)
        else:
            CURRENT.unlink(missing_ok=True)
        self.workers = list[Any]()
        for _ in range(count):
            self.join()

    @property
    def address(self) -> str:
        """What `--address` takes."""
        return str(self.cluster.address)

    def join(self) -> None:
        """One more node."""
        self.workers.append(self.cluster.add_node(**self._given, num_cpus=self.cpus))

    def lose(self, chooser: random.Random) -> int:
        """Kill a node's raylet; returns its process id."""
        node = self.workers.pop(chooser.randrange(len(self.workers)))
        pid = _raylet(node)
        os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
        return pid

    def leave(self) -> None:
        """A node says that it goes."""
        self.cluster.remove_node(self.workers.pop(0), allow_graceful=True)

    def die(self) -> int:
        """Kill the head, and every node with it, as when its machine goes; returns the process id of its GCS."""
        nodes = [self.cluster.head_node, *self.workers]
        gcs = int(nodes[0].all_processes["gcs_server"][0].process.pid)
        os.kill(gcs, signal.SIGKILL)
        for node in nodes:
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        return gcs

    def processes(self) -> dict[int, str]:
        """Workers of all nodes: process id -> title. Only of this cluster: children of its raylets."""
        parents = {_raylet(node) for node in (self.cluster.head_node, *self.workers)}
        found = [(pid, title) for pid, parent, title in _listed() if parent in parents and title.startswith("ray::")]
        return {pid: title for pid, title in found if not title.endswith("Agent")}  # a raylet ends with its agents

    def of_kind(self, kind: str) -> list[int]:
        """Workers that do something, in a fixed order."""
        parts = KINDS[kind]
        return sorted(pid for pid, title in self.processes().items() if any(part in title for part in parts))

    def shutdown(self) -> None:
        """End all of it."""
        self.cluster.shutdown()
        shutil.rmtree(self._place, ignore_errors=True)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _listed() -> Iterator[tuple[int, int, str]]:
    """(process, parent, title) of every process of this machine."""
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                title = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended
                continue
            yield int(place.name), parent, title


@contextmanager
def nodes(count: int = 2, cpus: int = 1) -> Iterator[Nodes]:
    """A cluster that is gone after the block."""
    found = Nodes(count, cpus)
    try:
        yield found
    finally:
        found.shutdown()


def wait_until(true: Any, seconds: float, what: str) -> None:
    """Wait until a call returns something true; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds:g} s"
        time.sleep(0.02)
