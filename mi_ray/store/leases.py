"""Leases: they keep commands apart on an object store, which has no locks.

A lease is one small object. It is made by a conditional write, which the server refuses when somebody else has made or
changed the object meanwhile, so that of any number of commands one gets it. Its holder writes it again every
`BEAT_EVERY` seconds. Who waits looks at it every `LOOK_EVERY` seconds, and takes it over once `LOOKS` looks in a row have
found it unchanged. No clock of one machine is compared with that of another, and a clock that jumps changes nothing.

The conditional writes are obstore's: it speaks them to S3, Google Cloud Storage and Azure alike, both "only where there
is nothing" and "only over what I have read". Pyarrow has neither, and s3fs only the first, which cannot renew a lease or
take one over without a moment in which two commands hold it.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from mi_ray.events import event
from mi_ray.own_code import first_line
from mi_ray.progress import stop
from mi_ray.store.files import Files, Result, StorageError, again

BEAT_EVERY = 10.0  # seconds between two writes of a lease by its holder
LOOK_EVERY = 2.0  # seconds between two looks of who waits for it
LOOKS = 30  # looks in a row that find a lease unchanged, after which its holder is taken to be dead
GIVEN_BACK_IN = 15.0  # seconds that a command waits at its end for a beat that the storage does not answer
SHOWN_AS_DEAD = 300.0  # seconds without a beat, by two clocks, after which `mi-ray status` calls a command dead
_SCHEMES = {"s3": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "abfs", "abfss": "abfss"}  # ours -> obstore's

# It takes a sentence to show to a person, or (in `leased`) the name of the process that holds a lease.
Tell = Callable[[str], None]
Tag = Mapping[str, str]  # which version of an object was read or written, in the store's own words


class LeaseLostError(OSError):
    """Another command has taken the lease over, since this one has not renewed it for a while."""


class Slot(Protocol):
    """The place of one lease."""

    def read(self) -> tuple[bytes, Tag] | None:
        """What is there, and its version; None where nothing is."""

    def write(self, content: bytes, over: Tag | None) -> Tag | None:
        """Write where nothing is (None) or over this version alone; None where something else is there."""

    def remove(self) -> None:
        """Remove what is there, if anything is."""


class ObjectSlot:
    """An object of a bucket. Requests that fail for a reason that may pass are made again; else they raise StorageError."""

    def __init__(self, bucket: Any, name: str) -> None:
        self._bucket, self.name = bucket, name

    def read(self) -> tuple[bytes, Tag] | None:
        """See `Slot`."""

        def whole() -> tuple[bytes, Tag]:
            """What the request found: its content arrives after its answer, and either can fail."""
            found = self._bucket.get(self.name)
            return bytes(found.bytes()), _tag(found.meta)

        try:
            return self._asked("reading", whole)
        except FileNotFoundError:
            return None

    def write(self, content: bytes, over: Tag | None) -> Tag | None:
        """See `Slot`. A write that was done and of whose answer nobody has heard is recognised by its content."""
        from obstore import exceptions

        mode = "create" if over is None else dict(over)
        try:
            return _tag(self._asked("writing", lambda: self._bucket.put(self.name, content, mode=mode)))
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError, FileNotFoundError):
            found = self.read()
            return found[1] if found is not None and found[0] == content else None

    def remove(self) -> None:
        """See `Slot`."""
        with contextlib.suppress(FileNotFoundError):
            self._asked("removing", lambda: self._bucket.delete(self.name))

    def _asked(self, what: str, request: Callable[[], Result]) -> Result:
        from obstore import exceptions

        def asked() -> Result:
            """One request, whose errors are those that `again` knows."""
            try:
                return request()
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
                raise PermissionError(first_line(error)) from error
            except (exceptions.NotSupportedError, NotImplementedError) as error:
                raise PermissionError(f"conditional writes are not supported: {first_line(error)}") from error
            except exceptions.GenericError as error:
                told = first_line(error)
                raise (PermissionError if "501 Not Implemented" in told else OSError)(told) from error

        return again(f"{what} {self.name}", asked)


def _tag(meta: Mapping[str, Any]) -> Tag:
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}


def open_slot(store: Files, name: str) -> Slot:
    """The place of a lease of this name. Raises ValueError with the reason where the storage can have none."""
    return ObjectSlot(_bucket(store), name)


@lru_cache(maxsize=8)  # Of the stores that are used now: an earlier one is not kept alive.
def _bucket(store: Files) -> Any:
    """The store's folder in its bucket, as obstore has it."""
    parts = urlsplit(store.uri)
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None:
        raise ValueError(f"{parts.scheme} has no conditional writes")
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store, from_url
    except ImportError as error:
        raise ValueError(f"conditional writes need obstore, which is not installed ({error})") from error
    # Few and short retries: `again` retries these requests itself, and a renewal that comes late is sent again anyway.
    client: dict[str, Any] = {"timeout": "10s", "connect_timeout": "5s"}
    retry = {"max_retries": 2, "retry_timeout": timedelta(seconds=15)}
    options: dict[str, Any] = {"retry_config": retry, "client_options": client}
    try:
        if scheme != "s3":
            return from_url(f"{scheme}://{parts.netloc}{parts.path}", **options)
        endpoint, options["region"] = _s3_place(store)
        if endpoint is not None:
            options["endpoint"], client["allow_http"] = endpoint, endpoint.startswith("http://")
        # Of the store's own root, since a URI may write a space in a name as %20.
        folder = store.root.partition("/")[2].strip("/")
        options |= {"prefix": folder or None, "credential_provider": _credentials()}
        return S3Store(parts.netloc.rpartition("@")[2], **options)
    except (BaseError, ValueError, OSError) as error:
        raise ValueError(first_line(error)) from error


