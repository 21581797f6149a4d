"""Buckets on an S3 server of this machine (helpers/s3_server.py), whose requests can be made to fail."""

import json
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

import mi_ray.store.files
from mi_ray.store.blocks import Store

SECRET = "wJalrXUtnFEMIK7MDENG"


class S3:
    """The server beside the tests, with a fresh bucket."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.bucket = f"b{uuid.uuid4().hex[:12]}"
        self.client = boto3.client("s3", region_name="us-east-1", endpoint_url=self.endpoint)
        self.client.create_bucket(Bucket=self.bucket)
        self.uri = f"s3://{self.bucket}/deep/results"

    def faults(self, **rules: Any) -> None:
        """What fails from now on; nothing without rules."""
        body = json.dumps(rules).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/faults", body)).close()

    def failed(self) -> dict[str, int]:
        """How many requests failed, by kind."""
        with urllib.request.urlopen(f"{self.endpoint}/faults") as reply:
            return dict(json.load(reply))

    def objects(self) -> set[str]:
        """Every object of the bucket that is no folder's mark."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {found["Key"] for page in pages for found in page.get("Contents", []) if not found["Key"].endswith("/")}

    def put(self, store: Store) -> None:
        """Copy a local store into the place of ours."""

        def copied(path: str) -> None:
            self.client.put_object(Bucket=self.bucket, Key=f"deep/results/{path}", Body=store.read_bytes(path))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(copied, store.files("")))

    def unfinished_uploads(self) -> list[Any]:
        """Uploads in parts that were begun and neither completed nor given up."""
        return list(self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []))


def serve() -> Iterator[int]:
    """The port of a server that ends with the generator."""
    program = [sys.executable, str(Path(__file__).with_name("s3_server.py"))]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


def reaching(port: int) -> dict[str, str]:
    """The environment in which a program finds the server, with the credentials that belong there."""
    return {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def s3_of(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A bucket of a server without faults, whose address and credentials are in the environment, where they belong."""
    for name, value in reaching(port).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mi_ray.store.files, "FIRST_WAIT", 0.01)
    found = S3(port)
    yield found
    found.faults()
