"""A home folder and a current folder of each test's own, since what a cluster file names is looked for there."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with a token of mode 0600, and the project's folder as the current one."""
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text("not a token")
    (home / ".ray/auth_token").chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    project = tmp_path / "project"
    project.mkdir()
    (project / "code.py").write_bytes(b"x" * 1000)
    monkeypatch.chdir(project)
