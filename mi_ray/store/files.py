"""Files in a folder or behind a URI, whatever they hold: each is written whole or not at all, and a request to an object
store that fails is made again when the reason may pass."""

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

# How often a request to an object store is made; in each try pyarrow's S3 client asks about 30 times within six seconds.
TRIES = 4
TOLD_AFTER, GIVEN_UP_AFTER = 10.0, 60.0  # seconds without a first answer of an object store
FIRST_WAIT = 0.5  # seconds before the second try; each further wait is twice as long
OF_STUDIES = "studies/"  # the folder whose files a manifest names with their hashes
SELF = "sha256"  # the key under which a JSON file keeps the hash of its other values
# Errors that no second try changes, as pyarrow's S3 client names them in its messages.
_PERMANENT = re.compile(
    "ACCESS_DENIED|NO_SUCH_BUCKET|NO_SUCH_KEY|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|"
    "MISSING_AUTHENTICATION_TOKEN|EXPIRED_TOKEN|INVALID_CLIENT_TOKEN|VALIDATION"
)
_NAMES_A_SECRET = re.compile(r"key|secret|token|passw|credential|sas$|^sig", re.IGNORECASE)
_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}  # the schemes of object stores
# A scheme with one slash, or one of an object store with none: a folder of that name is hardly what is meant.
_FEW_SLASHES = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)|(fsspec\+)?({'|'.join(sorted(_BUCKETS))}):(?!/)")
_RENAMING = {"hdfs", "viewfs", "webhdfs", "sftp", "ssh", "smb"}  # file systems behind a URI that rename
Result = TypeVar("Result")


class DamagedFileError(ValueError):
    """A stored file is not what its name says, so that nothing in it may be used."""


class UnfinishedStudyWarning(UserWarning):
    """A study has cells without rows, since the work for them failed or has not been done."""


class NoAnswerError(ValueError):
    """An object store has not answered at all."""


class StorageError(OSError):
    """A storage did not do what it was asked to do.

    lasting: whether the reason is one that asking again cannot change, such as a refusal.
    """

    lasting = False


def is_passing(error: Exception) -> bool:
    """Whether a storage failed for a reason that may pass, so that the place which was named is not wrong."""
    if isinstance(error, StorageError):
        return not error.lasting
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def again(what: str, request: Callable[[], Result]) -> Result:
    """The result of a request to an object store, which is made again when it fails for a reason that may pass.

    what: the request in words, for the error. Raises StorageError when the request keeps failing; a missing file is
    the answer and no failure, so that FileNotFoundError is raised at once.
    """
    for attempt in range(TRIES):
        try:
            return request()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError as error:
            lasting = isinstance(error, PermissionError) or bool(_PERMANENT.search(str(error)))
            if lasting or attempt == TRIES - 1:
                failed = StorageError(f"{what} failed{'' if lasting else f', tried {TRIES} times'}: {error}")
                failed.lasting = lasting
                raise failed from error
        time.sleep(FIRST_WAIT * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311 - spreads the tries of many workers
    raise AssertionError("the last try returns or raises")


def answer(uri: str, request: Callable[[], Result]) -> Result:
    """The result of the first request to an object store, with a line while it keeps a person waiting.

    Raises NoAnswerError when there is none within `GIVEN_UP_AFTER` seconds: a wrong address, or a network that drops
    what is sent, would else look like a long computation.
    """
    found: list[Result] = []
    failed: list[BaseException] = []

    def asked() -> None:
        """Make the request, and keep what comes of it."""
        try:
            found.append(request())
        except BaseException as error:
            failed.append(error)

    asking = threading.Thread(target=asked, daemon=True)
    asking.start()
    asking.join(TOLD_AFTER)
    if asking.is_alive():
        sys.stderr.write(
            f"waiting for {uri}, which has not answered for {TOLD_AFTER:g} s; given up after {GIVEN_UP_AFTER:g} s\n"
        )
        asking.join(GIVEN_UP_AFTER - TOLD_AFTER)
    if failed:
        raise failed[0]
    if not found:
        raise NoAnswerError(
            f"a store must answer; {uri} has not for {GIVEN_UP_AFTER:g} s: is its address right, and can this machine reach it?"
        )
    return found[0]


def refuse_credentials(uri: str) -> None:
    """Raise ValueError when a URI carries a password or a key, because URIs are written to files and shown."""
    parts = urlsplit(uri)
    user, at, _ = parts.netloc.rpartition("@")
    # In other schemes a name without a password is that of a user or a container, which is no secret.
    secret = at and (":" in user or (parts.scheme in ("s3", "gs", "gcs") and user != "anonymous"))
    named = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _NAMES_A_SECRET.search(name)]
    if secret or named:
        where = f"?{named[0]}=…" if named else "user:password@"
        raise ValueError(
            f"a URI must not carry credentials ({where} in {parts.scheme}://…{parts.path}): give them by the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, …) or by the machine's role"
        )


