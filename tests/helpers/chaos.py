"""Faults of every kind in many small studies on one cluster: what `make chaos` (tests/cluster/chaos.py) runs."""

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

import mi_ray
from helpers.buckets import S3, reaching, serve
from helpers.clusters import KINDS, Nodes
from helpers.commands import TINY, assert_same_rows, command, run
from mi_ray.store.blocks import Store
from mi_ray.store.check import check_store
from mi_ray.store.files import Files, scratch_of

# Kind -> (how often it is chosen, what is done).
FAULTS = {
    "block": (16, "the worker of a block gets SIGKILL"),
    "trial": (16, "the actor of a trial gets SIGKILL"),
    "training worker": (8, "a worker of a training gets SIGKILL"),
    "training": (4, "the process that drives a training gets SIGKILL"),
    "any worker": (18, "any worker process of Ray gets SIGKILL"),
    "raylet": (4, "a node's raylet gets SIGKILL; another node joins some seconds later"),
    "driver": (4, "the command gets SIGKILL"),
    "ctrl-c": (3, "the command gets SIGINT"),
    "ctrl-c twice": (1, "the command gets SIGINT two times within a second"),
    "head": (1, "GCS and every raylet get SIGKILL; a new cluster is started"),
    "full disk": (6, "the disk of the store has no byte left for some seconds"),
    "S3: 500": (6, "requests to the store are answered by 500 and 503 for some seconds"),
    "S3: hangs": (4, "requests to the store are not answered for 8 s, then reset"),
    "S3: size": (4, "objects are told and sent a third shorter than they are"),
    "clock": (9, "the clock of every Python process jumps, by up to ten days forth or back"),
}
WIDE: dict[str, Any] = {  # many blocks and trials, and the classifier of TINY, which its store has from the beginning
    **TINY,
    "name": "wide",
    "points": {"count": 480, "selection": 160},
    "attacks": [
        {"pgd": {"steps": [4, 8], "step_size": 0.02}, "epsilon": 0.05, "goal": ["untargeted", "targeted"]},
        {"momentum": {"steps": 4, "step_size": 0.02}, "epsilon": 0.1},
    ],
    "defenses": [
        {"gaussian_noise": {"sigma": [0.05, 0.1, 0.2]}},
        {"random_rotation": {"degrees": [5, 10]}},
        {"mi_ol": {"lam": [0.4, 0.5, 0.6]}},
        {"mi_combined": {"lam_pl": 0.5, "lam_ol": [0.5, 0.6], "threshold": [0.1, 0.2]}},
    ],
    "resources": {"block": {"points": 25}},
}
AT = TINY["classifiers"][0]
PAIR: dict[str, Any] = {  # of one worker each; the study of the first one is computed while the second one trains
    **TINY,
    "name": "pair",
    "classifiers": [
        {**AT, "name": "quick", "objective": "erm", "workers": 1},
        {**AT, "name": "slow", "workers": 1, "training": {**AT["training"], "epochs": 16}},
    ],
}
DISK_BYTES = 64 * 2**20
MOST_STARTS = 60  # of the command in one study
ENDS_WITHIN = 180.0  # seconds after its head has gone
ENDING = ("driver", "ctrl-c", "ctrl-c twice", "head")
EARLY = (
    0.2  # share of those that also end a command that has done nothing yet: were it all, no study would come to its end
)
WAITS = 4.0  # seconds that a fault waits for something that it can meet, before another is chosen
STILL = 900.0  # seconds without a fault and without an end, after which a study counts as hanging


