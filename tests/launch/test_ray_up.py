"""The shipped `ray up` files hold what they promise, and `mi-ray cluster check` finds each thing that they must not become."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.cluster_files import RAY_UP, ROOT, changed, errors_of, text_of, warnings_of

from mi_ray.launch.ray_up import NODE_TYPE, TOP, sent

PIP = """
import pathlib, sys
with (pathlib.Path.home() / "asked").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "freeze":
    print("torch==2.6")
"""


@pytest.mark.skipif(shutil.which("make") is None or shutil.which("bash") is None, reason="asks make and bash")
def test_the_set_up_commands_install_on_a_fresh_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word, with a pip that fetches nothing and an environment that is made without one."""
    home, python, pip = tmp_path / "home", tmp_path / "python", tmp_path / "modules/pip/__main__.py"
    (home / "mi-ray").mkdir()
    for file in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / file, home / "mi-ray")
    pip.parent.mkdir(parents=True)
    pip.write_text(PIP, encoding="utf-8")
    python.write_text('#!/bin/sh\nexec python3 "$@" --without-pip\n', encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("MAKEFLAGS", f"PYTHON={python}")
    document, other = (yaml.safe_load(text_of(name)) for name in RAY_UP)
    for key in ("setup_commands", "head_setup_commands"):
        assert document[key] == other[key]

    def set_up(commands: list[str]) -> None:
        for command in commands:
            done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (command, done.stdout, done.stderr)

    set_up([*document["setup_commands"], *document["head_setup_commands"]] * 2)  # `ray up` runs them again
    assert (home / ".mi_ray_env/bin/python").exists()
    assert (home / "mi-ray/.venv/installed-cluster").exists()
    assert (home / "mi-ray/constraints.txt").read_text() == "torch==2.6\n"
    assert (home / ".bashrc").read_text().count("RAY_AUTH_MODE=token") == 1
    asked = (home / "asked").read_text().splitlines()
    assert sum("install" in line and "[cluster]" in line for line in asked) == 1
    assert not any("constraint" in line for line in asked)
    shutil.rmtree(home / ".mi_ray_env")  # A worker is set up after the head, and gets the head's versions.
    set_up(document["setup_commands"])
    own = (home / "asked").read_text().splitlines()[len(asked) :]
    assert own
    assert all("--constraint=constraints.txt" in line for line in own)


@pytest.mark.parametrize("name", RAY_UP)
def test_a_shipped_file_passes_rays_own_validation(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load(text_of(name)))
    validate_config(prepared)
    assert prepared["head_start_ray_commands"][1].endswith("--autoscaling-config=~/ray_bootstrap_config.yaml")


def test_the_known_keys_are_those_of_rays_own_schema() -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    assert set(TOP) == set(schema["properties"]) - {"no_restart"}  # which Ray says no user may set
    assert set(NODE_TYPE) == set(schema["properties"]["available_node_types"]["patternProperties"][".*"]["properties"])


def test_a_group_that_ray_makes_is_open_to_the_world_whatever_the_file_permits() -> None:
    """The reason for one of the checker's rules, read from Ray itself: should Ray mend this, the rule can go."""
    pytest.importorskip("boto3", reason="Ray's rules for AWS need the extra [cluster]")
    from ray.autoscaler._private.aws.config import _create_default_inbound_rules

    own = [{"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "198.51.100.7/32"}]}]
    assert "0.0.0.0/0" in json.dumps(_create_default_inbound_rules({"sg-1"}, own))


@pytest.mark.long  # That Ray does what the rules of launch/ say of it.
@pytest.mark.filterwarnings("ignore")
def test_ray_launches_the_file_on_a_mock_of_aws_and_opens_and_grants_nothing_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's own bootstrap and its calls to EC2, with boto3's validation of every parameter, against moto."""
    boto3 = pytest.importorskip("boto3", reason="Ray on AWS needs the extra [cluster]")
    moto = pytest.importorskip("moto", reason="stands in for AWS")
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler._private.util import prepare_config

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        from ray.autoscaler._private.aws.config import bootstrap_aws

        ec2, iam = boto3.client("ec2"), boto3.client("iam")
        network = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        group = ec2.create_security_group(GroupName="mi-ray", Description="nodes", VpcId=network)["GroupId"]
        ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "198.51.100.7/32"}]}
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh])
        for name in ("mi-ray-head", "mi-ray-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        document = yaml.safe_load(text_of("cluster.yaml"))
        for each in document["available_node_types"].values():
            each["node_config"]["SecurityGroupIds"] = [group]
        config = bootstrap_aws(prepare_config(document))
        provider = _get_node_provider(config["provider"], config["cluster_name"])
        for name, each in config["available_node_types"].items():
            provider.create_node(each["node_config"], {"ray-node-type": name}, 1)
        launched = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
        assert {(i["InstanceType"], i.get("InstanceLifecycle")) for i in launched} == {
            ("m6i.xlarge", None),
            ("g5.2xlarge", "spot"),
        }
        assert all([g["GroupId"] for g in i["SecurityGroups"]] == [group] for i in launched)
        assert all(i["MetadataOptions"]["HttpTokens"] == "required" for i in launched)
        groups = ec2.describe_security_groups()["SecurityGroups"]
        assert "0.0.0.0/0" not in json.dumps([g["IpPermissions"] for g in groups])
        assert iam.list_roles()["Roles"] == []


def node(document: dict[str, Any], name: str = "gpu") -> dict[str, Any]:
    return document["available_node_types"][name]["node_config"]


HEAD, WORKER = "head_start_ray_commands", "worker_start_ray_commands"


def in_command(key: str, old: str, new: str) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        assert any(old in command for command in document[key])
        document[key] = [command.replace(old, new) for command in document[key]]

    return change


REFUSED = {
    "a provider key with a typo": (
        lambda d: d["provider"].update(use_internal_ip=True),
        "unknown key 'use_internal_ip' (did you mean 'use_internal_ips'?)",
    ),
    "a top-level key with a typo": (
        lambda d: d.update(file_mount={}),
        "unknown key 'file_mount' (did you mean 'file_mounts'?)",
    ),
    "a node type's key with a typo": (
        lambda d: d["available_node_types"]["gpu"].update(max_worker=1),
        "unknown key 'max_worker' (did you mean 'max_workers'?)",
    ),
    "the min_workers that only the local provider reads": (
        lambda d: d.update(min_workers=1),
        "unknown key 'min_workers'",
    ),
    "no name": (lambda d: d.pop("cluster_name"), "cluster_name: must be a name"),
    "a name that leaves its folder": (lambda d: d.update(cluster_name="../../etc/x"), "got '../../etc/x'"),
    "IPv4 open to the world": (
        lambda d: d["provider"].update(security_group={"IpPermissions": [{"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]}),
        "nothing may be open to the world; got 0.0.0.0/0",
    ),
    "IPv6 open to the world": (
        lambda d: d["provider"].update(security_group={"IpPermissions": [{"Ipv6Ranges": [{"CidrIpv6": "::/0"}]}]}),
        "nothing may be open to the world; got ::/0",
    ),
    "a public IPv6 network of more than one owner": (
        lambda d: d["provider"].update(
            security_group={"IpPermissions": [{"Ipv6Ranges": [{"CidrIpv6": "2600:1f18::/47"}]}]}
        ),
        "nothing may be open to the world; got 2600:1f18::/47",
    ),
    "half of the world": (
        lambda d: d["provider"].update(security_group={"IpPermissions": [{"IpRanges": [{"CidrIp": "128.0.0.0/1"}]}]}),
        "nothing may be open to the world; got 128.0.0.0/1",
    ),
    "sixteen million public addresses": (
        lambda d: d["provider"].update(security_group={"IpPermissions": [{"IpRanges": [{"CidrIp": "8.0.0.0/8"}]}]}),
        "nothing may be open to the world; got 8.0.0.0/8",
    ),
    "a dashboard on all interfaces by the last of two options": (
        in_command(HEAD, "--dashboard-host=127.0.0.1", "--dashboard-host=127.0.0.1 --dashboard-host=0.0.0.0"),
        "got 0.0.0.0",
    ),
    "authentication taken back by an empty value": (
        in_command(HEAD, "RAY_AUTH_MODE=token;", "RAY_AUTH_MODE=token; RAY_AUTH_MODE= ;"),
        "got no RAY_AUTH_MODE",
    ),
    "authentication unset again": (
        in_command(WORKER, "RAY_AUTH_MODE=token;", "RAY_AUTH_MODE=token; unset X RAY_AUTH_MODE;"),
        "got no RAY_AUTH_MODE",
    ),
    "Ray started by a set-up command": (
        lambda d: d["setup_commands"].append("ray start --head --dashboard-host=0.0.0.0"),
        "setup_commands[3]: the dashboard runs jobs for whoever reaches it",
    ),
    "Ray started by a node type's command": (
        lambda d: d["available_node_types"]["gpu"].update(worker_setup_commands=["ray start --head"]),
        "available_node_types.gpu.worker_setup_commands[0]: `ray start` must run with RAY_AUTH_MODE=token",
    ),
    "a container's port published": (
        lambda d: d.update(docker={"image": "x", "container_name": "x", "run_options": ["-p 0.0.0.0:8265:8265"]}),
        "docker.run_options[0]: a container must publish no port",
    ),
    "a node's configuration that is no mapping": (
        lambda d: d["available_node_types"]["gpu"].update(node_config=[1]),
        "available_node_types.gpu.node_config: must be a mapping; got [1]",
    ),
    "metadata options that are no mapping": (
        lambda d: node(d).update(MetadataOptions=True),
        "MetadataOptions: must be a mapping; got True",
    ),
    "a security group left to Ray": (
        lambda d: node(d).pop("SecurityGroupIds"),
        "SecurityGroupIds must name a group of yours",
    ),
    "an image left to Ray": (lambda d: node(d).update(ImageId="latest_dlami"), "ImageId must name an image"),
    "a role left to Ray": (lambda d: node(d, "head").pop("IamInstanceProfile"), "with all rights to EC2 and S3"),
    "a role that a forged request can read": (
        lambda d: node(d).update(MetadataOptions={"HttpTokens": "optional"}),
        "MetadataOptions.HttpTokens must be `required`",
    ),
    "a dashboard on all interfaces": (
        in_command(HEAD, "--dashboard-host=127.0.0.1", "--dashboard-host 0.0.0.0"),
        "--dashboard-host must be 127.0.0.1",
    ),
    "a dashboard on the private address": (
        in_command(HEAD, "--dashboard-host=127.0.0.1", "--dashboard-host=10.0.0.4"),
        "got 10.0.0.4",
    ),
    "Ray Client's server on all interfaces": (
        lambda d: d[HEAD].append("python -m ray.util.client.server --host=0.0.0.0 --port=10001"),
        "got --host 0.0.0.0",
    ),
    "Ray Client's server where its default puts it": (
        lambda d: d[HEAD].append("python -m ray.util.client.server --port=10001"),
        "which means all interfaces",
    ),
    "a head without authentication": (in_command(HEAD, "export RAY_AUTH_MODE=token; ", ""), "got no RAY_AUTH_MODE"),
    "a worker with authentication off": (
        in_command(WORKER, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
        "got disabled",
    ),
    "start commands left to Ray": (lambda d: d.pop(HEAD), "must start Ray"),
    "no token for the workers": (
        lambda d: d["file_mounts"].pop("~/.ray/auth_token"),
        "must bring Ray's token to the nodes",
    ),
    "a folder that is not there": (lambda d: d["file_mounts"].update({"~/x": "no/such"}), "there is no"),
    "more workers at least than at most": (
        lambda d: d["available_node_types"]["gpu"].update(min_workers=9),
        "min_workers must not exceed max_workers; got 9 and 8",
    ),
    "more workers needed than allowed": (
        lambda d: (d["available_node_types"]["gpu"].update(min_workers=8), d.update(max_workers=2)),
        "at least the sum of min_workers, 8",
    ),
    "no workers at all": (
        lambda d: d["available_node_types"]["gpu"].update(max_workers=0),
        "at least one worker must be possible",
    ),
    "a number of workers that is none": (lambda d: d.update(max_workers="many"), "must be a whole number"),
    "a provider that is no mapping": (lambda d: d.update(provider="aws"), "provider: must be a mapping; got 'aws'"),
    "a node type that is no mapping": (
        lambda d: d["available_node_types"].update(gpu=None),
        "must be a mapping; got None",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_ray_up_file_is_refused_with(what: str, tmp_path: Path) -> None:
    change, message = REFUSED[what]
    found = errors_of(changed(tmp_path, change))
    assert [line for line in found if message in line], found


ON_PREMISE = {
    "more workers than machines": (
        lambda d: d.update(max_workers=2),
        "the number of worker_ips must hold; got 1, 2 and 1",
    ),
    "the head among the workers": (lambda d: d["provider"].update(worker_ips=["192.0.2.10"]), "and none the head's"),
    "a key of another provider": (lambda d: d["provider"].update(region="us-east-1"), "unknown key 'region'"),
}


@pytest.mark.parametrize("what", ON_PREMISE)
def test_an_on_premise_file_is_refused_with(what: str, tmp_path: Path) -> None:
    change, message = ON_PREMISE[what]
    found = errors_of(changed(tmp_path, change, "cluster/on_premise.yaml"))
    assert [line for line in found if message in line], found


def test_a_token_taken_from_the_environment_is_no_secret(tmp_path: Path) -> None:
    change = in_command(WORKER, "export ", "export RAY_AUTH_TOKEN=$(cat ~/.ray/auth_token) ")
    assert errors_of(changed(tmp_path, change)) == []


def test_a_token_that_others_can_read_is_refused_and_one_not_made_yet_is_told() -> None:
    token = Path.home() / ".ray/auth_token"
    token.chmod(0o644)
    found = errors_of(ROOT / "cluster.yaml")
    assert len(found) == 1
    assert f"got 0644. Remedy: chmod 600 {token}" in found[0]
    token.unlink()
    assert [line for line in warnings_of(ROOT / "cluster.yaml") if "must be there before `ray up`" in line]


def test_a_head_that_leaves_ray_client_open_is_warned_of(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda d: d[HEAD].pop())
    assert [line for line in warnings_of(path) if "Ray Client listens" in line]


def test_a_folder_is_measured_after_what_is_excluded(tmp_path: Path) -> None:
    Path("data").mkdir()
    Path("data/images.bin").write_bytes(b"x" * 3_000_000)
    assert errors_of(ROOT / "cluster.yaml", limit=1.0) == []
    Path("cache").mkdir()
    Path("cache/large.bin").write_bytes(b"x" * 3_000_000)
    found = errors_of(ROOT / "cluster.yaml", limit=1.0)
    assert len(found) == 1
    assert re.search(r"all mounts have 3 MB, of it \S*/cache 3 MB", found[0])
    assert errors_of(ROOT / "cluster.yaml", limit=4.0) == []


def test_a_mounted_file_is_measured_too(tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(b"x" * 3_000_000)
    path = changed(tmp_path, lambda d: d["file_mounts"].update({"~/large.bin": str(tmp_path / "large.bin")}))
    assert [line for line in errors_of(path, limit=1.0) if re.search(r"have 3 MB, of it \S*/large.bin 3 MB", line)]
    assert errors_of(path, limit=4.0) == []


def test_mounts_are_measured_together(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.bin").write_bytes(b"x" * 700_000)
    both = {f"~/{name}": str(tmp_path / name) for name in ("one", "two")}
    path = changed(tmp_path, lambda d: d.update(file_mounts={**d["file_mounts"], **both}, rsync_filter=[".gitignore"]))
    (found,) = [line for line in errors_of(path, limit=1.0) if "must be below 1 MB" in line]
    assert "after rsync_exclude (rsync_filter is not read here); all mounts have 1 MB" in found


def test_the_largest_of_what_is_sent_are_named_first(tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    for name, size in (("a", 1), ("b", 3), ("c", 2), ("d", 4)):
        (tmp_path / "sent" / name).write_bytes(b"x" * size * 1_000_000)
    path = changed(tmp_path, lambda d: d["file_mounts"].update({"~/sent": str(tmp_path / "sent")}))
    (found,) = [line for line in errors_of(path, limit=1.0) if "must be below 1 MB" in line]
    assert re.findall(r"/sent/(\w) (\d) MB", found) == [("d", "4"), ("b", "3"), ("c", "2")]


def test_a_pattern_of_any_number_of_folders_means_none_too(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in (".git/o", "sub/.git/o", "sub/a.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"x" * 10)
    assert sent(tree, ["**/.git"]) == {".git": 0, "sub": 10}
    assert sent(tree, ["/**/.git/**"]) == {".git": 0, "sub": 10}


@pytest.mark.skipif(shutil.which("rsync") is None, reason="compares with rsync")
def test_what_is_measured_is_what_rsync_sends(tmp_path: Path) -> None:
    source = tmp_path / "source"
    names = [
        "a.py",
        ".venv/lib/x",
        "results/r",
        "results-old/r",
        "sub/results/r",
        "data/d",
        "sub/data/d",
        ".git/o",
        "sub/.git/o",
        "m/__pycache__/c.pyc",
        ".mypy_cache/m",
        "key.pem",
        "sub/key.pem",
        "keys/k.key.txt",
        ".env",
        "x.env",
        "deep/data/e/f",
    ]
    for size, name in enumerate(names, 100):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"x" * size)
    for exclude in (
        yaml.safe_load(text_of("cluster.yaml"))["rsync_exclude"],
        ["data/", "*.pem", "deep/data/e"],
        ["data/**", "/sub"],
        ["**/.git", "**/data/**"],
        [],
    ):
        options = [f"--exclude={pattern}" for pattern in exclude]
        command = ["rsync", "-a", "--dry-run", "--out-format=%l %n", *options, f"{source}/", str(tmp_path / "target")]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        expected = sum(int(line.split()[0]) for line in listed if not line.endswith("/"))
        assert sum(sent(source, exclude).values()) == expected, exclude