def refuse_whole_bucket(uri: str) -> None:
    """Raise ValueError when a URI names a bucket and no folder in it: what lies beside it is another bucket, and no scratch."""
    refuse_credentials(uri)
    parts = urlsplit(uri.removeprefix("fsspec+"))
    # Azure's addresses name the container either before an @ or first in the path.
    above = parts.scheme in ("abfs", "abfss") and "@" not in parts.netloc and "." in parts.netloc
    folders = [name for name in parts.path.split("/") if name]
    if parts.scheme in _BUCKETS and parts.netloc and len(folders) <= above:
        raise ValueError(
            f"a store must be in a folder of a bucket, such as {parts.scheme}://bucket/results, since its scratch folder lies "
            f"beside it; got {uri}"
        )


def refuse_odd(place: str) -> None:
    """Raise ValueError for a store's place that would silently be another one than it seems to be."""
    scheme = _FEW_SLASHES.match(place)
    if scheme is not None:
        raise ValueError(
            f"a store's URI must have :// after its scheme, as in file:///folder or s3://bucket/folder; got {place}. A folder of "
            f"this name is written ./{place}"
        )
    if "://" in place and "#" in place:
        refuse_credentials(place)
        raise ValueError(
            f"a store's URI must have no fragment, which begins at a #; got {place}. A # in a name is written %23"
        )


def open_uri(uri: str) -> tuple[Any, str]:
    """(file system, path) of a URI: a file system of pyarrow's where it has one, else of fsspec's.

    Raises ValueError when neither library knows the URI or when it carries credentials, and StorageError when the
    storage does not answer.
    """
    refuse_credentials(uri)
    uri = uri.removeprefix("fsspec+")
    scheme = uri.partition("://")[0]
    try:
        # A small object is then put in one request, and not in a multipart upload that a killed process leaves open.
        delayed = f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true" if scheme == "s3" else uri
        found: tuple[Any, str] = again(f"opening {uri}", lambda: pafs.FileSystem.from_uri(delayed))
    except (pa.ArrowException, ValueError) as error:
        opened = _open_fsspec(uri, scheme)
        if opened is None:
            raise ValueError(
                f"a store must be a folder or a URI that pyarrow or fsspec knows; got {uri}: {error}"
            ) from error
        return opened
    return found


def _open_fsspec(uri: str, scheme: str) -> tuple[Any, str] | None:
    """(file system, path) of a URI by fsspec; None when it does not know the protocol.

    Raises ValueError when the protocol needs a package that is not installed.
    """
    try:
        import fsspec
    except ImportError:  # It comes with Ray and torch, and what pyarrow knows needs no fsspec.
        return None
    if scheme not in fsspec.available_protocols() or scheme in ("s3", "gs", "file", "local"):
        return None  # pyarrow knows these, so that a URI which it refuses is wrong.
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise ValueError(f"a store must be behind a protocol that is installed; {uri}: {error}") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path.rstrip("/")


def beside(uri: str, suffix: str) -> str:
    """The URI of a folder beside another one: its path gets a suffix, its query stays. A folder's name may have a ? in it."""
    path, question, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{path.rstrip('/')}{suffix}{question}{query}"


def scratch_of(files: "Files") -> str:
    """A folder beside a store for what Ray keeps while it runs, as a URI that pyarrow's `from_uri` accepts."""
    known = files.local or not isinstance(files.filesystem, pafs.PyFileSystem)
    return beside(files.address if known else f"fsspec+{files.uri}", "-scratch")