class Chaos:
    """Studies one after another, with one cluster, one disk and one server; how far it is, in a folder."""

    def __init__(self, place: Path, seed: int, pause: tuple[float, float]) -> None:
        self.place, self.seed, self.pause = place, seed, pause
        file = place / "state.json"
        empty = {"rounds": 0, "starts": 0, "seconds": 0.0, "codes": {}, "faults": {}, "survived": {}, "seeds": []}
        self.state: dict[str, Any] = json.loads(file.read_text()) if file.exists() else empty
        self.clock, self.disk = place / "clock/ahead", place / "disk"
        self.cluster: Nodes | None = None

    def __enter__(self) -> "Chaos":
        self.clock.write_text("0")
        _unmounted(self.disk)
        self.disk.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.disk)]
        self.mounted = subprocess.run(mount, capture_output=True).returncode == 0
        if not self.mounted:
            print("mounting a small disk is not permitted here: no disk will be full", flush=True)
        self.serving = serve()
        quick = {"RAY_gcs_rpc_server_reconnect_timeout_s": "15"}  # in place of a minute, after a head has gone
        os.environ |= {**reaching(next(self.serving)), **quick}
        return self

    def __exit__(self, *about: object) -> None:
        if self.cluster is not None:
            self.cluster.shutdown()
        self.serving.close()
        if about[0] is None and self.mounted:
            _unmounted(self.disk)

    def run(self, kills: int, deadline: float) -> None:
        """Studies until so many faults have been survived."""
        reference = self.reference()
        if self.seed not in self.state["seeds"]:
            self.state["seeds"].append(self.seed)
        print(f"seed {self.seed}: {self.made()} of {kills} faults until now, in {self.place}", flush=True)
        while self.made() < kills and time.monotonic() < deadline:
            one = Round(self, random.Random(f"{self.seed} {self.state['rounds']}"), kills - self.made(), deadline)
            began = time.monotonic()
            try:
                one.run(reference)
                self.count("survived", one.faults)
            except KeyboardInterrupt:
                raise  # The study is begun anew by the same command, and its faults do not count.
            except BaseException:
                self.note(one, began)
                raise
            self.note(one, began)
        print((self.place / "table.md").read_text(), flush=True)

    def note(self, one: "Round", began: float) -> None:
        """Keep what came of a study."""
        self.count("faults", one.faults)
        self.count("codes", one.codes)
        self.state["starts"] += one.starts
        self.state["seconds"] += time.monotonic() - began
        self.state["rounds"] += 1
        self.write()

    def made(self) -> int:
        """Faults until now."""
        return sum(self.state["faults"].values())

    def count(self, what: str, found: Counter[str]) -> None:
        """Add a study's counts."""
        self.state[what] = dict(Counter(self.state[what]) + found)

    def write(self) -> None:
        """The state, and the table of it."""
        state = self.state
        lines = ["| fault | what is done | times | survived |", "| --- | --- | --- | --- |"]
        for kind, (_, what) in FAULTS.items():
            lines.append(f"| {kind} | {what} | {state['faults'].get(kind, 0)} | {state['survived'].get(kind, 0)} |")
        codes = ", ".join(f"{count} times {code}" for code, count in sorted(state["codes"].items()))
        lines.append(f"| all | | {self.made()} | {sum(state['survived'].values())} |")
        lines.append("")
        lines.append(
            f"Seed {', '.join(map(str, state['seeds']))}: {state['rounds']} studies in {state['seconds'] / 60:.0f} minutes on "
            f"{os.cpu_count()} cores that had other work; the command was started {state['starts']} times and ended with "
            f"these codes: {codes or 'none'}."
        )
        (self.place / "table.md").write_text("\n".join(lines) + "\n")
        temporary = self.place / "state.json.new"
        temporary.write_text(json.dumps(state, indent=1, sort_keys=True))
        temporary.replace(self.place / "state.json")

    def reference(self) -> dict[str, pd.DataFrame]:
        """The rows of undisturbed runs, computed once for a folder."""
        folder = self.place / "undisturbed"
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            print("computing the studies with nothing in their way", flush=True)
            for _ in range(3):  # On a machine that is busy with something else a local Ray may not come up.
                done = run(folder, TINY, WIDE, PAIR)
                if done.returncode == 0 or "Ray did not start" not in done.stderr:
                    break
            assert done.returncode == 0, done.stdout + done.stderr
            (folder / "done").touch()
        return {name: _rows(folder / "results", name) for name in ("tiny", "wide", "pair")}

    def nodes(self) -> Nodes:
        """The cluster; a new one where there is none."""
        while self.cluster is None or len(self.cluster.workers) < 2:
            try:
                if self.cluster is None:
                    self.cluster = Nodes(2)
                else:
                    self.cluster.join()
            except (
                Exception
            ) as error:  # Ray raises this very class; a machine that is busy with something else is no finding
                if "timed out during startup" not in str(error):
                    raise
                print(f"once more: {error}", flush=True)
        return self.cluster


