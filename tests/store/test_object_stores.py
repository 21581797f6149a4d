"""Stores behind URIs: the rows of a local one, whatever an S3 server does to single requests; nothing lost, nothing
doubled, no credentials in any file, and a lasting fault told once."""

import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from helpers.buckets import S3, SECRET
from helpers.commands import TINY as STUDY
from helpers.commands import assert_same_rows, command, sorted_rows
from helpers.commands import rows as rows_of
from helpers.studies import ONE_GRID, TINY, Tiny, finish, problems_in, tiny
from helpers.sweeps import document

import mi_ray.cli
import mi_ray.store.files
from mi_ray.run import plan_sweep, run_sweep
from mi_ray.store.blocks import PUBLISHED, Store
from mi_ray.store.compact import compact
from mi_ray.store.files import (
    DamagedFileError,
    Files,
    StorageError,
    beside,
    refuse_credentials,
    refuse_whole_bucket,
    scratch_of,
)
from mi_ray.store.manifest import overviews, unreferenced
from mi_ray.store.read import read_records
from mi_ray.store.schemas import TRAINING


def rows(place: Any) -> list[tuple[Any, ...]]:
    return sorted_rows(read_records(place, "tiny"))


# Each of these studies asks the server for every one of its files several times.
SMALL: dict[str, Any] = {
    **ONE_GRID,
    "points": {"count": 40, "selection": 20},
    "attacks": [{"pgd": {"steps": [1, 3], "step_size": 0.05}, "epsilon": 0.1}],
    "executions": 1,
    "draws": 1,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A finished study on the disk; read only."""
    one = tiny(tmp_path_factory.mktemp("small") / "results", **SMALL)
    finish(one)
    return one


@pytest.mark.long  # That a request is made again is held below.
def test_a_study_under_passing_faults_has_the_rows_of_a_local_one_and_every_file_once(s3: S3, small: Tiny) -> None:
    one = tiny(s3.uri, **SMALL)
    s3.faults(share=0.08, seed=1)
    finish(one)
    found = rows(s3.uri)
    failed = s3.failed()
    s3.faults()
    assert set(failed) == {"500", "503", "reset", "lost reply"}
    assert sum(failed.values()) > 20
    assert found == rows(small.store)
    expected = {f"deep/results/{path}" for path in small.store.files("")}
    assert s3.objects() == expected
    assert s3.unfinished_uploads() == []
    assert problems_in(Store(s3.uri)) == []


def test_a_server_that_does_not_answer_is_asked_again(s3: S3) -> None:
    store = Store(s3.uri, create=True)
    s3.faults(share=1.0, kinds=["stall"], most=1)
    store.write_bytes("a/b", b"content")
    assert store.read_bytes("a/b") == b"content"
    assert s3.failed() == {"stall": 1}


def failing(*errors: BaseException | None) -> tuple[Callable[[], str], list[int]]:
    """A request that raises these errors in turn (None: answers), and the list of its calls."""
    calls: list[int] = []

    def request() -> str:
        calls.append(len(calls))
        error = errors[min(len(calls), len(errors)) - 1]
        if error is not None:
            raise error
        return "answer"

    return request, calls


def test_a_request_is_made_again_until_it_is_answered_or_asking_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mi_ray.store.files, "FIRST_WAIT", 0.001)
    passing, lasting = OSError("AWS Error NETWORK_CONNECTION"), OSError("AWS Error ACCESS_DENIED during PutObject")
    request, calls = failing(passing, TimeoutError("slow"), None)
    assert (mi_ray.store.files.again("reading", request), len(calls)) == ("answer", 3)
    for errors, made, words in (
        ([passing], 4, "reading failed, tried 4 times: .*NETWORK"),
        ([lasting], 1, "reading failed: "),
        ([PermissionError("no")], 1, "reading failed: no"),
    ):
        request, calls = failing(*errors)
        with pytest.raises(StorageError, match=words):
            mi_ray.store.files.again("reading", request)
        assert len(calls) == made
    request, calls = failing(FileNotFoundError("gone"))
    with pytest.raises(FileNotFoundError):
        mi_ray.store.files.again("reading", request)
    assert len(calls) == 1


def test_a_lasting_fault_is_told_once_and_damages_nothing(s3: S3, small: Tiny, run: Any) -> None:
    s3.put(small.store)
    one = tiny(s3.uri, **SMALL)
    work = one.plan.attacks[0]
    one.store.remove(f"adversarial/{work.key}")
    one.bench.compute(work, 0, 20)
    before = s3.objects()
    s3.faults(share=1.0, kinds=["403"], path="adversarial")
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        one.bench.results.missing(work, 20)
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        one.bench.compute(work, 20, 40)
    code, _, err = run("check", s3.uri)
    assert (code, len(err.strip().splitlines())) == (1, 1), err
    assert "error: reading or writing must be possible and have room" in err
    s3.faults()
    assert s3.objects() == before  # what could not be read was not taken for damaged
    finish(one)
    assert rows(s3.uri) == rows(small.store)
    assert run("check", s3.uri)[0] == 0


def test_every_verb_that_looks_at_a_store_looks_at_one_on_s3(s3: S3, small: Tiny, run: Any, tmp_path: Path) -> None:
    s3.put(small.store)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(document(**{**TINY, **SMALL})))
    before = rows(s3.uri)
    assert "complete" in run("status", s3.uri)[1]
    assert "complete" in run("status", s3.uri, "--watch")[1]
    assert run("check", s3.uri)[:1] == (0,)
    client_file = "deep/results/outputs/orphan/points-00000-00020.parquet"
    s3.client.put_object(Bucket=s3.bucket, Key=client_file, Body=b"12345")
    assert "outputs/orphan  5 bytes" in run("gc", s3.uri, "--yes")[1]
    assert client_file not in s3.objects()
    code, out, err = run("compact", s3.uri)
    assert (code, err) == (0, "")
    assert {key.split("/")[3] for key in s3.objects() if key.startswith("deep/results/records/")} == {"compacted"}
    assert rows(s3.uri) == before
    assert run("check", s3.uri)[0] == 0
    code, out, _ = run("sweep", "sweep.yaml", "--out", s3.uri)
    assert (code, "finished already" in out) == (0, True)


@pytest.mark.long  # Its two parts are held apart: that faults pass above, and a compaction's steps in test_compact.py.
def test_a_compaction_under_passing_faults_keeps_every_row_once(s3: S3, original: Tiny, run: Any) -> None:
    s3.put(original.store)
    store = Store(s3.uri)
    s3.faults(share=0.1, seed=2)
    compact(store)
    assert sum(s3.failed().values()) > 3
    s3.faults()
    assert rows(s3.uri) == rows(original.store)
    assert {path.rpartition("/")[0] for path in store.files("records")} == {PUBLISHED}
    assert problems_in(Store(s3.uri)) == []


@pytest.mark.long  # A study twice: that of many commands one at a time holds a lease is held by test_leases.py.
def test_two_runs_at_once_into_one_bucket_end_with_the_same_rows_and_no_damage(s3: S3, original: Tiny) -> None:
    both = [tiny(s3.uri, **ONE_GRID) for _ in range(2)]
    errors: list[BaseException] = []

    def work(one: Tiny) -> None:
        try:
            finish(one)
        except BaseException as error:  # told to the test below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(one,)) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert rows(s3.uri) == rows(original.store)
    assert problems_in(Store(s3.uri)) == []
    assert s3.objects() == {f"deep/results/{path}" for path in original.store.files("")}
    assert unreferenced(Store(s3.uri)) == []


@pytest.mark.parametrize("path", ["about.json", "rows.parquet"])
def test_an_object_that_is_replaced_while_it_is_read_is_read_again_and_a_damaged_one_stays_damaged(
    s3: S3, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    store = Store(s3.uri, create=True)
    epoch = pa.Table.from_pylist([{"epoch": 0, "lr": 0.1, "loss": 1.0, "images": 100}], schema=TRAINING)
    store.write_json("about.json", {"name": "a"})
    store.write_table("rows.parquet", epoch)

    def read() -> Any:
        return store.read_json(path) if path == "about.json" else store.read_table(path, TRAINING).to_pylist()

    whole, expected = store.read_bytes, read()
    cut = iter([15])
    monkeypatch.setattr(store, "read_bytes", lambda of: whole(of)[: next(cut, None)])
    assert read() == expected
    monkeypatch.setattr(store, "read_bytes", lambda of: whole(of)[:15])
    with pytest.raises(DamagedFileError, match=path):
        read()


def test_no_file_and_no_message_holds_the_credentials(s3: S3, run: Any) -> None:
    finish(tiny(s3.uri, **{**SMALL, "points": {"count": 20}}))
    said = [text for verb in ("status", "check", "gc") for text in run(verb, s3.uri)[1:]]
    s3.faults(share=1.0, kinds=["403"])
    said += run("status", s3.uri)[1:]
    s3.faults()
    for key in s3.objects():
        body = s3.client.get_object(Bucket=s3.bucket, Key=key)["Body"].read()
        assert SECRET.encode() not in body
        assert b"AKIDEXAMPLE" not in body, key
    assert not any(SECRET in text or "AKIDEXAMPLE" in text for text in said)


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIDEXAMPLE:{SECRET}@bucket/x",
        f"s3://{SECRET}@bucket/x",
        f"s3://bucket/x?access_key=A&secret_key={SECRET}",
        f"s3://bucket/x?region=us-east-1&session_token={SECRET}",
        f"sftp://user:{SECRET}@host/x",
        f"abfs://container@account/x?sas={SECRET}",
        f"gs://bucket/x?X-Goog-Signature=a&sig={SECRET}",
    ],
)
def test_a_uri_with_credentials_is_refused_without_repeating_them(run: Any, uri: str) -> None:
    code, out, err = run("status", uri)
    assert (code, out) == (2, "")
    assert "a URI must not carry credentials" in err
    assert "by the environment" in err
    assert SECRET not in err
    with pytest.raises(ValueError, match="must not carry credentials"):
        refuse_credentials(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/x?region=us-east-1",
        "gs://anonymous@bucket/x",
        "abfs://container@account/x",
        "sftp://me@host/x",
        "s3://bucket/monkey?scheme=http",
    ],
)
def test_a_uri_without_credentials_is_not_refused(uri: str) -> None:
    refuse_credentials(uri)


def test_a_bucket_that_is_not_there_and_a_forbidden_one_are_bad_options(s3: S3, run: Any) -> None:
    code, _, err = run("status", "s3://no-such-bucket-of-ours/x")
    assert (code, "s3://no-such-bucket-of-ours/x is not there" in err) == (2, True)
    with pytest.raises(ValueError, match=r"a store must be readable and writable.*NO_SUCH_BUCKET"):
        Store("s3://no-such-bucket-of-ours/x", create=True)
    s3.faults(share=1.0, kinds=["403"])
    assert run("status", s3.uri)[0] == 2


def test_the_scratch_folder_lies_beside_the_store_and_keeps_its_query(s3: S3, tmp_path: Path) -> None:
    assert beside("s3://b/results?region=x&scheme=http", "-scratch") == "s3://b/results-scratch?region=x&scheme=http"
    host = s3.endpoint.removeprefix("http://")
    store = Store(f"{s3.uri}?endpoint_override={host}&scheme=http&region=us-east-1", create=True)
    scratch = Files(scratch_of(store))
    scratch.write_bytes("key/state", b"x")
    assert "deep/results-scratch/key/state" in s3.objects()
    assert scratch_of(Files(tmp_path / "results")) == f"{tmp_path}/results-scratch"
    assert scratch_of(Files("memory://a/b")) == "fsspec+memory://a/b-scratch"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://lab",
        "s3://lab/",
        "s3://lab/?region=us-east-1",
        "gs://lab",
        "fsspec+s3://lab//",
        "abfs://container@account.dfs.core.windows.net/",
        "abfss://account.blob.core.windows.net/container",
    ],
)
def test_a_whole_bucket_is_no_store(uri: str, small: Tiny) -> None:
    told = rf"a store must be in a folder of a bucket, such as \w+://bucket/results.*; got {re.escape(uri)}$"
    with pytest.raises(ValueError, match=told):
        Store(uri, create=True)
    with pytest.raises(ValueError, match=told):
        run_sweep(small.study.sweep.document(), uri, progress=False)
    with pytest.raises(ValueError, match=told):
        plan_sweep(small.study.sweep.document(), uri)


def test_a_folder_in_a_bucket_is_one_and_what_lies_in_a_whole_bucket_is_read(s3: S3) -> None:
    for uri in (
        "s3://b/x",
        "abfs://c@a.dfs.core.windows.net/x",
        "abfs://a.dfs.core.windows.net/c/x",
        "results",
        "s3://",
    ):
        refuse_whole_bucket(uri)
    with pytest.raises(ValueError, match="must not carry credentials") as refused:
        refuse_whole_bucket(f"s3://key:{SECRET}@bucket")
    assert SECRET not in str(refused.value)
    s3.client.put_object(Bucket=s3.bucket, Key="mi-ray-store.json", Body=b'{"format": 1}')
    assert Store(f"s3://{s3.bucket}").exists("mi-ray-store.json")


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (
            "file:/tmp/x",
            "must have :// after its scheme, .*; got file:/tmp/x. A folder of this name is written ./file:/tmp/x",
        ),
        ("s3:/bucket/x", "must have :// after its scheme"),
        ("s3:bucket/x", "must have :// after its scheme"),
        ("fsspec+s3:bucket/x", "must have :// after its scheme"),
        (Path("s3://bucket/x"), "must have :// after its scheme"),
        (
            "file:///tmp/h#x",
            "must have no fragment, which begins at a #; got file:///tmp/h#x. A # in a name is written %23",
        ),
        ("s3://bucket/x?region=us-east-1#", "must have no fragment"),
    ],
)
def test_a_place_that_would_be_another_one_than_it_seems_to_be_is_refused(
    place: Any, told: str, small: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = small.study.sweep.document()
    for opened in (
        Store,
        lambda place: run_sweep(sweep, place, progress=False),
        lambda place: plan_sweep(sweep, place),
    ):
        with pytest.raises(ValueError, match=told):
            opened(place)
    assert not list(tmp_path.iterdir())


def test_a_folder_may_have_a_name_of_any_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("r?q", "h#x", "./file:/x", "12:30", "a%20b"):
        store = Store(name, create=True)
        assert Store(store.address).root == str(tmp_path / name)
        Files(scratch_of(store)).write_bytes("key", b"x")
        assert (tmp_path / f"{name}-scratch/key").exists()
    assert Store(f"file://{tmp_path}/h%23x").root == str(tmp_path / "h#x")


def test_what_pyarrow_does_not_know_goes_through_fsspec(small: Tiny) -> None:
    uri = f"memory://{uuid.uuid4().hex}/results"
    finish(tiny(uri, **SMALL))
    assert rows(uri) == rows(small.store)
    assert problems_in(Store(uri)) == []
    assert [state[:2] for state in overviews(Store(uri))] == [("tiny", "complete")]
    compact(Store(uri))
    assert rows(uri) == rows(small.store)
    with pytest.raises(ValueError, match="must be behind a protocol that is installed"):
        Store("dropbox://x/y")


def test_a_remote_file_system_that_renames_never_shows_half_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    class Sftp(LocalFileSystem):
        protocol = "sftp"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return str(path).removeprefix("sftp://")

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "sftp", Sftp)
    store = Store(f"sftp://{tmp_path}/results", create=True)
    opened: list[str] = []
    inner = Sftp.open

    def noted(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode:
            opened.append(Path(path).name)
        return inner(self, path, mode, **options)

    moved = list[tuple[str, str]]()
    rename = Sftp.mv

    def noted_move(self: Any, source: str, target: str, **options: Any) -> Any:
        moved.append((Path(source).name, Path(target).name))
        return rename(self, source, target, **options)

    monkeypatch.setattr(Sftp, "open", noted)
    monkeypatch.setattr(Sftp, "mv", noted_move)
    monkeypatch.setattr(Sftp, "cp_file", lambda *_, **__: pytest.fail("a copy is seen while it is made"))
    store.write_bytes("a/b.json", b"1")
    assert moved == [(opened[0], "b.json")]
    assert len(set(opened)) == 1
    assert opened[0].startswith(".b.json.")
    assert (tmp_path / "results" / "a" / "b.json").read_bytes() == b"1"
    assert [path.name for path in (tmp_path / "results" / "a").iterdir()] == ["b.json"]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(560)
def test_a_study_trained_attacked_and_swept_on_s3_has_the_rows_of_a_local_one(
    s3: S3, undisturbed: Path, tmp_path: Path, run: Any
) -> None:
    program = [*command(tmp_path, STUDY)[:-1], s3.uri]
    s3.faults(share=0.01, seed=3)
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(s3.failed().values()) > 5
    s3.faults()
    found = read_records(s3.uri, "tiny").sort_values(["cell", "point"]).reset_index(drop=True)
    assert_same_rows(found, rows_of(undisturbed))
    assert run("check", s3.uri)[0] == 0
    keys = {key.removeprefix("deep/") for key in s3.objects()}
    assert keys == {
        str(path.relative_to(undisturbed)) for path in (undisturbed / "results").rglob("*.*") if path.is_file()
    }
    assert SECRET not in done.stdout + done.stderr
