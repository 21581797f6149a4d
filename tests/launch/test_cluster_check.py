"""`mi-ray cluster check` knows each kind of cluster file, holds all of them to the same rules, and its exit code says so."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.cluster_files import ROOT, SHIPPED, changed, errors_of, text_of
from typer.testing import CliRunner

from mi_ray.cli import app
from mi_ray.launch.check import check_cluster_file
from mi_ray.launch.rules import Complaint, secrets_in


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_has_no_error_and_warns_of_what_must_be_filled_in_alone(name: str) -> None:
    _, complaints = check_cluster_file(ROOT / name)
    assert [complaint for complaint in complaints if "a place marked <-" not in complaint.text] == []
    marked = [n for n, line in enumerate(text_of(name).splitlines(), 1) if "# <-" in line]
    assert all(complaint.level == "warning" for complaint in complaints)
    assert {int(complaint.where.removeprefix("line ")) for complaint in complaints} <= set(marked)


SECRETS = {
    "an AWS access key": "AKIA" + "ABCDEFGHIJKLMNOP",
    "an AWS secret key": "aws_secret_access_key: " + "wJalrXUtnFEMIK7MDENGbPxRfiCYzzzzzzzzzzzz",
    "a private key": "-----BEGIN OPENSSH PRIVATE" + " KEY-----",
    "a token of GitHub's": "ghp_" + "a1B2" * 9,
    "a token of Hugging Face's": "hf_" + "abcDEF" * 6,
    "Ray's token in a command": "export RAY_AUTH_TOKEN=" + "0123abcd" * 4,
    "64 hexadecimal digits": "0123456789abcdef" * 4,
    "Redis' password": "ray start --redis-password=" + "hunter2hunter2",
    "Redis' password after a space": "ray start --redis-password " + "hunter2hunter2",
    "a password": "password: " + "hunter2hunter2",
}


@pytest.mark.parametrize(
    "prose", ["Never write the password into this file", "the password must come from the environment"]
)
def test_prose_about_a_password_is_no_secret(prose: str) -> None:
    assert list(secrets_in(f"# {prose}")) == []


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("what", SECRETS)
def test_a_secret_is_found_also_in_a_comment_and_is_not_repeated(what: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / Path(name).name
    path.write_text(f"{text_of(name)}\n# {SECRETS[what]}\n", encoding="utf-8")
    found = [line for line in errors_of(path) if "must hold no secret" in line]
    assert len(found) == 1
    secret = SECRETS[what].split()[-1].split("=")[-1]
    assert secret not in found[0]
    assert f"({secret[:4]}…)" in found[0] or what == "a private key"


@pytest.mark.skipif(shutil.which("bash") is None, reason="asks bash")
@pytest.mark.parametrize("name", ["cluster/slurm.sh", "tests/cluster/two_hosts.sh", "tests/cluster/slurm_alone.sh"])
def test_a_script_is_one_that_bash_can_read(name: str) -> None:
    assert subprocess.run(["bash", "-n", str(ROOT / name)], capture_output=True, check=False).stderr == b""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: study\nclassifiers: []\n", "is none of them"),
        ("[1, 2", "must be YAML"),
        ("- a\n- b\n", "must hold YAML mappings"),
        ("cluster_name: a\nprovider: &loop {again: *loop}\n", "must be YAML that ends"),
        ("kind: a\n---\nkind: b\n---\nkind: [\n", "must be YAML that ends; line 6: "),
        ("", "must hold YAML mappings"),
        ("!!python/object/apply:os.system [touch pwned]\n", "must be YAML"),
    ],
)
def test_what_is_no_cluster_file_is_refused_without_being_run(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_cluster_file(path)
    assert not Path("pwned").exists()


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["cluster", "check", *arguments])
    if isinstance(result.exception, ValueError):  # `main` makes it one message and exit code 2
        return 2, str(result.exception)
    return result.exit_code, result.output


def test_the_command_exits_with_0_for_warnings_1_for_errors_and_2_for_another_file(tmp_path: Path) -> None:
    code, said = run(str(ROOT / "cluster.yaml"))
    assert code == 0
    assert "0 errors, 4 warnings" in " ".join(said.split())
    code, said = run(str(changed(tmp_path, lambda d: d.pop("cluster_name"))))
    assert code == 1
    assert "cluster_name: must be a name" in said
    code, said = run(str(ROOT / "sweeps/quickstart.yaml"))
    assert code == 2
    assert "is none of them" in said


def test_a_complaint_says_its_level_and_place() -> None:
    assert str(Complaint("error", "provider", "wrong")) == "error: provider: wrong"