class Round:
    """One study, computed under fire."""

    def __init__(self, chaos: Chaos, chooser: random.Random, most: int, deadline: float) -> None:
        self.chaos, self.chooser, self.most, self.deadline = chaos, chooser, most, deadline
        self.sweep = chooser.choice((TINY, PAIR, WIDE, WIDE))
        self.bucket = S3(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])) if chooser.random() < 0.3 else None
        self.folder = chaos.place / "round"
        self.store = self.bucket.uri if self.bucket else str(chaos.disk / "results")
        self.faults, self.codes, self.starts = Counter[str](), Counter[str](), 0
        self.to_driver, self.began = set[str](), time.monotonic()
        self.ends: list[tuple[float, Callable[[], None]]] = []  # when which fault is over
        self.driver: subprocess.Popen[str] | None = None
        self.choose()

    def run(self, reference: dict[str, pd.DataFrame]) -> None:
        """Until the study is complete and has been looked at."""
        name = self.sweep["name"]
        where = "a bucket" if self.bucket else "a disk"
        print(f"study {self.chaos.state['rounds'] + 1}: {name}, into {where}", flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for path in self.chaos.disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if name == "wide":
            self.give_classifier()
        self.chaos.nodes()
        self.start()
        try:
            self.disturb()
        finally:
            self.heal(all_of_it=True)
            self.stop()
        self.check(reference[name])
        self.say(
            f"the same {len(reference[name]):,} rows after {sum(self.faults.values())} faults, {self.starts} starts"
        )

    def give_classifier(self) -> None:
        """Put the trained classifier of the undisturbed run into the store."""
        trained, store = Files(self.chaos.place / "undisturbed/results"), Store(self.store, create=True)
        for path in trained.files("classifiers"):
            store.write_bytes(path, trained.read_bytes(path))

    def start(self) -> None:
        """The command, again and again the same."""
        self.starts += 1
        assert self.starts < MOST_STARTS, "the study does not come to its end"
        self.to_driver.clear()
        log = self.folder / "log.jsonl"
        self.noted = log.stat().st_size if log.exists() else 0
        program = [*command(self.folder, self.sweep)[:-1], self.store, "--address", self.chaos.nodes().address]
        with self.output().open("w") as told:
            self.driver = subprocess.Popen(
                [*program, "--log", "log.jsonl"],
                cwd=self.folder,
                stdout=told,
                stderr=told,
                text=True,
                start_new_session=True,
                preexec_fn=_as_a_command,
            )

    def stop(self) -> None:
        """End a command that still runs."""
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()

    def output(self) -> Path:
        """Where the command that runs now says what it says."""
        return self.folder / f"output-{self.starts}.txt"

    def disturb(self) -> None:
        """One fault after another until the command ends by itself."""
        strike = quiet = time.monotonic() + self.wait()
        assert self.driver is not None
        while (code := self.driver.poll()) != 0:
            if code is not None:
                self.ended(code)
                self.start()
            now = time.monotonic()
            self.heal()
            if now > strike and now < self.deadline and sum(self.faults.values()) < self.most:
                quiet = now
                if self.strike():
                    strike = time.monotonic() + self.wait()
            assert now - quiet < STILL, f"nothing happens any more\n{self.tail()}"
            time.sleep(0.05)
        self.codes["0"] += 1

    def wait(self) -> float:
        """Seconds until the next fault. A training that is disturbed every few seconds would never end an epoch."""
        training = self.chaos.cluster is not None and self.chaos.cluster.of_kind("training")
        return self.chooser.uniform(*self.chaos.pause) * (3 if training else 1)

    def ended(self, code: int) -> None:
        """Whether a command may have ended so."""
        told = self.output().read_text()
        words = ("same command", "reading or writing must be possible")
        explained = {
            -signal.SIGKILL: "driver" in self.to_driver,
            # -SIGINT: Ctrl-C while Python itself starts or ends, where no handler stands
            130: "ctrl-c" in self.to_driver,
            -signal.SIGINT: "ctrl-c" in self.to_driver,
            1: any(word in told for word in words) or "head" in self.to_driver,
            2: "S3: size" in self.faults
            and "error: " in told
            and " must " in told,  # a file of the store is damaged, it says
        }
        assert explained.get(code, False), f"exit code {code} after {sorted(self.to_driver)}\n{self.tail()}"
        self.codes[str(code)] += 1
        self.say(f"the command ended with {code}, start {self.starts + 1}")

    def tail(self) -> str:
        """The end of what the command said."""
        return self.output().read_text()[-3000:]

    def heal(self, all_of_it: bool = False) -> None:
        """End the faults whose time is over."""
        over = [end for end in self.ends if all_of_it or end[0] < time.monotonic()]
        self.ends = [end for end in self.ends if end not in over]
        for _, heal in over:
            heal()

    def strike(self) -> bool:
        """The fault that comes next, once there is something that it can meet; returns whether there was.

        It is chosen before: among what can be met at the moment, a command that starts would hardly ever get beyond that.
        """
        if not self.possible(self.next):
            if time.monotonic() > self.waits_until:
                self.choose()
            return False
        told = self.fault(self.next)
        self.faults[self.next] += 1
        self.say(f"{self.next}: {told}")
        self.choose()
        return True

    def choose(self) -> None:
        """Choose the next fault."""
        kinds = [kind for kind in FAULTS if self.fits(kind)]
        self.next = self.chooser.choices(kinds, [FAULTS[kind][0] for kind in kinds])[0]
        self.waits_until = time.monotonic() + WAITS
        self.early = self.chooser.random() < EARLY

    def possible(self, kind: str) -> bool:
        """Whether there is something that this fault could meet."""
        if kind == "raylet":
            return len(self.chaos.nodes().workers) >= 2
        if kind in ENDING:
            return self.early or self.at_work()
        return kind not in (*KINDS, "any worker") or bool(self.victims(kind))

    def at_work(self) -> bool:
        """Whether the command that runs now has done something yet."""
        log = self.folder / "log.jsonl"
        return log.exists() and b'"block done"' in log.read_bytes()[self.noted :]

    def fits(self, kind: str) -> bool:
        """Whether this fault can be in this study at all."""
        if kind.startswith("S3"):
            return self.bucket is not None
        return kind != "full disk" or (self.bucket is None and self.chaos.mounted)

    def victims(self, kind: str) -> list[int]:
        """Processes of a kind, in a fixed order."""
        cluster = self.chaos.nodes()
        return sorted(cluster.processes()) if kind == "any worker" else cluster.of_kind(kind)

    def fault(self, kind: str) -> str:
        """Let it happen; returns what was done, in a word or two."""
        assert self.driver is not None
        if kind.startswith("S3"):
            return self.disturb_bucket(kind)
        if kind == "full disk":
            return self.fill_disk()
        if kind == "clock":
            ahead = self.chooser.choice((1, -1)) * int(10 ** self.chooser.uniform(0, 5.93))
            self.chaos.clock.write_text(str(ahead))
            return f"{ahead:+,} s"
        if kind == "raylet":
            return f"process {self.chaos.nodes().lose(self.chooser)}"
        if kind == "head":
            return self.kill_head()
        if kind in ("driver", "ctrl-c", "ctrl-c twice"):
            return self.end_driver(kind)
        # Between a look and the next the last of them may have ended; number 0 would be this process itself.
        victims = self.victims(kind)
        pid = self.chooser.choice(victims) if victims else None
        return f"process {pid}" if pid and _killed(pid, signal.SIGKILL) else "it had just ended"

    def end_driver(self, kind: str) -> str:
        """A signal to the command, or two."""
        assert self.driver is not None
        self.to_driver.add("driver" if kind == "driver" else "ctrl-c")
        _killed(self.driver.pid, signal.SIGKILL if kind == "driver" else signal.SIGINT)
        if kind == "ctrl-c twice":
            time.sleep(self.chooser.uniform(0.0, 1.0))
            _killed(self.driver.pid, signal.SIGINT)
        return f"process {self.driver.pid}"

    def kill_head(self) -> str:
        """The cluster goes, the command ends by itself, and there is a new cluster."""
        cluster = self.chaos.nodes()
        assert self.driver is not None
        self.to_driver.add("head")
        pid, began = cluster.die(), time.monotonic()
        try:
            self.driver.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the head is gone and the command still there\n{self.tail()}") from None
        cluster.shutdown()
        self.chaos.cluster = None
        return f"process {pid}; the command ended after {time.monotonic() - began:.0f} s with {self.driver.returncode}"

    def fill_disk(self) -> str:
        """No room for some seconds."""
        filler, seconds = self.chaos.disk / "filler", self.chooser.uniform(1.0, 6.0)
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 2**16)
                file.flush()
        self.ends.append((time.monotonic() + seconds, lambda: filler.unlink(missing_ok=True)))
        return f"for {seconds:.1f} s"

    def disturb_bucket(self, kind: str) -> str:
        """Requests that fail for some seconds."""
        assert self.bucket is not None
        kinds = {"S3: 500": ["500", "503"], "S3: hangs": ["stall"], "S3: size": ["size"]}[kind]
        share, seconds = self.chooser.choice((0.2, 0.5, 1.0)), self.chooser.uniform(2.0, 10.0)
        bucket = self.bucket
        bucket.faults(share=share, kinds=kinds, seed=self.chooser.randrange(1000), path=bucket.bucket)
        self.ends.append((time.monotonic() + seconds, bucket.faults))
        return f"{share:.0%} of all requests for {seconds:.1f} s"

    def check(self, undisturbed: pd.DataFrame) -> None:
        """Equal rows, a sound store, nothing computed twice, nothing left over."""
        store = Store(self.store)
        assert_same_rows(_rows(store, self.sweep["name"]), undisturbed)
        problems = check_store(store)[0]
        assert problems == [], f"mi-ray check finds {problems}"
        scratch = list(Files(scratch_of(store)).files(""))
        assert scratch == [], f"training checkpoints are left: {scratch}"
        if self.bucket is not None:
            left = [path for path in self.bucket.objects() if path.rpartition("/")[2].startswith(".")]
            assert self.bucket.unfinished_uploads() == []
        else:
            left = [str(path) for path in self.chaos.disk.rglob(".*")]
        assert left == [], f"temporary files, locks or leases are left: {left}"
        if not self.faults["S3: size"]:  # An object that is too short, twice in turn, counts as damaged.
            assert self.twice() == [], f"blocks were computed twice: {self.twice()}"

    def twice(self) -> list[tuple[str, str]]:
        """Blocks that were stored and then computed again."""
        log = [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]
        done = Counter((line["key"], str(line["points"])) for line in log if line["event"] == "block done")
        return [block for block, times in done.items() if times > 1]

    def say(self, what: str) -> None:
        """A line, with seconds since the study began."""
        print(f"  {time.monotonic() - self.began:7.1f} s  {what}", flush=True)


def _rows(store: Store | Path, study: str) -> pd.DataFrame:
    frame = mi_ray.read_records(store, study=study)
    return frame.sort_values(["cell", "point"]).reset_index(drop=True)


def _as_a_command() -> None:
    """What a terminal gives a command: Ctrl-C is heard; and it ends with this process, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _killed(pid: int, how: signal.Signals) -> bool:
    try:
        os.kill(pid, how)
    except ProcessLookupError:  # it has just ended by itself
        return False
    return True


def _unmounted(disk: Path) -> None:
    if os.path.ismount(disk):
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