def _s3_place(store: Files) -> tuple[str | None, str]:
    """(address of the server, None for AWS; region): as the URI says them, else the environment, else pyarrow."""
    told = dict(parse_qsl(urlsplit(store.uri).query))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if "endpoint_override" in told:
        address = told["endpoint_override"]
        endpoint = address if "://" in address else f"{told.get('scheme', 'https')}://{address}"
    return endpoint, str(store.filesystem.region)


def _credentials() -> Any:
    """Where keys come from when they are not in the environment: boto3, which knows ~/.aws and a machine's role.

    None leaves them to obstore, which knows the environment and a machine's role.
    """
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    return Boto3CredentialProvider()


@lru_cache(maxsize=8)
def refusal(store: Files) -> str | None:
    """Why a store can have no leases, in words; None where it can.

    A server that does not know conditional writes may take them for plain ones. So both kinds are tried on an object of
    its own, where they must be refused. Raises StorageError when the storage fails for a reason that may pass.
    """
    try:
        slot = open_slot(store, f".lease-try-{uuid.uuid4().hex[:8]}")
        return tried(slot)
    except ValueError as error:
        return str(error)
    except StorageError as error:
        if not error.lasting:
            raise
        return str(error)


def tried(slot: Slot) -> str | None:
    """Why the server does not honour conditional writes; None where it does.

    slot: a free place, which is written to and left free again. Raises StorageError when a request fails.
    """
    first = slot.write(b"1", None)
    try:
        if first is None or slot.write(b"2", None) is not None:
            return "its server makes an object anew that must not be there yet"
        second = slot.write(b"3", first)
        if second is None or slot.write(b"4", first) is not None:
            return "its server writes over an object that has been changed meanwhile"
    finally:
        slot.remove()
    return None


@contextlib.contextmanager
def leased(slot: Slot, waiting: Tell, dead: Tell) -> Iterator[None]:
    """Hold a lease while the block runs.

    waiting: called once with the process that holds it, when one does. dead: called with a process that is dead, or has
    not renewed it for so long that it is taken over. When this process loses its own so, the stage that runs ends with
    LeaseLostError at its next step. Raises StorageError when the storage fails before the lease is held.
    """
    held = _Held(slot, _taken(slot, waiting, dead))
    held.start()
    try:
        yield
    finally:
        held.give_back()