def self_hash(value: Mapping[str, object]) -> str:
    """The hash of a JSON object in the form in which it is read again, without the hash that it may carry."""
    rest = {name: item for name, item in json.loads(json.dumps(dict(value))).items() if name != SELF}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Files:
    """A folder, or what is below a URI. Paths are relative to it, with forward slashes.

    Raises ValueError when the URI is of no known kind or carries credentials. Every request to an object store is tried
    again a few times when it fails for a reason that may pass; what still fails is a StorageError.
    """

    def __init__(self, uri: str | Path) -> None:
        refuse_odd(str(uri))
        self.uri = str(Path(uri).expanduser()) if str(uri).startswith("~") else str(uri)
        self.local = "://" not in self.uri or self.uri.startswith("file://")
        self.hashes: dict[str, str] = {}  # path -> SHA-256 of what was written of studies here
        if "://" not in self.uri:
            self.filesystem: Any = pafs.LocalFileSystem()
            self.root = str(Path(self.uri).resolve())
        else:
            self.filesystem, self.root = answer(self.uri, lambda: open_uri(self.uri))

    @property
    def address(self) -> str:
        """The place as another process can open it, whatever its working directory is."""
        return self.root if self.local else self.uri

    def _full(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):  # Paths are also read from files, which may say anything.
            raise ValueError(f"a path in a store must lead into it; got {path!r}")
        return f"{self.root}/{path}" if path else self.root

    def _place(self, path: str) -> Path:
        """The local path of a file, whose folder is made. Raises ValueError when a link in the store leads out of it."""
        target = Path(self._full(path))
        if not target.parent.resolve().is_relative_to(Path(self.root).resolve()):
            raise ValueError(
                f"what is written to a store must stay in it; {target.parent} leads to {target.parent.resolve()}. Remedy: "
                "take the link away, or link to the whole store"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _again(self, what: str, request: Callable[[], Result]) -> Result:
        """`again` for what is behind a URI; in a local folder a request is made once and its error comes as it is."""
        return request() if self.local else again(f"{what} in {self.uri}", request)

    def _infos(self, selector: pafs.FileSelector | str) -> Any:
        return self._again("listing", lambda: self.filesystem.get_file_info(selector))

    def names(self, path: str) -> set[str]:
        """The names of all files and folders in a folder."""
        return {i.base_name for i in self._infos(pafs.FileSelector(self._full(path), allow_not_found=True))}

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder of this path."""
        return bool(self._infos(self._full(path)).type != pafs.FileType.NotFound)

    def files(self, path: str) -> dict[str, int]:
        """Path -> bytes of every file below a folder, without those whose names begin with a dot."""
        selector = pafs.FileSelector(self._full(path), recursive=True, allow_not_found=True)
        infos = [info for info in self._infos(selector) if info.type == pafs.FileType.File]
        return {
            info.path[len(self.root) :].lstrip("/"): info.size for info in infos if not info.base_name.startswith(".")
        }

    def folders(self, path: str) -> list[str]:
        """The names of the folders in a folder."""
        infos = self._infos(pafs.FileSelector(self._full(path), allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)

    def age(self, path: str) -> float:
        """Seconds between the time that the storage keeps for a file and now; infinite where it keeps none."""
        written = self._infos(self._full(path)).mtime
        return float("inf") if written is None else time.time() - written.timestamp()

    def read_bytes(self, path: str) -> bytes:
        """A file's content. Raises DamagedFileError when the disk cannot read it back."""

        def read() -> bytes:
            with self.filesystem.open_input_stream(self._full(path)) as stream:
                return bytes(stream.read())

        try:
            return self._again(f"reading {path}", read)
        except OSError as error:
            if error.errno == errno.EIO:  # A bad sector: reading it again does not help.
                raise DamagedFileError(f"{path} must be readable: {error}") from error
            raise

    def read_parsed(self, path: str, parse: Callable[[bytes], Result], broken: tuple[type[Exception], ...]) -> Result:
        """What `parse` makes of a file's content. broken: the errors that `parse` raises when the content is damaged.

        An object may be replaced between the request for its size and the request for its content, which then ends too
        early. An object that cannot be parsed is therefore read once more before the error is raised.
        """
        content = self.read_bytes(path)
        try:
            return parse(content)
        except broken:
            if self.local or (later := self.read_bytes(path)) == content:
                raise
            return parse(later)

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write a file whole or not at all: under a temporary name that is then changed, or in one put to an object store."""
        full = self._full(path)
        if path.startswith(OF_STUDIES):
            self.hashes[path] = hashlib.sha256(content).hexdigest()
        if not self.local:
            self._again(f"writing {path}", lambda: self._put(full, content))
            return
        target = self._place(path)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _put(self, full: str, content: bytes) -> None:
        renames = bool(_RENAMING & set(_protocols(self.filesystem)))
        folder, _, name = full.rpartition("/")
        target = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp" if renames else full
        try:
            stream = self.filesystem.open_output_stream(target)
        except FileNotFoundError:  # This file system has real folders, which an object store has not.
            self.filesystem.create_dir(folder, recursive=True)
            stream = self.filesystem.open_output_stream(target)
        with stream:
            stream.write(content)
        if renames:
            self.filesystem.move(target, full)

    def move(self, path: str, to: str) -> None:
        """Give a file another name; where nothing renames, it is copied whole before the first one goes.

        A file that is not there any more has been moved already.
        """
        if not self.exists(path):
            return
        if self.local:
            Path(self._full(path)).replace(self._place(to))
            return
        with contextlib.suppress(FileNotFoundError):  # Another process has moved it.
            self._again(f"copying {path}", lambda: self.filesystem.copy_file(self._full(path), self._full(to)))
            self.remove(path)

    def remove(self, path: str) -> None:
        """Remove a file or a folder; nothing happens when there is none."""

        def removal() -> None:
            """One try to remove it."""
            info = self.filesystem.get_file_info(self._full(path))
            with contextlib.suppress(FileNotFoundError):  # Another process, or an earlier try, has removed it.
                if info.type == pafs.FileType.Directory:
                    self.filesystem.delete_dir(info.path)
                elif info.type == pafs.FileType.File:
                    self.filesystem.delete_file(info.path)

        self._again(f"removing {path}", removal)

    def read_json(self, path: str) -> Any:
        """A JSON file's value. Raises DamagedFileError when it is no JSON, or an object other than the one written."""
        try:
            found = self.read_parsed(path, json.loads, (ValueError,))
        except DamagedFileError:  # The storage could not read it, whatever is in it.
            raise
        except ValueError as error:
            where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "its encoding, UTF-8,"
            raise DamagedFileError(f"{path} must be JSON; {where} is damaged") from error
        if isinstance(found, dict) and found.pop(SELF, None) not in (None, self_hash(found)):
            raise DamagedFileError(f"{path} must have the {SELF} that it names: it was changed or damaged")
        return found

    def write_json(self, path: str, value: object) -> None:
        """Write a value as JSON, whole or not at all; an object gets a hash of itself, which `read_json` verifies."""
        told = {**value, SELF: self_hash(value)} if isinstance(value, dict) else value
        self.write_bytes(path, (json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def _protocols(filesystem: pafs.FileSystem) -> tuple[str, ...]:
    """The names of a file system's protocol."""
    handler = getattr(filesystem, "handler", None)
    found = getattr(getattr(handler, "fs", None), "protocol", None) or filesystem.type_name
    return (found,) if isinstance(found, str) else tuple(found)


_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{8}\.tmp$")

WRITTEN_IN = 5.0  # seconds within which a file that is being written grows, or gets its name


def is_temporary(name: str) -> bool:
    """Whether a file has the name of one that is being written, or that a killed process has left."""
    return bool(_TEMPORARY.match(name))


def _temporary_files(root: Path) -> dict[Path, tuple[int, int]]:
    """Path -> (bytes, time of the last change) of every file with a temporary name."""
    found = {}
    for path in root.rglob(".*.tmp"):
        try:
            about = path.stat()
        except FileNotFoundError:  # It has its name now.
            continue
        if is_temporary(path.name):
            found[path] = (about.st_size, about.st_mtime_ns)
    return found


def remove_temporary_files(store: Files) -> int:
    """Remove the temporary files that killed processes have left in a local folder; returns how many there were.

    A file counts as left when it does not change within `WRITTEN_IN`. One that another process is writing changes or is
    renamed much sooner; were it removed all the same, that write would fail and its task would be tried again.
    """
    if not store.local:
        return 0  # An object store has no temporary names.
    first = _temporary_files(Path(store.root))
    if not first:
        return 0
    time.sleep(WRITTEN_IN)
    second = _temporary_files(Path(store.root))
    dead = [path for path, about in first.items() if second.get(path) == about]
    for path in dead:
        path.unlink(missing_ok=True)
    return len(dead)