def _taken(slot: Slot, waiting: Tell, dead: Tell) -> "_OwnLease":
    """Wait for a lease, and take it."""
    seen: Tag | None = None
    unchanged, told = 0, False
    while True:
        found = slot.read()
        if found is None:
            unchanged, seen = 0, None
            if (mine := _written(slot, None)) is not None:
                return mine
        else:
            unchanged, seen = unchanged + 1 if found[1] == seen else 0, found[1]
            if unchanged >= LOOKS or is_dead(found[0]):
                if (mine := _written(slot, seen)) is not None:
                    event("lease taken over", of=in_words(found[0]))
                    dead(in_words(found[0]))
                    return mine
            elif not told:
                waiting(in_words(found[0]))
                told = True
        time.sleep(LOOK_EVERY)  # Also after another one was faster.


def _written(slot: Slot, over: Tag | None) -> "_OwnLease | None":
    """Write this process's lease over version `over`, or where nothing is (None).

    Returns None where another process wrote first.
    """
    mine = _OwnLease()
    mine.tag = slot.write(mine.content(), over)
    return None if mine.tag is None else mine


class _OwnLease:
    """This process's lease: what it writes, and the version of its last write."""

    def __init__(self) -> None:
        self.about, self.beats = {**about_process(), "id": uuid.uuid4().hex}, 0
        self.tag: Tag | None = None

    def content(self) -> bytes:
        """What the next write holds: another text each time, so that whoever waits sees that the lease was renewed."""
        return json.dumps({**self.about, "beat": self.beats}).encode()

    def renew(self, slot: Slot) -> bool:
        """Write the lease again; returns whether it is still this process's."""
        self.beats += 1
        content = self.content()
        tag = slot.write(content, self.tag)
        if tag is None:  # Perhaps over an earlier write of our own, of whose answer nobody has heard.
            found = slot.read()
            if found is None or _said(found[0]).get("id") != self.about["id"]:
                return False
            tag = slot.write(content, found[1])
        self.tag = tag
        return tag is not None


class _Held(threading.Thread):
    """Renews a lease until it is given back or lost."""

    def __init__(self, slot: Slot, mine: _OwnLease) -> None:
        super().__init__(name="lease", daemon=True)
        self._slot, self._mine, self._ended = slot, mine, threading.Event()
        self.lost: LeaseLostError | None = None

    def run(self) -> None:
        """A beat now and then. Whatever a beat raises, the next one is tried all the same: nobody sees more than we do."""
        while self.lost is None and not self._ended.wait(BEAT_EVERY):
            try:
                if not self._mine.renew(self._slot):
                    self._lose()
            except Exception as error:
                event("lease not renewed", cause=f"{type(error).__name__}: {error}")

    def _lose(self) -> None:
        found = self._slot.read()
        who = f"{in_words(found[0])} works on it now" if found is not None else "nobody holds it now"
        self.lost = LeaseLostError(
            f"a command must renew its lease on a study; this one was held up for more than {LOOKS * LOOK_EVERY:g} s, and "
            f"{who}. What is finished is stored, and the same command goes on or waits"
        )
        event("lease lost")
        stop(self.lost)

    def give_back(self) -> None:
        """Stop renewing the lease and remove it. One that cannot be removed is taken over later, like a dead process's."""
        self._ended.set()
        self.join(GIVEN_BACK_IN)
        if self.lost is not None:
            stop(None)
        if self.lost is not None or self.is_alive():
            return
        with contextlib.suppress(StorageError):
            if self._mine.renew(self._slot):
                self._slot.remove()


def about_process() -> dict[str, Any]:
    """Who holds a lock or a lease: process, host, since when, and by what the same machine can tell that it is dead."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "since": since, "machine": _machine(), "began": _began(pid)}


def in_words(content: bytes) -> str:
    """Who says in a lock or a lease that it holds it."""
    found = _said(content)
    if not {"pid", "host", "since"} <= found.keys():
        return "another process"  # It has just begun and not written its name yet, or has just ended.
    return f"process {found['pid']} on {found['host']} since {found['since']}"


def _said(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def is_dead(content: bytes) -> bool:
    """Whether a lease's holder ran on this very machine and is there no longer, so that nobody need wait for it."""
    found = _said(content)
    if found.get("machine") is None or found.get("machine") != _machine():
        return False
    return _began(found.get("pid")) != found.get("began")


def _machine() -> str | None:
    """This machine since it was started, and the name space of its processes; None where Linux does not say it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _began(pid: object) -> str | None:
    """When a process of this machine was started, in the kernel's own unit; None where it has ended."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if told[0] == "Z" else told[19]
